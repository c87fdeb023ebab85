import assert from 'node:assert/strict';
import { test } from 'node:test';
import { POLICY } from '../src/supervisor.js';
import type { Asked } from './fake.js';
import { lives, reached, received, startFake } from './fake.js';
import { FakeClock } from './fakeClock.js';

const image = new Uint8Array(8);

/** Each fixture's typed error, and the options that make it come soon. */
const failing: Record<string, [string, RegExp, Asked?]> = {
  silent: ['sidecar.start_timeout', /within 300 ms/, { policy: { handshakeMs: 300 } }],
  'never-ready': ['sidecar.start_timeout', /within 600 ms/, { startTimeoutMs: 600 }],
  junk: ['sidecar.malformed', /line of JSON/],
  'endless-line': ['sidecar.malformed', /line of JSON/],
  'exits-early': ['sidecar.exited', /exit code 3.*shared object/],
  'exits-early+floods-stderr': ['sidecar.exited', /exit code 3/],
  'other-version': ['protocol.version', /version 9/],
  fatal: ['model.invalid', /has changed/],
  'ready-too-early': ['sidecar.malformed', /out of turn/],
  'listening-twice': ['sidecar.malformed', /out of turn/],
  'never-answers-hello': [
    'sidecar.start_timeout',
    /did not answer within 300 ms/,
    { policy: { verifyMs: 300 } },
  ],
  'hello-without-model': ['sidecar.malformed', /expected limits/],
  'silent+ignores-sigterm+ignores-eof': [
    'sidecar.start_timeout',
    /within 300 ms/,
    { policy: { handshakeMs: 300 } },
  ],
};

for (const [behaviour, [code, message, asked]] of Object.entries(failing)) {
  test(`a child that is ${behaviour} is reported as ${code}`, async (t) => {
    await assert.rejects(startFake(t, behaviour, asked), { code, message });
  });
}

test('a code that we do not know is final or not as its message says', async (t) => {
  await assert.rejects(startFake(t, 'out-of-memory'), {
    code: 'system.out_of_memory',
    retryable: true,
  });
  await assert.rejects(startFake(t, 'fatal'), { retryable: false });
});

test('a failure to start is not retryable: the same would happen again', async (t) => {
  await assert.rejects(startFake(t, 'exits-early'), { code: 'sidecar.exited', retryable: false });
});

test('a program that may not be run is told with the remedy', {
  skip: process.platform === 'win32',
}, async (t) => {
  await assert.rejects(startFake(t, '', { command: __filename }), {
    code: 'sidecar.spawn_failed',
    message: /EACCES.*chmod \+x/,
    retryable: false,
  });
});

test('a program that is not there is reported as such', async (t) => {
  await assert.rejects(startFake(t, '', { command: '/nowhere/vision-sidecar' }), {
    code: 'sidecar.spawn_failed',
    message: /ENOENT/,
  });
});

test('arguments that no process can have are reported as such', async (t) => {
  await assert.rejects(startFake(t, '', { args: ['\0'] }), { code: 'sidecar.spawn_failed' });
});

test('another model than the one asked for is refused', async (t) => {
  await assert.rejects(startFake(t, 'good', { manifestSha256: 'cd'.repeat(32) }), {
    code: 'model.mismatch',
  });
  assert.equal((await startFake(t, 'good', { manifestSha256: 'AB'.repeat(32) })).state, 'ready');
});

test('an aborted start leaves no process', async (t) => {
  const controller = new AbortController();
  const pids: number[] = [];
  const starting = startFake(t, 'silent', {
    signal: controller.signal,
    log: ({ message }) => pids.push(Number(message)),
    args: [
      '-e',
      'console.error(process.pid); process.stdin.resume().on("end", () => process.exit())',
    ],
    onState: () => setTimeout(() => controller.abort(), 200),
  });
  await assert.rejects(starting, { code: 'request.cancelled' });
  assert.deepEqual(pids.filter(lives), []);
});

test('a start is aborted before its process is there, and leaves none', async (t) => {
  const controller = new AbortController();
  const states: string[] = [];
  const starting = startFake(t, 'silent', {
    signal: controller.signal,
    onState: (state) => void states.push(state),
  });
  controller.abort('enough');
  await assert.rejects(starting, { code: 'request.cancelled', cause: 'enough' });
  assert.deepEqual(states, []);
});

test('aborting a start waits for nobody: who will not go by itself is killed', async (t) => {
  const clock = new FakeClock();
  const controller = new AbortController();
  const starting = startFake(t, 'silent+ignores-sigterm+ignores-eof', {
    signal: controller.signal,
    clock,
    onState: (state) => {
      if (state === 'starting') setImmediate(() => controller.abort());
      // The rest of the way out takes no more than this.
      if (state === 'closed') setImmediate(() => clock.advance(POLICY.abortMs));
    },
  });
  await assert.rejects(starting, { code: 'request.cancelled' });
  assert.ok(POLICY.abortMs < 300);
});

