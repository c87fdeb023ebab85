/**
 * The heatmap over an image, from scores: no Node, no DOM, no sidecar. Twin of sidecar/heatmap.py: both
 * compute the same integers and the same doubles in the same order, and tests/golden/heatmaps.json holds
 * both to the same pixels.
 */

import { COLORMAPS } from './vectorsColormaps.js';

/** How the map meets the image. `auto`: `multiply` on bright images, `screen` on dark ones. */
export type Blend = 'auto' | 'multiply' | 'screen' | 'over';

/** `auto`: amber for `multiply`, ember for `screen`, turbo for `over`. */
export type Colormap = 'auto' | keyof typeof COLORMAPS;

/** How `paintHeatmap` paints. The names and defaults are those of `HeatmapOptions`. */
export interface PaintOptions {
  /** Default: `auto`. */
  readonly colormap?: Colormap | undefined;
  /** Default: `auto`. */
  readonly blend?: Blend | undefined;
  /** The map's weight at the highest score, 0 to 1. Default: 0.75. */
  readonly alpha?: number | undefined;
  /** Scores below it, 0 to 1, show the bare image. Default: 0. */
  readonly threshold?: number | undefined;
  /** Low scores count as high ones. Default: false. */
  readonly invert?: boolean | undefined;
  /** Show the 16×16 cells as they are, not smoothed. Default: false. */
  readonly cells?: boolean | undefined;
  /** Nothing stands out (`encoding.flat`): the image stays as it is. Default: false. */
  readonly flat?: boolean | undefined;
  /** Write here, in place of a new array. May be `rgba` itself. */
  readonly into?: Uint8ClampedArray | undefined;
}

const GRID = 16;
const LEVELS = 256;
const EDGE = 0.08;
const SAMPLES = 256;
const BRIGHT = 128_000;
const ONE = 4096;
const UNIT = 65535;
const SCALE = 1 / ((UNIT / (LEVELS - 1)) * ONE * ONE);
const AUTO = { multiply: 'amber', screen: 'ember', over: 'turbo' } as const;

/**
 * The sidecar's own picture, without the legend: 256 row-major scores (0 to 1) over an image. `rgba` is
 * row-major, 4 bytes a pixel, as `ImageData` holds it; alpha is kept. Returns `width * height * 4`
 * bytes. Throws a `RangeError` for sizes or options that cannot be painted.
 *
 * ```ts
 * const painted = paintHeatmap(attentionScores.data, image.data, image.width, image.height);
 * context.putImageData(new ImageData(painted, image.width), 0, 0);
 * ```
 */
export function paintHeatmap(
  scores: ArrayLike<number>,
  rgba: Uint8ClampedArray | Uint8Array,
  width: number,
  height: number,
  options: PaintOptions = {},
): Uint8ClampedArray<ArrayBuffer> {
  check(scores, rgba, width, height, options);
  const { invert = false, cells = false, into } = options;
  const painted = (into ??
    new Uint8ClampedArray(width * height * 4)) as Uint8ClampedArray<ArrayBuffer>;
  const tables = paintTables(options, () => isBright(rgba, width, height));
  if (!tables) {
    if (painted !== rgba) painted.set(rgba);
    return painted;
  }
  const [red, green, blue] = tables;
  const levels = levelsOf(scores, width, height, cells);
  const flip = invert ? LEVELS - 1 : 0;
  // A whole pixel at a time: red is the lowest byte on every processor that JavaScript runs on today.
  const pixels = words(rgba);
  const into32 = words(painted);
  for (let at = 0; at < levels.length; at += 1) {
    const pixel = pixels[at] as number;
    const base = ((levels[at] as number) ^ flip) << 8; // 255 - level, where low scores count as high ones
    into32[at] =
      (pixel & 0xff000000) |
      (red[base | (pixel & 255)] as number) |
      ((green[base | ((pixel >>> 8) & 255)] as number) << 8) |
      ((blue[base | ((pixel >>> 16) & 255)] as number) << 16);
  }
  if (into32.buffer !== painted.buffer) painted.set(new Uint8Array(into32.buffer));
  return painted;
}

/** The same memory in words of four bytes, or a copy where it begins between two of them. */
function words({ buffer, byteOffset, byteLength }: ArrayBufferView): Uint32Array {
  if (byteOffset % 4 === 0) return new Uint32Array(buffer, byteOffset, byteLength / 4);
  return new Uint32Array(buffer.slice(byteOffset, byteOffset + byteLength));
}

let latestLevels: { key: string; levels: Uint8Array } | undefined;

