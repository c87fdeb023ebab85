/**
 * Calls in flight: ids, deadlines, abort, settle one, fail all. A call waits here until there is a
 * link to send it over, and is sent once. Knows no sockets: a link is a function that takes frames.
 */

import { cancelled, onAbort } from './abort.js';
import type { Clock } from './clock.js';
import { type Fault, SidecarError } from './errors.js';
import { type Done, MAX_ID, type Op, type Reply, type Request, writeRequest } from './protocol.js';

/** Sends frames, an urgent message before those that are not and have not left yet. */
export type Link = (frames: readonly Uint8Array[], urgent: boolean) => Unsend;

/** Takes a message back. False where it has left already. */
export type Unsend = () => boolean;

export interface CallOptions {
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
  /** Send it over the link as it is now, before what waits: not held back while the sidecar gets ready. */
  readonly urgent?: boolean;
}

/** Makes a request; its signal is aborted where the call settles first. */
export type Preparation = (signal: AbortSignal) => Promise<Request>;

interface Call {
  readonly urgent: boolean;
  op?: Op;
  low?: boolean;
  frames?: readonly Uint8Array[]; // none while it is prepared
  unsend?: Unsend; // once it was sent
  settle(outcome: Done | SidecarError): void;
}

/** What the sidecar works on one after another, and can be told to stop. */
const WORK: ReadonlySet<Op> = new Set<Op>([
  'encode',
  'collection.add',
  'collection.search',
  'collection.remove',
  'collection.info',
]);

export class Calls {
  readonly #clock: Clock;
  readonly #open = new Map<number, Call>();
  /** Sent and given up by the caller: their ids are taken until the sidecar has answered. */
  readonly #abandoned = new Set<number>();
  /** The sidecar's queue, as we must suppose it is: ids in the order of sending, and whether each is of low priority. */
  readonly #queue = new Map<number, boolean>();
  #working: number | undefined;
  #lastId: number;
  #link: Link | undefined;
  #flushing = false;

  /** Ids follow `lastId`. */
  constructor(clock: Clock, lastId = -1) {
    this.#clock = clock;
    this.#lastId = lastId;
  }

  /** Number of calls that have not settled. */
  get size(): number {
    return this.#open.size;
  }

