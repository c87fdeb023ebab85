import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import {
  cosine,
  heatmapColors,
  type PaintOptions,
  paintHeatmap,
  similarityMap,
  similarityScores,
} from '../src/vectors.js';
import { repository } from './golden.js';

interface Case {
  readonly width: number;
  readonly height: number;
  readonly rgb: string;
  readonly scores: string;
  readonly options: PaintOptions;
  readonly painted: string;
}

const cases: Case[] = JSON.parse(
  readFileSync(path.join(repository, 'tests', 'golden', 'heatmaps.json'), 'utf8'),
);

function bytes(base64: string): Uint8Array {
  return Uint8Array.from(Buffer.from(base64, 'base64'));
}

function rgba(rgb: Uint8Array, alpha = 255): Uint8ClampedArray {
  const pixels = rgb.length / 3;
  return Uint8ClampedArray.from({ length: pixels * 4 }, (_, at) =>
    at % 4 === 3 ? alpha : (rgb[(at >> 2) * 3 + (at % 4)] as number),
  );
}

for (const [number, { width, height, options, ...base64 }] of cases.entries()) {
  test(`paints what the sidecar paints: case ${number}, ${JSON.stringify(options)}`, () => {
    const image = rgba(bytes(base64.rgb));
    const scores = new Float32Array(bytes(base64.scores).buffer);
    const painted = paintHeatmap(scores, image, width, height, options);
    const expected = rgba(bytes(base64.painted));
    const worst = painted.reduce((most, byte, at) => {
      return Math.max(most, Math.abs(byte - (expected[at] as number)));
    }, 0);
    assert.ok(worst <= 1, `a channel is ${worst} grey levels away`);
  });
}

const white = (width: number, height: number) =>
  new Uint8ClampedArray(width * height * 4).fill(255);
const rising = Float32Array.from({ length: 256 }, (_, at) => (at % 16) / 15);

test('a flat image stays as it is', () => {
  assert.deepEqual(paintHeatmap(rising, white(8, 8), 8, 8, { flat: true }), white(8, 8));
});

test('transparency is kept', () => {
  const image = rgba(new Uint8Array(8 * 8 * 3).fill(200), 77);
  const painted = paintHeatmap(rising, image, 8, 8);
  assert.deepEqual(new Set(painted.filter((_, at) => at % 4 === 3)), new Set([77]));
});

test('paints into the memory that is given, the image itself too', () => {
  const expected = paintHeatmap(rising, white(20, 10), 20, 10);
  const image = white(20, 10);
  assert.equal(paintHeatmap(rising, image, 20, 10, { into: image }), image);
  assert.deepEqual(image, expected);
});

test('memory that begins at any byte will do', () => {
  const expected = paintHeatmap(rising, white(20, 10), 20, 10);
  const image = new Uint8ClampedArray(801).fill(255).subarray(1);
  const into = new Uint8ClampedArray(803).subarray(3);
  assert.equal(paintHeatmap(rising, image, 20, 10, { into }), into);
  assert.deepEqual([...into], [...expected]);
});

test('the bar of the legend has the colours of the picture', () => {
  for (const options of [{}, { threshold: 0.5 }, { invert: true }, { blend: 'over' }] as const) {
    const painted = paintHeatmap(rising, white(16, 16), 16, 16, { ...options, cells: true });
    const bar = heatmapColors(options);
    for (let x = 0; x < 16; x += 1) {
      assert.deepEqual([...painted.subarray(4 * x, 4 * x + 3)], bar[x * 17]);
    }
  }
});

for (const [what, paint] of Object.entries({
  'scores of two images': () => paintHeatmap(new Float32Array(512), white(2, 2), 2, 2),
  'RGB in place of RGBA': () => paintHeatmap(rising, new Uint8Array(12), 2, 2),
  'a size of nothing': () => paintHeatmap(rising, white(0, 2), 0, 2),
  'an alpha that is NaN': () => paintHeatmap(rising, white(2, 2), 2, 2, { alpha: Number.NaN }),
  'a threshold above one': () => paintHeatmap(rising, white(2, 2), 2, 2, { threshold: 2 }),
  'an unknown colour map': () =>
    paintHeatmap(rising, white(2, 2), 2, 2, { colormap: 'jet' as 'turbo' }),
  'an unknown blend': () => paintHeatmap(rising, white(2, 2), 2, 2, { blend: 'add' as 'over' }),
  'memory of another size': () =>
    paintHeatmap(rising, white(2, 2), 2, 2, { into: new Uint8ClampedArray(3) }),
})) {
  test(`refuses ${what}`, () => {
    assert.throws(paint, RangeError);
  });
}

test('the cosine is of directions, not of lengths', () => {
  assert.equal(cosine([1, 0], [0, 2]), 0);
  assert.equal(cosine([3, 4], [6, 8]), 1);
  assert.equal(cosine([3, 4], [-6, -8]), -1);
  assert.equal(cosine([0, 0], [1, 1]), 0);
  assert.throws(() => cosine([1], [1, 2]), RangeError);
  assert.throws(() => cosine([], []), RangeError);
});

/** Tokens of two kinds, left and right, far from the origin: without centring, all would be alike. */
const halves = Float32Array.from({ length: 256 * 3 }, (_, at) => {
  const left = Math.floor(at / 3) % 16 < 8;
  return 100 + (at % 3 === (left ? 0 : 1) ? 1 : 0);
});

test('a place is like those of its kind, and unlike the others', () => {
  const map = similarityMap({ data: halves, shape: [1, 256, 3] }, [4, 2]);
  assert.equal(map.length, 256);
  for (const [at, value] of map.entries()) {
    assert.ok(Math.abs(value - (at % 16 < 8 ? 1 : -1)) < 1e-4, `${at}: ${value}`);
  }
  assert.deepEqual(similarityMap(halves, [4, 2]), map);
  const scores = similarityScores(map);
  assert.ok(Math.min(...scores) === 0 && Math.max(...scores) <= 1);
});

test('a place outside of the grid, or other embeddings, are refused', () => {
  assert.throws(() => similarityMap(halves, [16, 0]), RangeError);
  assert.throws(() => similarityMap(halves, [0.5, 0]), RangeError);
  assert.throws(() => similarityMap(new Float32Array(100), [0, 0]), RangeError);
  assert.throws(() => similarityMap({ data: halves, shape: [1, 256, 4] }, [0, 0]), RangeError);
});
