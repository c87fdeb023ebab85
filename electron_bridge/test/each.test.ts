import assert from 'node:assert/strict';
import { getEventListeners } from 'node:events';
import { test } from 'node:test';
import { countOf, inOrder } from '../src/each.js';

const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
const open = { concurrency: 2, signal: undefined };

/** Work that is done when it is told to be. */
function workshop() {
  const begun: { readonly input: number; readonly signal: AbortSignal; finish(): void }[] = [];
  const work = (input: number, _index: number, signal: AbortSignal): Promise<number> =>
    new Promise((resolve) => begun.push({ input, signal, finish: () => resolve(input * 10) }));
  return { begun, work };
}

const instantly = async (input: number): Promise<number> => input * 10;

async function all<T>(results: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = [];
  for await (const result of results) list.push(result);
  return list;
}

test('results come in the order of the inputs, whichever is done first', async () => {
  const { begun, work } = workshop();
  const results = all(inOrder([1, 2, 3], open, work));
  await settled();
  begun[1]?.finish();
  await settled();
  begun[0]?.finish();
  await settled();
  begun[2]?.finish();
  assert.deepEqual(await results, [10, 20, 30]);
});

test('no more are at work than may be', async () => {
  const { begun, work } = workshop();
  const results = all(inOrder([1, 2, 3, 4], { ...open, concurrency: 3 }, work));
  await settled();
  assert.equal(begun.length, 3);
  for (let at = 0; at < 4; at += 1) {
    begun[at]?.finish();
    await settled();
  }
  assert.deepEqual(await results, [10, 20, 30, 40]);
});

test('lists, sets and generators of both kinds can be gone through', async () => {
  async function* later(): AsyncGenerator<number> {
    yield 1;
    yield 2;
  }
  for (const inputs of [[1, 2], new Set([1, 2]), [1, 2].values(), later()]) {
    assert.deepEqual(await all(inOrder(inputs, open, instantly)), [10, 20]);
  }
  assert.deepEqual(await all(inOrder([], open, instantly)), []);
});

for (const inputs of [undefined, null, 5, 'abc', {}]) {
  test(`${JSON.stringify(inputs)} in place of inputs is one clear error`, async () => {
    await assert.rejects(all(inOrder(inputs as unknown as number[], open, instantly)), {
      code: 'request.malformed',
      message: /expected inputs to be a list or another iterable; .* came/,
    });
  });
}

/** Endless, and says whether it was told to stop. */
function endless() {
  const told = { pulled: 0, stopped: false };
  function* inputs(): Generator<number> {
    try {
      for (;;) {
        told.pulled += 1;
        yield told.pulled;
      }
    } finally {
      told.stopped = true;
    }
  }
  return { told, inputs: inputs() };
}

test('an abort ends it: no further input is taken, and nobody is left listening', async () => {
  const { told, inputs } = endless();
  const controller = new AbortController();
  const seen: number[] = [];
  const run = async (): Promise<void> => {
    for await (const result of inOrder(inputs, { ...open, signal: controller.signal }, instantly)) {
      seen.push(result);
      if (seen.length === 3) controller.abort('enough');
    }
  };
  await assert.rejects(run(), { code: 'request.cancelled', cause: 'enough' });
  assert.deepEqual(seen, [10, 20, 30]);
  assert.ok(told.pulled <= 4);
  assert.equal(told.stopped, true);
  assert.deepEqual(getEventListeners(controller.signal, 'abort'), []);
});

test('an abort ends it while work is under way, and the work is told', async () => {
  const { begun, work } = workshop();
  const controller = new AbortController();
  const run = all(inOrder([1, 2, 3], { ...open, signal: controller.signal }, work));
  await settled();
  controller.abort();
  assert.ok(begun.every(({ signal }) => signal.aborted));
  for (const { finish } of begun) finish(); // as a call rejects, or is done all the same
  await assert.rejects(run, { code: 'request.cancelled' });
  assert.equal(begun.length, 2);
});

test('an abort ends it while an input is awaited that never comes', async () => {
  const hangs: AsyncIterable<number> = {
    [Symbol.asyncIterator]: () => ({ next: () => new Promise(() => undefined) }),
  };
  const controller = new AbortController();
  const run = all(inOrder(hangs, { ...open, signal: controller.signal }, instantly));
  await settled();
  controller.abort();
  await assert.rejects(run, { code: 'request.cancelled' });
});

test('a signal that is aborted already takes no input', async () => {
  const { told, inputs } = endless();
  const signal = AbortSignal.abort();
  await assert.rejects(all(inOrder(inputs, { ...open, signal }, instantly)), {
    code: 'request.cancelled',
  });
  assert.equal(told.pulled, 0);
});

test('a consumer that stops cancels what is in flight, and the inputs are told', async () => {
  const { told, inputs } = endless();
  const { begun, work } = workshop();
  const results = inOrder(inputs, open, work);
  const first = results.next();
  await settled();
  begun[0]?.finish();
  assert.deepEqual(await first, { done: false, value: 10 });
  await results.return();
  assert.equal(begun[1]?.signal.aborted, true);
  assert.equal(told.stopped, true);
});

test('inputs that throw lose no result of those before', async () => {
  function* broken(): Generator<number> {
    yield 1;
    yield 2;
    yield 3;
    throw new Error('the disk is gone');
  }
  const seen: number[] = [];
  const run = async (): Promise<void> => {
    for await (const result of inOrder(broken(), { ...open, concurrency: 5 }, instantly)) {
      seen.push(result);
    }
  };
  await assert.rejects(run(), { message: 'the disk is gone' });
  assert.deepEqual(seen, [10, 20, 30]);
});

test('work that throws ends it with that error', async () => {
  const failing = async (): Promise<never> => {
    throw new Error('a bug');
  };
  await assert.rejects(all(inOrder([1, 2, 3], open, failing)), { message: 'a bug' });
});

test('the number of inputs is known of lists and sets', () => {
  assert.equal(countOf([1, 2]), 2);
  assert.equal(countOf(new Set([1])), 1);
  assert.equal(countOf([1].values()), undefined);
});
