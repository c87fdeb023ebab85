/** What an app hands in becomes a named array of the wire, checked and in memory of its own. */

import { readFile, stat } from 'node:fs/promises';
import { SidecarError } from './errors.js';
import type { NamedArray } from './protocol.js';

/** An image file to read: PNG, JPEG or WebP. */
export interface PathInput {
  readonly path: string;
}

/** The bytes of a PNG, JPEG or WebP file. */
export interface ImageInput {
  readonly image: Uint8Array;
}

/** Raw pixels, three bytes each, row by row from the top. See `rgbFromRgba` and `rgbFromBgra`. */
export interface RgbInput {
  readonly rgb: Uint8Array | Uint8ClampedArray;
  readonly width: number;
  readonly height: number;
}

/** Images that were normalised already, as the model's manifest says: `[n, 3, height, width]`. */
export interface PixelInput {
  readonly pixelValues: Float32Array;
  readonly shape: readonly number[];
}

/** What can be encoded: a file, its bytes, raw pixels, or a tensor. */
export type Input = PathInput | ImageInput | RgbInput | PixelInput;

/**
 * Reads or copies `input`, so that the caller may change its memory at once (ZeroMQ reads ours later).
 * Reading a file stops when `signal` is aborted. Throws `request.malformed`, `request.too_large`,
 * `tensor.shape` or `image.unreadable`.
 */
export async function prepare(
  input: Input,
  maxBytes: number,
  signal?: AbortSignal,
): Promise<NamedArray> {
  return isPath(input) ? fromFile(input.path, maxBytes, signal) : fromMemory(input, maxBytes);
}

/** Three bytes per pixel out of RGBA, as canvas `getImageData` gives. Alpha is blended onto white. */
export function rgbFromRgba(
  rgba: Uint8Array | Uint8ClampedArray,
  width: number,
  height: number,
): RgbInput {
  return onWhite(rgba, width, height, 0, 2, (colour, alpha) => Math.round((colour * alpha) / 255));
}

/**
 * Three bytes per pixel out of BGRA, as `nativeImage.toBitmap()` gives on every desktop system: its
 * colours are multiplied by alpha already. What is transparent lies on white.
 */
export function rgbFromBgra(
  bgra: Uint8Array | Uint8ClampedArray,
  width: number,
  height: number,
): RgbInput {
  return onWhite(bgra, width, height, 2, 0, (colour, alpha) => Math.min(colour, alpha));
}

function onWhite(
  source: Uint8Array | Uint8ClampedArray,
  width: number,
  height: number,
  red: number,
  blue: number,
  weigh: (colour: number, alpha: number) => number,
): RgbInput {
  checkSize(source, width, height, 4);
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < source.length; from += 4, to += 3) {
    const alpha = source[from + 3] as number;
    rgb[to] = weigh(source[from + red] as number, alpha) + 255 - alpha;
    rgb[to + 1] = weigh(source[from + 1] as number, alpha) + 255 - alpha;
    rgb[to + 2] = weigh(source[from + blue] as number, alpha) + 255 - alpha;
  }
  return { rgb, width, height };
}

function fromMemory(input: Exclude<Input, PathInput>, maxBytes: number): NamedArray {
  const array = describe(input);
  checkBytes(array.data.byteLength, maxBytes);
  return { ...array, data: array.data.slice() };
}

function describe(input: Exclude<Input, PathInput>): NamedArray {
  if (typeof input !== 'object' || input === null) throw unknown();
  if ('image' in input && isBytes(input.image)) {
    return {
      name: 'image',
      datatype: 'UINT8',
      shape: [input.image.length],
      data: bytesOf(input.image),
    };
  }
  if ('rgb' in input && isBytes(input.rgb)) {
    const { rgb, width, height } = input;
    checkSize(rgb, width, height, 3);
    return { name: 'rgb', datatype: 'UINT8', shape: [height, width, 3], data: bytesOf(rgb) };
  }
  if ('pixelValues' in input && input.pixelValues instanceof Float32Array) {
    const { pixelValues, shape } = input;
    checkShape(pixelValues, shape);
    return {
      name: 'pixel_values',
      datatype: 'FP32',
      shape: [...shape],
      data: bytesOf(pixelValues),
    };
  }
  throw unknown();
}

// The file system's own errors tell the path, which may name a patient: they go no further than here.
async function fromFile(
  path: string,
  maxBytes: number,
  signal: AbortSignal | undefined,
): Promise<NamedArray> {
  let data: Uint8Array;
  try {
    const stats = await stat(path);
    if (!stats.isFile()) throw unreadable('what the path names is no file.');
    checkBytes(stats.size, maxBytes);
    data = await readFile(path, { signal });
    checkBytes(data.byteLength, maxBytes); // it may have grown meanwhile
  } catch (error) {
    if (error instanceof SidecarError) throw error;
    const { code } = error as NodeJS.ErrnoException;
    throw unreadable(
      code === 'ENOENT'
        ? 'there is no image file at the path given.'
        : `the image file could not be read (${code}).`,
    );
  }
  return { name: 'image', datatype: 'UINT8', shape: [data.length], data };
}

function unreadable(message: string): SidecarError {
  return new SidecarError({ code: 'image.unreadable', message });
}

function unknown(): SidecarError {
  return new SidecarError({
    code: 'request.malformed',
    message:
      'expected { path }, { image: Uint8Array }, { rgb: Uint8Array, width, height } or { pixelValues: Float32Array, shape }; something else came.',
  });
}

function checkSize(source: ArrayLike<number>, width: number, height: number, depth: number): void {
  const whole = Number.isInteger(width) && Number.isInteger(height) && width > 0 && height > 0;
  if (!whole || source.length !== width * height * depth) {
    throw new SidecarError({
      code: 'tensor.shape',
      message: `expected width × height × ${depth} bytes; ${source.length} came for ${width} × ${height}.`,
    });
  }
}

function checkShape(values: Float32Array, shape: unknown): void {
  const whole =
    Array.isArray(shape) &&
    shape.length === 4 &&
    shape.every((side) => Number.isInteger(side) && side > 0);
  if (!whole || shape.reduce((product, side) => product * side, 1) !== values.length) {
    throw new SidecarError({
      code: 'tensor.shape',
      message: `expected pixelValues of shape [n, 3, height, width]; ${values.length} values of shape [${String(shape)}] came.`,
    });
  }
}

function checkBytes(bytes: number, maxBytes: number): void {
  if (bytes > maxBytes) {
    throw new SidecarError({
      code: 'request.too_large',
      message: `the input has ${bytes} bytes; the sidecar takes ${maxBytes}. Send a smaller image, or fewer at a time.`,
    });
  }
}

function isPath(input: Input): input is PathInput {
  return (
    typeof input === 'object' && input !== null && 'path' in input && typeof input.path === 'string'
  );
}

function isBytes(value: unknown): value is Uint8Array | Uint8ClampedArray {
  return value instanceof Uint8Array || value instanceof Uint8ClampedArray;
}

function bytesOf(view: ArrayBufferView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}
