/**
 * The one loop: an event comes up, the state table says what it means, its effects go down to the child,
 * the connection and the calls. The app is told afterwards. No decision is made here.
 */

import type { Calls, Link } from './calls.js';
import { Child, type Program } from './child.js';
import type { Clock } from './clock.js';
import type { Connection, Keys, Transport } from './connection.js';
import { type Fault, SidecarError } from './errors.js';
import { handshakeRequest, type Peer } from './handshake.js';
import type { LogEntry } from './log.js';
import type { SidecarEvents, SidecarState, StateDetail } from './options.js';
import { type Reply, readReply } from './protocol.js';
import { readInfo } from './results.js';
import {
  type Effect,
  type Event,
  initial,
  type Kernels,
  next,
  type Policy,
  type RunEvent,
  type State,
} from './supervisor.js';

/** An event for the app's listeners: its name, and what they are called with. */
export type Notification = {
  [K in keyof SidecarEvents]: readonly [name: K, ...args: SidecarEvents[K]];
}[keyof SidecarEvents];

/** What a host needs. */
export interface Parts {
  readonly program: (kernels: Kernels) => Program;
  readonly kernels: Kernels;
  readonly policy: Policy;
  readonly clock: Clock;
  readonly calls: Calls;
  readonly transport: Transport;
  /** Tells the app, once the transition is over: it may throw nothing, and may dispatch. */
  readonly notify: (notification: Notification) => void;
}

const SHUTDOWN_MS = 10_000;

/** Keeps one sidecar running, as the state table says. */
export class Host {
  readonly #parts: Parts;
  readonly #events: Event[] = [];
  readonly #notifications: Notification[] = [];
  #state: State;
  #child: Child | undefined;
  #keys: Keys | undefined;
  #connection: Connection | undefined;
  #stopTimer: () => void = () => undefined;
  #waiting: ((state: State) => boolean)[] = [];
  #shown = '';
  #stepping = false;
  #notifying = false;

  constructor(parts: Parts) {
    this.#parts = parts;
    this.#state = initial(parts.kernels);
  }

