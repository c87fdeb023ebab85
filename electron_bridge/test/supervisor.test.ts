import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { SidecarInfo } from '../src/results.js';
import {
  type Effect,
  type Event,
  type Exit,
  initial,
  next,
  POLICY,
  type Policy,
  type RunEvent,
  type State,
} from '../src/supervisor.js';

type Simple = Exclude<Event['kind'], 'refused' | 'exited'>;
/** An event, or how many milliseconds pass. */
type Move = Simple | OfRun | Event | number;
/** As it comes from the run that the state is in. */
type OfRun = RunEvent & { readonly run?: number };

const python: Exit = { reason: 'exit code 1', native: false, stderrTail: ['Traceback', 'boom'] };
const segv: Exit = { reason: 'signal SIGSEGV', native: true, stderrTail: [] };
const crash: OfRun = { kind: 'exited', exit: python };
const nativeCrash: OfRun = { kind: 'exited', exit: segv };
const fatal: OfRun = {
  kind: 'refused',
  fault: { code: 'model.invalid', message: 'changed.' },
  final: true,
};
const info = { model: 'ab' } as SidecarInfo;
const peer = { endpoint: 'tcp://127.0.0.1:1', serverKey: 'k' };

const up: Move[] = ['start', 'listening', 'loaded', 'answered'];
const again: Move[] = ['timeUp', 'listening', 'loaded', 'answered'];

interface After {
  state: State;
  effects: Effect[];
  kinds: string[];
}

/** Feed moves from the beginning; return where we end, and the effects of the last one. */
function after(...moves: Move[]): After {
  return play(POLICY, ...moves);
}

function play(policy: Policy, ...moves: Move[]): After {
  let state: State = initial('auto');
  let effects: Effect[] = [];
  let at = 0;
  for (const move of moves) {
    if (typeof move === 'number') {
      at += move;
      continue;
    }
    const event = typeof move === 'string' ? { kind: move, peer, info } : move;
    [state, ...effects] = next(state, { run: state.run, ...event } as Event, policy, at);
  }
  return { state, effects, kinds: effects.map((effect) => effect.kind) };
}

function waits(...moves: Move[]): number | undefined {
  const timer = after(...moves).effects.find((effect) => effect.kind === 'setTimer');
  return timer?.ms;
}

test('is ready only once the child has said so, and has answered', () => {
  assert.equal(after('start').state.kind, 'starting');
  assert.equal(after('start', 'listening').state.kind, 'starting');
  assert.equal(after('start', 'listening', 'loaded').state.kind, 'starting');
  assert.equal(after('start', 'listening', 'answered').state.kind, 'starting');
  assert.equal(after(...up).state.kind, 'ready');
});

test('calls are sent when it is ready, and its heartbeat begins', () => {
  assert.deepEqual(after(...up).kinds, ['setTimer', 'flush']);
  assert.equal(waits(...up), POLICY.heartbeat.intervalMs);
});

test('a child that never answers is killed', () => {
  assert.deepEqual(after('start', 'timeUp').kinds, ['disconnect', 'clearTimer', 'kill']);
});

test('one that never answered on the first start is not tried again', () => {
  const { state } = after('start', 'timeUp', crash);
  assert.ok(state.kind === 'failed');
  assert.equal(state.fault.code, 'sidecar.start_timeout');
  assert.deepEqual(state.fault.stderr, ['Traceback', 'boom']);
});

test('loading has what is left of the time for starting', () => {
  assert.equal(waits('start', 4000, 'listening'), POLICY.startMs - 4000);
});

test('a crash before it was ever ready is a failure, with its last words', () => {
  const { state } = after('start', crash);
  assert.ok(state.kind === 'failed');
  assert.equal(state.fault.code, 'sidecar.exited');
  assert.match(state.fault.message, /exit code 1.*boom/);
  assert.equal(state.fault.retryable, false);
});

test('a crash fails the calls in flight before it waits to restart', () => {
  assert.deepEqual(after(...up, crash).kinds, ['disconnect', 'setTimer']);
});

test('restarts wait 0.25, 1, 4 and 15 s, a fifth more or less', () => {
  const four = [crash, ...again, crash, ...again, crash, ...again, crash];
  assert.equal(waits(...up, ...four.slice(0, 1)), 250);
  assert.equal(waits(...up, ...four.slice(0, 6)), 1000);
  assert.equal(waits(...up, ...four.slice(0, 11)), 4000);
  assert.equal(waits(...up, ...four), 15_000);
  const timer = after(...up, crash).effects.at(-1);
  assert.equal(timer?.kind === 'setTimer' && timer.jitter, 0.2);
});

