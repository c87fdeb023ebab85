/** DEALER socket ⇄ frames, CURVE keys. The only file that imports zeromq. Knows no requests. */

import type * as zmq from 'zeromq';
import { SidecarError } from './errors.js';
import type { Peer } from './handshake.js';

type Zmq = typeof zmq;

/** A key pair in Z85, made for one run of the sidecar and kept in memory only. */
export interface Keys {
  readonly publicKey: string;
  readonly secretKey: string;
}

/** What a connection tells. `broken` is called at most once, and not after `close`. */
export interface ConnectionListener {
  message(frames: Uint8Array[]): void;
  broken(error: unknown): void;
}

/** Loads the native library when the first sidecar is started, not when an app imports us. */
export async function loadTransport(): Promise<Transport> {
  // Not a literal: bundlers leave it alone, and it is found at run time. Its library cannot be bundled.
  const name: string = 'zeromq';
  try {
    return new Transport((await import(/* webpackIgnore: true */ /* @vite-ignore */ name)) as Zmq);
  } catch (error) {
    throw new SidecarError(
      {
        code: 'bridge.transport_missing',
        message:
          'the native part of the npm package zeromq could not be loaded. The app needs node_modules/zeromq beside its own code, also when that is bundled: installed for this system, and with asarUnpack: "**/*.node". withVisionSidecar of electron-vision-sidecar/builder or /forge takes care of that.',
      },
      { cause: error },
    );
  }
}

export class Transport {
  readonly #zmq: Zmq;

  constructor(library: Zmq) {
    this.#zmq = library;
  }

  newKeys(): Keys {
    return this.#zmq.curveKeyPair();
  }

  connect(peer: Peer, keys: Keys, listener: ConnectionListener): Connection {
    const socket = new this.#zmq.Dealer({
      linger: 0, // what the sidecar has not taken when we close, it need not take
      curveServerKey: peer.serverKey,
      curvePublicKey: keys.publicKey,
      curveSecretKey: keys.secretKey,
      // What ZeroMQ holds cannot be taken back: one message, the rest waits here.
      sendHighWaterMark: 1,
      receiveHighWaterMark: 0, // calls.ts and the sidecar's own queue set the bounds
    });
    socket.connect(peer.endpoint);
    return new Connection(socket, listener);
  }
}

/**
 * Messages leave in the order of `send`, urgent ones first, as the sidecar takes them. ZeroMQ reads their
 * memory later: it must not be touched again.
 */
export class Connection {
  readonly #socket: zmq.Dealer;
  readonly #listener: ConnectionListener;
  readonly #urgent = new Set<readonly Uint8Array[]>();
  readonly #waiting = new Set<readonly Uint8Array[]>();
  #sending = false;

  constructor(socket: zmq.Dealer, listener: ConnectionListener) {
    this.#socket = socket;
    this.#listener = listener;
    void this.#receive();
  }

  /** The returned function takes the message back, and says whether it had not left yet. */
  send(frames: readonly Uint8Array[], urgent: boolean): () => boolean {
    const queue = urgent ? this.#urgent : this.#waiting;
    queue.add(frames);
    if (!this.#sending) void this.#flush();
    return () => queue.delete(frames);
  }

  close(): void {
    this.#urgent.clear();
    this.#waiting.clear();
    this.#socket.close();
  }

  async #receive(): Promise<void> {
    try {
      for await (const frames of this.#socket) this.#listener.message(frames);
    } catch (error) {
      this.#broken(error);
    }
  }

  async #flush(): Promise<void> {
    this.#sending = true;
    try {
      for (let frames = this.#next(); frames; frames = this.#next()) {
        await this.#socket.send([...frames]);
      }
    } catch (error) {
      this.#broken(error);
    } finally {
      this.#sending = false;
    }
  }

  #next(): readonly Uint8Array[] | undefined {
    for (const queue of [this.#urgent, this.#waiting]) {
      for (const frames of queue) {
        queue.delete(frames);
        return frames;
      }
    }
    return undefined;
  }

  #broken(error: unknown): void {
    if (this.#socket.closed) return;
    this.close();
    this.#listener.broken(error);
  }
}
