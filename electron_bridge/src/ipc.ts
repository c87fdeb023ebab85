/**
 * The main process's side of preload.ts: who may ask, how much, and how often; then the sidecar does
 * the work. Electron itself is not imported: what is used of it comes as arguments.
 */

import { cancelled, onAbort } from './abort.js';
import { type Allow, type FrameLike, permits } from './allow.js';
import {
  malformed,
  matching,
  number,
  type Reader,
  record,
  type Table,
  whole,
  wrong,
} from './checks.js';
import { type Fault, SidecarError } from './errors.js';
import type { Input } from './inputs.js';
import {
  type DrawOptions,
  ENCODE,
  type EncodeOptions,
  HEATMAP,
  type HeatmapOptions,
  type SidecarState,
} from './options.js';
import {
  CHANNELS,
  type Outcome,
  type RendererEncoding,
  type RendererInput,
  type RendererOptions,
} from './preload.js';

/** The part of `VisionSidecar` that pages may use. */
export interface Served {
  readonly state: SidecarState;
  encode(input: Input, options?: EncodeOptions): Promise<RendererEncoding>;
  heatmap(input: Input, options?: DrawOptions): Promise<Uint8Array>;
  on(event: 'state', listener: (state: SidecarState) => void): unknown;
  off(event: 'state', listener: (state: SidecarState) => void): unknown;
}

/** The part of Electron's `WebContents` that is used. */
export interface SenderLike {
  readonly id: number;
  send(channel: string, ...args: unknown[]): void;
  isDestroyed(): boolean;
  on(event: 'destroyed', listener: () => void): unknown;
  on(event: 'did-navigate', listener: () => void): unknown;
  on(event: 'render-process-gone', listener: () => void): unknown;
  off(event: 'destroyed', listener: () => void): unknown;
  off(event: 'did-navigate', listener: () => void): unknown;
  off(event: 'render-process-gone', listener: () => void): unknown;
}

/** The part of Electron's `IpcMainInvokeEvent` that is used. */
export interface InvokeEventLike {
  readonly sender: SenderLike;
  readonly senderFrame: FrameLike | null;
}

/** The part of Electron's `ipcMain` that is used. */
export interface IpcMainLike {
  handle(channel: string, listener: (event: InvokeEventLike, ...args: unknown[]) => unknown): void;
  removeHandler(channel: string): void;
}

/** Which pages may ask, and how much. */
export interface IpcOptions {
  /**
   * Which pages may ask: origins (`app://main`, `https://example.org`), `file:` URLs (one that ends in
   * `/` allows the whole directory), or a function that decides by the frame. With a list, frames
   * inside a page may not ask, nor a page whose origin a sandbox took away.
   */
  readonly allow: Allow;
  /** The largest input a page may send. Default: 64 MiB. */
  readonly maxBytes?: number;
  /** Calls that one page may have in flight. Default: 8. */
  readonly maxCalls?: number;
}

/**
 * Answers the pages that `exposeVision` serves. A page that is not allowed gets `ipc.forbidden`. A
 * sidecar that is still starting may be given as its promise: then a window can open meanwhile, and
 * its calls wait. Returns a function that takes the handlers away again.
 * Throws `request.malformed` where the options are wrong.
 */