const five: Move[] = [crash, ...again, crash, ...again, crash, ...again, crash, ...again, crash];

test('the fifth crash within three minutes opens the circuit, and all calls fail', () => {
  const { state, kinds } = after(...up, ...five);
  assert.ok(state.kind === 'failed');
  assert.equal(state.fault.code, 'sidecar.failed');
  assert.deepEqual(state.fault.stderr, ['Traceback', 'boom']);
  assert.deepEqual(kinds, ['disconnect', 'failAll', 'clearTimer', 'log']);
});

test('a crash three minutes ago is forgotten', () => {
  const { state } = after(...up, ...five.slice(0, -1), POLICY.windowMs, crash);
  assert.equal(state.kind, 'restarting');
  assert.equal(waits(...up, ...five.slice(0, -1), POLICY.windowMs, crash), 250);
});

test('start closes the circuit again, with a clean record', () => {
  const { state, kinds } = after(...up, ...five, 'start');
  assert.equal(state.kind, 'starting');
  assert.deepEqual(state.crashes, []);
  assert.deepEqual(kinds, ['spawn', 'setTimer']);
});

test('a child that says why it gives up is not tried again', () => {
  const { state } = after(...up, crash, 'timeUp', fatal, crash);
  assert.ok(state.kind === 'failed');
  assert.equal(state.fault.code, 'model.invalid');
});

test('a child that gives up has a moment to go, then is killed', () => {
  assert.equal(waits('start', fatal), POLICY.exitGraceMs);
  assert.deepEqual(after('start', fatal, 'timeUp').kinds, ['kill']);
});

test('a ready child is asked for a heartbeat, again and again', () => {
  assert.deepEqual(after(...up, 'timeUp').effects, [
    { kind: 'hello', timeoutMs: POLICY.heartbeat.timeoutMs, run: 1 },
  ]);
  assert.equal(waits(...up, 'timeUp', 'answered'), POLICY.heartbeat.intervalMs);
  const error = { kind: 'answered' } as const; // it could not do it, but it lives
  assert.equal(waits(...up, 'timeUp', error), POLICY.heartbeat.intervalMs);
});

test('a silent child is killed at once, its calls fail at once, and it is restarted', () => {
  assert.deepEqual(after(...up, 'silent').kinds, ['disconnect', 'log', 'clearTimer', 'kill']);
  assert.equal(after(...up, 'silent', nativeCrash).state.kind, 'restarting');
});

test('a child that sleeps with the computer is not asked, and not killed for its silence', () => {
  assert.deepEqual(after(...up, 'suspended').kinds, ['clearTimer']);
  assert.deepEqual(after(...up, 'timeUp', 'suspended', 'silent').kinds, []);
  assert.deepEqual(after(...up, 'timeUp', 'suspended', 'answered').kinds, ['clearTimer']);
  assert.equal(waits(...up, 'suspended', 'resumed'), POLICY.heartbeat.intervalMs);
});

test('a restart that hangs is killed and counts as a crash', () => {
  const { state } = after(...up, crash, 'timeUp', 'timeUp', crash);
  assert.equal(state.kind, 'restarting');
  assert.equal(state.crashes.length, 2);
});

test('a crash in machine code turns the kernels off, once, and says so', () => {
  const first = after(...up, nativeCrash);
  assert.equal(first.state.kernels, 'off');
  assert.deepEqual(first.kinds, ['disconnect', 'kernelsOff', 'setTimer']);
  assert.deepEqual(after(...up, nativeCrash, 'timeUp').effects[0], {
    kind: 'spawn',
    kernels: 'off',
    run: 2,
  });
  assert.ok(!after(...up, nativeCrash, ...again, nativeCrash).kinds.includes('kernelsOff'));
});

test('kernels that crash on the very first start do not keep the app from starting', () => {
  assert.equal(after('start', nativeCrash).state.kind, 'restarting');
  assert.equal(after('start', nativeCrash, 'timeUp', nativeCrash).state.kind, 'failed');
});

test('stop asks the child to shut down, then closes its stdin, then kills it, within 5 s', () => {
  assert.deepEqual(after(...up, 'stop').kinds, ['failAll', 'shutdown', 'setTimer']);
  assert.deepEqual(after(...up, 'stop', 'timeUp').kinds, ['failAll', 'terminate', 'setTimer']);
  assert.deepEqual(after(...up, 'stop', 'timeUp', 'timeUp').kinds, ['failAll', 'kill', 'setTimer']);
  assert.equal(after(...up, 'stop', 'timeUp', 'timeUp', 'timeUp').state.kind, 'closed');
  const total = [['stop'], ['stop', 'timeUp'], ['stop', 'timeUp', 'timeUp']] as const;
  assert.ok(total.reduce((sum, moves) => sum + (waits(...up, ...moves) ?? 0), 0) <= 5000);
});

