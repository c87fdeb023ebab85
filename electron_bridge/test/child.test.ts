import assert from 'node:assert/strict';
import { realpathSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { test } from 'node:test';
import { Child, ending, type Program } from '../src/child.js';
import { awakeClock, type Clock } from '../src/clock.js';
import type { LogEntry } from '../src/log.js';
import type { Exit, RunEvent } from '../src/supervisor.js';
import { FakeClock } from './fakeClock.js';

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
  'the last exit code that a shell knows': [255, null, 'exit code 255', false],
  'an exit code beyond it': [256, null, 'exit code 0x100', false],
  'a closed console on Windows': [0xc000013a, null, 'exit code 0xC000013A', false],
};

for (const [what, [code, signal, reason, native]] of Object.entries(ends)) {
  test(`${what} is ${native ? '' : 'not '}a crash in machine code`, () => {
    assert.deepEqual(ending(code, signal), { reason, native });
  });
}

interface Ran {
  events: RunEvent[];
  logs: LogEntry[];
  exit: Exit;
}

/** Runs a script of Node's as a child, to its end: what it told, in order. `heard` gets each line of its stderr. */
function run(
  script: string,
  request = '',
  change: Partial<Program> = {},
  heard: (child: Child, line: string) => void = () => undefined,
  clock: Clock = awakeClock,
): Promise<Ran> {
  const program = {
    command: process.execPath,
    args: ['-e', script],
    env: process.env,
    ...change,
  };
  return new Promise((resolve) => {
    const events: RunEvent[] = [];
    const logs: LogEntry[] = [];
    const child: Child = new Child(program, request, clock, {
      log: (entry) => {
        logs.push(entry);
        heard(child, entry.message);
      },
      event: (event) => {
        events.push(event);
        if (event.kind === 'exited') resolve({ events, logs, exit: event.exit });
      },
    });
  });
}

/** A script that writes these lines on its stdout. */
function saying(...lines: (string | object)[]): string {
  const text = lines.map((line) => (typeof line === 'string' ? line : JSON.stringify(line)));
  return `process.stdout.write(${JSON.stringify(`${text.join('\n')}\n`)});`;
}

const listening = {
  event: 'listening',
  protocol: 1,
  endpoint: 'tcp://127.0.0.1:4711',
  server_public_key: 'k'.repeat(40),
};

test('what it says on stdout is told in order, then its end', async () => {
  const script = saying(listening, { event: 'of a newer sidecar' }, { event: 'ready' });
  const { events, logs } = await run(script);
  assert.deepEqual(events, [
    { kind: 'listening', peer: { endpoint: 'tcp://127.0.0.1:4711', serverKey: 'k'.repeat(40) } },
    { kind: 'loaded' },
    { kind: 'exiting' },
    { kind: 'exited', exit: { reason: 'exit code 0', native: false, stderrTail: [] } },
  ]);
  assert.deepEqual(logs, []);
});

test('a protocol version that we do not speak is named, and final', async () => {
  const { events } = await run(saying({ ...listening, protocol: 'two' }));
  assert.deepEqual(events[0], {
    kind: 'refused',
    fault: {
      code: 'protocol.version',
      message:
        'the sidecar speaks protocol version "two", which this bridge does not. Ship the bridge and the sidecar of one release.',
    },
    final: true,
  });
});

const junk: Record<string, string> = {
  'a line that is no JSON': saying('Hello!'),
  'a line that is too long, though it is JSON': saying({
    event: 'ready',
    x: 'x'.repeat(64 * 1024),
  }),
  'a line that does not end': `process.stdout.write('{"event": "' + 'x'.repeat(64 * 1024));`,
};

for (const [what, script] of Object.entries(junk)) {
  test(`${what} on stdout is not of a sidecar`, async () => {
    const { events } = await run(script);
    const [first] = events;
    assert.ok(first?.kind === 'refused' && !first.final);
    assert.equal(first.fault.code, 'sidecar.malformed');
    assert.match(first.fault.message, /^expected a line of JSON .* something else came\. Check/);
    assert.deepEqual(
      events.slice(-2).map(({ kind }) => kind),
      ['exiting', 'exited'],
    );
  });
}

test('a line of as many characters as may be is read', async () => {
  const line = JSON.stringify({ event: 'ready', x: '' });
  const script = saying({ event: 'ready', x: 'x'.repeat(64 * 1024 - line.length) });
  assert.equal((await run(script)).events[0]?.kind, 'loaded');
});