export function registerVisionIpc(
  ipcMain: IpcMainLike,
  sidecar: Served | PromiseLike<Served>,
  options: IpcOptions,
): () => void {
  const { allow, maxBytes, maxCalls } = readIpcOptions(options, 'options');
  const mayAsk = permits(allow);
  const pages = new Pages(maxCalls ?? 8);
  const started = Promise.resolve(sidecar);
  const readInput = inputUpTo(maxBytes ?? 64 * 2 ** 20);
  const stopState = followState(sidecar, started, pages);

  /** Answers one channel; failures are values. */
  const answer = <O extends { token?: string }, T>(
    channel: string,
    readOptions: Reader<O>,
    work: (served: Served, input: Input, options: Omit<O, 'token'> & Aborting) => Promise<T>,
  ): void => {
    ipcMain.handle(channel, async (event, input, asked): Promise<Outcome<T>> => {
      try {
        const page = pages.of(checked(event, mayAsk));
        const { token, ...rest } = readOptions(asked ?? {}, 'options');
        const read = readInput(input, 'input');
        return await page.run(token, async (signal) => ({
          ok: true,
          value: await work(await unlessAborted(started, signal), read, { ...rest, signal }),
        }));
      } catch (error) {
        return { ok: false, error: faultOf(error) };
      }
    });
  };
  answer(CHANNELS.encode, record(PAGE_ENCODE), (served, input, asked) =>
    served.encode(input, asked),
  );
  answer(CHANNELS.heatmap, record(PAGE_DRAW), (served, input, asked) =>
    served.heatmap(input, asked),
  );
  ipcMain.handle(CHANNELS.cancel, (event, token) => {
    pages.of(checked(event, mayAsk)).cancel(token);
  });
  ipcMain.handle(CHANNELS.watch, (event) => {
    const sender = checked(event, mayAsk);
    pages.of(sender).watching = true;
    sender.send(CHANNELS.state, pages.state);
  });
  return () => {
    stopState();
    for (const channel of Object.values(CHANNELS)) ipcMain.removeHandler(channel);
    pages.leaveAll();
  };
}

type Aborting = { readonly signal: AbortSignal };

/** A document's calls in flight, and whether it hears the state. */
class Page {
  readonly #calls = new Map<string | number, AbortController>();
  readonly #maxCalls: number;
  #last = 0;
  watching = false;

  constructor(maxCalls: number) {
    this.#maxCalls = maxCalls;
  }