test('an exit that was asked for is not a crash', () => {
  assert.equal(after(...up, 'stop', nativeCrash).state.kind, 'closed');
});

test('stop while waiting to restart starts nothing', () => {
  const { state, kinds } = after(...up, crash, 'stop');
  assert.equal(state.kind, 'closed');
  assert.deepEqual(kinds, ['disconnect', 'failAll', 'clearTimer']);
});

test('closed is for good', () => {
  assert.equal(after(...up, crash, 'stop', 'start').state.kind, 'closed');
});

test('what dies while the computer sleeps, or soon after, is restarted without being counted', () => {
  const asleep = after(...up, 'suspended', 3_600_000, crash);
  assert.equal(asleep.state.kind, 'restarting');
  assert.deepEqual(asleep.state.crashes, []);
  assert.deepEqual(after(...up, 'suspended', 'resumed', 9000, crash).state.crashes, []);
  assert.equal(after(...up, 'suspended', 'resumed', 11_000, crash).state.crashes.length, 1);
});

test('an event of a former run changes nothing', () => {
  const late: OfRun = { ...crash, run: 1 };
  const { state, kinds } = after(...up, crash, ...again, late);
  assert.deepEqual([state.kind, state.run, kinds], ['ready', 2, []]);
});

const outOfTurn: Record<string, Move[]> = {
  'ready before it listens': ['start', 'loaded'],
  'that it listens, twice': ['start', 'listening', 'listening'],
  'ready, twice, before it has answered': ['start', 'listening', 'loaded', 'loaded'],
  'that it listens, when it has been ready for long': [...up, 'listening'],
};

for (const [what, moves] of Object.entries(outOfTurn)) {
  test(`a child that says ${what} is not trusted`, () => {
    const { state } = after(...moves);
    assert.ok(state.kind === 'killing');
    assert.equal(state.fault.code, 'sidecar.malformed');
    assert.equal(state.final, !state.wasReady);
  });
}

test('one that says once more that it is ready is only that', () => {
  const { state, kinds } = after(...up, 'loaded');
  assert.deepEqual([state.kind, kinds], ['ready', []]);
});

test('it connects once to where the child listens, and asks it who it is once it is ready', () => {
  assert.deepEqual(after('start', 'listening').effects[0], { kind: 'connect', peer, run: 1 });
  assert.deepEqual(after('start', 'listening', 'loaded').effects, [
    { kind: 'hello', timeoutMs: POLICY.verifyMs, run: 1 },
  ]);
  assert.equal(after(...up).state.info, info);
  assert.equal(after(...up, crash).state.info, info); // as it was told last
});

test('the model that was asked for is accepted, another one is final', () => {
  assert.equal(play({ ...POLICY, manifestSha256: 'ab' }, ...up).state.kind, 'ready');
  const { state } = play({ ...POLICY, manifestSha256: 'cd' }, ...up);
  assert.ok(state.kind === 'killing' && state.final);
  assert.equal(state.fault.code, 'model.mismatch');
  assert.match(state.fault.message, /SHA-256 cd; the sidecar loaded ab/);
});

test('a child that answers its first question with an error is not accepted', () => {
  const { state } = after('start', 'listening', 'loaded', { kind: 'answered' });
  assert.ok(state.kind === 'killing');
  assert.equal(state.fault.code, 'sidecar.malformed');
});

test('a child that says it is ready and does not answer is killed', () => {
  const { state, kinds } = after('start', 'listening', 'loaded', 'silent');
  assert.ok(state.kind === 'killing');
  assert.equal(state.fault.code, 'sidecar.start_timeout');
  assert.deepEqual(kinds, ['disconnect', 'clearTimer', 'kill']);
});

test('while the computer sleeps, one that does not answer is asked again', () => {
  const { state, effects } = after('start', 'listening', 'loaded', 'suspended', 'silent');
  assert.equal(state.kind, 'starting');
  assert.deepEqual(effects, [{ kind: 'hello', timeoutMs: POLICY.verifyMs, run: 1 }]);
});

test('nothing more is sent to a child whose exit was seen', () => {
  assert.deepEqual(after('start', 'exiting').kinds, ['pause']);
  assert.deepEqual(after(...up, 'exiting').kinds, ['pause']);
});

const refused = (isFinal: boolean): OfRun => ({
  kind: 'refused',
  fault: { code: 'sidecar.malformed', message: 'nonsense.' },
  final: isFinal,
});

