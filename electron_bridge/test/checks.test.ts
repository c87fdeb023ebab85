import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Reader } from '../src/checks.js';
import { SidecarError } from '../src/errors.js';
import { readDraw, readEach, readEncode, readRequest, readStart } from '../src/options.js';

const readers = {
  start: readStart,
  encode: readEncode,
  each: readEach,
  draw: readDraw,
  request: readRequest,
};

const { signal } = new AbortController();
const good: Record<string, [keyof typeof readers, object]> = {
  'no options': ['start', {}],
  'all options of a start': [
    'start',
    {
      modelDir: 'model',
      manifestSha256: 'aB'.repeat(32),
      command: 'x',
      args: ['-m', 'sidecar'],
      cwd: '/',
      env: { A: '1' },
      threads: 1,
      priority: 'normal',
      kernels: 'off',
      startTimeoutMs: 0,
      log: () => undefined,
      onState: () => undefined,
      signal,
      heartbeat: { intervalMs: 1, timeoutMs: 2 },
    },
  ],
  'all options of an encode': [
    'encode',
    {
      resolution: [224, 448],
      outputs: ['pooledEmbedding'],
      heatmap: { colormap: 'grey', blend: 'over', legend: { low: 'wenig' } },
      priority: 'low',
      signal,
      timeoutMs: Number.POSITIVE_INFINITY,
    },
  ],
  'a side alone, and a heatmap as it is': ['encode', { resolution: 224, heatmap: false }],
  'the borders of what a heatmap takes': [
    'draw',
    { colormap: 'auto', alpha: 0, threshold: 1, invert: true, cells: false, legend: true },
  ],
  'the borders of concurrency': ['each', { concurrency: 64 }],
};

for (const [what, [reader, options]] of Object.entries(good)) {
  test(`${what} can be read, and comes out as it went in`, () => {
    assert.deepEqual(readers[reader](options, 'options'), options);
  });
}

test('options that are undefined are as if they were not there', () => {
  assert.deepEqual(readEncode({ signal: undefined, resolution: undefined }, 'options'), {});
});

test('options may be inherited', () => {
  assert.deepEqual(readRequest(Object.create({ timeoutMs: 5 }), 'options'), { timeoutMs: 5 });
});

const throwing = Object.defineProperty({}, 'timeoutMs', {
  enumerable: true,
  get: () => {
    throw new TypeError('no');
  },
});
const shy = new Proxy(
  {},
  {
    get: () => {
      throw new TypeError('no');
    },
  },
);

