/** What the sidecar answered becomes what an app reads: typed arrays over the received memory. */

import { SidecarError } from './errors.js';
import type { Done, NamedArray } from './protocol.js';

/** Row-major; `shape` is `[n, 256, 2560]`, `[n, 256]` or `[n, 2560]` for MedGemma. In JSON `data` is a list of numbers. */
export interface Tensor {
  readonly data: Float32Array<ArrayBuffer>;
  readonly shape: readonly number[];
}

/** The arrays that `encode` gives, by their names here and on the wire. */
export const OUTPUTS = {
  projectedEmbeddings: 'projected_embeddings',
  attentionScores: 'attention_scores',
  pooledEmbedding: 'pooled_embedding',
} as const;

/** The name of an array that `encode` gives. */
export type OutputName = keyof typeof OUTPUTS;

export const ALL_OUTPUTS = Object.keys(OUTPUTS) as readonly OutputName[];

/** Milliseconds. `roundTripMs` is measured here, from sending to receiving; the others in the sidecar. */
export interface Timing {
  readonly queueMs: number;
  readonly preprocessMs: number;
  readonly inferenceMs: number;
  /** Of the heatmap; 0 without one. */
  readonly drawingMs: number;
  readonly roundTripMs: number;
}

/** What belongs to every encoding, whichever arrays were asked for. */
export interface EncodingDetails {
  /** SHA-256 of the manifest of the model that made it. */
  readonly model: string;
  /** Height and width, in pixels, that the model saw. */
  readonly resolution: readonly [number, number];
  /** Per image, the least and the largest norm of its 256 embeddings: what the scores 0 and 1 stand for. */
  readonly norms: readonly (readonly [number, number])[];
  /** Per image, whether its norms differ no more than an empty page's: nothing stands out, draw no map. */
  readonly flat: readonly boolean[];
  readonly timing: Timing;
}

/** One array for each output asked for, and the heatmap's PNG where `heatmap` was (base64 in JSON). */
export type Encoding<O extends OutputName = OutputName, H = undefined> = EncodingDetails & {
  readonly [name in O]: Tensor;
} & ([H] extends [undefined | false]
    ? unknown
    : [H] extends [true | object]
      ? { readonly heatmapPng: Uint8Array<ArrayBuffer> }
      : { readonly heatmapPng?: Uint8Array<ArrayBuffer> });

/** What `sidecar.info` tells of the running sidecar and its model. */
export interface SidecarInfo {
  readonly version: string;
  readonly modelId: string;
  readonly modelRevision: string;
  /** SHA-256 of the model's manifest: what `manifestSha256` is compared with. */
  readonly model: string;
  readonly recipe: string;
  readonly resolutions: readonly number[];
  readonly defaultResolution: number;
  readonly textHidden: number;
  readonly limits: {
    readonly maxPixels: number;
    readonly maxFrameBytes: number;
    readonly maxQueue: number;
    readonly maxQueueBytes: number;
  };
}

/** Times of one stage, in milliseconds. */
export interface Quantiles {
  readonly p50: number;
  readonly p90: number;
  readonly p99: number;
}

/** `[top, left, bottom, right]`, in fractions of the image's height and width. */
export type Box = readonly [top: number, left: number, bottom: number, right: number];

/** A case that looks like the image that was searched with. */
export interface Match {
  readonly id: string;
  /** A cosine, -1…1, of whitened vectors: for ranking, not a percentage. */
  readonly similarity: number;
  readonly metadata: Readonly<Record<string, unknown>>;
  /** Where the two look alike, where `regions` was asked for: at most five pairs. */
  readonly regions?: readonly {
    readonly query: Box;
    readonly match: Box;
    readonly similarity: number;
  }[];
}

/** What a collection holds, and what it belongs to. */
export interface CollectionInfo {
  /** Number of cases. */
  readonly count: number;
  /** SHA-256 of the model's manifest. */
  readonly model: string;
  readonly projection: string;
  /** Height and width, in pixels, that its images were encoded at. */
  readonly resolution: readonly [number, number];
  /** Size of the file. */
  readonly bytes: number;
  /** Number of cases that the whitening was fitted on. */
  readonly fitted: number;
  readonly readOnly: boolean;
}

