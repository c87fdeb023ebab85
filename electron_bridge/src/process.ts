/**
 * Acts on the supervisor's effects: spawns, terminates, kills, sets its timer; reads the child's lines.
 * The only file that imports node:child_process. Knows no ZeroMQ and no requests.
 */

import { type ChildProcessByStdio, spawn } from 'node:child_process';
import type { Readable, Writable } from 'node:stream';
import type { Clock } from './clock.js';
import type { Fault } from './errors.js';
import { type Announcement, readLine } from './handshake.js';
import { Lines } from './lines.js';
import {
  type Effect,
  type Event,
  type Exit,
  initial,
  type Kernels,
  next,
  type Policy,
  type State,
} from './supervisor.js';

type Child = ChildProcessByStdio<Writable, Readable, Readable>;
type Listening = Extract<Announcement, { event: 'listening' }>;
type Delegated = Exclude<
  Effect,
  { kind: 'spawn' | 'terminate' | 'kill' | 'setTimer' | 'clearTimer' }
>;

export interface Program {
  readonly command: string;
  readonly args: readonly string[]; // all but --kernels
  readonly cwd?: string | undefined;
  readonly env: NodeJS.ProcessEnv;
}

/** What the keeper leaves to its owner. */
export interface Owner {
  /** The line for a new child's stdin. */
  offer(): string;
  listening(peer: Listening): void;
  /** The child said `ready`; the owner checks it, then dispatches `ready`. */
  ready(): void;
  /** The child's exit was seen; `disconnect` follows once its last lines are read. */
  gone(): void;
  perform(effect: Delegated): void;
  /** After each change, when its effects are done. */
  changed(state: State): void;
  stderr(line: string): void;
}

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

/** Keeps one sidecar process running, as the state table says. */
export class Keeper {
  readonly #program: Program;
  readonly #policy: Policy;
  readonly #clock: Clock;
  readonly #owner: Owner;
  #state: State;
  #child: Child | undefined;
  #stopTimer: () => void = () => undefined;

  constructor(program: Program, kernels: Kernels, policy: Policy, clock: Clock, owner: Owner) {
    this.#program = program;
    this.#policy = policy;
    this.#clock = clock;
    this.#owner = owner;
    this.#state = initial(kernels);
  }

  get state(): State {
    return this.#state;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  dispatch(event: Event): void {
    const before = this.#state;
    const [state, ...effects] = next(before, event, this.#policy, this.#clock.now());
    this.#state = state;
    for (const effect of effects) this.#perform(effect);
    if (this.#state === state && state !== before) this.#owner.changed(state);
  }

  #perform(effect: Effect): void {
    switch (effect.kind) {
      case 'spawn':
        this.#spawn(effect.kernels);
        break;
      case 'terminate':
        // End of file tells it that its parent is gone. Windows has no SIGTERM: kill() would be the end.
        this.#child?.stdin.end();
        if (process.platform !== 'win32') this.#child?.kill('SIGTERM');
        break;
      case 'kill':
        this.#child?.kill('SIGKILL');
        break;
      case 'setTimer': {
        this.#stopTimer();
        const ms = effect.ms * (1 + effect.jitter * (2 * Math.random() - 1));
        this.#stopTimer = this.#clock.after(ms, () => this.dispatch({ kind: 'timeUp' }));
        break;
      }
      case 'clearTimer':
        this.#stopTimer();
        break;
      default:
        this.#owner.perform(effect);
        break;
    }
  }

  #spawn(kernels: Kernels): void {
    const { command, args, cwd, env } = this.#program;
    const line = this.#owner.offer();
    let child: Child;
    try {
      child = spawn(command, kernels === 'off' ? [...args, '--kernels', 'off'] : args, {
        cwd,
        env,
        stdio: ['pipe', 'pipe', 'pipe'],
        windowsHide: true,
      });
    } catch (error) {
      process.nextTick(() => this.#unspawnable(error)); // as the event would: after this effect
      return;
    }
    this.#child = child;
    const stderr: string[] = [];
    this.#watchStderr(child, stderr);
    this.#watchStdout(child);
    this.#watchExit(child, stderr);
    child.stdin.on('error', () => undefined); // it is gone: its exit tells us more
    child.stdin.write(line);
  }

  #watchStdout(child: Child): void {
    const lines = new Lines(MAX_STDOUT_LINE, (line, cut) => {
      if (this.#child === child) this.#announced(cut ? { event: 'junk' } : readLine(line));
    });
    child.stdout.on('data', (chunk: Buffer) => {
      lines.push(chunk);
      if (lines.overlong && this.#child === child) this.#announced({ event: 'junk' });
    });
  }

  #announced(said: Announcement): void {
    switch (said.event) {
      case 'listening':
        this.#owner.listening(said);
        this.dispatch({ kind: 'listening' });
        break;
      case 'ready':
        this.#owner.ready();
        break;
      case 'fatal':
        this.#refuse({ code: said.code, message: said.message }, said.code !== 'internal');
        break;
      case 'version':
        this.#refuse(
          {
            code: 'protocol.version',
            message: `the sidecar speaks protocol version ${JSON.stringify(said.protocol)}, which this bridge does not. Ship the bridge and the sidecar of one release.`,
          },
          true,
        );
        break;
      case 'junk':
        this.#refuse(JUNK, false);
        break;
    }
  }

  #refuse(fault: Fault, final: boolean): void {
    this.dispatch({ kind: 'refused', fault, final });
  }

  #watchStderr(child: Child, tail: string[]): void {
    const lines = new Lines(MAX_STDERR_LINE, (line) => {
      tail.push(line);
      if (tail.length > TAIL) tail.shift();
      this.#owner.stderr(line);
    });
    child.stderr.on('data', (chunk: Buffer) => lines.push(chunk));
    child.stderr.on('end', () => lines.flush());
  }

  #watchExit(child: Child, stderr: readonly string[]): void {
    child.once('error', (error) => {
      if (child.pid === undefined) this.#unspawnable(error);
    });
    child.once('exit', (code, signal) => {
      const { reason, native } = ending(code, signal);
      this.#owner.gone();
      const done = (): void => {
        stop();
        child.off('close', done);
        for (const pipe of [child.stdin, child.stdout, child.stderr]) pipe.destroy();
        this.#ended({ reason, native, stderr: [...stderr] });
      };
      const stop = this.#clock.after(DRAIN_MS, done);
      child.once('close', done);
    });
  }

  #unspawnable(error: unknown): void {
    const message = `the sidecar could not be started: ${(error as Error).message}. Check command and cwd.`;
    this.#refuse({ code: 'sidecar.spawn_failed', message }, true);
    this.#ended({ reason: 'not started', native: false, stderr: [] });
  }

  #ended(exit: Exit): void {
    this.#child = undefined;
    this.dispatch({ kind: 'exited', exit });
  }
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
