import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Child, ending, type Program } from '../src/child.js';
import { awakeClock } from '../src/clock.js';
import type { LogEntry } from '../src/log.js';
import type { Exit, RunEvent } from '../src/supervisor.js';

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
