/**
 * When to start, await, restart and give up on the sidecar. Pure: states and events are values, and
 * what is to be done comes back as effects, which process.ts performs.
 */

import type { Fault } from './errors.js';

/** Whether the sidecar uses operators of its own where the processor gains by them. */
export type Kernels = 'auto' | 'off';

/** What is remembered from one run of the sidecar to the next. */
interface Memory {
  readonly crashes: readonly number[]; // when; those within the window
  readonly kernels: Kernels;
  readonly proven: boolean; // has been ready since it was started
  readonly forgiveUntil: number; // a crash before then is the suspend's doing
}

export type State = Memory &
  (
    | { readonly kind: 'idle' | 'ready' | 'restarting' | 'closed' }
    | { readonly kind: 'starting'; readonly phase: 'handshake' | 'loading'; readonly since: number }
    | { readonly kind: 'condemned'; readonly fault: Fault; readonly final: boolean } // its exit is awaited
    | { readonly kind: 'stopping'; readonly stage: 'asked' | 'terminated' | 'killed' }
    | { readonly kind: 'failed'; readonly fault: Fault }
  );

/** How a process ended. */
export interface Exit {
  readonly reason: string; // "signal SIGSEGV", "exit code 3"
  readonly native: boolean; // by machine code, not by Python
  readonly stderr: readonly string[]; // its last lines
}

export type Event =
  | { readonly kind: 'start' | 'stop' | 'listening' | 'ready' | 'timeUp' | 'suspended' | 'resumed' }
  | { readonly kind: 'wedged'; readonly fault: Fault } // it lives, and does not answer
  | { readonly kind: 'refused'; readonly fault: Fault; readonly final: boolean } // it said so, or we did
  | { readonly kind: 'exited'; readonly exit: Exit };

export type Effect =
  | { readonly kind: 'spawn'; readonly kernels: Kernels }
  | { readonly kind: 'terminate' | 'kill' | 'clearTimer' }
  | { readonly kind: 'shutdown' | 'admit' }
  | { readonly kind: 'setTimer'; readonly ms: number; readonly jitter: number } // there is one timer; setting it replaces it
  | { readonly kind: 'disconnect' | 'failAll'; readonly fault: Fault }
  | { readonly kind: 'kernelsOff'; readonly reason: string };

/** Times in milliseconds. */
export interface Policy {
  /** From the start of the process to its `listening` line. */
  readonly handshakeMs: number;
  /** From the start of the process to its `ready` line. */
  readonly startMs: number;
  /** Waits before the first, second, … restart within the window; one more crash is the last. */
  readonly backoffMs: readonly number[];
  /** Each wait is longer or shorter by up to this share. */
  readonly jitter: number;
  readonly windowMs: number;
  /** From asking a sidecar to shut down to closing its stdin, and from there to killing it. */
  readonly graceMs: number;
  /** A sidecar that said why it gives up has this long to go by itself. */
  readonly farewellMs: number;
  /** A crash this soon after the computer woke up is not counted. */
  readonly wakeMs: number;
}

export const POLICY: Policy = {
  handshakeMs: 10_000,
  startMs: 120_000,
  backoffMs: [250, 1000, 4000, 15_000],
  jitter: 0.2,
  windowMs: 180_000,
  graceMs: 2000,
  farewellMs: 500,
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
    listening: (s, _, p, at) => [
      { ...s, phase: 'loading' },
      timer(Math.max(0, s.since + p.startMs - at)),
    ],
    ready: (s) => [
      { ...s, kind: 'ready', proven: true },
      { kind: 'clearTimer' },
      { kind: 'admit' },
    ],
    timeUp: (s, _, p) => condemn(s, tooSlow(s, p)),
    refused: (s, e, p) => refuse(s, e, p),
    exited: (s, e, p, at) => crash(s, diedStarting(e.exit), e.exit, p, at),
    stop: (s, _, p) => windDown(s, p),
  },
  ready: {
    wedged: (s, e) => condemn(s, e.fault),
    refused: (s, e, p) => refuse(s, e, p),
    exited: (s, e, p, at) => crash(s, died(e.exit), e.exit, p, at),
    stop: (s, _, p) => windDown(s, p),
  },
  condemned: {
    timeUp: (s) => [s, { kind: 'kill' }],
    exited: (s, e, p, at) =>
      s.final ? fail(s, { ...s.fault, stderr: e.exit.stderr }) : crash(s, s.fault, e.exit, p, at),
    stop: (s) => kill(s),
  },
  restarting: {
    timeUp: (s, _, p, at) => launch(s, p, at),
    stop: (s) => close(s),
  },
  stopping: {
    timeUp: (s, _, p) => {
      if (s.stage === 'asked') {
        return [{ ...s, stage: 'terminated' }, { kind: 'terminate' }, timer(p.graceMs)];
      }
      return s.stage === 'terminated' ? kill(s) : close(s);
    },
    exited: (s) => close(s),
  },
  failed: {
    start: (s, _, p, at) => launch({ ...s, crashes: [], proven: false }, p, at),
    stop: (s) => close(s),
  },
  closed: {},
};

export const CLOSED: Fault = { code: 'sidecar.closed', message: 'the sidecar was closed.' };

