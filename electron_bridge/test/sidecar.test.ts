import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Encoded } from '../src/options.js';
import { startFake } from './fake.js';

const image = new Uint8Array(Float32Array.of(1, 2).buffer);

test('an encoding holds what was asked for, as floats', async (t) => {
  const sidecar = await startFake(t, 'good');
  const all = await sidecar.encode({ image });
  assert.deepEqual([...all.projectedEmbeddings.data], [1, 2]);
  assert.deepEqual(all.attentionScores.shape, [1, 2]);
  assert.ok(!('heatmapPng' in all));
  const one = await sidecar.encode({ image }, { outputs: ['pooledEmbedding'], heatmap: true });
  assert.deepEqual(Object.keys(one).sort(), [
    'flat',
    'heatmapPng',
    'model',
    'norms',
    'pooledEmbedding',
    'resolution',
    'timing',
  ]);
  assert.deepEqual(one.heatmapPng, image);
});

test('a heatmap alone is a picture', async (t) => {
  const sidecar = await startFake(t, 'good');
  assert.deepEqual(await sidecar.heatmap({ image }, { alpha: 1 }), image);
});

test('what the sidecar could not take is refused before it is sent', async (t) => {
  const sidecar = await startFake(t, 'good');
  await assert.rejects(sidecar.encode({ image: new Uint8Array(2 ** 20 + 1) }), {
    code: 'request.too_large',
  });
  const outputs = ['nothing'] as unknown as ['pooledEmbedding'];
  await assert.rejects(sidecar.encode({ image }, { outputs }), { code: 'request.unsupported' });
});

test('one signal cancels all the calls that carry it', async (t) => {
  const sidecar = await startFake(t, 'never-answers');
  const controller = new AbortController();
  const calls = [1, 2, 3].map(() => sidecar.encode({ image }, { signal: controller.signal }));
  const rejected = calls.map((call) => assert.rejects(call, { code: 'request.cancelled' }));
  controller.abort();
  await Promise.all(rejected);
});

test('a call has its own time', async (t) => {
  const sidecar = await startFake(t, 'never-answers');
  await assert.rejects(sidecar.encode({ image }, { timeoutMs: 30 }), { code: 'request.timeout' });
});

test('many inputs come back in order, and one that fails stops no other', async (t) => {
  const sidecar = await startFake(t, 'good');
  const inputs = [{ image }, { path: '/nowhere.png' }, { image: new Uint8Array(4) }];
  const results: Encoded<'pooledEmbedding'>[] = [];
  for await (const result of sidecar.encodeEach(inputs, { outputs: ['pooledEmbedding'] })) {
    results.push(result);
  }
  const shown = results.map((result) =>
    'error' in result ? result.error.code : result.encoding.pooledEmbedding.shape,
  );
  assert.deepEqual(shown, [[1, 2], 'image.unreadable', [1, 1]]);
  assert.deepEqual(
    results.map(({ index }) => index),
    [0, 1, 2],
  );
});

test('info tells of the model and the limits', async (t) => {
  const { info } = await startFake(t, 'good');
  assert.equal(info.version, 'fake');
  assert.equal(info.limits.maxFrameBytes, 2 ** 20);
});

test('it can be disposed of', async (t) => {
  const sidecar = await startFake(t, 'good');
  await sidecar[Symbol.asyncDispose]();
  assert.equal(sidecar.state, 'closed');
});
