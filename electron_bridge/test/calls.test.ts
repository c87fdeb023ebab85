import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decode } from '@msgpack/msgpack';
import { Calls, type Link } from '../src/calls.js';
import { SidecarError } from '../src/errors.js';
import { type Done, MAX_ID } from '../src/protocol.js';
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

/** A link that holds everything back until it is told to let it go. */
function slowLink(): { link: Link; held: Header[]; urgent: boolean[] } {
  const held: Header[] = [];
  const urgent: boolean[] = [];
  const link: Link = (frames, isUrgent) => {
    const header = decode(frames[0] as Uint8Array) as Header;
    held.push(header);
    urgent.push(isUrgent);
    return () => {
      const at = held.indexOf(header);
      if (at >= 0) held.splice(at, 1);
      return at >= 0;
    };
  };
  return { link, held, urgent };
}

const encodings = (calls: Calls, count: number, signal?: AbortSignal) =>
  Array.from({ length: count }, () => calls.call(encode, { timeoutMs: 1000, signal }));

test('a call that is given up before it left is taken back, and nothing is sent for it', async () => {
  const { calls } = setUp();
  const { link: slow, held } = slowLink();
  calls.connect(slow);
  const controller = new AbortController();
  const rejected = encodings(calls, 60, controller.signal).map((call) =>
    assert.rejects(call, { code: 'request.cancelled' }),
  );
  assert.equal(held.length, 60);
  controller.abort();
  await Promise.all(rejected);
  assert.deepEqual(held, []);
  assert.equal(calls.size, 0);
});

test('what has not left when the link is lost waits for the next one', async () => {
  const { calls, sent } = setUp();
  const { link: slow } = slowLink();
  calls.connect(slow);
  const [call] = encodings(calls, 1);
  calls.disconnect(lost);
  assert.equal(calls.size, 1);
  calls.connect(link(sent));
  calls.flush();
  calls.receive(done(sent[0]?.id as number));
  await call;
});

test('an urgent call fails with its link, and goes before the others', async () => {
  const { calls } = setUp({ flush: false });
  const { link: slow, urgent } = slowLink();
  calls.connect(slow);
  const call = calls.call({ op: 'hello' }, { timeoutMs: 1000, urgent: true });
  assert.deepEqual(urgent, [true]);
  calls.disconnect(lost);
  await assert.rejects(call, { code: 'sidecar.exited' });
});

test('an urgent call without a link fails', async () => {
  const calls = new Calls(new FakeClock());
  const call = calls.call({ op: 'hello' }, { timeoutMs: 1000, urgent: true });
  await assert.rejects(call, { code: 'sidecar.exited' });
});

const unwritable: Record<string, [unknown, string]> = {
  'a BigInt': [1n, 'request.malformed'],
  'a symbol': [Symbol('x'), 'request.malformed'],
  'a function': [() => 1, 'request.malformed'],
  'a date': [new Date(0), 'request.malformed'],
  'a map': [new Map(), 'request.malformed'],
  'an object of a class': [new (class Own {})(), 'request.malformed'],
  'half a character': ['\ud800', 'request.malformed'],
  'half a character in a name': [{ '\udfff': 1 }, 'request.malformed'],
  'a circle': [circle(), 'request.malformed'],
  'many levels': [nested(20), 'request.malformed'],
  'too much text': ['x'.repeat(200_000), 'request.too_large'],
};

for (const [what, [value, code]] of Object.entries(unwritable)) {
  test(`${what} among the parameters fails that call alone, before anything is sent or kept`, async () => {
    const { calls, sent } = setUp({ flush: false });
    const bad = calls.call({ op: 'encode', params: { value } }, { timeoutMs: 1e12 });
    await assert.rejects(bad, { name: 'SidecarError', code });
    assert.equal(calls.size, 0);
    const good = calls.call(encode, { timeoutMs: 10 });
    calls.flush(); // as after a restart
    assert.equal(sent.length, 1);
    calls.receive(done(sent[0]?.id as number));
    await good;
  });
}

test('six levels, whole characters and everything that JSON knows can be written', () => {
  const { calls, sent } = setUp();
  const params = { value: [[[[[[]]]]]], text: '🫀', nothing: null, object: Object.create(null) };
  void calls.call({ op: 'encode', params }, { timeoutMs: 10 });
  assert.deepEqual(sent[0]?.params, { ...params, object: {} });
});