/** The level of each pixel, row by row. Kept for the next call: a slider changes colours, not levels. */
function levelsOf(
  scores: ArrayLike<number>,
  width: number,
  height: number,
  cells: boolean,
): Uint8Array {
  const grid = Float64Array.from({ length: GRID * GRID }, (_, cell) =>
    Math.floor(Math.min(Math.max(scores[cell] as number, 0), 1) * UNIT + 0.5),
  );
  const key = [width, height, cells, ...grid].join();
  if (latestLevels?.key !== key) latestLevels = { key, levels: smooth(grid, width, height, cells) };
  return latestLevels.levels;
}

function smooth(grid: Float64Array, width: number, height: number, cells: boolean): Uint8Array {
  const across = taps(width, cells);
  const down = taps(height, cells);
  const levels = new Uint8Array(width * height);
  const row = new Float64Array(GRID);
  const half = 0.5 / SCALE;
  let at = 0;
  for (let y = 0; y < height; y += 1) {
    row.fill(0);
    for (let tap = 4 * y; tap < 4 * y + 4; tap += 1) {
      const from = (down.cells[tap] as number) * GRID;
      const share = down.shares[tap] as number;
      for (let x = 0; x < GRID; x += 1) {
        row[x] = (row[x] as number) + share * (grid[from + x] as number);
      }
    }
    for (let x = 0, tap = 0; x < width; x += 1, tap += 4, at += 1) {
      const sum =
        (row[across.cells[tap] as number] as number) * (across.shares[tap] as number) +
        (row[across.cells[tap + 1] as number] as number) * (across.shares[tap + 1] as number) +
        (row[across.cells[tap + 2] as number] as number) * (across.shares[tap + 2] as number) +
        (row[across.cells[tap + 3] as number] as number) * (across.shares[tap + 3] as number);
      levels[at] = Math.min(Math.max((sum + half) * SCALE, 0), LEVELS - 1); // whole part: truncated
    }
  }
  return levels;
}

/**
 * The legend's bar for a picture that `paintHeatmap` paints with these options: `[r, g, b]` for each of
 * 256 scores from 0 to 1, on `ground`, a colour of the image (white unless told otherwise).
 */
export function heatmapColors(
  options: PaintOptions = {},
  ground: readonly [number, number, number] = [255, 255, 255],
): [number, number, number][] {
  const [r, g, b] = ground;
  const tables = paintTables(options, () => luminance(r, g, b) >= BRIGHT);
  return Array.from({ length: LEVELS }, (_, level) => {
    if (!tables) return [r, g, b];
    const base = (options.invert ? LEVELS - 1 - level : level) << 8;
    const [red, green, blue] = tables;
    return [red[base | r] as number, green[base | g] as number, blue[base | b] as number];
  });
}

/** Whether the median pixel is brighter than mid-grey: what `auto` goes by. */
export function isBright(rgba: ArrayLike<number>, width: number, height: number): boolean {
  const down = Math.ceil(height / SAMPLES);
  const across = Math.ceil(width / SAMPLES);
  let seen = 0;
  let dark = 0;
  for (let y = 0; y < height; y += down) {
    for (let x = 0; x < width; x += across) {
      const at = 4 * (y * width + x);
      seen += 1;
      if (luminance(rgba[at] as number, rgba[at + 1] as number, rgba[at + 2] as number) < BRIGHT) {
        dark += 1;
      }
    }
  }
  return dark <= seen >> 1;
}

function luminance(red: number, green: number, blue: number): number {
  return 299 * red + 587 * green + 114 * blue;
}

type Tables = [Uint8Array, Uint8Array, Uint8Array];

let latest: { key: string; tables: Tables } | undefined;

/** Per channel, what a byte becomes at each level: [level * 256 + byte]. None where nothing changes. */
function paintTables(options: PaintOptions, bright: () => boolean): Tables | undefined {
  const { colormap = 'auto', alpha = 0.75, threshold = 0, flat = false } = options;
  if (flat) return undefined;
  const { blend: chosen = 'auto' } = options;
  const blend = chosen !== 'auto' ? chosen : bright() ? 'multiply' : 'screen';
  const name = colormap === 'auto' ? AUTO[blend] : colormap;
  const key = [blend, name, alpha, threshold].join();
  if (latest?.key !== key) latest = { key, tables: makeTables(blend, name, alpha, threshold) };
  return latest.tables;
}

