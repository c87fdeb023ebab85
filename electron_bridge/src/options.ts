/** What an app may ask for: the types of its options, and beside each the table that checks it. No behaviour. */

import {
  callback,
  flag,
  listOf,
  matching,
  number,
  oneOf,
  type Reader,
  record,
  signal,
  type Table,
  text,
  whole,
  wrong,
} from './checks.js';
import { SidecarError } from './errors.js';
import type { Input } from './inputs.js';
import type { LogEntry } from './log.js';
import { type Encoding, OUTPUTS, type OutputName } from './results.js';
import type { Kernels } from './supervisor.js';
import { COLORMAPS } from './vectorsColormaps.js';
import type { Blend, Colormap } from './vectorsPaint.js';

/**
 * `starting`: the process runs, the model loads. `restarting`: it died and comes back; calls wait.
 * `failed`: it died too often, or cannot start; `start()` tries again. `closed`: for good.
 */
export type SidecarState = 'starting' | 'ready' | 'restarting' | 'failed' | 'closed';

/** What a state comes with. */
export interface StateDetail {
  /** In `starting`: whether the sidecar has answered yet and now loads its model. */
  readonly phase?: 'handshake' | 'loading';
  /** In `failed`: why. */
  readonly error?: SidecarError;
}

/** The events of a `VisionSidecar`, and what their listeners are called with. */
export interface SidecarEvents {
  state: [state: SidecarState, detail: StateDetail];
  /** The sidecar died in machine code and goes on with ONNX Runtime's own operators only. */
  kernelsOff: [reason: string];
  log: [entry: LogEntry];
}

/** How a sidecar is found and run. Without any, it is the app's own, with its own model. */
export interface StartOptions {
  /** The model directory. Default: `vision-model` among the app's resources. */
  readonly modelDir?: string;
  /** The expected SHA-256 of the model's `manifest.json`, in hex; another model is refused. */
  readonly manifestSha256?: string;
  /** The program, in place of the frozen sidecar among the app's resources. */
  readonly command?: string;
  /** Arguments that come before `serve`. */
  readonly args?: readonly string[];
  /** The program's working directory. */
  readonly cwd?: string;
  /** The program's environment. Default: the app's own. */
  readonly env?: NodeJS.ProcessEnv;
  /** Threads for inference. Default: one per physical core. */
  readonly threads?: number;
  /** Scheduling priority. Default: `low`, so that windows stay smooth while it encodes. */
  readonly priority?: 'low' | 'normal';
  /** `off`: ONNX Runtime's own operators only. Default: `auto`, and `off` after a crash in machine code. */
  readonly kernels?: Kernels;
  /** How long the sidecar may take to be ready. Default: 120000. */
  readonly startTimeoutMs?: number;
  /** Called for every line of the sidecar's log and the bridge's own. */
  readonly log?: (entry: LogEntry) => void;
  /** As the `state` event, from the very first on. */
  readonly onState?: (state: SidecarState, detail: StateDetail) => void;
  /** Aborts the start. */
  readonly signal?: AbortSignal;
  /** How often a ready sidecar is asked whether it lives, and how long it may take to answer. */
  readonly heartbeat?: { readonly intervalMs: number; readonly timeoutMs: number };
}

/** The legend's words, to be translated: Latin, Greek or Cyrillic letters, at most 300 of each. */
export interface LegendWords {
  /** Default: `low`. */
  readonly low?: string;
  /** Default: `high`. */
  readonly high?: string;
  /** Stands before the norms that the ends of the scale mean. Default: `norm`. */
  readonly norm?: string;
  /** What scores are and are not. Default: the English one. */
  readonly note?: string;
  /** In place of the scale where nothing stands out. Default: the English one. */
  readonly flat?: string;
}

/** How the map is drawn over the image. docs/heatmap.md shows what each does. */
export interface HeatmapOptions {
  /** Default: `auto`, which goes with the blend: `amber` (multiply), `ember` (screen), `turbo` (over). */
  readonly colormap?: Colormap;
  /** How the map meets the image. Default: `auto`: `multiply` on bright images, `screen` on dark ones. */
  readonly blend?: Blend;
  /** Weight of the map at the highest score, 0 to 1. Default: 0.75. */
  readonly alpha?: number;
  /** Scores below it, 0 to 1, show the bare image. Default: 0. */
  readonly threshold?: number;
  /** Low scores count as high ones. Default: false. */
  readonly invert?: boolean;
  /** The 16×16 cells as they are, not smoothed. Default: false. */
  readonly cells?: boolean;
  /** Whether a legend stands below the picture, or its words. Default: true. */
  readonly legend?: boolean | LegendWords;
}

/** Whether `encode` draws a heatmap too, and how. */
export type HeatmapChoice = boolean | HeatmapOptions | undefined;

/** What every call takes. */
export interface RequestOptions {
  /** Aborting it rejects the call with `request.cancelled` and stops the work. */
  readonly signal?: AbortSignal;
  /** Default: 120000. The time to read a file and to wait for a restart counts. */
  readonly timeoutMs?: number;
}