/** What the sidecar counts. A newer sidecar may tell more. */
export interface Stats {
  readonly state: 'loading' | 'ready';
  readonly sidecar: string;
  readonly model: string;
  readonly uptimeS: number;
  readonly queue: { readonly requests: number; readonly bytes: number };
  /** By op, then by `ok` or error code. */
  readonly counts: Readonly<Record<string, Readonly<Record<string, number>>>>;
  /** By resolution ("896x896"), then by stage (`queueMs`, `inferenceMs`, …). */
  readonly latency: Readonly<Record<string, Readonly<Record<string, Quantiles>>>>;
  /** By resolution: what one image takes with nothing before it. */
  readonly expectedMs: Readonly<Record<string, number>>;
  readonly memory: { readonly rssBytes?: number; readonly peakRssBytes?: number };
  readonly [more: string]: unknown;
}

/**
 * The arrays of `outputs`, and the PNG `withPng`. Throws `sidecar.malformed` where the reply lacks what every
 * encoding has.
 */
export function readEncoding(
  done: Done,
  outputs: readonly OutputName[],
  withPng: boolean,
  roundTripMs: number,
): EncodingDetails {
  const { header } = done;
  const arrays = outputs.map((name) => [name, tensor(arrayOf(done, OUTPUTS[name]))] as const);
  const timing = field(header, 'timing', isRecord);
  const ms = (name: string): number => (isNumber(timing[name]) ? timing[name] : 0);
  const details: EncodingDetails = {
    ...Object.fromEntries(arrays),
    ...(withPng && { heatmapPng: readPng(done) }),
    model: field(header, 'model', isText),
    resolution: field(header, 'resolution', isPair),
    norms: field(header, 'norms', isPairs),
    flat: field(header, 'flat', isFlags),
    timing: {
      queueMs: ms('queue_ms'),
      preprocessMs: ms('preprocess_ms'),
      inferenceMs: ms('inference_ms'),
      drawingMs: ms('drawing_ms'),
      roundTripMs,
    },
  };
  return Object.assign(new Result(), details);
}

/** What `JSON.stringify` makes of an encoding; a copy for another process is a plain object. */
class Result {
  declare readonly heatmapPng?: Uint8Array;

  toJSON(): object {
    const { heatmapPng, ...rest } = this;
    return heatmapPng ? { ...rest, heatmapPng: Buffer.from(heatmapPng).toString('base64') } : rest;
  }
}

class FloatTensor implements Tensor {
  readonly data: Float32Array<ArrayBuffer>;
  readonly shape: readonly number[];

  constructor(data: Float32Array<ArrayBuffer>, shape: readonly number[]) {
    this.data = data;
    this.shape = shape;
  }

  toJSON(): object {
    return { data: [...this.data], shape: this.shape };
  }
}

/** Not a Buffer, which is one of Node's own and would surprise who compares or clones it. */
export function readPng(done: Done): Uint8Array<ArrayBuffer> {
  return ownMemory(arrayOf(done, 'heatmap_png').data);
}

/** `hello`'s header. Throws `sidecar.malformed` where it lacks something. */
export function readInfo({ header }: Done): SidecarInfo {
  const limits = field(header, 'limits', isRecord);
  return {
    version: field(header, 'sidecar', isText),
    modelId: field(header, 'model_id', isText),
    modelRevision: field(header, 'model_revision', isText),
    model: field(header, 'model', isText),
    recipe: field(header, 'recipe', isText),
    resolutions: field(header, 'resolutions', isNumbers),
    defaultResolution: field(header, 'default_resolution', isNumber),
    textHidden: field(header, 'text_hidden', isNumber),
    limits: {
      maxPixels: field(limits, 'max_pixels', isNumber),
      maxFrameBytes: field(limits, 'max_frame_bytes', isNumber),
      maxQueue: field(limits, 'max_queue', isNumber),
      maxQueueBytes: field(limits, 'max_queue_bytes', isNumber),
    },
  };
}

/** A search's matches. Throws `sidecar.malformed` where they are none. */
export function readMatches(done: Done): { matches: readonly Match[]; count: number } {
  let matches: unknown;
  try {
    matches = JSON.parse(Buffer.from(arrayOf(done, 'matches').data).toString('utf8'));
  } catch (error) {
    if (error instanceof SidecarError) throw error;
  }
  if (!Array.isArray(matches) || !matches.every(isMatch)) throw malformed('matches');
  return { matches, count: field(done.header, 'count', isNumber) };
}

export function readCollectionInfo({ header }: Done): CollectionInfo {
  return {
    count: field(header, 'count', isNumber),
    model: field(header, 'model', isText),
    projection: field(header, 'projection', isText),
    resolution: field(header, 'resolution', isPair),
    bytes: field(header, 'bytes', isNumber),
    fitted: field(header, 'fitted', isNumber),
    readOnly: field(header, 'read_only', isFlag),
  };
}