const bad: Record<string, [keyof typeof readers, unknown, RegExp]> = {
  'options that are null': ['encode', null, /expected options to be an object; null came/],
  'options that are a list': ['encode', [1], /a list of 1 came/],
  'options that are text': ['start', '-m sidecar', /"-m sidecar" came/],
  'threads below zero': [
    'start',
    { threads: -1 },
    /threads to be a whole number 1 to 1024; -1 came/,
  ],
  'no threads': ['start', { threads: 0 }, /0 came/],
  'half a thread': ['start', { threads: 0.5 }, /0.5 came/],
  'too many threads': ['start', { threads: 1025 }, /1025 came/],
  'a priority that there is not': [
    'start',
    { priority: 'high' },
    /one of low, normal; "high" came/,
  ],
  'kernels that are on': ['start', { kernels: 'on' }, /one of auto, off; "on" came/],
  'a model directory that is a number': ['start', { modelDir: 5 }, /modelDir to be text; 5 came/],
  'arguments that are text': [
    'start',
    { args: '-m sidecar' },
    /args to be a list; "-m sidecar" came/,
  ],
  'an argument that is a number': ['start', { args: ['-p', 5] }, /args\[1\] to be text; 5 came/],
  'an option that is misspelt': [
    'start',
    { modeldir: 'x' },
    /"modeldir" is unknown; there are modelDir,/,
  ],
  'a hash that is short': ['start', { manifestSha256: 'ab' }, /64 hex digits; "ab" came/],
  'a hash with a letter too far': ['start', { manifestSha256: 'g'.repeat(64) }, /text of 64 char/],
  'an environment that is text': ['start', { env: 'A=1' }, /env to be an object; "A=1" came/],
  'an environment that is null': ['start', { env: null }, /env to be an object; null came/],
  'a log that is no function': ['start', { log: true }, /log to be a function; true came/],
  'a heartbeat without its times': ['start', { heartbeat: 5 }, /heartbeat to be an object; 5 came/],
  'a heartbeat that is NaN': ['start', { heartbeat: { intervalMs: Number.NaN } }, /NaN came/],
  'a time below zero': ['request', { timeoutMs: -1 }, /a number of at least 0; -1 came/],
  'a time that is a BigInt': ['request', { timeoutMs: 5n }, /5n came/],
  'a time that throws when it is read': ['request', throwing, /timeoutMs cannot be read/],
  'options that throw at everything': ['request', shy, /cannot be read/],
  'a signal that is none': ['request', { signal: {} }, /an AbortSignal; an object came/],
  'a signal that is null': ['request', { signal: null }, /an AbortSignal; null came/],
  'a signal that is half of one': ['request', { signal: { aborted: false } }, /an AbortSignal/],
  'outputs that are text': [
    'encode',
    { outputs: 'pooledEmbedding' },
    /outputs to be a list; "pooled/,
  ],
  'an output that is a number': [
    'encode',
    { outputs: [1] },
    /outputs\[0\] to be the name of an out/,
  ],
  'a resolution that is a BigInt': [
    'encode',
    { resolution: 224n },
    /side length in pixels.* 224n came/,
  ],
  'a resolution with one side': ['encode', { resolution: [224] }, /a list of 1 came/],
  'a resolution that is half': ['encode', { resolution: 224.5 }, /224.5 came/],
  'a side of nothing': ['encode', { resolution: [224, 0] }, /resolution\[1\].*0 came/],
  'a heatmap that is a number': ['encode', { heatmap: 1 }, /heatmap to be an object; 1 came/],
  'an unknown colour map': ['draw', { colormap: 'jet' }, /one of auto, amber, .*"jet" came/],
  'a symbol as a colour map': ['draw', { colormap: Symbol('x') }, /a symbol came/],
  'a function as a blend': ['draw', { blend: () => 1 }, /a function came/],
  'a date as an alpha': ['draw', { alpha: new Date() }, /alpha to be a number 0 to 1; a Date came/],
  'an alpha above one': ['draw', { alpha: 1.01 }, /1.01 came/],
  'a threshold that is NaN': ['draw', { threshold: Number.NaN }, /NaN came/],
  'an invert that is text': ['draw', { invert: 'yes' }, /true or false; "yes" came/],
  'a legend with unknown words': ['draw', { legend: { title: 'x' } }, /legend: "title" is unknown/],
  'a legend with many words': [
    'draw',
    { legend: { low: 'x'.repeat(301) } },
    /text of 301 characters came/,
  ],
  'a concurrency of nothing': ['each', { concurrency: 0 }, /concurrency.*0 came/],
  'a concurrency of many': ['each', { concurrency: 65 }, /concurrency.*65 came/],
  'an object without a class': ['draw', { alpha: Object.create(null) }, /an object came/],
  'an object that hides its class': ['draw', { alpha: shy }, /an object came/],
};

for (const [what, [name, options, message]] of Object.entries(bad)) {
  test(`${what}: one clear error, that says what came`, () => {
    const read = readers[name] as Reader<object>;
    assert.throws(
      () => read(options, 'options'),
      (error) => {
        assert.ok(error instanceof SidecarError);
        assert.equal(error.code, 'request.malformed');
        assert.match(error.message, message);
        assert.equal(error.retryable, false);
        return true;
      },
    );
  });
}

for (const name of ['nothing', 'toString', '__proto__', 'pooled_embedding']) {
  test(`the output ${name} is not supported, and those that are stand in the message`, () => {
    assert.throws(() => readEncode({ outputs: [name] }, 'options'), {
      code: 'request.unsupported',
      message: /projectedEmbeddings, attentionScores, pooledEmbedding/,
    });
  });
}
