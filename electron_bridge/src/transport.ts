/** DEALER socket ⇄ frames, CURVE keys. The only file that imports zeromq. */

import type * as zmq from 'zeromq';
import { SidecarError } from './errors.js';

type Zmq = typeof zmq;

/** A key pair in Z85, made for one run of the sidecar and kept in memory only. */
export interface Keys {
  readonly publicKey: string;
  readonly secretKey: string;
}

export interface Peer {
  readonly endpoint: string;
  readonly serverKey: string;
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

  /** `onBroken` is called at most once, and not after `close`. */
  connect(
    peer: Peer,
    keys: Keys,
    onMessage: (frames: Uint8Array[]) => void,
    onBroken: (error: unknown) => void,
  ): Connection {
    const socket = new this.#zmq.Dealer({
      linger: 0, // what the sidecar has not taken when we close, it need not take
      curveServerKey: peer.serverKey,
      curvePublicKey: keys.publicKey,
      curveSecretKey: keys.secretKey,
      sendHighWaterMark: 0, // calls.ts and the sidecar's own queue set the bounds
      receiveHighWaterMark: 0,
    });
    socket.connect(peer.endpoint);
    return new Connection(socket, onMessage, onBroken);
  }
}

/** Messages leave in the order of `send`. ZeroMQ reads their memory later: it must not be touched again. */
export class Connection {
  readonly #socket: zmq.Dealer;
  readonly #onBroken: (error: unknown) => void;
  readonly #outgoing: Uint8Array[][] = [];
  #sending = false;

  constructor(
    socket: zmq.Dealer,
    onMessage: (frames: Uint8Array[]) => void,
    onBroken: (error: unknown) => void,
  ) {
    this.#socket = socket;
    this.#onBroken = onBroken;
    void this.#receive(onMessage);
  }

  send(frames: Uint8Array[]): void {
    this.#outgoing.push(frames);
    if (!this.#sending) void this.#flush();
  }

  close(): void {
    this.#outgoing.length = 0;
    this.#socket.close();
  }

  async #receive(onMessage: (frames: Uint8Array[]) => void): Promise<void> {
    try {
      for await (const frames of this.#socket) onMessage(frames);
    } catch (error) {
      this.#broken(error);
    }
  }

  async #flush(): Promise<void> {
    this.#sending = true;
    try {
      for (let frames = this.#outgoing.shift(); frames; frames = this.#outgoing.shift()) {
        await this.#socket.send(frames);
      }
    } catch (error) {
      this.#broken(error);
    } finally {
      this.#sending = false;
    }
  }

  #broken(error: unknown): void {
    if (this.#socket.closed) return;
    this.close();
    this.#onBroken(error);
  }
}
