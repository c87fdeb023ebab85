/**
 * When to start, verify, watch, restart and give up on the sidecar. Pure: states and events are values,
 * and what is to be done comes back as effects, which host.ts performs. No process, socket or clock here.
 */

import type { Fault } from './errors.js';
import type { Peer } from './handshake.js';
import type { LogEntry } from './log.js';
import type { SidecarInfo } from './results.js';

/** Whether the sidecar uses its custom ops where the processor gains by them. */
export type Kernels = 'auto' | 'off';

/** What is remembered from one run of the sidecar to the next. */
interface Memory {
  /** Number of processes started so far. Events of a former one change nothing. */
  readonly run: number;
  /** When the crashes within the window happened. */
  readonly crashes: readonly number[];
  readonly kernels: Kernels;
  /** Has been ready since `start` was called. */
  readonly wasReady: boolean;
  /** A crash before then is the suspend's doing; infinite while the computer sleeps. */
  readonly ignoreCrashesUntil: number;
  /** Of the sidecar that is, or last was, ready. */
  readonly info?: SidecarInfo;
}

export type State = Memory &
  (
    | { readonly kind: 'idle' | 'ready' | 'restarting' | 'closed' }
    | {
        readonly kind: 'starting';
        readonly phase: 'handshake' | 'loading' | 'verifying';
        readonly since: number;
      }
    | { readonly kind: 'killing'; readonly fault: Fault; readonly final: boolean } // its exit is awaited
    | { readonly kind: 'stopping'; readonly stage: 'shutdown' | 'terminate' | 'kill' }
    | { readonly kind: 'failed'; readonly fault: Fault }
  );

/** How a process ended. */
export interface Exit {
  readonly reason: string; // "signal SIGSEGV", "exit code 3"
  readonly native: boolean; // by machine code, not by Python
  readonly stderrTail: readonly string[];
}

/** What comes up from the process and its connection. `run` says from which one. */
export type RunEvent =
  | { readonly kind: 'listening'; readonly peer: Peer }
  | { readonly kind: 'loaded' } // it says that it is ready
  | { readonly kind: 'answered'; readonly info?: SidecarInfo } // to `hello`; no info: an error, but it lives
  | { readonly kind: 'silent' } // `hello` was not answered in time
  | { readonly kind: 'refused'; readonly fault: Fault; readonly final: boolean } // it said so, or we did
  | { readonly kind: 'exiting' } // `exited` follows once its last lines are read
  | { readonly kind: 'exited'; readonly exit: Exit };

export type Event =
  | { readonly kind: 'start' | 'stop' | 'timeUp' | 'suspended' | 'resumed' }
  | (RunEvent & { readonly run: number });

export type Effect =
  | { readonly kind: 'spawn'; readonly kernels: Kernels; readonly run: number }
  | { readonly kind: 'connect'; readonly peer: Peer; readonly run: number }
  | { readonly kind: 'hello'; readonly timeoutMs: number; readonly run: number }
  | { readonly kind: 'shutdown' | 'terminate' | 'kill' | 'clearTimer' | 'flush' | 'pause' }
  | { readonly kind: 'setTimer'; readonly ms: number; readonly jitter: number } // the only timer: replaces the one before
  | { readonly kind: 'disconnect'; readonly fault: Fault; readonly blame: boolean }
  | { readonly kind: 'failAll'; readonly fault: Fault }
  | { readonly kind: 'log'; readonly level: LogEntry['level']; readonly message: string }
  | { readonly kind: 'kernelsOff'; readonly reason: string };

/** Times in milliseconds. */
export interface Policy {
  /** From the start of the process to its `listening` line. */
  readonly handshakeMs: number;
  /** From the start of the process to its `ready` line. */
  readonly startMs: number;
  /** For the answer that shows that it is ready. */
  readonly verifyMs: number;
  /** SHA-256 of the manifest of the only model that is accepted, in lower case. */
  readonly manifestSha256?: string | undefined;
  /** How often a ready sidecar is asked whether it lives, and how long it may take to answer. */
  readonly heartbeat: { readonly intervalMs: number; readonly timeoutMs: number };
  /** Waits before the first, second, … restart within the window; one more crash is the last. */
  readonly backoffMs: readonly number[];
  /** Each wait is longer or shorter by up to this share. */
  readonly jitter: number;
  readonly windowMs: number;
  /** From asking a sidecar to shut down to closing its stdin, and from there to killing it. */
  readonly graceMs: number;
  /** From closing the stdin of one that is still starting to killing it. */
  readonly abortMs: number;
  /** A sidecar that said why it gives up has this long to exit by itself. */
  readonly exitGraceMs: number;
  /** A crash this soon after the computer woke up is not counted. */
  readonly wakeMs: number;
}

