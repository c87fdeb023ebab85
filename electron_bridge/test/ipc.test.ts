import assert from 'node:assert/strict';
import { EventEmitter } from 'node:events';
import { test } from 'node:test';
import type { FrameLike } from '../src/allow.js';
import { SidecarError } from '../src/errors.js';
import {
  type InvokeEventLike,
  type IpcOptions,
  registerVisionIpc,
  type SenderLike,
  type Served,
} from '../src/ipc.js';
import type { SidecarState } from '../src/options.js';
import { CHANNELS, exposeVision, type VisionApi } from '../src/preload.js';

/** Electron's IPC, as little of it as is used: one page, one main process, values cloned between. */
class FakeIpc {
  readonly #handlers = new Map<string, (event: InvokeEventLike, ...args: unknown[]) => unknown>();
  readonly page = new EventEmitter();
  readonly sender: SenderLike = Object.assign(new EventEmitter(), {
    id: 1,
    isDestroyed: () => false,
    send: (channel: string, ...args: unknown[]) => void this.page.emit(channel, {}, ...args),
  });
  frame: FrameLike | null = { url: 'app://main/index.html', parent: null };

  handle(channel: string, listener: (event: InvokeEventLike, ...args: unknown[]) => unknown): void {
    this.#handlers.set(channel, listener);
  }

  removeHandler(channel: string): void {
    this.#handlers.delete(channel);
  }

  get channels(): number {
    return this.#handlers.size;
  }

