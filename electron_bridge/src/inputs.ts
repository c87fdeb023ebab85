/** What an app hands in becomes a named array of the wire, checked and in memory of its own. */

import { readFile, stat } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { malformed, show } from './checks.js';
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

/**
 * What can be encoded: a file, its bytes, raw pixels, or a tensor. In short, a string or a `file:` URL is a
 * path, and a `Uint8Array`, an `ArrayBuffer` or a `Blob` holds the bytes of a PNG, JPEG or WebP file.
 */
export type Input =
  | PathInput
  | ImageInput
  | RgbInput
  | PixelInput
  | string
  | URL
  | Uint8Array
  | ArrayBuffer
  | Blob;

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
  const path = pathOf(input);
  if (path !== undefined) return fromFile(path, maxBytes, signal);
  if (input instanceof Blob) {
    checkBytes(input.size, maxBytes);
    return encoded(new Uint8Array(await input.arrayBuffer()));
  }
  const array = describe(input);
  checkBytes(array.data.byteLength, maxBytes);
  return { ...array, data: array.data.slice() };
}

/** The arrays of an encoding, copied, and the resolution that it was made at. Throws `request.malformed`. */
export function prepareEmbeddings(encoding: object): {
  readonly arrays: readonly NamedArray[];
  readonly resolution: readonly unknown[];
} {
  const { projectedEmbeddings, pooledEmbedding, resolution } = encoding as Record<string, unknown>;
  if (!Array.isArray(resolution) || resolution.length !== 2) {
    throw malformed(`expected the resolution of the encoding; ${show(resolution)} came.`);
  }
  const arrays = [
    floatsOf('projected_embeddings', 'projectedEmbeddings', projectedEmbeddings),
    floatsOf('pooled_embedding', 'pooledEmbedding', pooledEmbedding),
  ];
  return { arrays, resolution: [...resolution] };
}

function floatsOf(name: string, what: string, tensor: unknown): NamedArray {
  const { data, shape } = isObject(tensor) ? tensor : {};
  const fits =
    data instanceof Float32Array &&
    Array.isArray(shape) &&
    shape.every(isSide) &&
    shape.reduce((product, side) => product * side, 1) === data.length;
  if (!fits) throw malformed(`expected ${what} as encode gave it; ${show(tensor)} came.`);
  return { name, datatype: 'FP32', shape: [...shape], data: bytesOf(data).slice() };
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

/** The path that `input` is or holds; undefined if it is of another kind. */
function pathOf(input: unknown): string | undefined {
  const path = isObject(input) && 'path' in input ? input.path : input;
  if (typeof path === 'string') return path.startsWith('file:') ? fromUrl(path) : path;
  if (path instanceof URL) return fromUrl(path);
  if (path !== input) throw malformed(`expected path to be text; ${show(path)} came.`);
  return undefined;
}

function fromUrl(url: string | URL): string {
  try {
    return fileURLToPath(url);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException; // its message tells the URL
    throw malformed(`expected a path or a file: URL of this computer; another URL came (${code}).`);
  }
}

/** Any value at all: what is not one of the kinds throws. The memory is still the caller's. */
function describe(input: unknown): NamedArray {
  if (input instanceof Uint8Array) return encoded(input);
  if (input instanceof ArrayBuffer) return encoded(new Uint8Array(input));
  if (isObject(input)) {
    if (isBytes(input.image)) return encoded(bytesOf(input.image));
    if (isBytes(input.rgb)) return rgbOf(input.rgb, input.width, input.height);
    if (input.pixelValues instanceof Float32Array) return tensorOf(input.pixelValues, input.shape);
    for (const [kind, expected] of KINDS) {
      if (kind in input)
        throw malformed(`expected ${kind} to be ${expected}; ${show(input[kind])} came.`);
    }
  }
  throw malformed(
    `expected a path, the bytes of an image, { path }, { image }, { rgb, width, height } or { pixelValues, shape }; ${show(input)} came.`,
  );
}

const KINDS = [
  ['image', 'a Uint8Array'],
  ['rgb', 'a Uint8Array'],
  ['pixelValues', 'a Float32Array'],
] as const;

function encoded(data: Uint8Array): NamedArray {
  if (data.length === 0) throw unreadable('the image file is empty.');
  return { name: 'image', datatype: 'UINT8', shape: [data.length], data };
}

function rgbOf(rgb: Uint8Array | Uint8ClampedArray, width: unknown, height: unknown): NamedArray {
  const shape = [...checkSize(rgb, width, height, 3), 3];
  return { name: 'rgb', datatype: 'UINT8', shape, data: bytesOf(rgb) };
}

function tensorOf(pixelValues: Float32Array, shape: unknown): NamedArray {
  const data = bytesOf(pixelValues);
  return { name: 'pixel_values', datatype: 'FP32', shape: checkShape(pixelValues, shape), data };
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
  return encoded(data);
}

function unreadable(message: string): SidecarError {
  return new SidecarError({ code: 'image.unreadable', message });
}

/** `[height, width]`. Throws `tensor.shape` where they do not make the source. */
function checkSize(
  source: ArrayLike<number>,
  width: unknown,
  height: unknown,
  depth: number,
): [number, number] {
  if (isSide(width) && isSide(height) && source.length === width * height * depth) {
    return [height, width];
  }
  throw new SidecarError({
    code: 'tensor.shape',
    message: `expected width × height × ${depth} bytes; ${source.length} came for ${show(width)} × ${show(height)}.`,
  });
}

function checkShape(values: Float32Array, shape: unknown): number[] {
  if (Array.isArray(shape) && shape.length === 4 && shape.every(isSide)) {
    const sides: number[] = [...shape];
    if (sides.reduce((product, side) => product * side, 1) === values.length) return sides;
  }
  const told = Array.isArray(shape) ? `[${shape.slice(0, 8).map(show).join(', ')}]` : show(shape);
  throw new SidecarError({
    code: 'tensor.shape',
    message: `expected pixelValues of shape [n, 3, height, width]; ${values.length} values of shape ${told} came.`,
  });
}

function isSide(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) > 0;
}

function checkBytes(bytes: number, maxBytes: number): void {
  if (bytes > maxBytes) {
    throw new SidecarError({
      code: 'request.too_large',
      message: `the input has ${bytes} bytes; the sidecar takes ${maxBytes}. Send a smaller image, or fewer at a time.`,
    });
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}

function isBytes(value: unknown): value is Uint8Array | Uint8ClampedArray {
  return value instanceof Uint8Array || value instanceof Uint8ClampedArray;
}

function bytesOf(view: ArrayBufferView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}