export const POLICY: Policy = {
  handshakeMs: 10_000,
  startMs: 120_000,
  verifyMs: 10_000,
  heartbeat: { intervalMs: 5000, timeoutMs: 15_000 },
  backoffMs: [250, 1000, 4000, 15_000],
  jitter: 0.2,
  windowMs: 180_000,
  graceMs: 2000,
  abortMs: 150,
  exitGraceMs: 500,
  wakeMs: 10_000,
};

type Step = readonly [State, ...Effect[]];
type In<K extends State['kind']> = State & { readonly kind: K };
type Of<K extends Event['kind']> = Event & { readonly kind: K };
type Row<K extends State['kind']> = {
  readonly [E in Event['kind']]?: (state: In<K>, event: Of<E>, policy: Policy, at: number) => Step;
};

const table: { readonly [K in State['kind']]: Row<K> } = {
  idle: {
    start: (s, _, p, at) => launch(s, p, at),
    stop: (s) => close(s),
  },
  starting: {
    listening: (s, e, p, at) =>
      s.phase === 'handshake'
        ? [
            { ...s, phase: 'loading' },
            { kind: 'connect', peer: e.peer, run: s.run },
            timer(Math.max(0, s.since + p.startMs - at)),
          ]
        : refuse(s, OUT_OF_TURN, false, p),
    loaded: (s, _, p) =>
      s.phase === 'loading'
        ? [
            { ...s, phase: 'verifying' },
            { kind: 'hello', timeoutMs: p.verifyMs, run: s.run },
          ]
        : refuse(s, OUT_OF_TURN, false, p),
    answered: (s, e, p) => (s.phase === 'verifying' ? verify(s, e.info, p) : [s]),
    silent: (s, _, p) =>
      isAsleep(s)
        ? [s, { kind: 'hello', timeoutMs: p.verifyMs, run: s.run }]
        : kill(s, unverified(p.verifyMs)),
    refused: (s, e, p) => refuse(s, e.fault, e.final, p),
    exiting: (s) => [s, { kind: 'pause' }],
    exited: (s, e, p, at) => crash(s, diedStarting(e.exit), e.exit, p, at),
    timeUp: (s, _, p) => kill(s, tooSlow(s, p)),
    stop: (s, _, p) => terminate(s, p.abortMs),
  },
  ready: {
    listening: (s, _, p) => refuse(s, OUT_OF_TURN, false, p),
    answered: (s, _, p) => watch(s, p),
    silent: (s, _, p) => (isAsleep(s) ? [s] : kill(s, unanswered(p.heartbeat.timeoutMs))),
    refused: (s, e, p) => refuse(s, e.fault, e.final, p),
    exiting: (s) => [s, { kind: 'pause' }],
    exited: (s, e, p, at) => crash(s, died(e.exit), e.exit, p, at),
    timeUp: (s, _, p) => [s, { kind: 'hello', timeoutMs: p.heartbeat.timeoutMs, run: s.run }],
    suspended: (s) => [s, { kind: 'clearTimer' }],
    resumed: (s, _, p) => watch(s, p),
    stop: (s, _, p) => windDown(s, p),
  },
  killing: {
    exited: (s, e, p, at) =>
      s.final
        ? fail(s, { ...s.fault, stderr: e.exit.stderrTail })
        : crash(s, s.fault, e.exit, p, at),
    timeUp: (s) => [s, { kind: 'kill' }],
    stop: (s) => killStopping(s),
  },
  restarting: {
    timeUp: (s, _, p, at) => launch(s, p, at),
    stop: (s) => close(s),
  },
  stopping: {
    exited: (s) => close(s),
    timeUp: (s, _, p) => {
      if (s.stage === 'shutdown') return terminate(s, p.graceMs);
      return s.stage === 'terminate' ? killStopping(s) : close(s);
    },
  },
  failed: {
    start: (s, _, p, at) => launch({ ...s, crashes: [], wasReady: false }, p, at),
    stop: (s) => close(s),
  },
  closed: {},
};

