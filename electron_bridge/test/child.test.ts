import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Child, ending, type Program } from '../src/child.js';
import { awakeClock } from '../src/clock.js';
import type { LogEntry } from '../src/log.js';
import { type Exit, POLICY, type RunEvent } from '../src/supervisor.js';
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

test('a child that exits after ready is restarted until the circuit opens', async (t) => {
  const told: string[] = [];
  const sidecar = await startFake(t, 'exits-after-ready', {
    onState: (state) => void told.push(state),
  });
  await reached(sidecar, 'failed');
  assert.equal(told.filter((state) => state === 'restarting').length, 4);
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
  const sidecar = await startFake(t, 'good', { heartbeat: { intervalMs: 50, timeoutMs: 300 } });
  const { pid } = sidecar;
  process.kill(pid as number, 'SIGSTOP');
  await assert.rejects(sidecar.encode({ image }), {
    code: 'sidecar.exited',
    message: /did not answer/,
  });
  await reached(sidecar, 'ready');
  assert.notEqual(sidecar.pid, pid);
});

test('a sidecar that is silent while the computer sleeps is left alone', async (t) => {
  const sidecar = await startFake(t, 'good', { heartbeat: { intervalMs: 20, timeoutMs: 100 } });
  const { pid } = sidecar;
  sidecar.suspended();
  process.kill(pid as number, 'SIGSTOP');
  await new Promise((resolve) => setTimeout(resolve, 300));
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

const ends: Record<string, [number | null, string | null, string, boolean]> = {
  'an illegal instruction': [null, 'SIGILL', 'signal SIGILL', true],
  'a segmentation fault': [null, 'SIGSEGV', 'signal SIGSEGV', true],
  'a bus error': [null, 'SIGBUS', 'signal SIGBUS', true],
  'an abort': [null, 'SIGABRT', 'signal SIGABRT', true],
  'a kill': [null, 'SIGKILL', 'signal SIGKILL', false],
  'an error of Python': [1, null, 'exit code 1', false],
  'an access violation on Windows': [0xc0000005, null, 'exit code 0xC0000005', true],
  'an illegal instruction on Windows, as a signed number': [
    0xc000001d | 0,
    null,
    'exit code 0xC000001D',
    true,
  ],
  'a fail-fast on Windows': [0xc0000409, null, 'exit code 0xC0000409', true],
  'a closed console on Windows': [0xc000013a, null, 'exit code 0xC000013A', false],
};

for (const [what, [code, signal, reason, native]] of Object.entries(ends)) {
  test(`${what} is ${native ? '' : 'not '}a crash in machine code`, () => {
    assert.deepEqual(ending(code, signal), { reason, native });
  });
}

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

/** Runs a script of Node's as a child, to its end: what it told, in order. */
function run(
  script: string,
  request = '',
  change: Partial<Program> = {},
): Promise<{
  events: RunEvent[];
  logs: LogEntry[];
  exit: Exit;
}> {
  const program = {
    command: process.execPath,
    args: ['-e', script],
    env: process.env,
    ...change,
  };
  return new Promise((resolve) => {
    const events: RunEvent[] = [];
    const logs: LogEntry[] = [];
    new Child(program, request, awakeClock, {
      log: (entry) => logs.push(entry),
      event: (event) => {
        events.push(event);
        if (event.kind === 'exited') resolve({ events, logs, exit: event.exit });
      },
    });
  });
}

test('a child that goes before it has read what we write is no error of the app', async () => {
  const { exit } = await run('process.exit(4)', 'x'.repeat(2 ** 24)); // EPIPE: more than a pipe holds
  assert.equal(exit.reason, 'exit code 4');
});

test('of stderr the last lines are kept, and no more', async () => {
  const { exit, logs } = await run(
    'for (let line = 0; line < 500; line += 1) console.error("line " + line)',
  );
  assert.deepEqual(
    exit.stderrTail,
    Array.from({ length: 40 }, (_, at) => `line ${460 + at}`),
  );
  assert.equal(logs.length, 500);
});

test('what explains a death is kept of the log, not what was routine', async () => {
  const line = (level: string, message: string): string =>
    `console.error(${JSON.stringify(JSON.stringify({ time: 't', level, message }))});`;
  const { exit, logs } = await run(
    `${line('info', 'answered')} ${line('warning', 'low on memory')} ${line('error', 'gone')}
     ${line('debug', 'detail')} console.error('Traceback')`,
  );
  assert.deepEqual(exit.stderrTail, ['low on memory', 'gone', 'Traceback']);
  assert.equal(logs.length, 5);
});

test('a grandchild that holds the pipes does not hide that the child is gone', async () => {
  const { exit } = await run(
    `const { spawn } = require('node:child_process');
     const grandchild = spawn(process.execPath, ['-e', 'setTimeout(() => {}, 3000)'], {
       detached: true, stdio: 'inherit',
     });
     grandchild.unref();
     process.exit(5);`,
  );
  assert.equal(exit.reason, 'exit code 5');
});

test('a program that cannot be started is refused, then has ended, and is heard of later only', async () => {
  for (const change of [{ command: '/nowhere/x' }, { args: ['\0'] }, { cwd: '/nowhere' }]) {
    const { events, exit } = await run('', '', change);
    assert.deepEqual(
      events.map(({ kind }) => kind),
      ['refused', 'exited'],
    );
    assert.equal(exit.reason, 'not started');
  }
});

test('a fatal line is final, unless it says that it may pass', async () => {
  const finals = async (fault: object): Promise<boolean> => {
    const line = JSON.stringify({ event: 'fatal', message: 'm', ...fault });
    const { events } = await run(`console.log(${JSON.stringify(line)})`);
    const [first] = events;
    assert.equal(first?.kind, 'refused');
    return first?.kind === 'refused' && first.final;
  };
  assert.equal(await finals({ code: 'model.invalid' }), true);
  assert.equal(await finals({ code: 'model.invalid', retryable: false }), true);
  assert.equal(await finals({ code: 'internal' }), false);
  assert.equal(await finals({ code: 'system.no_memory', retryable: true }), false);
});
