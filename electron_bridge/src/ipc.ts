/**
 * The main process's side of preload.ts: who may ask, how much, and how often; then the sidecar does
 * the work. Electron itself is not imported: what is used of it comes as arguments.
 */

import { cancelled, onAbort } from './abort.js';
import { type Allow, type FrameLike, permits } from './allow.js';
import {
  flag,
  malformed,
  matching,
  number,
  type Reader,
  record,
  type Table,
  text,
  whole,
  wrong,
} from './checks.js';
import {
  CASE,
  type CaseOptions,
  type Collection,
  type CollectionOptions,
  caseId,
  type EmbeddingsInput,
  FIND,
  type FindOptions,
  isEncoding,
} from './collection.js';
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
  type RendererEmbeddings,
  type RendererEncoding,
  type RendererInput,
  type RendererOptions,
} from './preload.js';
import type { Tensor } from './results.js';

/** The part of `VisionSidecar` that pages may use. */
export interface Served {
  readonly state: SidecarState;
  encode(input: Input, options?: EncodeOptions): Promise<RendererEncoding>;
  heatmap(input: Input, options?: DrawOptions): Promise<Uint8Array>;
  collection?(options: CollectionOptions): Collection;
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
  /**
   * The collections that pages may ask for, by name: which file, and whether pages may change it (they may
   * not, unless `writable`). Default: none.
   */
  readonly collections?: Readonly<Record<string, PageCollection>>;
  /** The largest input a page may send. Default: 64 MiB. */
  readonly maxBytes?: number;
  /** Calls that one page may have in flight. Default: 8. */
  readonly maxCalls?: number;
}

/** A collection for pages. They never learn its path. */
export interface PageCollection {
  readonly path: string;
  /** Whether pages may add and remove cases. Default: false. */
  readonly writable?: boolean;
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
  const { allow, maxBytes, maxCalls, collections } = readIpcOptions(options, 'options');
  const mayAsk = permits(allow);
  const pages = new Pages(maxCalls ?? 8);
  const started = Promise.resolve(sidecar);
  const most = maxBytes ?? 64 * 2 ** 20;
  const readInput = inputUpTo(most);
  const readCall = collectionCall(new Map(Object.entries(collections ?? {})), readInput, most);
  const stopState = followState(sidecar, started, pages);

  /** Answers one channel; failures are values. `read` checks what came, and says what is to be done. */
  const answer = <T>(channel: string, read: (...args: unknown[]) => PageCall<T>): void => {
    ipcMain.handle(channel, async (event, ...args): Promise<Outcome<T>> => {
      try {
        const page = pages.of(checked(event, mayAsk));
        const { token, work } = read(...args);
        return await page.run(token, async (signal) => ({
          ok: true,
          value: await work(await unlessAborted(started, signal), signal),
        }));
      } catch (error) {
        return { ok: false, error: faultOf(error) };
      }
    });
  };
  answer(CHANNELS.encode, (given, asked) => {
    const { token, ...rest } = readPageEncode(asked ?? {}, 'options');
    const input = readInput(given, 'input');
    return { token, work: (served, signal) => served.encode(input, { ...rest, signal }) };
  });
  answer(CHANNELS.heatmap, (given, asked) => {
    const { token, ...rest } = readPageDraw(asked ?? {}, 'options');
    const input = readInput(given, 'input');
    return { token, work: (served, signal) => served.heatmap(input, { ...rest, signal }) };
  });
  answer(CHANNELS.collection, readCall);
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

/** What a page asks for, checked. */
interface PageCall<T> {
  readonly token: string | undefined;
  work(served: Served, signal: AbortSignal): Promise<T>;
}

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

const pageCollection = record<PageCollection>({ path: text, writable: flag });

const readIpcOptions = record<IpcOptions>({
  allow: (value) => value as Allow, // `permits` looks at it
  collections: (value, what) => {
    if (typeof value !== 'object' || value === null) throw wrong(what, 'an object', value);
    const entries = Object.entries(value).map(([name, given]) => {
      const { path, ...rest } = pageCollection(given, `${what}.${name}`);
      return [name, { path: text(path, `${what}.${name}.path`), ...rest }] as const;
    });
    return Object.fromEntries(entries);
  },
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

const readPageEncode = record(PAGE_ENCODE);
const readPageDraw = record(PAGE_DRAW);
const readPageAdd = record<RendererOptions & CaseOptions>({ ...PAGE_ENCODE, ...CASE });
const readPageSearch = record<RendererOptions & FindOptions>({ ...PAGE_ENCODE, ...FIND });

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
    checkBytes(only.byteLength, maxBytes);
    return input as RendererInput;
  };
}

/** Of an encoding that a page has, what a case is made of: `add` and `search` look at the arrays. */
function embeddingsUpTo(maxBytes: number, encoding: EmbeddingsInput): EmbeddingsInput {
  const { projectedEmbeddings, pooledEmbedding, resolution } = encoding;
  const bytes = [projectedEmbeddings, pooledEmbedding].map((tensor: Partial<Tensor> | undefined) =>
    ArrayBuffer.isView(tensor?.data) ? tensor.data.byteLength : 0,
  );
  checkBytes(
    bytes.reduce((sum, each) => sum + each),
    maxBytes,
  );
  return { projectedEmbeddings, pooledEmbedding, resolution };
}

function checkBytes(bytes: number, maxBytes: number): void {
  if (bytes <= maxBytes) return;
  throw new SidecarError({
    code: 'request.too_large',
    message: `the input has ${bytes} bytes; a page may send ${maxBytes}.`,
  });
}

/** What a page asks of a collection that it knows by name. */
function collectionCall(
  collections: ReadonlyMap<string, PageCollection>,
  readInput: Reader<RendererInput>,
  maxBytes: number,
): (...args: unknown[]) => PageCall<unknown> {
  const readCase = (given: unknown): RendererInput | RendererEmbeddings =>
    isEncoding(given) ? embeddingsUpTo(maxBytes, given) : readInput(given, 'input');
  return (name, op, given, asked) => {
    const known = typeof name === 'string' ? collections.get(name) : undefined;
    if (!known) throw noCollection();
    if ((op === 'add' || op === 'remove') && !known.writable) throw searchOnly();
    const open = (served: Served): Collection => {
      if (served.collection)
        return served.collection({ path: known.path, readOnly: !known.writable });
      throw noCollection();
    };
    switch (op) {
      case 'add': {
        const { token, ...rest } = readPageAdd(asked, 'options');
        const input = readCase(given);
        const work = (served: Served, signal: AbortSignal) =>
          open(served).add(input, { ...rest, signal });
        return { token, work };
      }
      case 'search': {
        const { token, ...rest } = readPageSearch(asked ?? {}, 'options');
        const input = readCase(given);
        const work = (served: Served, signal: AbortSignal) =>
          open(served).search(input, { ...rest, signal });
        return { token, work };
      }
      case 'remove': {
        const id = caseId(given, 'id');
        return { token: undefined, work: (served, signal) => open(served).remove(id, { signal }) };
      }
      case 'info':
        return { token: undefined, work: (served, signal) => open(served).info({ signal }) };
    }
    throw wrong('the operation', 'add, search, remove or info', op);
  };
}

function noCollection(): SidecarError {
  return new SidecarError({
    code: 'collection.not_found',
    message: 'the app gives pages no collection of this name.',
  });
}

function searchOnly(): SidecarError {
  return new SidecarError({
    code: 'ipc.forbidden',
    message:
      'pages may only search this collection. Give it `writable` in `collections` of registerVisionIpc.',
  });
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