  get state(): State {
    return this.#state;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** Runs the event to its end. One that comes from its effects follows; the app's listeners come last. */
  dispatch(event: Event): void {
    this.#events.push(event);
    if (this.#stepping) return;
    this.#stepping = true;
    try {
      for (let due = this.#events.shift(); due; due = this.#events.shift()) this.#step(due);
    } finally {
      this.#stepping = false;
    }
    this.#notify();
  }

  /** Resolves with the first state, from the present one on, that is of one of `kinds`. */
  reach(...kinds: State['kind'][]): Promise<State> {
    return new Promise((resolve) => {
      const arrived = (state: State): boolean => {
        const there = kinds.includes(state.kind);
        if (there) resolve(state);
        return there;
      };
      if (!arrived(this.#state)) this.#waiting.push(arrived);
    });
  }

  #step(event: Event): void {
    const { policy, clock } = this.#parts;
    const [state, ...effects] = next(this.#state, event, policy, clock.now());
    if (event.kind === 'exited' && event.run === this.#state.run) this.#child = undefined;
    this.#state = state;
    for (const effect of effects) this.#perform(effect);
    this.#waiting = this.#waiting.filter((arrived) => !arrived(state));
    this.#announce(state);
  }

  #perform(effect: Effect): void {
    const { calls } = this.#parts;
    switch (effect.kind) {
      case 'spawn':
        this.#spawn(effect.kernels, effect.run);
        break;
      case 'connect':
        this.#connect(effect.peer, effect.run);
        break;
      case 'hello':
        void this.#hello(effect.timeoutMs, effect.run);
        break;
      case 'shutdown':
        void this.#shutdown();
        break;
      case 'terminate':
        this.#child?.terminate();
        break;
      case 'kill':
        this.#child?.kill();
        break;
      case 'setTimer':
        this.#setTimer(effect.ms * (1 + effect.jitter * (2 * Math.random() - 1)));
        break;
      case 'clearTimer':
        this.#stopTimer();
        break;
      case 'flush':
        calls.flush();
        break;
      case 'pause':
        calls.pause();
        break;
      case 'disconnect':
        calls.disconnect(effect.fault, effect.blame); // before the socket closes: what it holds may be sent again
        this.#connection?.close();
        this.#connection = undefined;
        break;
      case 'failAll':
        calls.failAll(effect.fault);
        break;
      case 'log':
        this.#log(effect.level, effect.message);
        break;
      case 'kernelsOff':
        this.#log(
          'warning',
          `the sidecar died in machine code (${effect.reason}); it goes on with kernels off`,
        );
        this.#notifications.push(['kernelsOff', effect.reason]);
    }
  }

  #spawn(kernels: Kernels, run: number): void {
    const { program, transport, clock } = this.#parts;
    this.#keys = transport.newKeys();
    this.#child = new Child(program(kernels), handshakeRequest(this.#keys.publicKey), clock, {
      event: (event: RunEvent) => this.dispatch({ ...event, run }),
      log: (entry) => {
        this.#notifications.push(['log', entry]);
        this.#notify();
      },
    });
  }

  #connect(peer: Peer, run: number): void {
    const keys = this.#keys;
    this.#keys = undefined;
    if (!keys) return;
    const broken = (error: unknown): void => {
      const message = `the connection to the sidecar broke: ${String(error)}`;
      this.#refuse({ code: 'sidecar.exited', message }, run);
    };
    try {
      const connection = this.#parts.transport.connect(peer, keys, {
        message: (frames) => this.#receive(frames, run),
        broken,
      });
      const link: Link = (frames, urgent) => connection.send(frames, urgent);
      this.#connection = connection;
      this.#parts.calls.connect(link);
    } catch (error) {
      broken(error); // no descriptors left, for one
    }
  }

  #receive(frames: Uint8Array[], run: number): void {
    let reply: Reply;
    try {
      reply = readReply(frames);
    } catch (error) {
      this.#refuse(faultOf(error), run);
      return;
    }
    if (!this.#parts.calls.receive(reply) && !reply.ok) {
      this.#log('warning', `the sidecar could not read a request: ${reply.error.code}`);
      this.#notify();
    }
  }

  #refuse(fault: Fault, run: number): void {
    this.dispatch({ kind: 'refused', fault, final: false, run });
  }

  async #hello(timeoutMs: number, run: number): Promise<void> {
    const tell = (event: RunEvent): void => this.dispatch({ ...event, run });
    try {
      const reply = await this.#parts.calls.call({ op: 'hello' }, { timeoutMs, urgent: true });
      tell({ kind: 'answered', info: readInfo(reply) });
    } catch (error) {
      const fault = faultOf(error);
      if (fault.code === 'request.timeout') tell({ kind: 'silent' });
      else if (fault.code === 'sidecar.malformed') this.#refuse(fault, run);
      else tell({ kind: 'answered' });
    }
  }

  async #shutdown(): Promise<void> {
    const { calls } = this.#parts;
    try {
      await calls.call({ op: 'shutdown' }, { timeoutMs: SHUTDOWN_MS, urgent: true });
    } catch {
      // its exit is what counts
    }
  }

  #setTimer(ms: number): void {
    this.#stopTimer();
    this.#stopTimer = this.#parts.clock.after(ms, () => this.dispatch({ kind: 'timeUp' }));
  }

  #announce(state: State): void {
    if (state.kind === 'killing') return; // what follows is told
    const shown = publicState(state);
    const detail = detailOf(state);
    const summary = `${shown} ${detail.phase ?? ''}`;
    if (summary === this.#shown) return;
    this.#shown = summary;
    this.#notifications.push(['state', shown, detail]);
  }

  #log(level: LogEntry['level'], message: string): void {
    this.#notifications.push(['log', { source: 'bridge', level, message }]);
  }

  /** One at a time and in order, whatever a listener does meanwhile. */
  #notify(): void {
    if (this.#notifying || this.#stepping) return;
    this.#notifying = true;
    for (let due = this.#notifications.shift(); due; due = this.#notifications.shift()) {
      this.#parts.notify(due);
    }
    this.#notifying = false;
  }
}

export function publicState({ kind }: State): SidecarState {
  switch (kind) {
    case 'idle':
      return 'starting';
    case 'killing': // not announced: what comes of it is
      return 'restarting';
    case 'stopping':
      return 'closed';
    default:
      return kind;
  }
}

function detailOf(state: State): StateDetail {
  switch (state.kind) {
    case 'starting':
      return { phase: state.phase === 'handshake' ? 'handshake' : 'loading' };
    case 'failed':
      return { error: new SidecarError(state.fault) };
    default:
      return {};
  }
}

function faultOf(error: unknown): Fault {
  if (!(error instanceof SidecarError)) throw error;
  const { code, message, retryable } = error;
  return { code, message, retryable };
}