test('a slow child, and one that floods stderr, are none the worse', async (t) => {
  for (const behaviour of ['slow', 'floods-stderr', 'endless-stderr']) {
    assert.equal((await startFake(t, behaviour)).state, 'ready');
  }
});

test('loading is told before ready', async (t) => {
  const told: string[] = [];
  await startFake(t, 'good', {
    onState: (state, { phase }) => void told.push(phase ? `${state} ${phase}` : state),
  });
  assert.deepEqual(told, ['starting handshake', 'starting loading', 'ready']);
});

test('a child that exits again and again is restarted until the circuit opens', async (t) => {
  const told: string[] = [];
  const sidecar = await startFake(t, 'exits-on-encode', {
    onState: (state) => void told.push(state),
  });
  for (let crash = 1; crash <= 5; crash += 1) {
    await assert.rejects(sidecar.encode({ image }), {
      code: crash < 5 ? 'sidecar.exited' : 'sidecar.failed',
    });
  }
  assert.equal(told.filter((state) => state === 'restarting').length, 4);
  assert.equal(sidecar.state, 'failed');
  await assert.rejects(sidecar.encode({ image }), {
    code: 'sidecar.failed',
    message: /5 times.*exit code 7/,
  });
  await sidecar.start();
  assert.equal(sidecar.state, 'ready');
});

test('restarts wait 0.25, 1, 4 and 15 s, a fifth more or less; the fifth crash is the last', async (t) => {
  const clock = new FakeClock();
  const { backoffMs, jitter } = POLICY;
  const sidecar = await startFake(t, 'good', { clock, policy: { backoffMs } });
  for (const ms of [250, 1000, 4000, 15_000]) {
    process.kill(sidecar.pid as number, 'SIGKILL');
    await reached(sidecar, 'restarting');
    clock.advance(ms * (1 - jitter) - 1);
    assert.equal(sidecar.state, 'restarting');
    clock.advance(ms * 2 * jitter + 2);
    assert.equal(sidecar.state, 'starting');
    await reached(sidecar, 'ready');
  }
  process.kill(sidecar.pid as number, 'SIGKILL');
  await reached(sidecar, 'failed');
});

test('all calls in flight reject when the sidecar dies, and later ones wait for the restart', async (t) => {
  const sidecar = await startFake(t, 'never-answers');
  const calls = Array.from({ length: 10 }, () => sidecar.encode({ image }));
  const rejected = Promise.all(
    calls.map((call) => assert.rejects(call, { code: 'sidecar.exited' })),
  );
  await received(sidecar, 10);
  process.kill(sidecar.pid as number, 'SIGKILL');
  await rejected;
  assert.equal((await sidecar.stats()).state, 'ready');
});

test('a call that waits for a restart waits no longer than its time', async (t) => {
  const sidecar = await startFake(t, 'good', { policy: { backoffMs: [60_000] } });
  process.kill(sidecar.pid as number, 'SIGKILL');
  await reached(sidecar, 'restarting');
  await assert.rejects(sidecar.encode({ image }, { timeoutMs: 50 }), { code: 'request.timeout' });
});

test('a stopped sidecar is killed and restarted', {
  skip: process.platform === 'win32',
}, async (t) => {
  const clock = new FakeClock();
  const sidecar = await startFake(t, 'never-answers', { clock });
  const { pid } = sidecar;
  process.kill(pid as number, 'SIGSTOP');
  const call = assert.rejects(sidecar.encode({ image }), {
    code: 'sidecar.exited',
    message: /did not answer/,
  });
  await new Promise((resolve) => setImmediate(resolve)); // it has left
  clock.advance(POLICY.heartbeat.intervalMs);
  clock.advance(90_000);
  await call;
  while (sidecar.pid !== undefined) await new Promise(setImmediate); // until it is gone
  clock.advance(1000);
  await reached(sidecar, 'ready');
  assert.notEqual(sidecar.pid, pid);
});

test('a sidecar that answers its heartbeat is left alone', async (t) => {
  const clock = new FakeClock();
  const sidecar = await startFake(t, 'good', { clock });
  const { pid } = sidecar;
  for (let beat = 0; beat < 3; beat += 1) {
    const { hellos } = await sidecar.stats();
    clock.advance(POLICY.heartbeat.intervalMs);
    while ((await sidecar.stats()).hellos === hellos) await new Promise(setImmediate);
    await sidecar.stats(); // its answer was before this one
  }
  assert.equal(sidecar.pid, pid);
  assert.equal(sidecar.state, 'ready');
});

test('a sidecar that is silent while the computer sleeps is left alone', {
  skip: process.platform === 'win32',
}, async (t) => {
  const clock = new FakeClock();
  const sidecar = await startFake(t, 'good', { clock });
  const { pid } = sidecar;
  sidecar.suspended();
  process.kill(pid as number, 'SIGSTOP');
  clock.advance(3_600_000);
  process.kill(pid as number, 'SIGCONT');
  sidecar.resumed();
  await sidecar.stats();
  assert.equal(sidecar.pid, pid);
});