/** Everything of `stats`' header, in camel case. Throws `sidecar.malformed` where it lacks something. */
export function readStats({ header }: Done): Stats {
  const { v, id, ok, outputs, ...rest } = header;
  const stats = camelCase(rest);
  if (!isRecord(stats)) throw malformed('stats');
  return {
    ...stats,
    state: field(stats, 'state', isState),
    sidecar: field(stats, 'sidecar', isText),
    model: field(stats, 'model', isText),
    uptimeS: field(stats, 'uptimeS', isNumber),
    queue: field(stats, 'queue', isRecord) as Stats['queue'],
    counts: field(stats, 'counts', isRecord) as Stats['counts'],
    latency: field(stats, 'latency', isRecord) as Stats['latency'],
    expectedMs: field(stats, 'expectedMs', isRecord) as Stats['expectedMs'],
    memory: field(stats, 'memory', isRecord),
  };
}

/** The wire's `snake_case` names, at every level; codes, ops and resolutions are none and stay. */
function camelCase(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(camelCase);
  if (!isRecord(value)) return value;
  const renamed = Object.entries(value).map(([name, item]) => [camelName(name), camelCase(item)]);
  return Object.fromEntries(renamed);
}

function camelName(name: string): string {
  if (!/^[a-z]+[0-9]*(_[a-z0-9]+)+$/.test(name)) return name;
  return name.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}

function arrayOf(done: Done, name: string): NamedArray {
  const array = done.outputs.find((output) => output.name === name);
  if (array) return array;
  throw malformed(`the output ${name}`);
}

function tensor({ name, data, shape, datatype }: NamedArray): Tensor {
  if (datatype !== 'FP32') throw malformed(`the output ${name} as FP32`);
  return new FloatTensor(floats(data), shape);
}

/** The same memory where it is aligned, a copy where a frame begins at an odd byte. */
export function floats(bytes: Uint8Array): Float32Array<ArrayBuffer> {
  const odd = bytes.byteOffset % Float32Array.BYTES_PER_ELEMENT !== 0;
  const { buffer, byteOffset, byteLength } = ownMemory(odd ? new Uint8Array(bytes) : bytes);
  return new Float32Array(buffer, byteOffset, byteLength / Float32Array.BYTES_PER_ELEMENT);
}

/** The same memory; a copy where it is shared, as no `Blob` takes that. */
function ownMemory({ buffer, byteOffset, byteLength }: Uint8Array): Uint8Array<ArrayBuffer> {
  if (buffer instanceof ArrayBuffer) return new Uint8Array(buffer, byteOffset, byteLength);
  return new Uint8Array(new Uint8Array(buffer, byteOffset, byteLength));
}

type Map = Readonly<Record<string, unknown>>;

function field<T>(map: Map, name: string, is: (value: unknown) => value is T): T {
  const value = map[name];
  if (is(value)) return value;
  throw malformed(name);
}

function malformed(what: string): SidecarError {
  return new SidecarError({
    code: 'sidecar.malformed',
    message: `expected ${what} in the sidecar's reply; it was missing or of another type. Ship the bridge and the sidecar of one release.`,
  });
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isText(value: unknown): value is string {
  return typeof value === 'string';
}

function isNumber(value: unknown): value is number {
  return typeof value === 'number';
}

function isNumbers(value: unknown): value is number[] {
  return Array.isArray(value) && value.every(isNumber);
}

function isPair(value: unknown): value is [number, number] {
  return isNumbers(value) && value.length === 2;
}

function isPairs(value: unknown): value is [number, number][] {
  return Array.isArray(value) && value.every(isPair);
}

function isFlags(value: unknown): value is boolean[] {
  return Array.isArray(value) && value.every(isFlag);
}

function isFlag(value: unknown): value is boolean {
  return typeof value === 'boolean';
}

function isMatch(value: unknown): value is Match {
  if (!isRecord(value) || !isText(value.id) || !isNumber(value.similarity)) return false;
  const { metadata, regions } = value;
  return (
    isRecord(metadata) &&
    (regions === undefined || (Array.isArray(regions) && regions.every(isRegion)))
  );
}

function isRegion(value: unknown): boolean {
  return isRecord(value) && isBox(value.query) && isBox(value.match) && isNumber(value.similarity);
}

function isBox(value: unknown): value is Box {
  return isNumbers(value) && value.length === 4;
}

function isState(value: unknown): value is Stats['state'] {
  return value === 'loading' || value === 'ready';
}