  async invoke(channel: string, ...args: unknown[]): Promise<unknown> {
    const event = { sender: this.sender, senderFrame: this.frame };
    return structuredClone(await this.#handlers.get(channel)?.(event, ...structuredClone(args)));
  }
}

/** A page's `window.vision`, over IPC, in front of a sidecar that keeps what it is asked. */
function setUp(
  options: Partial<IpcOptions> = {},
  encode?: Served['encode'],
  start: (sidecar: Served) => Served | Promise<Served> = (sidecar) => sidecar,
) {
  const ipc = new FakeIpc();
  const asked: unknown[][] = [];
  const sidecar = Object.assign(new EventEmitter(), {
    state: 'ready' as SidecarState,
    encode: (async (...args: Parameters<Served['encode']>) => {
      asked.push(args);
      return encode ? encode(...args) : { model: 'm' };
    }) as Served['encode'],
    heatmap: async (...args: unknown[]) => {
      asked.push(args);
      return Uint8Array.of(1);
    },
  });
  const dispose = registerVisionIpc(ipc, start(sidecar as Served), {
    allow: ['app://main'],
    ...options,
  });
  const exposed = new Map<string, VisionApi>();
  exposeVision(
    { exposeInMainWorld: exposed.set.bind(exposed) },
    {
      invoke: (channel, ...args) => ipc.invoke(channel, ...args),
      on: (channel, listener) => ipc.page.on(channel, listener),
      off: (channel, listener) => ipc.page.off(channel, listener),
    },
  );
  return { ipc, asked, sidecar, dispose, vision: exposed.get('vision') as VisionApi };
}

const image = Uint8Array.of(1, 2, 3);

const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

test('a page that is allowed gets its answer', async () => {
  const { vision, asked } = setUp();
  const outcome = await vision.encode({ image }, { resolution: 224, outputs: ['pooledEmbedding'] });
  assert.deepEqual(outcome, { ok: true, value: { model: 'm' } });
  const [input, options] = asked[0] as [{ image: Uint8Array }, Record<string, unknown>];
  assert.deepEqual(input.image, image);
  assert.equal(options.resolution, 224);
  assert.ok(options.signal instanceof AbortSignal);
  assert.deepEqual(await vision.heatmap({ image }), { ok: true, value: Uint8Array.of(1) });
});

test('every option of a page reaches the sidecar, and a signal of ours', async () => {
  const { ipc, asked } = setUp();
  const encoding = { resolution: [224, 448], outputs: ['pooledEmbedding'], timeoutMs: 5 };
  const drawing = { colormap: 'grey', alpha: 0.5, legend: false, resolution: 224, timeoutMs: 5 };
  for (const [channel, options] of [
    [CHANNELS.encode, encoding],
    [CHANNELS.heatmap, drawing],
  ] as const) {
    const outcome = await ipc.invoke(channel, { image }, { ...options, token: 'a' });
    assert.equal((outcome as { ok: boolean }).ok, true);
    const [, given] = asked.at(-1) as [unknown, { signal: unknown }];
    const { signal, ...rest } = given;
    assert.ok(signal instanceof AbortSignal);
    assert.deepEqual(rest, options);
  }
});

test('a page sends pixel values with their shape, and raw pixels with their size', async () => {
  const { ipc, asked } = setUp();
  const most = 2 ** 32 - 1;
  const inputs = [
    { pixelValues: Float32Array.of(1), shape: [0, 1, 2, 3, 4, 5, 6, most] },
    { rgb: image, width: 1, height: most },
  ];
  for (const input of inputs) await ipc.invoke(CHANNELS.encode, input, {});
  assert.deepEqual(
    asked.map(([input]) => input),
    inputs,
  );
});

test('as many bytes as a page may send are taken, and the longest token', async () => {
  const { ipc, asked } = setUp({ maxBytes: 3 });
  await ipc.invoke(CHANNELS.encode, { image }, { token: 'x'.repeat(128) });
  assert.equal(asked.length, 1);
});

test('a call that was answered leaves its token and its slot', async () => {
  const { vision } = setUp({ maxCalls: 1 });
  for (let call = 0; call < 3; call += 1) {
    assert.ok((await vision.encode({ image }, { token: 'a' })).ok);
  }
});

test('a page cancels nothing by what is no token', async () => {
  const { ipc, vision } = setUp({}, endless);
  const call = vision.encode({ image });
  await settled();
  await ipc.invoke(CHANNELS.cancel, 1); // what a call without a token is kept under
  const racing = await Promise.race([call, settled().then(() => 'in flight')]);
  assert.equal(racing, 'in flight');
  (ipc.sender as unknown as EventEmitter).emit('destroyed');
  await call;
});

test('a page that is not allowed is told so, and the sidecar hears nothing', async () => {
  const { ipc, vision, asked } = setUp();
  ipc.frame = { url: 'https://example.org/', parent: null };
  const outcome = await vision.encode({ image });
  assert.equal(outcome.ok || outcome.error.code, 'ipc.forbidden');
  assert.deepEqual(asked, []);
});

test('a frame inside a page, and one that is gone, may not ask', async () => {
  const { ipc, vision } = setUp();
  for (const frame of [
    { url: 'app://main/', parent: { url: 'app://main/', parent: null } },
    null,
  ]) {
    ipc.frame = frame;
    const outcome = await vision.encode({ image });
    assert.equal(outcome.ok || outcome.error.code, 'ipc.forbidden');
    await assert.rejects(ipc.invoke(CHANNELS.watch), { code: 'ipc.forbidden' });
    await assert.rejects(ipc.invoke(CHANNELS.cancel, 'x'), { code: 'ipc.forbidden' });
  }
});

test('wrong options are refused when the handlers are registered', () => {
  assert.throws(() => setUp({ maxBytes: '64 MiB' as unknown as number }), {
    code: 'request.malformed',
    message: /options\.maxBytes to be a number of at least 0; "64 MiB" came/,
  });
});

const refused: Record<string, [unknown, unknown, string]> = {
  'a path': [{ path: '/etc/passwd' }, {}, 'request.malformed'],
  'a path beside an image': [{ image, path: '/etc/passwd' }, {}, 'request.malformed'],
  'two inputs': [{ image, rgb: image }, {}, 'request.malformed'],
  'an array of numbers': [{ image: [1, 2] }, {}, 'request.malformed'],
  nothing: [undefined, {}, 'request.malformed'],
  'a shape of nine sides': [
    { pixelValues: new Float32Array(1), shape: Array(9).fill(1) },
    {},
    'request.malformed',
  ],
  'a shape that is text': [
    { pixelValues: new Float32Array(1), shape: '1' },
    {},
    'request.malformed',
  ],
  'a side of 2 ** 32': [{ rgb: image, width: 2 ** 32, height: 1 }, {}, 'request.malformed'],
  'too many bytes': [{ image: new Uint8Array(11) }, {}, 'request.too_large'],
  'an unknown output': [{ image }, { outputs: ['secrets'] }, 'request.unsupported'],
  'the name of something inherited as an output': [
    { image },
    { outputs: ['toString'] },
    'request.unsupported',
  ],
  'a resolution that is text': [{ image }, { resolution: '224' }, 'request.malformed'],
  'a time that is not a number': [{ image }, { timeoutMs: Number.NaN }, 'request.malformed'],
  'options that are a list': [{ image }, [], 'request.malformed'],
  'a token that is long': [{ image }, { token: 'x'.repeat(129) }, 'request.malformed'],
};

for (const [what, [input, options, code]] of Object.entries(refused)) {
  test(`a page that sends ${what} gets ${code}`, async () => {
    const { ipc, asked } = setUp({ maxBytes: 10 });
    const outcome = (await ipc.invoke(CHANNELS.encode, input, options)) as {
      error?: { code: string };
    };
    assert.equal(outcome.error?.code, code);
    assert.deepEqual(asked, []);
  });
}

const strangers = {
  'an option of the main process': { signal: { aborted: false } },
  'an option that nobody knows': { command: 'rm' },
  'a name that all objects inherit': { toString: true },
  'the name of their class': { constructor: 1 },
  'the name of their parent': JSON.parse('{"__proto__": {"resolution": 224}}'),
  'an option of a heatmap that nobody knows': { heatmap: { path: '/etc/passwd' } },
};

for (const [what, options] of Object.entries(strangers)) {
  test(`${what} is refused, and goes no further`, async () => {
    const { ipc, asked } = setUp();
    const outcome = (await ipc.invoke(CHANNELS.encode, { image }, options)) as {
      error?: { code: string; message: string };
    };
    assert.equal(outcome.error?.code, 'request.malformed');
    assert.match(outcome.error?.message ?? '', /is unknown; there are/);
    assert.deepEqual(asked, []);
  });
}

const unwritable = {
  'a BigInt': 1n,
  'a date': new Date(0),
  'a map': new Map(),
  'many levels': [[[[[[[[[[]]]]]]]]]],
  'a long text': 'a'.repeat(70_000),
  'half a character': '\ud800',
};

for (const [what, value] of Object.entries(unwritable)) {
  test(`a page that sends ${what} as a colour map is told so, and the sidecar hears nothing`, async () => {
    const { ipc, asked } = setUp();
    const outcome = (await ipc.invoke(
      CHANNELS.encode,
      { image },
      { heatmap: { colormap: value } },
    )) as {
      error?: { code: string };
    };
    assert.equal(outcome.error?.code, 'request.malformed');
    assert.deepEqual(asked, []);
  });
}

/** An encode that lasts until it is aborted. */
const endless: Served['encode'] = (_, options) =>
  new Promise((_resolve, reject) => {
    options?.signal?.addEventListener('abort', () =>
      reject(new SidecarError({ code: 'request.cancelled', message: 'aborted.' })),
    );
  });

test('a page cancels its call by its token', async () => {
  const { vision } = setUp({}, endless);
  const call = vision.encode({ image }, { token: 'a' });
  const twin = await vision.encode({ image }, { token: 'a' });
  assert.equal(twin.ok || twin.error.code, 'request.malformed');
  await vision.cancel('unknown');
  await vision.cancel('a');
  const outcome = await call;
  assert.equal(outcome.ok || outcome.error.code, 'request.cancelled');
});

test('a page that asks too much at a time is told so', async () => {
  const { vision, ipc } = setUp({ maxCalls: 2 }, endless);
  const calls = [1, 2].map(() => vision.encode({ image }));
  const third = await vision.encode({ image });
  assert.deepEqual(
    [third.ok || third.error.code, third.ok || third.error.retryable],
    ['busy', true],
  );
  (ipc.sender as unknown as EventEmitter).emit('destroyed');
  for (const outcome of await Promise.all(calls)) {
    assert.equal(outcome.ok || outcome.error.code, 'request.cancelled');
  }
});

for (const event of ['did-navigate', 'render-process-gone', 'destroyed']) {
  test(`after ${event} a page's calls are stopped, and its slots, tokens and state are free`, async () => {
    const { vision, ipc, sidecar } = setUp({ maxCalls: 1 }, endless);
    const heard: string[] = [];
    vision.onState((state) => heard.push(state));
    const before = vision.encode({ image }, { token: 'a' });
    await settled();
    const sender = ipc.sender as unknown as EventEmitter;
    sender.emit(event);
    const outcome = await before;
    assert.equal(outcome.ok || outcome.error.code, 'request.cancelled');
    const after = vision.encode({ image }, { token: 'a' });
    sidecar.emit('state', 'restarting');
    assert.deepEqual(heard, ['ready']); // the new document has not asked for it
    await vision.cancel('a');
    assert.equal((await after).ok, false);
    for (const name of sender.eventNames()) assert.equal(sender.listenerCount(name), 1);
  });
}

test('a page can cancel a call while the sidecar starts', async () => {
  const { vision, asked } = setUp({}, undefined, () => new Promise(() => undefined));
  const call = vision.encode({ image }, { token: 'a' });
  await settled();
  await vision.cancel('a');
  const outcome = await call;
  assert.equal(outcome.ok || outcome.error.code, 'request.cancelled');
  assert.deepEqual(asked, []);
});

test('a page learns the code of a failure, and nothing of our process', async () => {
  const { vision } = setUp({}, async () => {
    throw new SidecarError({
      code: 'sidecar.failed',
      message: 'died; /home/me',
      stderr: ['secret'],
    });
  });
  const outcome = await vision.encode({ image });
  assert.ok(!outcome.ok);
  assert.equal(outcome.error.code, 'sidecar.failed');
  assert.doesNotMatch(JSON.stringify(outcome), /home|secret/);
});

test('a bug of ours is told as such', async () => {
  const { vision } = setUp({}, async () => {
    throw new TypeError('/home/me is not a function');
  });
  const outcome = await vision.encode({ image });
  assert.ok(!outcome.ok);
  assert.equal(outcome.error.code, 'internal');
  assert.equal(outcome.error.retryable, false);
  assert.doesNotMatch(outcome.error.message, /home/);
});

test('a page hears the state, now and after each change, until it stops listening', async () => {
  const { vision, sidecar } = setUp();
  const heard: string[] = [];
  const stop = vision.onState((state) => heard.push(state));
  await settled();
  sidecar.emit('state', 'restarting');
  stop();
  sidecar.emit('state', 'ready');
  assert.deepEqual(heard, ['ready', 'restarting']);
});

test('a page that is open while the sidecar starts hears so, and its calls wait', async () => {
  let ready = (): void => undefined;
  const { vision, asked } = setUp({}, undefined, (sidecar) => {
    return new Promise((resolve) => {
      ready = () => resolve(sidecar);
    });
  });
  const heard: string[] = [];
  vision.onState((state) => heard.push(state));
  const call = vision.encode({ image });
  await settled();
  assert.deepEqual([heard, asked], [['starting'], []]);
  ready();
  assert.ok((await call).ok);
  assert.deepEqual(heard, ['starting', 'ready']);
});

test('a page whose sidecar cannot start hears so', async () => {
  const { vision } = setUp({}, undefined, async () => {
    throw new SidecarError({ code: 'model.invalid', message: 'a file has changed.' });
  });
  const heard: string[] = [];
  vision.onState((state) => heard.push(state));
  const outcome = await vision.encode({ image });
  assert.equal(outcome.ok || outcome.error.code, 'model.invalid');
  await settled();
  assert.equal(heard.at(-1), 'failed');
});

test('a page that is not allowed hears no state', async () => {
  const { ipc, vision } = setUp();
  ipc.frame = { url: 'https://example.org/', parent: null };
  const heard: string[] = [];
  vision.onState((state) => heard.push(state));
  await settled();
  ipc.page.emit(CHANNELS.state, {}, 'ready'); // meant for the page that was here before
  assert.deepEqual(heard, []);
});

/** A page in front of a sidecar whose collections keep what they are asked. */
function withCollections() {
  const asked: unknown[][] = [];
  const ask =
    (op: string) =>
    async (...args: unknown[]) => {
      asked.push([op, ...args]);
      return { op };
    };
  const opened: unknown[] = [];
  const all = setUp(
    { collections: { cases: { path: '/data/cases.db' }, own: { path: 'own', writable: true } } },
    undefined,
    (sidecar) =>
      Object.assign(sidecar, {
        collection: (options: unknown) => {
          opened.push(options);
          const [add, search, remove, info] = ['add', 'search', 'remove', 'info'].map(ask);
          return { add, search, remove, info };
        },
      }) as unknown as Served,
  );
  return { ...all, asked, opened };
}

const seen = {
  projectedEmbeddings: { data: Float32Array.of(1), shape: [1, 1, 1] },
  pooledEmbedding: { data: Float32Array.of(1), shape: [1, 1] },
  resolution: [224, 224] as [number, number],
};

test('a page searches the collections that it is given, by their names', async () => {
  const { vision, asked, opened } = withCollections();
  const cases = vision.collection('cases');
  assert.ok((await cases.search({ image }, { k: 3, where: { age: 71 } })).ok);
  assert.ok((await cases.search({ ...seen, model: 'm' } as never)).ok); // as `encode` gave it
  assert.ok((await cases.info()).ok);
  assert.deepEqual(opened, Array(3).fill({ path: '/data/cases.db', readOnly: true }));
  const [[op, input, options], [, again]] = asked as unknown[][] as [unknown[], unknown[]];
  assert.deepEqual([op, input], ['search', { image }]);
  assert.deepEqual({ ...(options as object), signal: 1 }, { k: 3, where: { age: 71 }, signal: 1 });
  assert.deepEqual(again, seen);
});

test('a page changes only what the app lets it change', async () => {
  const { vision, asked, opened } = withCollections();
  for (const call of [
    vision.collection('cases').add({ image }, { id: 'a' }),
    vision.collection('cases').remove('a'),
  ]) {
    const outcome = await call;
    assert.equal(outcome.ok || outcome.error.code, 'ipc.forbidden');
  }
  assert.equal(asked.length, 0);
  assert.ok((await vision.collection('own').add({ image }, { id: 'a' })).ok);
  assert.ok((await vision.collection('own').remove('a')).ok);
  assert.deepEqual(
    asked.map(([op]) => op),
    ['add', 'remove'],
  );
  assert.deepEqual(opened, Array(2).fill({ path: 'own', readOnly: false }));
});

test('what a page asks of a collection comes with its options and a signal', async () => {
  const { vision, asked } = withCollections();
  const own = vision.collection('own');
  await own.add({ image }, { id: 'a', metadata: { age: 71 }, resolution: 224 });
  await own.remove('a');
  await own.info();
  const options = asked.map((args) => args.at(-1) as { signal: unknown });
  assert.ok(options.every(({ signal }) => signal instanceof AbortSignal));
  assert.deepEqual(
    options.map(({ signal, ...rest }) => rest),
    [{ id: 'a', metadata: { age: 71 }, resolution: 224 }, {}, {}],
  );
});

test('a page gets no collection that it is not given, and names no file', async () => {
  const { ipc, vision, asked } = withCollections();
  for (const name of ['other', '/data/cases.db', 'toString', '__proto__', '']) {
    const outcome = await vision.collection(name).info();
    assert.equal(outcome.ok || outcome.error.code, 'collection.not_found');
    assert.doesNotMatch(JSON.stringify(outcome), /data/);
  }
  const wrong: Record<string, unknown[]> = {
    'another operation': ['own', 'toString', { image }, {}],
    'a path in place of an image': ['own', 'search', { path: '/etc/passwd' }, {}],
    'a path among the options': ['own', 'search', { image }, { path: '/etc/passwd' }],
    'a number as an id': ['own', 'remove', 5],
    'no options': ['own', 'add', { image }],
  };
  for (const [what, args] of Object.entries(wrong)) {
    const outcome = (await ipc.invoke(CHANNELS.collection, ...args)) as {
      error?: { code: string };
    };
    assert.equal(outcome.error?.code, 'request.malformed', what);
  }
  assert.deepEqual(asked, []);
});

test('an encoding that a page sends back counts its bytes', async () => {
  const { vision } = setUp({ maxBytes: 7, collections: { cases: { path: '/x' } } });
  const outcome = await vision.collection('cases').search(seen);
  assert.equal(outcome.ok || outcome.error.code, 'request.too_large');
});

test('a page that is not allowed gets no collection', async () => {
  const { ipc, vision, asked } = withCollections();
  ipc.frame = { url: 'https://example.org/', parent: null };
  const outcome = await vision.collection('cases').info();
  assert.equal(outcome.ok || outcome.error.code, 'ipc.forbidden');
  assert.deepEqual(asked, []);
});

test('collections are looked at when the handlers are registered', () => {
  for (const collections of [{ cases: {} }, { cases: { path: 5 } }, { cases: 'x' }, 'x', null]) {
    assert.throws(() => setUp({ collections: collections as never }), {
      code: 'request.malformed',
      message: /collections/,
    });
  }
});

test('a window that is gone is told nothing more', async () => {
  const { ipc, vision, sidecar } = setUp();
  const heard: string[] = [];
  vision.onState((state) => heard.push(state));
  await settled();
  Object.assign(ipc.sender, { isDestroyed: () => true });
  sidecar.emit('state', 'restarting');
  assert.deepEqual(heard, ['ready']);
});

test('what was registered can be taken away again', async () => {
  const { ipc, vision, sidecar, dispose } = setUp({}, endless);
  const call = vision.encode({ image });
  await settled();
  dispose();
  const outcome = await call;
  assert.equal(outcome.ok || outcome.error.code, 'request.cancelled');
  assert.equal(ipc.channels, 0);
  assert.equal(sidecar.listenerCount('state'), 0);
});

test('a sidecar that starts after the handlers were taken away is not listened to', async () => {
  let ready = (): void => undefined;
  const { sidecar, dispose } = setUp({}, undefined, (sidecar) => {
    return new Promise((resolve) => {
      ready = () => resolve(sidecar);
    });
  });
  dispose();
  ready();
  await settled();
  assert.equal(sidecar.listenerCount('state'), 0);
});