  /**
   * Resolves with the sidecar's answer. Rejects with `request.timeout`, `request.cancelled`, `request.malformed`
   * or `request.too_large` where it cannot be sent, with what its preparation rejects with, or as told.
   */
  call(request: Request | Preparation, options: CallOptions): Promise<Done> {
    const { timeoutMs, signal, urgent = false } = options;
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        reject(cancelled(signal));
        return;
      }
      const id = this.#nextId();
      const preparing = new AbortController();
      const stopTimer = this.#clock.after(timeoutMs, () => this.#abandon(id, timedOut(timeoutMs)));
      const stopSignal = signal && onAbort(signal, () => this.#abandon(id, cancelled(signal)));
      const call: Call = {
        urgent,
        settle: (outcome) => {
          this.#open.delete(id);
          stopTimer();
          stopSignal?.();
          preparing.abort();
          if (outcome instanceof SidecarError) reject(outcome);
          else resolve(outcome);
        },
      };
      this.#open.set(id, call);
      if (typeof request !== 'function') this.#write(id, call, request);
      else {
        request(preparing.signal).then(
          (prepared) => this.#write(id, call, prepared),
          (error: unknown) => call.settle(asSidecarError(error)),
        );
      }
    });
  }

  /** Use `link` for what is urgent from now on, and for nothing else until `flush`. */
  connect(link: Link): void {
    this.#link = link;
  }

  /** Send what waits, and all that comes. */
  flush(): void {
    this.#flushing = true;
    for (const [id, call] of this.#open) if (!call.unsend) this.#send(id, call);
  }

  /** Send nothing more but what is urgent; what was sent may still be answered. */
  pause(): void {
    this.#flushing = false;
  }

  /**
   * The link is gone, and the answers to what was sent over it. What has not left waits. With `blame`, the
   * call that the sidecar was working on may be what ended it: sending that one again could end the next.
   */
  disconnect(fault: Fault, blame = false): void {
    const suspect = blame ? this.#working : undefined;
    this.#link = undefined;
    this.#flushing = false;
    this.#abandoned.clear();
    this.#queue.clear();
    this.#working = undefined;
    for (const [id, call] of [...this.#open]) {
      if (!call.unsend) continue;
      if (call.unsend() && !call.urgent) delete call.unsend;
      else call.settle(new SidecarError(id === suspect ? blamed(fault) : fault));
    }
  }

  /** Settle every call; the link stays as it is. */
  failAll(fault: Fault): void {
    for (const id of [...this.#open.keys()]) this.#giveUp(id, new SidecarError(fault));
  }

  /** Take one answer. False if nobody waits for it. */
  receive(reply: Reply): boolean {
    if (reply.id === null) return false;
    this.#leave(reply.id);
    const call = this.#open.get(reply.id);
    if (!call?.unsend) return this.#abandoned.delete(reply.id);
    call.settle(reply.ok ? reply : new SidecarError(reply.error));
    return true;
  }

  /** The header is written before anything is sent: what cannot be written fails this call and no other. */
  #write(id: number, call: Call, request: Request): void {
    if (this.#open.get(id) !== call) return; // settled while it was prepared
    call.op = request.op;
    call.low = request.params?.priority === 'low';
    try {
      call.frames = writeRequest(id, request);
    } catch (error) {
      call.settle(asSidecarError(error));
      return;
    }
    if (call.urgent || this.#flushing) this.#send(id, call);
  }

  #send(id: number, call: Call): void {
    if (!call.frames) return; // still prepared
    if (!this.#link) {
      call.settle(new SidecarError({ code: 'sidecar.exited', message: 'the sidecar has gone.' }));
      return;
    }
    call.unsend = this.#link(call.frames, call.urgent);
    if (call.op && WORK.has(call.op)) this.#enter(id, call.low === true);
  }

  /** The caller stops waiting at once; the sidecar is told to stop working. */
  #abandon(id: number, error: SidecarError): void {
    const op = this.#open.get(id)?.op;
    if (!this.#giveUp(id, error) || !op || !WORK.has(op)) return;
    const cancelId = this.#nextId();
    this.#abandoned.add(cancelId);
    this.#link?.(writeRequest(cancelId, { op: 'cancel', params: { target: id } }), true);
  }

  /** Settle a call. True if its message has left, and will be answered. */
  #giveUp(id: number, error: SidecarError): boolean {
    const call = this.#open.get(id);
    if (!call) return false;
    call.settle(error);
    if (!call.unsend) return false;
    if (call.unsend()) {
      this.#leave(id);
      return false;
    }
    this.#abandoned.add(id);
    return true;
  }

  #enter(id: number, low: boolean): void {
    this.#queue.set(id, low);
    this.#working ??= id;
  }

  /** The next one to work on is the first, of those of normal priority where there are any. */
  #leave(id: number): void {
    this.#queue.delete(id);
    if (this.#working !== id) return;
    const waiting = [...this.#queue];
    this.#working = (waiting.find(([, low]) => !low) ?? waiting[0])?.[0];
  }

  #nextId(): number {
    do {
      this.#lastId = this.#lastId === MAX_ID ? 0 : this.#lastId + 1;
    } while (this.#open.has(this.#lastId) || this.#abandoned.has(this.#lastId));
    return this.#lastId;
  }
}

function blamed(fault: Fault): Fault {
  const message = `${fault.message} It was working on this call, which may be the reason: the call is not to be sent again as it is.`;
  return { ...fault, message, retryable: false };
}

function timedOut(timeoutMs: number): SidecarError {
  return new SidecarError({
    code: 'request.timeout',
    message: `no answer within ${timeoutMs} ms. Allow more by timeoutMs, or ask for a smaller resolution.`,
  });
}

function asSidecarError(error: unknown): SidecarError {
  if (error instanceof SidecarError) return error;
  return new SidecarError(
    { code: 'internal', message: 'a bug in the bridge: see the cause.' },
    { cause: error },
  );
}
