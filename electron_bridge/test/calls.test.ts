import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decode } from '@msgpack/msgpack';
import { Calls, type Link } from '../src/calls.js';
import { MAX_ID } from '../src/protocol.js';
import { FakeClock } from './fakeClock.js';

interface Header {
  id: number;
  op: string;
  params?: { target: number };
}

/** Calls over a link that keeps what is sent. */
function setUp({ flush = true, lastId = -1 } = {}): {
  calls: Calls;
  clock: FakeClock;
  sent: Header[];
} {
  const clock = new FakeClock();
  const calls = new Calls(clock, lastId);
  const sent: Header[] = [];
  calls.connect(link(sent));
  if (flush) calls.flush();
  return { calls, clock, sent };
}

/** Everything leaves at once. */
function link(sent: Header[]): Link {
  return (frames) => {
    sent.push(decode(frames[0] as Uint8Array) as Header);
    return () => false;
  };
}

const encode = { op: 'encode' } as const;
const done = (id: number) => ({ id, ok: true, outputs: [], header: {} }) as const;
const lost = { code: 'sidecar.exited', message: 'it died.' } as const;

test('an answer settles the call that has its id', async () => {
  const { calls, sent } = setUp();
  const [first, second] = [
    calls.call(encode, { timeoutMs: 10 }),
    calls.call(encode, { timeoutMs: 10 }),
  ];
  calls.receive(done(sent[1]?.id as number));
  assert.equal((await second).id, sent[1]?.id);
  calls.receive(done(sent[0]?.id as number));
  assert.equal((await first).id, sent[0]?.id);
});

test('an error answer rejects with its code', async () => {
  const { calls, sent } = setUp();
  const call = calls.call(encode, { timeoutMs: 10 });
  const error = { code: 'image.unreadable', message: 'not an image.', retryable: false } as const;
  calls.receive({ id: sent[0]?.id as number, ok: false, error });
  await assert.rejects(call, error);
});

test('calls wait until they are flushed, and are sent once', async () => {
  const { calls, sent } = setUp({ flush: false });
  const call = calls.call(encode, { timeoutMs: 10 });
  assert.equal(sent.length, 0);
  calls.flush();
  calls.flush();
  assert.equal(sent.length, 1);
  calls.receive(done(sent[0]?.id as number));
  await call;
});

test('when the link is lost, what was sent fails and what waits does not', async () => {
  const { calls, sent } = setUp();
  const inFlight = calls.call(encode, { timeoutMs: 10 });
  calls.pause();
  const waiting = calls.call(encode, { timeoutMs: 10 });
  calls.disconnect(lost);
  await assert.rejects(inFlight, { ...lost, retryable: true });
  calls.connect(link(sent));
  calls.flush();
  assert.equal(sent.length, 2);
  calls.receive(done(sent[1]?.id as number));
  await waiting;
});

test('a deadline rejects the call and cancels the work', async () => {
  const { calls, clock, sent } = setUp();
  const call = calls.call(encode, { timeoutMs: 500 });
  clock.advance(499);
  assert.equal(sent.length, 1);
  clock.advance(1);
  await assert.rejects(call, { code: 'request.timeout', retryable: true });
  assert.deepEqual(sent[1], { ...sent[1], op: 'cancel', params: { target: sent[0]?.id } });
});

test('the time that a call waits counts, and one that was never sent is not cancelled', async () => {
  const { calls, clock, sent } = setUp({ flush: false });
  const call = calls.call(encode, { timeoutMs: 500 });
  clock.advance(500);
  await assert.rejects(call, { code: 'request.timeout' });
  calls.flush();
  assert.deepEqual(sent, []);
});

test('an abort rejects at once with the reason as cause, and cancels the work', async () => {
  const { calls, sent } = setUp();
  const controller = new AbortController();
  const call = calls.call(encode, { timeoutMs: 500, signal: controller.signal });
  controller.abort('the user left');
  await assert.rejects(call, { code: 'request.cancelled', cause: 'the user left' });
  assert.equal(sent[1]?.op, 'cancel');
});

test('a signal that is aborted already sends nothing', async () => {
  const { calls, sent } = setUp();
  const call = calls.call(encode, { timeoutMs: 500, signal: AbortSignal.abort() });
  await assert.rejects(call, { code: 'request.cancelled' });
  assert.deepEqual(sent, []);
});

test('a late answer to a call that was given up is no surprise, a second one is', async () => {
  const { calls, clock, sent } = setUp();
  const call = calls.call(encode, { timeoutMs: 5 });
  clock.advance(5);
  await assert.rejects(call);
  assert.equal(calls.receive(done(sent[0]?.id as number)), true);
  assert.equal(calls.receive(done(sent[0]?.id as number)), false);
});

test('nothing is left behind by calls that settled', async () => {
  const { calls, clock, sent } = setUp();
  const { signal } = new AbortController();
  const call = calls.call(encode, { timeoutMs: 500, signal });
  calls.receive(done(sent[0]?.id as number));
  await call;
  assert.equal(clock.pending, 0);
  assert.equal(calls.size, 0);
});

test('ids begin anew after the last one', async () => {
  const { calls, sent } = setUp({ lastId: MAX_ID - 1 });
  const both = [1, 2].map(() => calls.call(encode, { timeoutMs: 10 }));
  const ids = sent.map(({ id }) => id);
  assert.deepEqual(ids, [MAX_ID, 0]);
  for (const id of ids) calls.receive(done(id));
  await Promise.all(both);
});

test('failing all settles what waits too', async () => {
  const { calls } = setUp({ flush: false });
  const call = calls.call(encode, { timeoutMs: 10 });
  calls.failAll({ code: 'sidecar.closed', message: 'closed.' });
  await assert.rejects(call, { code: 'sidecar.closed', retryable: false });
});