export const CLOSED: Fault = { code: 'sidecar.closed', message: 'the sidecar was closed.' };

const OUT_OF_TURN: Fault = {
  code: 'sidecar.malformed',
  message:
    'expected the sidecar to say once that it listens, then once that it is ready; it said so out of turn. Ship the bridge and the sidecar of one release.',
};

const NO_INFO: Fault = {
  code: 'sidecar.malformed',
  message: 'expected the sidecar to tell its model and limits; it answered with an error.',
};

export function initial(kernels: Kernels): State {
  return {
    kind: 'idle',
    run: 0,
    crashes: [],
    kernels,
    wasReady: false,
    ignoreCrashesUntil: Number.NEGATIVE_INFINITY,
  };
}

/** What `event` at the time `at` makes of `state`. One that a state has no entry for changes nothing. */
export function next(state: State, event: Event, policy: Policy, at: number): Step {
  if ('run' in event && event.run !== state.run) return [state];
  const now = slept(state, event, policy, at);
  const row = table[now.kind] as Row<State['kind']>;
  const move = row[event.kind] as ((s: State, e: Event, p: Policy, at: number) => Step) | undefined;
  return move ? move(now, event, policy, at) : [now];
}

/** In every state, a suspend is remembered, so that what it does is no crash. */
function slept(state: State, event: Event, policy: Policy, at: number): State {
  if (event.kind === 'suspended') {
    return { ...state, ignoreCrashesUntil: Number.POSITIVE_INFINITY };
  }
  if (event.kind === 'resumed') return { ...state, ignoreCrashesUntil: at + policy.wakeMs };
  return state;
}

function launch(from: State, policy: Policy, at: number): Step {
  const run = from.run + 1;
  const state: State = { ...memory(from), run, kind: 'starting', phase: 'handshake', since: at };
  const ms = Math.min(policy.handshakeMs, policy.startMs);
  return [state, { kind: 'spawn', kernels: from.kernels, run }, timer(ms)];
}

/** It says that it is ready and has answered: with the model that was asked for? */
function verify(from: State, info: SidecarInfo | undefined, policy: Policy): Step {
  if (!info) return refuse(from, NO_INFO, false, policy);
  const expected = policy.manifestSha256;
  if (expected !== undefined && expected !== info.model) {
    const message = `expected the model whose manifest has SHA-256 ${expected}; the sidecar loaded ${info.model}. Ship the model directory that belongs to this app.`;
    return refuse(from, { code: 'model.mismatch', message }, true, policy);
  }
  const [state, ...effects] = watch(
    { ...memory(from), kind: 'ready', wasReady: true, info },
    policy,
  );
  return [state, ...effects, { kind: 'flush' }];
}

/** The next heartbeat is due after a while; none while the computer sleeps. */
function watch(state: State, { heartbeat }: Policy): Step {
  return [state, isAsleep(state) ? { kind: 'clearTimer' } : timer(heartbeat.intervalMs)];
}

/** Kill the child; `fault` is the reason to report. */
function kill(from: State, fault: Fault): Step {
  const state: State = { ...memory(from), kind: 'killing', fault, final: !from.wasReady };
  return [
    state,
    { kind: 'disconnect', fault, blame: true },
    ...logged(state),
    { kind: 'clearTimer' },
    { kind: 'kill' },
  ];
}

/** It will not do: it has a moment to exit by itself, then is killed. */
function refuse(from: State, fault: Fault, isFinal: boolean, { exitGraceMs }: Policy): Step {
  const final = isFinal || !from.wasReady;
  const state: State = { ...memory(from), kind: 'killing', fault, final };
  return [state, { kind: 'disconnect', fault, blame: false }, ...logged(state), timer(exitGraceMs)];
}

/** A fault that is final is told when the state is `failed`. */
function logged({ final, fault }: In<'killing'>): Effect[] {
  return final ? [] : [{ kind: 'log', level: 'error', message: fault.message }];
}

