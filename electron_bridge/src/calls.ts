/**
 * Calls in flight: ids, deadlines, abort, settle one, fail all. A call waits here until there is a
 * link to send it over, and is sent once. Knows no sockets: a link is a function that takes frames.
 */

import type { Clock } from './clock.js';
import { type Fault, SidecarError } from './errors.js';
import { type Done, MAX_ID, type Reply, type Request, writeRequest } from './protocol.js';

export type Link = (frames: Uint8Array[]) => void;

export interface CallOptions {
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
}

interface Call {
  readonly request: Request;
  sent: boolean;
  settle(outcome: Done | SidecarError): void;
}

export class Calls {
  readonly #clock: Clock;
  readonly #open = new Map<number, Call>();
  /** Sent and given up by the caller: their ids are taken until the sidecar has answered. */
  readonly #abandoned = new Set<number>();
  #lastId: number;
  #link: Link | undefined;
  #admitting = false;

  /** Ids follow `lastId`. */
  constructor(clock: Clock, lastId = -1) {
    this.#clock = clock;
    this.#lastId = lastId;
  }

  /** Number of calls that have not settled. */
  get size(): number {
    return this.#open.size;
  }

  /** Resolves with the sidecar's answer. Rejects with `request.timeout`, `request.cancelled`, or as told. */
  call(request: Request, options: CallOptions): Promise<Done> {
    return this.#begin(request, options, this.#admitting);
  }

  /** As `call`, but over the link as it is now: not held back while the sidecar gets ready. */
  ask(request: Request, options: CallOptions): Promise<Done> {
    return this.#begin(request, options, true);
  }

  /** Use `link` for `ask` from now on, and for nothing else until `admit`. */
  connect(link: Link): void {
    this.#link = link;
  }

  /** Send what waits, and all that comes. */
  admit(): void {
    this.#admitting = true;
    for (const [id, call] of this.#open) if (!call.sent) this.#send(id, call);
  }

  /** Send nothing more of what comes from `call`; what was sent may still be answered. */
  hold(): void {
    this.#admitting = false;
  }

  /** The link is gone, and the answers to what was sent over it. What was not sent waits. */
  disconnect(fault: Fault): void {
    this.#link = undefined;
    this.#admitting = false;
    this.#abandoned.clear();
    for (const call of [...this.#open.values()])
      if (call.sent) call.settle(new SidecarError(fault));
  }

  /** Nothing will be sent any more. */
  failAll(fault: Fault): void {
    this.disconnect(fault);
    for (const call of [...this.#open.values()]) call.settle(new SidecarError(fault));
  }

  /** Take one answer. False if nobody waits for it. */
  receive(reply: Reply): boolean {
    if (reply.id === null) return false;
    const call = this.#open.get(reply.id);
    if (!call) return this.#abandoned.delete(reply.id);
    call.settle(reply.ok ? reply : new SidecarError(reply.error));
    return true;
  }

  #begin(request: Request, { timeoutMs, signal }: CallOptions, now: boolean): Promise<Done> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        reject(cancelled(signal));
        return;
      }
      const id = this.#nextId();
      const onAbort = (): void => this.#abandon(id, cancelled(signal));
      const stopTimer = this.#clock.after(timeoutMs, () => this.#abandon(id, timedOut(timeoutMs)));
      signal?.addEventListener('abort', onAbort, { once: true });
      const call: Call = {
        request,
        sent: false,
        settle: (outcome) => {
          this.#open.delete(id);
          stopTimer();
          signal?.removeEventListener('abort', onAbort);
          if (outcome instanceof SidecarError) reject(outcome);
          else resolve(outcome);
        },
      };
      this.#open.set(id, call);
      if (now) this.#send(id, call);
    });
  }

  #send(id: number, call: Call): void {
    if (!this.#link) {
      call.settle(new SidecarError({ code: 'sidecar.exited', message: 'the sidecar has gone.' }));
      return;
    }
    call.sent = true;
    this.#link(writeRequest(id, call.request));
  }

  /** The caller stops waiting at once; the sidecar is told to stop working. */
  #abandon(id: number, error: SidecarError): void {
    const call = this.#open.get(id);
    if (!call) return;
    call.settle(error);
    if (!call.sent || !this.#link) return;
    this.#abandoned.add(id);
    if (call.request.op !== 'encode') return;
    const cancelId = this.#nextId();
    this.#abandoned.add(cancelId);
    this.#link(writeRequest(cancelId, { op: 'cancel', params: { target: id } }));
  }

  #nextId(): number {
    do {
      this.#lastId = this.#lastId === MAX_ID ? 0 : this.#lastId + 1;
    } while (this.#open.has(this.#lastId) || this.#abandoned.has(this.#lastId));
    return this.#lastId;
  }
}

function timedOut(timeoutMs: number): SidecarError {
  return new SidecarError({
    code: 'request.timeout',
    message: `no answer within ${timeoutMs} ms. Allow more by timeoutMs, or ask for a smaller resolution.`,
  });
}

/** The error that a call rejects with when its signal was aborted. */
export function cancelled(signal: AbortSignal | undefined): SidecarError {
  const fault = { code: 'request.cancelled', message: 'the call was aborted.' };
  return new SidecarError(fault, { cause: signal?.reason });
}