test('a call whose file cannot be read in time keeps to its time, its signal and its end', async () => {
  const never = () => new Promise<never>(() => undefined);
  const { calls, clock, sent } = setUp();
  const controller = new AbortController();
  const late = calls.call(never, { timeoutMs: 5 });
  const aborted = calls.call(never, { timeoutMs: 500, signal: controller.signal });
  const closed = calls.call(never, { timeoutMs: 500 });
  clock.advance(5);
  await assert.rejects(late, { code: 'request.timeout' });
  controller.abort();
  await assert.rejects(aborted, { code: 'request.cancelled' });
  calls.failAll({ code: 'sidecar.closed', message: 'closed.' });
  await assert.rejects(closed, { code: 'sidecar.closed' });
  assert.deepEqual([calls.size, clock.pending, sent.length], [0, 0, 0]);
});

test('the reading of a file is told when its call is over', async () => {
  const { calls } = setUp();
  const controller = new AbortController();
  let reading: AbortSignal | undefined;
  const call = calls.call(
    (signal) => {
      reading = signal;
      return new Promise(() => undefined);
    },
    { timeoutMs: 500, signal: controller.signal },
  );
  assert.equal(reading?.aborted, false);
  controller.abort();
  await assert.rejects(call);
  assert.equal(reading?.aborted, true);
});

test('a file that was read is sent, also where that lasted over a restart', async () => {
  const { calls, sent } = setUp();
  let read = (_: { op: 'encode' }): void => undefined;
  const call = calls.call(() => new Promise((resolve) => (read = resolve)), { timeoutMs: 500 });
  calls.disconnect(lost);
  calls.connect(link(sent));
  calls.flush();
  read(encode);
  await new Promise((resolve) => setImmediate(resolve));
  calls.receive(done(sent[0]?.id as number));
  await call;
});

test('what reading a file throws is the call’s failure', async () => {
  const { calls } = setUp();
  const fail = (error: Error) => calls.call(() => Promise.reject(error), { timeoutMs: 500 });
  const unreadable = new SidecarError({ code: 'image.unreadable', message: 'no file.' });
  await assert.rejects(fail(unreadable), unreadable);
  const bug = new TypeError('a bug');
  await assert.rejects(fail(bug), { name: 'SidecarError', code: 'internal', cause: bug });
});

/** Which calls are said not to be retryable when the sidecar dies at work. */
async function blamed(work: (calls: Calls, sent: Header[]) => Promise<Done>[]): Promise<boolean[]> {
  const { calls, sent } = setUp();
  const pending = work(calls, sent).map((call) =>
    call.then(
      () => false,
      (error: SidecarError) => error.code === 'sidecar.exited' && !error.retryable,
    ),
  );
  calls.disconnect(lost, true);
  return Promise.all(pending);
}

const low = { op: 'encode', params: { priority: 'low' } } as const;
const open = { timeoutMs: 500 };

test('the call that the sidecar was working on is not retryable; those that waited are', async () => {
  assert.deepEqual(await blamed((calls) => encodings(calls, 3)), [true, false, false]);
});

test('once the first is answered, the second is at work', async () => {
  const blame = await blamed((calls, sent) => {
    const all = encodings(calls, 3);
    calls.receive(done(sent[0]?.id as number));
    return all;
  });
  assert.deepEqual(blame, [false, true, false]);
});

test('a cancelled call may still be at work, until it is answered', async () => {
  const controller = new AbortController();
  const blame = await blamed((calls) => {
    const first = calls.call(encode, { ...open, signal: controller.signal });
    const rest = encodings(calls, 2);
    controller.abort();
    return [first, ...rest];
  });
  assert.deepEqual(blame, [false, false, false]);
});

test('calls of normal priority are worked on before those of low priority', async () => {
  const blame = await blamed((calls, sent) => {
    const all = [low, low, encode].map((request) => calls.call(request, open));
    calls.receive(done(sent[0]?.id as number));
    return all;
  });
  assert.deepEqual(blame, [false, false, true]);
});

test('where the death is the computer’s doing, no call is blamed', async () => {
  const { calls } = setUp();
  const [call] = encodings(calls, 1);
  calls.disconnect(lost);
  await assert.rejects(call as Promise<Done>, { code: 'sidecar.exited', retryable: true });
});