function crash(from: State, fault: Fault, exit: Exit, policy: Policy, at: number): Step {
  const recent = from.crashes.filter((when) => when > at - policy.windowMs);
  const ignored = at < from.ignoreCrashesUntil;
  const crashes = ignored ? recent : [...recent, at];
  const blameKernels = exit.native && from.kernels === 'auto';
  const state = { ...memory(from), crashes, kernels: blameKernels ? 'off' : from.kernels } as const;
  const wait = policy.backoffMs[Math.max(crashes.length - 1, 0)];
  if (wait === undefined) return fail(state, exhausted(crashes.length, exit, policy));
  const lost = { ...fault, stderr: exit.stderrTail };
  if (!from.wasReady && !blameKernels) return fail(state, lost);
  const off: Effect[] = blameKernels ? [{ kind: 'kernelsOff', reason: exit.reason }] : [];
  return [
    { ...state, kind: 'restarting' },
    { kind: 'disconnect', fault: lost, blame: !ignored },
    ...off,
    timer(wait, policy.jitter),
  ];
}

function fail(from: Memory, fault: Fault): Step {
  return [
    { ...memory(from), kind: 'failed', fault },
    ...ended(fault, true),
    { kind: 'log', level: 'error', message: fault.message },
  ];
}

function close(from: State): Step {
  return [{ ...memory(from), kind: 'closed' }, ...ended(CLOSED, false)];
}

function ended(fault: Fault, blame: boolean): Effect[] {
  return [{ kind: 'disconnect', fault, blame }, { kind: 'failAll', fault }, { kind: 'clearTimer' }];
}

function windDown(from: State, policy: Policy): Step {
  const state: State = { ...memory(from), kind: 'stopping', stage: 'shutdown' };
  return [state, { kind: 'failAll', fault: CLOSED }, { kind: 'shutdown' }, timer(policy.graceMs)];
}

function terminate(from: State, graceMs: number): Step {
  const state: State = { ...memory(from), kind: 'stopping', stage: 'terminate' };
  return [state, { kind: 'failAll', fault: CLOSED }, { kind: 'terminate' }, timer(graceMs)];
}

function killStopping(from: State): Step {
  const state: State = { ...memory(from), kind: 'stopping', stage: 'kill' };
  return [state, { kind: 'failAll', fault: CLOSED }, { kind: 'kill' }, timer(500)];
}

function timer(ms: number, jitter = 0): Effect {
  return { kind: 'setTimer', ms, jitter };
}

function memory({ run, crashes, kernels, wasReady, ignoreCrashesUntil, info }: Memory): Memory {
  return { run, crashes, kernels, wasReady, ignoreCrashesUntil, ...(info && { info }) };
}

function isAsleep({ ignoreCrashesUntil }: Memory): boolean {
  return ignoreCrashesUntil === Number.POSITIVE_INFINITY;
}

function tooSlow({ phase }: In<'starting'>, { handshakeMs, startMs }: Policy): Fault {
  const message =
    phase === 'handshake' && handshakeMs <= startMs
      ? `expected the sidecar to answer within ${handshakeMs} ms; nothing came. Check that the command starts a vision sidecar.`
      : `the sidecar was not ready within ${startMs} ms. Allow more by startTimeoutMs, or use a faster disk.`;
  return { code: 'sidecar.start_timeout', message };
}

function unanswered(timeoutMs: number): Fault {
  const message = `the sidecar did not answer for ${timeoutMs} ms; it was killed and is restarted.`;
  return { code: 'sidecar.exited', message };
}

function unverified(timeoutMs: number): Fault {
  const message = `the sidecar said that it was ready, and did not answer within ${timeoutMs} ms.`;
  return { code: 'sidecar.start_timeout', message };
}

/** Whatever keeps it from starting will do so again. */
function diedStarting(exit: Exit): Fault {
  const message = `the sidecar ended (${exit.reason}) before it was ready.${lastLines(exit)}`;
  return { code: 'sidecar.exited', message, retryable: false };
}

function died(exit: Exit): Fault {
  return {
    code: 'sidecar.exited',
    message: `the sidecar ended (${exit.reason}) and is restarted.`,
  };
}

function exhausted(times: number, exit: Exit, { windowMs }: Policy): Fault {
  const message = `the sidecar ended ${times} times within ${windowMs / 1000} s, the last time by ${exit.reason}, and is not restarted. Call start() to try again.${lastLines(exit)}`;
  return { code: 'sidecar.failed', message, stderr: exit.stderrTail };
}

function lastLines({ stderrTail }: Exit): string {
  return stderrTail.length ? ` Its last lines: ${stderrTail.slice(-3).join(' / ')}` : '';
}
