import assert from 'node:assert/strict';
import promises from 'node:fs/promises';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { Encoded, HeatmapOptions } from '../src/options.js';
import { VisionSidecar } from '../src/sidecar.js';
import { reached, startFake } from './fake.js';

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

test('many inputs come back in order with what they were, and one that fails stops no other', async (t) => {
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
    results.map(({ index, input, total }) => [index, input, total]),
    inputs.map((input, index) => [index, input, 3]),
  );
  assert.ok(results.every(({ remainingMs }) => Number.isFinite(remainingMs)));
  assert.equal(results.at(-1)?.remainingMs, 0);
});

test('where the number of inputs is not known, no estimate is made', async (t) => {
  const sidecar = await startFake(t, 'good');
  for await (const result of sidecar.encodeEach([{ image }].values())) {
    assert.deepEqual(Object.keys(result).sort(), ['encoding', 'index', 'input']);
  }
});

test('to stop early cancels what is in flight', async (t) => {
  const sidecar = await startFake(t, 'answers-the-first');
  for await (const _ of sidecar.encodeEach(Array(5).fill({ image }))) break;
  assert.equal((await sidecar.stats()).cancels, 1);
});

test('an aborted run ends, and cancels what is in flight', async (t) => {
  const sidecar = await startFake(t, 'answers-the-first');
  const controller = new AbortController();
  const seen: number[] = [];
  const run = async (): Promise<void> => {
    const inputs = Array(2000).fill({ image });
    for await (const { index } of sidecar.encodeEach(inputs, { signal: controller.signal })) {
      seen.push(index);
      controller.abort();
    }
  };
  await assert.rejects(run(), { code: 'request.cancelled' });
  assert.deepEqual(seen, [0]);
  assert.equal((await sidecar.stats()).encodes, 2);
});

test('a run ends when the sidecar is closed, whatever is left of it', async (t) => {
  const sidecar = await startFake(t, 'good');
  function* endless(): Generator<{ image: Uint8Array }> {
    for (;;) yield { image };
  }
  const run = async (): Promise<void> => {
    for await (const { index } of sidecar.encodeEach(endless())) {
      if (index === 3) void sidecar.close();
    }
  };
  await assert.rejects(run(), { code: 'sidecar.closed' });
});

test('bulk work is of low priority, and anything else as it is told', async (t) => {
  const sidecar = await startFake(t, 'good');
  for await (const _ of sidecar.encodeEach([image]));
  for await (const _ of sidecar.encodeEach([image], { priority: 'normal' }));
  await sidecar.encode(image);
  await sidecar.encode(image, { priority: 'low' });
  await sidecar.heatmap(image, { priority: 'low' });
  const told = await sidecar.stats();
  assert.deepEqual(told.priorities, ['low', 'none', 'none', 'low', 'low']);
});

test('a file on a disk that does not answer holds up neither its call nor the end', async (t) => {
  const sidecar = await startFake(t, 'good');
  t.mock.method(promises, 'stat', () => new Promise(() => undefined)); // as a share that is gone
  const controller = new AbortController();
  const late = sidecar.encode('/share/a.png', { timeoutMs: 30 });
  const aborted = sidecar.encode('/share/a.png', { signal: controller.signal });
  const closed = sidecar.encode('/share/a.png');
  const rejected = Promise.all([
    assert.rejects(late, { code: 'request.timeout' }),
    assert.rejects(aborted, { code: 'request.cancelled' }),
    assert.rejects(closed, { code: 'sidecar.closed' }),
  ]);
  controller.abort();
  await assert.rejects(late);
  await sidecar.close();
  await rejected;
});

test('a call that cannot be sent fails alone, also while the sidecar restarts', async (t) => {
  const sidecar = await startFake(t, 'good', { policy: { backoffMs: [100] } });
  process.kill(sidecar.pid as number, 'SIGKILL');
  await reached(sidecar, 'restarting');
  const heatmap = { colormap: 1n } as unknown as HeatmapOptions;
  const bad = assert.rejects(sidecar.encode(image, { heatmap }), { code: 'request.malformed' });
  const good = sidecar.encode(image);
  await bad;
  await good;
  assert.equal(sidecar.state, 'ready');
});

const PATIENCE_MS = 60_000; // for memory to be given back, on a machine with other things to do

test('what is given up before it has left takes no memory', {
  skip: process.platform === 'win32', // no SIGSTOP
}, async (t) => {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const sidecar = await startFake(t, 'good');
  process.kill(sidecar.pid as number, 'SIGSTOP');
  const before = process.memoryUsage().arrayBuffers;
  for (let call = 0; call < 60; call += 1) {
    const bytes = new Uint8Array(2 ** 20);
    await assert.rejects(sidecar.encode(bytes, { timeoutMs: 1 }), { code: 'request.timeout' });
  }
  let held = Number.POSITIVE_INFINITY;
  for (const end = performance.now() + PATIENCE_MS; held > 10 * 2 ** 20; ) {
    await new Promise((resolve) => setImmediate(resolve));
    collect();
    held = process.memoryUsage().arrayBuffers - before;
    if (performance.now() > end) break;
  }
  process.kill(sidecar.pid as number, 'SIGCONT');
  assert.ok(held <= 10 * 2 ** 20, `${held} bytes of 60 MiB are held`);
});

