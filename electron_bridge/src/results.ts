/** What the sidecar answered becomes what an app reads: typed arrays over the received memory. */

import { SidecarError } from './errors.js';
import type { Done, NamedArray } from './protocol.js';

/** Row-major; `shape` is `[n, 256, 2560]`, `[n, 256]` or `[n, 2560]` for MedGemma. */
export interface Tensor {
  readonly data: Float32Array;
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

/** Milliseconds. `roundTripMs` is measured here, from sending to receiving; the others in the sidecar. */
export interface Timing {
  readonly queueMs: number;
  readonly preprocessMs: number;
  readonly inferenceMs: number;
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

/** One array for each output asked for, and the heatmap's PNG where `heatmap` was. */
export type Encoding<O extends OutputName = OutputName, H = undefined> = EncodingDetails & {
  readonly [name in O]: Tensor;
} & ([H] extends [undefined | false]
    ? unknown
    : [H] extends [true | object]
      ? { readonly heatmapPng: Uint8Array }
      : { readonly heatmapPng?: Uint8Array });

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

/** As the sidecar tells it, in the wire's own spelling; a newer sidecar may tell more. */
export interface Stats {
  readonly state: 'loading' | 'ready';
  readonly sidecar: string;
  readonly model: string;
  readonly uptime_s: number;
  readonly queue: { readonly requests: number; readonly bytes: number };
  /** By op, then by `ok` or error code. */
  readonly counts: Readonly<Record<string, Readonly<Record<string, number>>>>;
  /** By resolution ("896x896"), then by stage ("queue_ms", "inference_ms", …). */
  readonly latency: Readonly<Record<string, Readonly<Record<string, Quantiles>>>>;
  readonly memory: { readonly rss_bytes?: number; readonly peak_rss_bytes?: number };
  readonly [more: string]: unknown;
}

export function readEncoding(
  done: Done,
  outputs: readonly OutputName[],
  roundTripMs: number,
): Encoding {
  const { model, resolution, norms, flat, timing } = done.header as {
    model: string;
    resolution: [number, number];
    norms: [number, number][];
    flat: boolean[];
    timing: Record<string, number>;
  };
  const arrays = outputs.map((name) => [name, tensor(arrayOf(done, OUTPUTS[name]))] as const);
  const { queue_ms = 0, preprocess_ms = 0, inference_ms = 0 } = timing;
  return {
    ...(Object.fromEntries(arrays) as Record<OutputName, Tensor>),
    model,
    resolution,
    norms,
    flat,
    timing: {
      queueMs: queue_ms,
      preprocessMs: preprocess_ms,
      inferenceMs: inference_ms,
      roundTripMs,
    },
  };
}

/** Not a Buffer, which is one of Node's own and would surprise who compares or clones it. */
export function readPng(done: Done): Uint8Array {
  const { buffer, byteOffset, byteLength } = arrayOf(done, 'heatmap_png').data;
  return new Uint8Array(buffer, byteOffset, byteLength);
}

/** `hello`'s header. */
interface Hello {
  readonly sidecar: string;
  readonly model: string;
  readonly model_id: string;
  readonly model_revision: string;
  readonly recipe: string;
  readonly resolutions: readonly number[];
  readonly default_resolution: number;
  readonly text_hidden: number;
  readonly limits: Readonly<
    Record<'max_pixels' | 'max_frame_bytes' | 'max_queue' | 'max_queue_bytes', number>
  >;
}

export function readInfo({ header }: Done): SidecarInfo {
  const told = header as unknown as Hello;
  return {
    version: told.sidecar,
    modelId: told.model_id,
    modelRevision: told.model_revision,
    model: told.model,
    recipe: told.recipe,
    resolutions: told.resolutions,
    defaultResolution: told.default_resolution,
    textHidden: told.text_hidden,
    limits: {
      maxPixels: told.limits.max_pixels,
      maxFrameBytes: told.limits.max_frame_bytes,
      maxQueue: told.limits.max_queue,
      maxQueueBytes: told.limits.max_queue_bytes,
    },
  };
}

function arrayOf(done: Done, name: string): NamedArray {
  const found = done.outputs.find((output) => output.name === name);
  if (!found) {
    throw new SidecarError({
      code: 'sidecar.malformed',
      message: `expected the output ${name}; the sidecar answered without it.`,
    });
  }
  return found;
}

function tensor({ data, shape, datatype }: NamedArray): Tensor {
  if (datatype !== 'FP32') {
    throw new SidecarError({
      code: 'sidecar.malformed',
      message: `expected FP32; ${datatype} came.`,
    });
  }
  return { data: floats(data), shape };
}

/** The same memory where it is aligned, a copy where a frame begins at an odd byte. */
export function floats(bytes: Uint8Array): Float32Array {
  const aligned =
    bytes.byteOffset % Float32Array.BYTES_PER_ELEMENT === 0 ? bytes : new Uint8Array(bytes);
  return new Float32Array(aligned.buffer, aligned.byteOffset, bytes.byteLength / 4);
}