  /** Does `work` in one of the page's slots. A call without a token has a number instead. */
  async run<T>(token: string | undefined, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    if (this.#calls.size >= this.#maxCalls) throw busy(this.#maxCalls);
    this.#last += 1;
    const key = token ?? this.#last;
    if (this.#calls.has(key)) throw malformed('options.token: a call in flight has it already.');
    const controller = new AbortController();
    this.#calls.set(key, controller);
    try {
      return await work(controller.signal);
    } finally {
      this.#calls.delete(key);
    }
  }

  cancel(token: unknown): void {
    if (typeof token === 'string') this.#calls.get(token)?.abort();
  }

  leave(): void {
    for (const call of this.#calls.values()) call.abort();
  }
}

/** The documents that have asked. One that is reloaded, left, crashed or closed is forgotten with its calls. */
class Pages {
  readonly #pages = new Map<SenderLike, { readonly page: Page; leave(): void }>();
  readonly #maxCalls: number;
  state: SidecarState = 'starting';

  constructor(maxCalls: number) {
    this.#maxCalls = maxCalls;
  }

  of(sender: SenderLike): Page {
    const known = this.#pages.get(sender);
    if (known) return known.page;
    const page = new Page(this.#maxCalls);
    const leave = (): void => {
      sender.off('destroyed', leave);
      sender.off('did-navigate', leave);
      sender.off('render-process-gone', leave);
      this.#pages.delete(sender);
      page.leave();
    };
    sender.on('destroyed', leave);
    sender.on('did-navigate', leave);
    sender.on('render-process-gone', leave);
    this.#pages.set(sender, { page, leave });
    return page;
  }

  leaveAll(): void {
    for (const { leave } of [...this.#pages.values()]) leave();
  }

  tell(state: SidecarState): void {
    if (state === this.state) return;
    this.state = state;
    for (const [sender, { page }] of this.#pages) {
      if (page.watching && !sender.isDestroyed()) sender.send(CHANNELS.state, state);
    }
  }
}

/** Tells the pages the sidecar's state, from its start on. Returns how to stop that. */
function followState(
  sidecar: Served | PromiseLike<Served>,
  started: Promise<Served>,
  pages: Pages,
): () => void {
  const tell = (state: SidecarState): void => pages.tell(state);
  let stop = (): void => undefined;
  let stopped = false;
  if ('state' in sidecar) tell(sidecar.state);
  started.then(
    (served) => {
      if (stopped) return;
      served.on('state', tell);
      stop = () => void served.off('state', tell);
      tell(served.state);
    },
    () => tell('failed'),
  );
  return () => {
    stopped = true;
    stop();
  };
}

function checked(
  { sender, senderFrame }: InvokeEventLike,
  mayAsk: (frame: FrameLike) => boolean,
): SenderLike {
  if (senderFrame && mayAsk(senderFrame)) return sender;
  throw new SidecarError({
    code: 'ipc.forbidden',
    message:
      'this page may not use the vision sidecar. Add its origin to `allow` of registerVisionIpc.',
  });
}

/** A page that gives up while the sidecar starts does not wait for it. */
function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const stop = onAbort(signal, () => reject(cancelled(signal)));
    promise.then(resolve, reject).finally(stop);
  });
}

const readIpcOptions = record<IpcOptions>({
  allow: (value) => value as Allow, // `permits` looks at it
  maxBytes: number(0, Number.POSITIVE_INFINITY),
  maxCalls: number(0, Number.POSITIVE_INFINITY),
});

const token = matching(/^.{0,128}$/s, 'text of at most 128 characters');
const timeoutMs = number(0, Number.MAX_VALUE);

// What a page sends is anything at all: what goes on is known by name and type.
const { resolution, outputs, heatmap } = ENCODE;
const PAGE_ENCODE: Table<RendererOptions> = { resolution, outputs, heatmap, timeoutMs, token };
const PAGE_DRAW: Table<
  HeatmapOptions & Pick<RendererOptions, 'resolution' | 'timeoutMs' | 'token'>
> = { ...HEATMAP, resolution, timeoutMs, token };

const size = whole(0, 2 ** 32 - 1);
const array: Reader<ArrayBufferView> = (value, what) => {
  if (ArrayBuffer.isView(value)) return value;
  throw wrong(what, 'a typed array', value);
};

type AnyInput = { readonly [K in 'image' | 'rgb' | 'pixelValues']?: ArrayBufferView } & {
  readonly width?: number;
  readonly height?: number;
  readonly shape?: readonly number[];
};

const readAnyInput = record<AnyInput>({
  image: array,
  rgb: array,
  pixelValues: array,
  width: size,
  height: size,
  shape: (value, what) => {
    if (Array.isArray(value) && value.length <= 8) return value.map((side) => size(side, what));
    throw wrong(what, 'a list of sizes', value);
  },
});

/** The sidecar's `encode` looks at the sizes; here it is one array of a kind that pages may send. */
function inputUpTo(maxBytes: number): Reader<RendererInput> {
  return (value, what) => {
    const input = readAnyInput(value, what);
    const arrays = [input.image, input.rgb, input.pixelValues].filter((each) => each !== undefined);
    const [only] = arrays;
    if (!only || arrays.length > 1) throw malformed('expected one of image, rgb and pixelValues.');
    if (only.byteLength > maxBytes) {
      throw new SidecarError({
        code: 'request.too_large',
        message: `the input has ${only.byteLength} bytes; a page may send ${maxBytes}.`,
      });
    }
    return input as RendererInput;
  };
}

function busy(maxCalls: number): SidecarError {
  return new SidecarError({
    code: 'busy',
    message: `${maxCalls} calls of this page are in flight. Try again when one has been answered.`,
  });
}

/** A page is told what went wrong with its call, and nothing of our process. */
function faultOf(error: unknown): Required<Omit<Fault, 'stderr'>> {
  if (!(error instanceof SidecarError))
    return { code: 'internal', message: GENERAL, retryable: false };
  const { code, message, retryable } = error;
  return { code, message: code.startsWith('sidecar.') ? GENERAL : message, retryable };
}

const GENERAL = 'the vision sidecar cannot answer; the log of the main process says why.';