function makeTables(
  blend: 'multiply' | 'screen' | 'over',
  name: keyof typeof COLORMAPS,
  alpha: number,
  threshold: number,
): Tables {
  const colors = colorsOf(name);
  const edge = Math.min(EDGE, 1 - threshold);
  const tables: Tables = [
    new Uint8Array(LEVELS * 256),
    new Uint8Array(LEVELS * 256),
    new Uint8Array(LEVELS * 256),
  ];
  for (let level = 0; level < LEVELS; level += 1) {
    const score = level / (LEVELS - 1);
    let weight = alpha * (score * (2 - score));
    if (threshold > 0) {
      const above = score - threshold;
      if (above < 0) weight = 0;
      else if (edge > 0) weight *= Math.min(above / edge, 1);
    }
    for (let channel = 0; channel < 3; channel += 1) {
      const table = tables[channel] as Uint8Array;
      const color = colors[3 * level + channel] as number;
      const multiplied = 1 - weight * (1 - color / 255);
      const screened = 1 - weight * (color / 255);
      for (let byte = 0; byte < 256; byte += 1) {
        const mixed =
          blend === 'multiply'
            ? byte * multiplied
            : blend === 'screen'
              ? 255 - (255 - byte) * screened
              : byte * (1 - weight) + color * weight;
        table[(level << 8) | byte] = Math.floor(mixed + 0.5);
      }
    }
  }
  return tables;
}

/** The map's colour at each level, [level * 3 + channel], from 0 to 255. */
function colorsOf(name: keyof typeof COLORMAPS): Float64Array {
  const anchors = COLORMAPS[name].split(' ').map((hex) => Number.parseInt(hex, 16));
  const colors = new Float64Array(LEVELS * 3);
  for (let level = 0; level < LEVELS; level += 1) {
    const at = level * ((anchors.length - 1) / (LEVELS - 1));
    const left = Math.min(Math.floor(at), anchors.length - 2);
    const share = at - left;
    for (let channel = 0; channel < 3; channel += 1) {
      const shift = 16 - 8 * channel;
      const from = ((anchors[left] as number) >> shift) & 255;
      const to = ((anchors[left + 1] as number) >> shift) & 255;
      colors[3 * level + channel] = from * (1 - share) + to * share;
    }
  }
  return colors;
}

/** Which four of the 16 cells make each pixel along a side, and how much of each: whole numbers. */
function taps(pixels: number, cells: boolean): { cells: Uint8Array; shares: Float64Array } {
  const which = new Uint8Array(4 * pixels);
  const shares = new Float64Array(4 * pixels);
  for (let pixel = 0; pixel < pixels; pixel += 1) {
    if (cells) {
      which[4 * pixel] = Math.floor(((2 * pixel + 1) * GRID) / (2 * pixels));
      shares[4 * pixel] = ONE;
      continue;
    }
    const at = (pixel + 0.5) * (GRID / pixels) - 0.5;
    const left = Math.floor(at);
    const t = at - left;
    const before = Math.floor(((-0.5 * t + 1) * t - 0.5) * t * ONE + 0.5);
    const after = Math.floor(((-1.5 * t + 2) * t + 0.5) * t * ONE + 0.5);
    const last = Math.floor((0.5 * t - 0.5) * t * t * ONE + 0.5);
    const four = [before, ONE - before - after - last, after, last];
    for (let tap = 0; tap < 4; tap += 1) {
      which[4 * pixel + tap] = Math.min(Math.max(left + tap - 1, 0), GRID - 1);
      shares[4 * pixel + tap] = four[tap] as number;
    }
  }
  return { cells: which, shares };
}

function check(
  scores: ArrayLike<number>,
  rgba: ArrayLike<number>,
  width: number,
  height: number,
  options: PaintOptions,
): void {
  const { colormap = 'auto', blend = 'auto', alpha = 0.75, threshold = 0, into } = options;
  if (scores.length !== GRID * GRID) {
    throw new RangeError(`expected 256 scores of one image; ${scores.length} came.`);
  }
  const whole = Number.isInteger(width) && Number.isInteger(height) && width > 0 && height > 0;
  if (!whole || rgba.length !== width * height * 4) {
    throw new RangeError(
      `expected 4 bytes for each of ${width} × ${height} pixels; ${rgba.length} came.`,
    );
  }
  if (into && into.length !== rgba.length) {
    throw new RangeError(`expected into of ${rgba.length} bytes; ${into.length} came.`);
  }
  if (colormap !== 'auto' && !Object.hasOwn(COLORMAPS, colormap)) {
    throw new RangeError(`colormap must be auto or one of ${Object.keys(COLORMAPS).join(', ')}.`);
  }
  if (!['auto', 'multiply', 'screen', 'over'].includes(blend)) {
    throw new RangeError('blend must be one of auto, multiply, screen, over.');
  }
  if (!(alpha >= 0 && alpha <= 1) || !(threshold >= 0 && threshold <= 1)) {
    throw new RangeError('alpha and threshold must lie between 0 and 1.');
  }
}