export interface EncodeOptions<
  O extends OutputName = OutputName,
  H extends HeatmapChoice = HeatmapChoice,
> extends RequestOptions {
  /** Side length in pixels, or `[height, width]`. Default: the model's own. See `info.resolutions`. */
  readonly resolution?: number | readonly [number, number];
  /** Default: all three. Fewer are less to send. */
  readonly outputs?: readonly O[];
  /** Draw a heatmap too (one image only): `true`, or how. */
  readonly heatmap?: H;
  /** `low`: whatever is of `normal` priority goes first. Default: `normal`; in `encodeEach`, `low`. */
  readonly priority?: Priority;
}

/** Which calls the sidecar takes first. */
export type Priority = 'normal' | 'low';

export interface EncodeEachOptions<
  O extends OutputName = OutputName,
  H extends HeatmapChoice = HeatmapChoice,
> extends EncodeOptions<O, H> {
  /** Inputs at work at a time. Default: 2, which keeps the sidecar busy. */
  readonly concurrency?: number;
}

export interface DrawOptions extends HeatmapOptions, RequestOptions {
  readonly resolution?: number | readonly [number, number];
  readonly priority?: Priority;
}

/** One of `encodeEach`'s results, in the order of the inputs. */
export type Encoded<O extends OutputName = OutputName, H = undefined, I = Input> = Progress<I> &
  ({ readonly encoding: Encoding<O, H> } | { readonly error: SidecarError });

/** Where `encodeEach` is. */
export interface Progress<I = Input> {
  readonly index: number;
  readonly input: I;
  /** How many inputs there are, where that is known: of a list or a set. */
  readonly total?: number;
  /** How long the rest will take at the pace so far, in milliseconds, where `total` is known. */
  readonly remainingMs?: number;
}

const FOREVER = Number.POSITIVE_INFINITY;

const side = whole(1, 2 ** 32 - 1);

const resolution: Reader<number | readonly [number, number]> = (value, what) => {
  if (typeof value === 'number') return side(value, what);
  if (!Array.isArray(value) || value.length !== 2) {
    throw wrong(what, 'a side length in pixels, or [height, width]', value);
  }
  return [side(value[0], `${what}[0]`), side(value[1], `${what}[1]`)];
};

const outputName: Reader<OutputName> = (value, what) => {
  if (typeof value !== 'string') throw wrong(what, 'the name of an output', value);
  if (Object.hasOwn(OUTPUTS, value)) return value as OutputName;
  throw new SidecarError({
    code: 'request.unsupported',
    message: `the output ${JSON.stringify(value.slice(0, 40))} is unknown; there are ${Object.keys(OUTPUTS).join(', ')}.`,
  });
};

const words = matching(/^.{0,300}$/s, 'text of at most 300 characters');
const legend = record<LegendWords>({
  low: words,
  high: words,
  norm: words,
  note: words,
  flat: words,
});

const colormaps = ['auto', ...(Object.keys(COLORMAPS) as (keyof typeof COLORMAPS)[])] as const;

/** The one list of heatmap options in this package; pages and the main process are checked by it alike. */
export const HEATMAP: Table<HeatmapOptions> = {
  colormap: oneOf(...colormaps),
  blend: oneOf('auto', 'multiply', 'screen', 'over'),
  alpha: number(0, 1),
  threshold: number(0, 1),
  invert: flag,
  cells: flag,
  legend: (value, what) => (typeof value === 'boolean' ? value : legend(value, what)),
};

const heatmap = record(HEATMAP);

const priority = oneOf('normal', 'low');

export const REQUEST: Table<RequestOptions> = { signal, timeoutMs: number(0, FOREVER) };

export const ENCODE: Table<EncodeOptions> = {
  ...REQUEST,
  resolution,
  outputs: listOf(outputName),
  heatmap: (value, what) => (typeof value === 'boolean' ? value : heatmap(value, what)),
  priority,
};

const EACH: Table<EncodeEachOptions> = { ...ENCODE, concurrency: whole(1, 64) };

export const DRAW: Table<DrawOptions> = { ...HEATMAP, ...REQUEST, resolution, priority };

const START: Table<StartOptions> = {
  modelDir: text,
  manifestSha256: matching(/^[0-9a-f]{64}$/i, 'a SHA-256 of 64 hex digits'),
  command: text,
  args: listOf(text),
  cwd: text,
  env: (value, what) => {
    if (typeof value !== 'object' || value === null) throw wrong(what, 'an object', value);
    return value as NodeJS.ProcessEnv;
  },
  threads: whole(1, 1024),
  priority: oneOf('low', 'normal'),
  kernels: oneOf('auto', 'off'),
  startTimeoutMs: number(0, FOREVER),
  log: callback,
  onState: callback,
  signal,
  heartbeat: record<NonNullable<StartOptions['heartbeat']>>({
    intervalMs: number(0, FOREVER),
    timeoutMs: number(0, FOREVER),
  }),
};

export const readStart = record(START);
export const readRequest = record(REQUEST);
export const readEncode = record(ENCODE);
export const readEach = record(EACH);
export const readDraw = record(DRAW);
