import assert from 'node:assert/strict';
import {
  appendFileSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { unzipSync } from 'fflate';
import { type Match, rgbFromBgra, type VisionSidecar } from '../src/index.js';
import { POLICY } from '../src/supervisor.js';
import { lives, reached } from './fake.js';
import { checkAlone, draws, killOnce } from './kills.js';
import { picture, programs, run, runReal, startReal, tinyModel } from './real.js';

let sidecar: VisionSidecar;
const scratch = mkdtempSync(path.join(tmpdir(), 'e2e-'));

before(async () => {
  sidecar = await startReal();
});

after(async () => {
  await sidecar.close();
  rmSync(scratch, { recursive: true });
});

test('what comes back through Node equals, bit for bit, what the command line writes', async () => {
  runReal('encode', picture, '--model', tinyModel(), '--out', scratch, '--threads', '1');
  const arrays = unzipSync(readFileSync(path.join(scratch, 'ecg.npz')));
  const encoding = await sidecar.encode({ path: picture }, { heatmap: true });
  for (const [name, tensor] of [
    ['projected_embeddings', encoding.projectedEmbeddings],
    ['attention_scores', encoding.attentionScores],
    ['pooled_embedding', encoding.pooledEmbedding],
  ] as const) {
    const file = Buffer.from(arrays[`${name}.npy`] as Uint8Array);
    const values = file.subarray(10 + file.readUInt16LE(8));
    assert.ok(values.equals(bytes(tensor.data)), name);
  }
  const png = readFileSync(path.join(scratch, 'ecg.heatmap.png'));
  assert.ok(png.equals(encoding.heatmapPng));
});

test('each kind of input is encoded, and the same picture gives the same numbers', async () => {
  const outputs = ['pooledEmbedding'] as const;
  const [width, height] = [448, 448];
  const bgra = Uint8Array.from({ length: width * height * 4 }, (_, at) =>
    at % 4 === 3 ? 255 : at % 251,
  );
  const rgb = rgbFromBgra(bgra, width, height);
  const planes = new Float32Array(3 * width * height);
  for (let at = 0; at < width * height; at += 1) {
    for (let channel = 0; channel < 3; channel += 1) {
      const value = Math.fround((rgb.rgb[at * 3 + channel] as number) * (1 / 255));
      planes[channel * width * height + at] = Math.fround(value - 0.5) / 0.5;
    }
  }
  const fromRgb = await sidecar.encode(rgb, { outputs });
  const fromPixels = await sidecar.encode(
    { pixelValues: planes, shape: [1, 3, height, width] },
    { outputs },
  );
  const fromFile = await sidecar.encode({ image: readFileSync(picture) }, { outputs });
  assert.deepEqual(fromRgb.pooledEmbedding, fromPixels.pooledEmbedding);
  assert.deepEqual(fromFile.resolution, [448, 448]);
});

test('a batch is encoded at the size that it has', async () => {
  const pixelValues = new Float32Array(3 * 3 * 224 * 224).fill(0.25);
  const encoding = await sidecar.encode({ pixelValues, shape: [3, 3, 224, 224] });
  assert.deepEqual(encoding.resolution, [224, 224]);
  assert.deepEqual(encoding.attentionScores.shape, [3, 256]);
  assert.equal(encoding.projectedEmbeddings.shape[0], 3);
});

test('a heatmap is a PNG, and looks as asked for', async () => {
  const plain = await sidecar.heatmap({ path: picture }, { resolution: 224 });
  const other = await sidecar.heatmap(
    { path: picture },
    { resolution: 224, colormap: 'viridis', invert: true },
  );
  assert.deepEqual([...plain.subarray(1, 4)], [...Buffer.from('PNG')]);
  assert.ok(!Buffer.from(plain).equals(other));
});

const text = path.join(scratch, 'text.png');
writeFileSync(text, 'this is no picture');
const failures: Record<string, [() => Promise<unknown>, string]> = {
  'a missing file': [() => sidecar.encode({ path: '/nowhere.png' }), 'image.unreadable'],
  'a text file named .png': [() => sidecar.encode({ path: text }), 'image.unreadable'],
  'a truncated file': [
    () => sidecar.encode({ image: readFileSync(picture).subarray(0, 5000) }),
    'image.unreadable',
  ],
  'a tensor of another size': [
    () => sidecar.encode({ pixelValues: new Float32Array(300), shape: [1, 3, 10, 10] }),
    'tensor.shape',
  ],
  'a tensor with NaN': [
    () =>
      sidecar.encode({
        pixelValues: new Float32Array(3 * 224 * 224).fill(Number.NaN),
        shape: [1, 3, 224, 224],
      }),
    'tensor.not_finite',
  ],
  'an unknown colormap': [
    () => sidecar.heatmap({ path: picture }, { colormap: 'jet' as 'turbo' }),
    'request.malformed',
  ],
};

for (const [what, [call, code]] of Object.entries(failures)) {
  test(`${what} gives ${code} and a sentence, and the sidecar goes on`, async () => {
    await assert.rejects(call(), (error: Error & { code: string }) => {
      assert.equal(error.code, code);
      assert.match(error.message, /^\S.{15,}/);
      return true;
    });
    assert.equal((await sidecar.stats()).state, 'ready');
  });
}

test('a model directory with one byte changed is refused', async () => {
  const changed = path.join(scratch, 'changed');
  cpSync(tinyModel(), changed, { recursive: true });
  const { graph } = JSON.parse(readFileSync(path.join(changed, 'manifest.json'), 'utf8'));
  appendFileSync(path.join(changed, graph), ' ');
  await assert.rejects(startReal({ modelDir: changed }), {
    code: 'model.invalid',
    message: new RegExp(graph),
  });
});

test('the model that was asked for by its hash is the one that runs', async () => {
  await assert.rejects(startReal({ manifestSha256: '0'.repeat(64) }), { code: 'model.mismatch' });
});

test('an abort stops the work, and what waits behind it is done', async () => {
  const controller = new AbortController();
  const batch = { pixelValues: new Float32Array(16 * 3 * 448 * 448), shape: [16, 3, 448, 448] };
  const aborted = sidecar.encode(batch, { signal: controller.signal });
  const behind = sidecar.encode({ path: picture }, { outputs: ['pooledEmbedding'] });
  setTimeout(() => controller.abort(), 100);
  await assert.rejects(aborted, { code: 'request.cancelled' });
  assert.equal((await behind).pooledEmbedding.shape[0], 1);
});

test('a sidecar that is killed at work comes back, and the next call succeeds', async () => {
  const calls = Array.from({ length: 10 }, () => sidecar.encode({ path: picture }));
  const settled = Promise.allSettled(calls);
  await sidecar.stats();
  const pid = sidecar.pid as number;
  process.kill(pid, 'SIGKILL');
  await reached(sidecar, 'restarting');
  const lost = (await settled).filter((call) => call.status === 'rejected');
  assert.ok(lost.length > 0);
  for (const { reason } of lost) assert.equal(reason.code, 'sidecar.exited');
  assert.equal((await sidecar.encode({ path: picture })).pooledEmbedding.shape[0], 1);
  assert.equal(lives(pid), false);
});

test('a collection finds what was put into it, also after the sidecar was killed', async () => {
  const cases = sidecar.collection({ path: path.join(scratch, 'cases.db') });
  const side = 224;
  const noise = (seed: number) => ({
    rgb: Uint8Array.from({ length: side * side * 3 }, (_, at) => (at * at * seed) % 251),
    width: side,
    height: side,
  });
  const options = { resolution: side } as const;
  await assert.rejects(cases.search(picture, options), { code: 'collection.not_found' });
  const own = await cases.add(picture, { ...options, id: 'ecg', metadata: { age: 71 } });
  for (const seed of [3, 5, 7]) await cases.add(noise(seed), { ...options, id: `noise ${seed}` });
  await assert.rejects(cases.add(noise(9), { ...options, id: 'ecg' }), {
    code: 'collection.exists',
  });
  process.kill(sidecar.pid as number, 'SIGKILL');
  await reached(sidecar, 'restarting');
  const { matches, count, encoding } = await cases.search(picture, options);
  assert.equal(count, 4);
  assert.deepEqual([matches[0]?.id, matches[0]?.metadata], ['ecg', { age: 71 }]);
  assert.ok(matches.every(({ similarity }) => similarity <= (matches[0]?.similarity ?? 0)));
  assert.deepEqual(encoding.pooledEmbedding, own.pooledEmbedding);
  const again = await cases.search(own, { k: 1 });
  assert.equal(again.matches[0]?.id, 'ecg');
  await cases.remove('ecg');
  const info = await cases.info();
  assert.deepEqual(
    [info.count, info.resolution, info.model],
    [3, [side, side], sidecar.info.model],
  );
});

test('Node and the command line find the same cases in the same order', async () => {
  const images = path.join(scratch, 'images');
  mkdirSync(images);
  const side = 224;
  const save = async (name: string, seed: number) => {
    const next = draws(seed);
    const cell = 32; // coarse enough to be told apart
    const colours = Array.from({ length: 3 * (side / cell) ** 2 }, () => Math.floor(next() * 256));
    const rgb = Uint8Array.from({ length: side * side * 3 }, (_, at) => {
      const [row, column] = [Math.floor(at / 3 / side), Math.floor(at / 3) % side];
      const place = Math.floor(row / cell) * (side / cell) + Math.floor(column / cell);
      return colours[3 * place + (at % 3)] as number;
    });
    const png = await sidecar.heatmap({ rgb, width: side, height: side }, { resolution: side });
    writeFileSync(path.join(images, name), png);
  };
  for (let number = 0; number < 40; number += 1) await save(`page ${number}.png`, number);
  const file = path.join(scratch, 'by the command line.cases');
  const of = ['--model', tinyModel(), '--collection', file, '--threads', '1'];
  runReal('index', images, ...of, '--resolution', `${side}`);
  const asked = [3, 33].map((number) => path.join(images, `page ${number}.png`));
  const byCommand = (image: string) =>
    programs.map((which) => {
      const said = JSON.parse(run(which, 'search', image, ...of, '-k', '40', '--json'));
      return said.matches as readonly Match[];
    });
  const cases = sidecar.collection({ path: file, readOnly: true });
  for (const image of asked) {
    const said = byCommand(image);
    const { matches } = await cases.search(image, { k: 40, regions: true, resolution: side });
    assert.equal(matches[0]?.id, path.basename(image));
    for (const same of said) assert.deepEqual(matches, same);
  }
});

test('kills in the middle of adds and removes lose nothing', async () => {
  const policy = { ...POLICY, windowMs: 0, backoffMs: [1] };
  const other = await startReal({}, { policy });
  const file = path.join(mkdtempSync(path.join(scratch, 'kills-')), 'cases');
  const known = { there: new Set<string>(), open: new Set<string>() };
  const next = draws(1);
  for (let kills = 0; kills < 3; kills += 1) await killOnce(other, file, known, next);
  await other.close();
  checkAlone(file);
});

test('close leaves no process', async () => {
  const other = await startReal();
  const pid = other.pid as number;
  await other.close();
  assert.equal(lives(pid), false);
});

function bytes({ buffer, byteOffset, byteLength }: Float32Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}