export function initial(kernels: Kernels): State {
  return {
    kind: 'idle',
    crashes: [],
    kernels,
    proven: false,
    forgiveUntil: Number.NEGATIVE_INFINITY,
  };
}

/** What `event` at the time `at` makes of `state`. One that a state has no entry for changes nothing. */
export function next(state: State, event: Event, policy: Policy, at: number): Step {
  if (event.kind === 'suspended') return [{ ...state, forgiveUntil: Number.POSITIVE_INFINITY }];
  if (event.kind === 'resumed') return [{ ...state, forgiveUntil: at + policy.wakeMs }];
  const row = table[state.kind] as Row<State['kind']>;
  const move = row[event.kind] as ((s: State, e: Event, p: Policy, at: number) => Step) | undefined;
  return move ? move(state, event, policy, at) : [state];
}

function launch(from: State, policy: Policy, at: number): Step {
  const state: State = { ...memory(from), kind: 'starting', phase: 'handshake', since: at };
  const ms = Math.min(policy.handshakeMs, policy.startMs);
  return [state, { kind: 'spawn', kernels: from.kernels }, timer(ms)];
}

/** It is to die, and what it will have died of is known already. */
function condemn(from: State, fault: Fault): Step {
  const state: State = { ...memory(from), kind: 'condemned', fault, final: !from.proven };
  return [state, { kind: 'disconnect', fault }, { kind: 'clearTimer' }, { kind: 'kill' }];
}

function refuse(from: State, { fault, final }: Of<'refused'>, policy: Policy): Step {
  const state: State = { ...memory(from), kind: 'condemned', fault, final: final || !from.proven };
  return [state, { kind: 'disconnect', fault }, timer(policy.farewellMs)];
}

function crash(from: State, fault: Fault, exit: Exit, policy: Policy, at: number): Step {
  const recent = from.crashes.filter((when) => when > at - policy.windowMs);
  const crashes = at < from.forgiveUntil ? recent : [...recent, at];
  const lost: Effect = { kind: 'disconnect', fault: { ...fault, stderr: exit.stderr } };
  const blameKernels = exit.native && from.kernels === 'auto';
  const kernels = blameKernels ? 'off' : from.kernels;
  const state = { ...memory(from), crashes, kernels };
  const wait = policy.backoffMs[Math.max(crashes.length - 1, 0)];
  if (wait === undefined) return fail(state, exhausted(crashes.length, exit, policy));
  if (!from.proven && !blameKernels) return fail(state, { ...fault, stderr: exit.stderr });
  const told: Effect[] = blameKernels ? [{ kind: 'kernelsOff', reason: exit.reason }] : [];
  return [{ ...state, kind: 'restarting' }, lost, ...told, timer(wait, policy.jitter)];
}

function fail(from: Memory, fault: Fault): Step {
  return [
    { ...memory(from), kind: 'failed', fault },
    { kind: 'failAll', fault },
    { kind: 'clearTimer' },
  ];
}

function windDown(from: State, policy: Policy): Step {
  const state: State = { ...memory(from), kind: 'stopping', stage: 'asked' };
  return [state, { kind: 'shutdown' }, { kind: 'failAll', fault: CLOSED }, timer(policy.graceMs)];
}

function close(from: State): Step {
  return [
    { ...memory(from), kind: 'closed' },
    { kind: 'failAll', fault: CLOSED },
    { kind: 'clearTimer' },
  ];
}

function kill(from: State): Step {
  const state: State = { ...memory(from), kind: 'stopping', stage: 'killed' };
  return [state, { kind: 'failAll', fault: CLOSED }, { kind: 'kill' }, timer(500)];
}

function timer(ms: number, jitter = 0): Effect {
  return { kind: 'setTimer', ms, jitter };
}

function memory({ crashes, kernels, proven, forgiveUntil }: Memory): Memory {
  return { crashes, kernels, proven, forgiveUntil };
}

function tooSlow({ phase }: In<'starting'>, { handshakeMs, startMs }: Policy): Fault {
  const message =
    phase === 'handshake' && handshakeMs <= startMs
      ? `expected the sidecar to answer within ${handshakeMs} ms; nothing came. Check that the command starts a vision sidecar.`
      : `the sidecar was not ready within ${startMs} ms. Allow more by startTimeoutMs, or use a faster disk.`;
  return { code: 'sidecar.start_timeout', message };
}

function diedStarting(exit: Exit): Fault {
  const message = `the sidecar ended (${exit.reason}) before it was ready.${lastWords(exit)}`;
  return { code: 'sidecar.exited', message };
}

function died(exit: Exit): Fault {
  return {
    code: 'sidecar.exited',
    message: `the sidecar ended (${exit.reason}) and is restarted.`,
  };
}

function exhausted(times: number, exit: Exit, { windowMs }: Policy): Fault {
  const message = `the sidecar ended ${times} times within ${windowMs / 1000} s, the last time by ${exit.reason}, and is not restarted. Call start() to try again.${lastWords(exit)}`;
  return { code: 'sidecar.failed', message, stderr: exit.stderr };
}

function lastWords({ stderr }: Exit): string {
  return stderr.length ? ` Its last words: ${stderr.slice(-3).join(' / ')}` : '';
}
