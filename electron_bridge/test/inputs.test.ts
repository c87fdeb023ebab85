import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { type Input, prepare, rgbFromBgra, rgbFromRgba } from '../src/inputs.js';
import { floats } from '../src/results.js';

const directory = mkdtempSync(path.join(tmpdir(), 'inputs-'));
after(() => rmSync(directory, { recursive: true }));
const file = path.join(directory, 'patient-smith.png');
writeFileSync(file, Uint8Array.of(1, 2, 3, 4));
writeFileSync(path.join(directory, 'patient-empty.png'), '');

test('a file is sent as its bytes', async () => {
  const { name, shape, data } = await prepare({ path: file }, 10);
  assert.deepEqual([name, shape, [...data]], ['image', [4], [1, 2, 3, 4]]);
});

const written = readFileSync(file);
const shorthands: Record<string, Input> = {
  'a string': file,
  'a file: URL': pathToFileURL(file),
  'a file: URL as text': pathToFileURL(file).href,
  'a path that is a file: URL': { path: pathToFileURL(file).href },
  'a Buffer': written,
  'a Uint8Array': new Uint8Array(written),
  'an ArrayBuffer': new Uint8Array(written).buffer,
  'a Blob': new Blob([written]),
};

for (const [what, input] of Object.entries(shorthands)) {
  test(`${what} stands for an encoded file`, async () => {
    const { name, datatype, shape, data } = await prepare(input, 10);
    assert.deepEqual([name, datatype, shape, [...data]], ['image', 'UINT8', [4], [1, 2, 3, 4]]);
  });
}

test('the memory of an ArrayBuffer is copied too', async () => {
  const { buffer } = Uint8Array.of(1, 2, 3);
  const prepared = prepare(buffer, 10);
  new Uint8Array(buffer).fill(0);
  assert.deepEqual([...(await prepared).data], [1, 2, 3]);
});

test('raw pixels are sent as rows of three bytes', async () => {
  const { name, datatype, shape } = await prepare(
    { rgb: new Uint8Array(18), width: 3, height: 2 },
    99,
  );
  assert.deepEqual([name, datatype, shape], ['rgb', 'UINT8', [2, 3, 3]]);
});

test('a batch of pixel values keeps its shape', async () => {
  const pixelValues = new Float32Array(2 * 3 * 4);
  const { name, shape, data } = await prepare({ pixelValues, shape: [2, 3, 2, 2] }, 99);
  assert.deepEqual([name, shape, data.byteLength], ['pixel_values', [2, 3, 2, 2], 96]);
});

test('the caller may change its memory as soon as the call was made', async () => {
  const image = Uint8Array.of(1, 2, 3);
  const prepared = prepare({ image }, 10);
  image.fill(0);
  assert.deepEqual([...(await prepared).data], [1, 2, 3]);
});

test('a view is sent without what lies around it', async () => {
  const image = Uint8Array.of(9, 1, 2, 9).subarray(1, 3);
  assert.deepEqual([...(await prepare({ image }, 10)).data], [1, 2]);
});

const bad: Record<string, [unknown, string]> = {
  'a missing file': [{ path: path.join(directory, 'patient-jones.png') }, 'image.unreadable'],
  'a directory': [{ path: directory }, 'image.unreadable'],
  'a file that is too large': [{ path: file, max: 3 }, 'request.too_large'],
  'an image that is too large': [{ image: new Uint8Array(4), max: 3 }, 'request.too_large'],
  'a base64 string': [{ image: 'iVBORw0KGgo=' }, 'request.malformed'],
  'nothing known': [{ pixels: new Uint8Array(3) }, 'request.malformed'],
  'no input at all': [undefined, 'request.malformed'],
  'pixels of another size': [{ rgb: new Uint8Array(4), width: 1, height: 1 }, 'tensor.shape'],
  'an empty image': [{ image: new Uint8Array(0) }, 'image.unreadable'],
  'an empty file': [path.join(directory, 'patient-empty.png'), 'image.unreadable'],
  'an empty Blob': [new Blob([]), 'image.unreadable'],
  'a Blob that is too large': [new Blob([new Uint8Array(200)]), 'request.too_large'],
  'a URL of the web': [new URL('https://patient.example/a.png'), 'request.malformed'],
  'a file: URL of another computer': [new URL('file://patient.example/a'), 'request.malformed'],
  'a path that is a number': [{ path: 5 }, 'request.malformed'],
  'a number': [5, 'request.malformed'],
  null: [null, 'request.malformed'],
  'pixels of a canvas': [new Uint8ClampedArray(4), 'request.malformed'],
  'a shape that is text': [{ pixelValues: new Float32Array(3), shape: '1,3,1,1' }, 'tensor.shape'],
  'a width of zero': [{ rgb: new Uint8Array(0), width: 0, height: 1 }, 'tensor.shape'],
  'half a pixel': [{ rgb: new Uint8Array(3), width: 0.5, height: 2 }, 'tensor.shape'],
  'a tensor without shape': [{ pixelValues: new Float32Array(3) }, 'tensor.shape'],
  'a tensor of another shape': [
    { pixelValues: new Float32Array(3), shape: [1, 3, 1, 2] },
    'tensor.shape',
  ],
};

for (const [what, [input, code]] of Object.entries(bad)) {
  test(`${what} is refused as ${code}, without telling its path`, async () => {
    const { max = 100 } = (input ?? {}) as { max?: number };
    await assert.rejects(prepare(input as Input, max), (error: Error & { code: string }) => {
      assert.equal(error.code, code);
      assert.doesNotMatch(JSON.stringify(error) + error.message + String(error.cause), /patient/);
      return true;
    });
  });
}

test('what came is named: its kind, never its content', async () => {
  await assert.rejects(prepare({ image: 'patient' } as unknown as Input, 9), {
    message: 'expected image to be a Uint8Array; "patient" came.',
  });
  await assert.rejects(prepare(new Map() as unknown as Input, 9), { message: /a Map came/ });
});

const pixels = Uint8Array.of(10, 20, 30, 255, 10, 20, 30, 0, 10, 20, 30, 51);

test('RGBA loses its alpha onto white', () => {
  const { rgb } = rgbFromRgba(pixels, 3, 1);
  assert.deepEqual([...rgb], [10, 20, 30, 255, 255, 255, 206, 208, 210]);
});

test('BGRA, whose colours are multiplied by alpha, is turned round', () => {
  const bitmap = Uint8Array.of(10, 20, 30, 255, 0, 0, 0, 0, 2, 4, 6, 51);
  const { rgb, width, height } = rgbFromBgra(bitmap, 1, 3);
  assert.deepEqual([...rgb], [30, 20, 10, 255, 255, 255, 210, 208, 206]);
  assert.deepEqual([width, height], [1, 3]);
});

test('floats are read in place where the frame is aligned, and copied where it is not', () => {
  const memory = new Uint8Array(16);
  new DataView(memory.buffer).setFloat32(4, 1.5, true);
  new DataView(memory.buffer).setFloat32(9, -2.5, true);
  const aligned = floats(memory.subarray(4, 8));
  assert.equal(aligned[0], 1.5);
  assert.equal(aligned.buffer, memory.buffer);
  assert.equal(floats(memory.subarray(9, 13))[0], -2.5);
});