test('what we write is on its stdin, and it runs where and with what it was given', async () => {
  const script = `
    console.error(process.cwd());
    console.error(JSON.stringify(Object.keys(process.env).filter((name) => name.startsWith('OURS'))));
    console.error(String(process.pid));
    process.stdin.once('data', (chunk) => { console.error(String(chunk)); process.exit(); });`;
  const cwd = realpathSync(tmpdir());
  let pid: number | undefined;
  const { logs } = await run(
    script,
    'a line\n',
    { cwd, env: { ...process.env, OURS: '1' } },
    (child) => {
      pid = child.pid;
    },
  );
  assert.deepEqual(
    logs.map(({ message }) => message),
    [cwd, '["OURS"]', String(pid), 'a line'],
  );
});

test('a line of stderr is cut at 4096 characters, and the last one needs no line feed', async () => {
  const { logs } = await run(`process.stderr.write('x'.repeat(5000) + '\\nlast')`);
  assert.deepEqual(
    logs.map(({ message }) => message.length),
    [4096, 4],
  );
});

const posix = { skip: process.platform === 'win32' && 'signals of POSIX' };

test('to terminate it ends its stdin', async () => {
  const script = `
    process.on('SIGTERM', () => undefined);
    process.stdin.resume().once('end', () => process.exit(7));
    console.error('up');`;
  const { exit } = await run(script, '', {}, (child) => child.terminate());
  assert.equal(exit.reason, 'exit code 7');
});

test('to terminate it sends SIGTERM to who does not read stdin', posix, async () => {
  const script = `
    process.once('SIGTERM', () => process.exit(8));
    setInterval(() => undefined, 1000);
    console.error('up');`;
  const { exit } = await run(script, '', {}, (child) => child.terminate());
  assert.equal(exit.reason, 'exit code 8');
});

test('to kill it asks nobody', posix, async () => {
  const script = `
    process.on('SIGTERM', () => undefined);
    setInterval(() => undefined, 1000);
    console.error('up');`;
  const { exit } = await run(script, '', {}, (child) => child.kill());
  assert.deepEqual([exit.reason, exit.native], ['signal SIGKILL', false]);
});

test('the end is told once its pipes are read, without waiting for a time', async () => {
  const clock = new FakeClock();
  const script = `for (let line = 0; line < 500; line += 1) console.error('line ' + line)`;
  const { logs } = await run(script, '', {}, undefined, clock);
  assert.equal(logs.length, 500);
  assert.equal(clock.pending, 0);
});

test('where a grandchild holds the pipes, the end is told after 100 ms, and nothing after it', async () => {
  const clock = new FakeClock();
  const script = `
    const { spawn } = require('node:child_process');
    const grandchild = spawn(process.execPath, ['-e', 'setTimeout(() => {}, 60000)'], {
      detached: true, stdio: 'inherit',
    });
    grandchild.unref();
    console.error(String(grandchild.pid));
    process.exit(5);`;
  const events: string[] = [];
  let grandchild = 0;
  await new Promise<void>((resolve) => {
    const program = { command: process.execPath, args: ['-e', script], env: process.env };
    let gone = false;
    const both = (): void => {
      if (gone && grandchild) resolve();
    };
    new Child(program, '', clock, {
      log: ({ message }) => {
        grandchild = Number(message);
        both();
      },
      event: ({ kind }) => {
        events.push(kind);
        gone = true;
        both();
      },
    });
  });
  clock.advance(99);
  assert.deepEqual(events, ['exiting']);
  clock.advance(1);
  assert.deepEqual(events, ['exiting', 'exited']);
  process.kill(grandchild, 'SIGKILL');
});

test('why a program cannot be started is told with what to do', async () => {
  const { events } = await run('', '', { command: '/nowhere/x' });
  const [first] = events;
  assert.ok(first?.kind === 'refused' && first.final);
  assert.equal(first.fault.code, 'sidecar.spawn_failed');
  assert.match(
    first.fault.message,
    /^the sidecar could not be started: .*ENOENT.*\. Check command and cwd\.$/,
  );
});

test('what may not be run is told so', posix, async () => {
  const { events, exit } = await run('', '', { command: __filename });
  const [first] = events;
  assert.ok(first?.kind === 'refused');
  assert.match(
    first.fault.message,
    /EACCES.*\. Allow it to be run \(chmod \+x\), and check cwd\.$/,
  );
  assert.deepEqual(exit, { reason: 'not started', native: false, stderrTail: [] });
});

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

test('what could not be spawned has no process, and nothing to end', async () => {
  const kinds: string[] = [];
  await new Promise<void>((resolve) => {
    const program = { command: process.execPath, args: ['\0'], env: process.env };
    const child = new Child(program, '', awakeClock, {
      log: () => undefined,
      event: ({ kind }) => {
        kinds.push(kind);
        if (kind === 'exited') resolve();
      },
    });
    child.terminate();
    child.kill();
    assert.equal(child.pid, undefined);
  });
  assert.deepEqual(kinds, ['refused', 'exited']);
});