test('a sidecar that says once more that it listens is replaced, and its calls do not hang', {
  skip: process.platform === 'win32', // no SIGUSR2
}, async (t) => {
  const sidecar = await startFake(t, 'listening-later+never-answers');
  const { pid } = sidecar;
  const call = assert.rejects(sidecar.encode({ image }), { code: 'sidecar.malformed' });
  await received(sidecar, 1);
  process.kill(pid as number, 'SIGUSR2');
  await call;
  await reached(sidecar, 'ready');
  assert.notEqual(sidecar.pid, pid);
});

test('the request that killed the process is told apart from those that waited', async (t) => {
  const sidecar = await startFake(t, 'never-answers');
  const calls = [1, 2, 3].map(() => sidecar.encode({ image }));
  const errors = Promise.allSettled(calls);
  await received(sidecar, 3);
  process.kill(sidecar.pid as number, 'SIGKILL');
  const told = (await errors).map((each) => each.status === 'rejected' && each.reason);
  assert.deepEqual(
    told.map(({ code, retryable }) => [code, retryable]),
    [
      ['sidecar.exited', false],
      ['sidecar.exited', true],
      ['sidecar.exited', true],
    ],
  );
  assert.match(told[0].message, /was working on this call/);
});

test('a sidecar that answers nonsense is replaced', async (t) => {
  const sidecar = await startFake(t, 'garbage');
  await assert.rejects(sidecar.encode({ image }), { code: 'sidecar.malformed' });
  assert.equal((await sidecar.stats()).state, 'ready');
});

test('a crash in machine code is answered by a start without our kernels', async (t) => {
  const reasons: string[] = [];
  const sidecar = await startFake(t, 'aborts-unless-off', {
    log: ({ source, message }) => void (source === 'bridge' && reasons.push(message)),
  });
  assert.equal(sidecar.kernels, 'off');
  assert.equal((await sidecar.stats()).kernels, 'off');
  assert.match(reasons.join(), /SIGABRT.*kernels off/);
});

test('kernels that were asked to be off are off from the first start', async (t) => {
  const sidecar = await startFake(t, 'aborts-unless-off', { kernels: 'off' });
  assert.equal((await sidecar.stats()).kernels, 'off');
});

test('close ends the process, and rejects what is in flight', async (t) => {
  const sidecar = await startFake(t, 'never-answers');
  const pid = sidecar.pid as number;
  const call = assert.rejects(sidecar.encode({ image }), { code: 'sidecar.closed' });
  await received(sidecar, 1);
  await sidecar.close();
  await call;
  assert.equal(lives(pid), false);
  await sidecar.close();
  await assert.rejects(sidecar.encode({ image }), { code: 'sidecar.closed' });
  await assert.rejects(sidecar.start(), { code: 'sidecar.closed' });
});

test('a child that will not go is killed', async (t) => {
  const sidecar = await startFake(t, 'ignores-shutdown+ignores-sigterm+ignores-eof');
  const pid = sidecar.pid as number;
  await sidecar.close();
  assert.equal(lives(pid), false);
});

test('close while waiting to restart starts nothing more', async (t) => {
  const sidecar = await startFake(t, 'good', { policy: { backoffMs: [60_000] } });
  process.kill(sidecar.pid as number, 'SIGKILL');
  await reached(sidecar, 'restarting');
  await sidecar.close();
  assert.equal(sidecar.pid, undefined);
});

test('keys are new at each start, and stand neither in arguments nor in the environment', async (t) => {
  const script = `process.stdin.once('data', (line) => {
    console.error(JSON.stringify({ line: String(line), argv: process.argv, env: process.env }));
    process.exit(1);
  })`;
  const seen: string[] = [];
  for (let round = 0; round < 2; round += 1) {
    const lines: string[] = [];
    const start = startFake(t, '', {
      args: ['-e', script, '--'],
      log: (entry) => void lines.push(entry.message),
    });
    await assert.rejects(start, { code: 'sidecar.exited' });
    const told = JSON.parse(lines.find((line) => line.includes('argv')) as string);
    const key = JSON.parse(told.line).client_public_key as string;
    assert.equal(key.length, 40);
    assert.ok(!JSON.stringify([told.argv, told.env]).includes(key));
    seen.push(key);
  }
  assert.notEqual(seen[0], seen[1]);
});

test('Electron’s own switches do not reach the sidecar; the rest of the environment does', async (t) => {
  const lines: string[] = [];
  const start = startFake(t, '', {
    args: ['-e', 'console.error(JSON.stringify(process.env)); process.exit(1)', '--'],
    env: { ...process.env, ELECTRON_RUN_AS_NODE: '1', OURS: 'kept' },
    log: (entry) => void lines.push(entry.message),
  });
  await assert.rejects(start, { code: 'sidecar.exited' });
  const { OURS, ELECTRON_RUN_AS_NODE } = JSON.parse(
    lines.find((line) => line[0] === '{') as string,
  );
  assert.deepEqual([OURS, ELECTRON_RUN_AS_NODE], ['kept', undefined]);
});