test('an answer out of turn does not change which call is at work', async () => {
  const blame = await blamed((calls, sent) => {
    const all = encodings(calls, 3);
    calls.receive(done(sent[2]?.id as number));
    return all;
  });
  assert.deepEqual(blame, [true, false, false]);
});

test('nor does it where a call of normal priority waits behind one of low priority', async () => {
  const blame = await blamed((calls, sent) => {
    const all = [low, encode, encode].map((request) => calls.call(request, open));
    calls.receive(done(sent[2]?.id as number));
    return all;
  });
  assert.deepEqual(blame, [true, false, false]);
});

test('a heartbeat is no work, and cannot be what the sidecar died of', async () => {
  const blame = await blamed((calls) => [
    calls.call({ op: 'hello' }, { ...open, urgent: true }),
    ...encodings(calls, 1),
  ]);
  assert.deepEqual(blame, [false, true]);
});

for (const op of [
  'encode',
  'collection.add',
  'collection.search',
  'collection.remove',
  'collection.info',
] as const) {
  test(`${op} that is given up is cancelled, and the cancel goes first`, async () => {
    const { calls } = setUp();
    const urgent: boolean[] = [];
    const ops: string[] = [];
    calls.connect((frames, isUrgent) => {
      urgent.push(isUrgent);
      ops.push((decode(frames[0] as Uint8Array) as Header).op);
      return () => false;
    });
    const controller = new AbortController();
    const call = calls.call({ op }, { ...open, signal: controller.signal });
    controller.abort();
    await assert.rejects(call, { code: 'request.cancelled' });
    assert.deepEqual(ops, [op, 'cancel']);
    assert.deepEqual(urgent, [false, true]);
  });
}

test('stats that are given up are not cancelled: there is nothing to stop', async () => {
  const { calls, clock, sent } = setUp();
  const call = calls.call({ op: 'stats' }, { timeoutMs: 5 });
  clock.advance(5);
  await assert.rejects(call, { code: 'request.timeout', message: /no answer within 5 ms/ });
  assert.equal(sent.length, 1);
});

test('a file that was read after its call was given up is not sent', async () => {
  const { calls, clock, sent } = setUp();
  let read = (_: { op: 'encode' }): void => undefined;
  const call = calls.call(() => new Promise((resolve) => (read = resolve)), { timeoutMs: 5 });
  clock.advance(5);
  await assert.rejects(call);
  read(encode);
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(sent, []);
});

test('an answer is somebody’s or nobody’s', () => {
  const { calls, sent } = setUp();
  void calls.call(encode, open);
  const error = { code: 'request.malformed', message: 'what?' } as const;
  assert.equal(calls.receive({ id: null, ok: false, error }), false);
  assert.equal(calls.receive(done(77)), false);
  assert.equal(calls.receive(done(sent[0]?.id as number)), true);
});

test('after its link is lost, a call waits for the next one', async () => {
  const { calls, sent } = setUp();
  calls.disconnect(lost);
  const call = calls.call(encode, open);
  assert.equal(calls.size, 1);
  calls.connect(link(sent));
  calls.flush();
  calls.receive(done(sent[0]?.id as number));
  await call;
});

test('calls that are failed are answered later, and that is no surprise', async () => {
  const { calls, sent } = setUp();
  const call = calls.call(encode, open);
  calls.failAll({ code: 'sidecar.closed', message: 'closed.' });
  await assert.rejects(call, { code: 'sidecar.closed' });
  assert.equal(calls.receive(done(sent[0]?.id as number)), true);
});

test('an id is not used again while the sidecar may answer it', async () => {
  const { calls, clock, sent } = setUp({ lastId: MAX_ID - 1 });
  const late = calls.call(encode, { timeoutMs: 5 });
  clock.advance(5);
  await assert.rejects(late);
  const ids = sent.map(({ id }) => id); // the call, and its cancel
  assert.deepEqual(ids, [MAX_ID, 0]);
  void calls.call(encode, open);
  assert.equal(sent[2]?.id, 1);
});

function nested(levels: number): unknown {
  return levels === 0 ? 1 : [nested(levels - 1)];
}

function circle(): unknown {
  const round: Record<string, unknown> = {};
  round.again = round;
  return round;
}