/** Whatever a caller in JavaScript may do. */
const odd: Record<string, (sidecar: VisionSidecar) => Promise<unknown>> = {
  'outputs that are text': (s) => s.encode(image, { outputs: 'x' as never }),
  'no outputs': (s) => s.encode(image, { outputs: [] }),
  'options that are null': (s) => s.encode(image, null as never),
  'a signal that is none': (s) => s.encode(image, { signal: {} as never }),
  'an unknown option': (s) => s.encode(image, { heatmaps: true } as never),
  'no input': (s) => s.encode(undefined as never),
  'an input that is a symbol': (s) => s.encode(Symbol('x') as never),
  'an input that hides everything': (s) =>
    s.encode(new Proxy({}, { has: () => fail('no'), get: () => fail('no') }) as never),
  'an input that was sent elsewhere': (s) => {
    const moved = Uint8Array.of(1, 2, 3, 4);
    structuredClone(moved, { transfer: [moved.buffer] });
    return s.encode(moved);
  },
  'a time that is a BigInt': (s) => s.stats({ timeoutMs: 5n as never }),
  'a heatmap of a number': (s) => s.heatmap(5 as never),
  'a colour map that throws': (s) =>
    s.heatmap(
      image,
      Object.defineProperty({}, 'colormap', { enumerable: true, get: () => fail('no') }),
    ),
  'nothing to encode each of': async (s) => {
    for await (const _ of s.encodeEach(undefined as never));
  },
  'many with a wrong option': async (s) => {
    for await (const _ of s.encodeEach([image, image], { resolution: 1n } as never));
  },
  'many with a wrong signal': async (s) => {
    for await (const _ of s.encodeEach([image, image], { signal: 5 } as never));
  },
};

function fail(message: string): never {
  throw new TypeError(message);
}

test('whatever is wrong with an argument rejects with a SidecarError, and nothing is sent', async (t) => {
  const sidecar = await startFake(t, 'good');
  for (const [what, call] of Object.entries(odd)) {
    await assert.rejects(call(sidecar), { name: 'SidecarError', retryable: false }, what);
  }
  assert.equal((await sidecar.stats()).encodes, 0);
});

const oddStarts: Record<string, object> = {
  'threads below zero': { threads: -1 },
  'a priority that there is not': { priority: 'high' },
  'a model directory that is a number': { modelDir: 5 },
  'arguments that are text': { args: '-m sidecar' },
  'kernels that are on': { kernels: 'on' },
  'a signal that is none': { signal: {} },
  'an option that is misspelt': { modeldir: 'x' },
};

for (const [what, options] of Object.entries(oddStarts)) {
  test(`a start with ${what} is refused before anything is spawned`, async (t) => {
    const states: string[] = [];
    const start = startFake(t, 'good', { onState: (state) => void states.push(state), ...options });
    await assert.rejects(start, { code: 'request.malformed', retryable: false });
    assert.deepEqual(states, []);
  });
}

test('a start with options that are null is refused', async () => {
  await assert.rejects(VisionSidecar.start(null as never), { code: 'request.malformed' });
});

test('ten calls and more on one signal are no leak', async (t) => {
  const sidecar = await startFake(t, 'never-answers');
  const warned: string[] = [];
  const listen = (warning: Error): void => void warned.push(warning.name);
  process.on('warning', listen);
  t.after(() => process.off('warning', listen));
  const controller = new AbortController();
  const calls = Array.from({ length: 30 }, () =>
    assert.rejects(sidecar.encode(image, { signal: controller.signal }), {
      code: 'request.cancelled',
    }),
  );
  await new Promise((resolve) => setImmediate(resolve));
  controller.abort();
  await Promise.all(calls);
  assert.deepEqual(warned, []);
});

test('a reply that lacks what it should hold fails its call, and no other', async (t) => {
  const sidecar = await startFake(t, 'incomplete');
  await assert.rejects(sidecar.encode(image), { code: 'sidecar.malformed' });
  assert.equal((await sidecar.stats()).state, 'ready');
});

test('an encoding can be written as JSON, cloned and put into a Blob', async (t) => {
  const sidecar = await startFake(t, 'good');
  const encoding = await sidecar.encode(image, { outputs: ['pooledEmbedding'], heatmap: true });
  const written = JSON.parse(JSON.stringify(encoding));
  assert.deepEqual(written.pooledEmbedding, { data: [1, 2], shape: [1, 2] });
  assert.deepEqual(Buffer.from(written.heatmapPng, 'base64'), Buffer.from(image));
  assert.equal(written.model, 'ab');
  const cloned = structuredClone(encoding);
  assert.deepEqual(cloned.pooledEmbedding.data, encoding.pooledEmbedding.data);
  assert.equal(new Blob([encoding.heatmapPng]).size, image.length);
});

test('stats are in camel case, but for codes and sizes', async (t) => {
  const stats = await (await startFake(t, 'good')).stats();
  assert.equal(stats.uptimeS, 1);
  assert.deepEqual(stats.memory, { rssBytes: 1, peakRssBytes: 2 });
  assert.deepEqual(stats.counts, { encode: { ok: 1, 'image.too_large': 2 } });
  assert.deepEqual(stats.latency, { '448x448': { queueMs: { p50: 1, p90: 2, p99: 3 } } });
  assert.deepEqual(stats.expectedMs, { '448x448': 5 });
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