test('a child that answers nonsense is replaced, and its calls fail with that', () => {
  const { state, effects } = after(...up, refused(false));
  assert.equal(state.kind, 'killing');
  assert.deepEqual(effects[0], {
    kind: 'disconnect',
    fault: { code: 'sidecar.malformed', message: 'nonsense.' },
    blame: false,
  });
  assert.deepEqual(
    effects.map(({ kind }) => kind),
    ['disconnect', 'log', 'setTimer'],
  );
  assert.equal(after(...up, refused(false), crash).state.kind, 'restarting');
});

test('a fault that is final is told once, when it has failed', () => {
  assert.deepEqual(after(...up, refused(true)).kinds, ['disconnect', 'setTimer']);
  const { state, effects } = after(...up, refused(true), crash);
  assert.ok(state.kind === 'failed');
  assert.deepEqual(state.fault.stderr, ['Traceback', 'boom']);
  const logged = effects.filter(({ kind }) => kind === 'log');
  assert.deepEqual(logged, [{ kind: 'log', level: 'error', message: 'nonsense.' }]);
});

test('the call at work is blamed for a crash and a silence, not for what a suspend did', () => {
  const blame = (...moves: Move[]): boolean | undefined => {
    const lost = after(...moves).effects.find((effect) => effect.kind === 'disconnect');
    return lost?.blame;
  };
  assert.equal(blame(...up, crash), true);
  assert.equal(blame(...up, 'silent'), true);
  assert.equal(blame(...up, ...five), true);
  assert.equal(blame(...up, 'suspended', crash), false);
  assert.equal(blame(...up, crash, 'stop'), false);
});

test('the calls in flight learn the last lines of stderr', () => {
  const [lost] = after(...up, crash).effects;
  assert.ok(lost?.kind === 'disconnect');
  assert.deepEqual(lost.fault.stderr, ['Traceback', 'boom']);
});

test('to stop a child that is starting takes no longer than it must', () => {
  for (const begun of [['start'], ['start', 'listening'], ['start', 'listening', 'loaded']]) {
    const moves = begun as Move[];
    assert.deepEqual(after(...moves, 'stop').kinds, ['failAll', 'terminate', 'setTimer']);
    assert.equal(waits(...moves, 'stop'), POLICY.abortMs);
    assert.deepEqual(after(...moves, 'stop', 'timeUp').kinds, ['failAll', 'kill', 'setTimer']);
  }
});

test('to stop one that is being killed kills it at once', () => {
  assert.ok(after(...up, refused(false), 'stop').kinds.includes('kill'));
});

test('whatever is left of it, stop ends in closed', () => {
  const ways: Move[][] = [
    ['stop'],
    ['start', 'stop', crash],
    [...up, 'stop', crash],
    [...up, 'stop', 'timeUp', crash],
    [...up, 'stop', 'timeUp', 'timeUp', crash],
    [...up, crash, 'stop'],
    [...up, refused(false), 'stop', crash],
    [...up, ...five, 'stop'],
  ];
  for (const moves of ways) {
    const { state, kinds } = after(...moves);
    assert.equal(state.kind, 'closed');
    assert.deepEqual(kinds, ['disconnect', 'failAll', 'clearTimer']);
  }
});

test('what is remembered survives every state that follows', () => {
  const { state } = after(...up, nativeCrash, ...again, crash, ...again, refused(false), 'stop');
  assert.equal(state.kernels, 'off');
  assert.equal(state.crashes.length, 2);
  assert.equal(state.wasReady, true);
  assert.equal(state.run, 3);
});

test('a start that is slow says which part of it was', () => {
  const message = (policy: Policy, ...moves: Move[]): string => {
    const { state } = play(policy, ...moves);
    return state.kind === 'killing' ? state.fault.message : '';
  };
  assert.match(message(POLICY, 'start', 'timeUp'), /answer within 10000 ms; nothing came/);
  assert.match(message(POLICY, 'start', 'listening', 'timeUp'), /not ready within 120000 ms/);
  const hasty = { ...POLICY, startMs: 500 };
  assert.match(message(hasty, 'start', 'timeUp'), /not ready within 500 ms/);
  const [, timer] = play(hasty, 'start').effects;
  assert.deepEqual(timer, { kind: 'setTimer', ms: 500, jitter: 0 });
  assert.equal(play(hasty, 'start', 600, 'listening').effects.at(-1)?.kind, 'setTimer');
  const [, late] = play(hasty, 'start', 600, 'listening').effects;
  assert.deepEqual(late, { kind: 'setTimer', ms: 0, jitter: 0 });
});
