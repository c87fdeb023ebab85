/**
 * A child process: spawns it, reads its lines, ends it. What it says and does becomes events.
 * The only file that imports node:child_process. Knows no ZeroMQ, no requests and no states.
 */

import { type ChildProcessByStdio, spawn } from 'node:child_process';
import type { Readable, Writable } from 'node:stream';
import type { Clock } from './clock.js';
import type { Fault } from './errors.js';
import { type Announcement, readLine } from './handshake.js';
import { Lines } from './lines.js';
import { isTelling, type LogEntry, readLogLine } from './log.js';
import type { Exit, RunEvent } from './supervisor.js';

/** What is run: a program, its arguments, where, and with which environment. */
export interface Program {
  readonly command: string;
  readonly args: readonly string[];
  readonly cwd?: string | undefined;
  readonly env: NodeJS.ProcessEnv;
}

export interface ChildListener {
  /** After `exited` nothing more comes. */
  event(event: RunEvent): void;
  /** A line of its stderr. */
  log(entry: LogEntry): void;
}

type Process = ChildProcessByStdio<Writable, Readable, Readable>;

const TAIL = 40; // lines of stderr that are kept
const MAX_STDOUT_LINE = 64 * 1024;
const MAX_STDERR_LINE = 4096;
const DRAIN_MS = 100; // a grandchild may hold the pipes open for ever

const NATIVE_SIGNALS = new Set(['SIGSEGV', 'SIGILL', 'SIGBUS', 'SIGABRT', 'SIGFPE', 'SIGTRAP']);
// Windows reports an exception as the exit code: access violation, in-page error, illegal and
// privileged instruction, division by zero, stack overflow, heap corruption, fail-fast, breakpoint.
const NATIVE_CODES = new Set([
  0xc0000005, 0xc0000006, 0xc000001d, 0xc0000096, 0xc0000094, 0xc00000fd, 0xc0000374, 0xc0000409,
  0x80000003,
]);

const JUNK: Fault = {
  code: 'sidecar.malformed',
  message:
    'expected a line of JSON with an event on the stdout of the sidecar; something else came. Check that the command starts a vision sidecar.',
};

/** One run of the program. A program that cannot be started is told as `refused`, then `exited`. */
export class Child {
  readonly #listener: ChildListener;
  readonly #clock: Clock;
  readonly #stderrTail: string[] = [];
  #process: Process | undefined;
  #gone = false;

  /** Spawns `program` and writes `request` on its stdin. Events come later, never from in here. */
  constructor(program: Program, request: string, clock: Clock, listener: ChildListener) {
    this.#listener = listener;
    this.#clock = clock;
    const { command, args, cwd, env } = program;
    try {
      this.#process = spawn(command, args, {
        cwd,
        env,
        stdio: ['pipe', 'pipe', 'pipe'],
        windowsHide: true,
      });
    } catch (error) {
      process.nextTick(() => this.#unspawnable(error)); // as the event would
      return;
    }
    this.#readStderr(this.#process);
    this.#readStdout(this.#process);
    this.#watchExit(this.#process);
    this.#process.stdin.on('error', () => undefined); // EPIPE: it is gone, and its exit tells more
    this.#process.stdin.write(request);
  }

  get pid(): number | undefined {
    return this.#process?.pid;
  }

  /** End of file tells it that its parent is gone. Windows has no SIGTERM: there, kill() would be the end. */
  terminate(): void {
    this.#process?.stdin.end();
    if (process.platform !== 'win32') this.#process?.kill('SIGTERM');
  }

  kill(): void {
    this.#process?.kill('SIGKILL');
  }

  #readStdout(child: Process): void {
    const lines = new Lines(MAX_STDOUT_LINE, (line, cut) =>
      this.#announce(cut ? { event: 'junk' } : readLine(line)),
    );
    child.stdout.on('data', (chunk: Buffer) => {
      lines.push(chunk);
      if (lines.overlong) this.#announce({ event: 'junk' });
    });
  }

  #announce(said: Announcement): void {
    switch (said.event) {
      case 'listening':
        this.#tell({
          kind: 'listening',
          peer: { endpoint: said.endpoint, serverKey: said.serverKey },
        });
        break;
      case 'ready':
        this.#tell({ kind: 'loaded' });
        break;
      case 'fatal': {
        const passing = said.fault.retryable === true || said.fault.code === 'internal';
        this.#tell({ kind: 'refused', fault: said.fault, final: !passing });
        break;
      }
      case 'version': {
        const message = `the sidecar speaks protocol version ${JSON.stringify(said.protocol)}, which this bridge does not. Ship the bridge and the sidecar of one release.`;
        this.#tell({ kind: 'refused', fault: { code: 'protocol.version', message }, final: true });
        break;
      }
      case 'junk':
        this.#tell({ kind: 'refused', fault: JUNK, final: false });
        break;
    }
  }

  #readStderr(child: Process): void {
    const lines = new Lines(MAX_STDERR_LINE, (line) => {
      const entry = readLogLine(line);
      if (isTelling(entry)) this.#stderrTail.push(entry.message);
      if (this.#stderrTail.length > TAIL) this.#stderrTail.shift();
      if (!this.#gone) this.#listener.log(entry);
    });
    child.stderr.on('data', (chunk: Buffer) => lines.push(chunk));
    child.stderr.on('end', () => lines.flush());
  }

  #watchExit(child: Process): void {
    child.once('error', (error) => {
      if (child.pid === undefined) this.#unspawnable(error);
    });
    child.once('exit', (code, signal) => {
      this.#tell({ kind: 'exiting' });
      const done = (): void => {
        stop();
        child.off('close', done);
        for (const pipe of [child.stdin, child.stdout, child.stderr]) pipe.destroy();
        this.#end({ ...ending(code, signal), stderrTail: [...this.#stderrTail] });
      };
      const stop = this.#clock.after(DRAIN_MS, done);
      child.once('close', done);
    });
  }

  #unspawnable(error: unknown): void {
    const reason = error instanceof Error ? error.message : String(error);
    const message = `the sidecar could not be started: ${reason}. ${remedy(error)}`;
    this.#tell({ kind: 'refused', fault: { code: 'sidecar.spawn_failed', message }, final: true });
    this.#end({ reason: 'not started', native: false, stderrTail: [] });
  }

  #end(exit: Exit): void {
    this.#tell({ kind: 'exited', exit });
    this.#gone = true;
  }

  #tell(event: RunEvent): void {
    if (!this.#gone) this.#listener.event(event);
  }
}

function remedy(error: unknown): string {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  return code === 'EACCES'
    ? 'Allow it to be run (chmod +x), and check cwd.'
    : 'Check command and cwd.';
}

/** What Node tells of a process's end, in words, and whether machine code is to blame. */
export function ending(
  code: number | null,
  signal: string | null,
): Pick<Exit, 'reason' | 'native'> {
  if (signal !== null) return { reason: `signal ${signal}`, native: NATIVE_SIGNALS.has(signal) };
  const unsigned = (code ?? 0) >>> 0;
  const shown = unsigned > 255 ? `0x${unsigned.toString(16).toUpperCase()}` : String(unsigned);
  return { reason: `exit code ${shown}`, native: NATIVE_CODES.has(unsigned) };
}
