/**
 * The main process's side of preload.ts: who may ask, how much, and how often; then the sidecar does
 * the work. Electron itself is not imported: what is used of it comes as arguments.
 */

import { SidecarError } from './errors.js';
import type { Input } from './inputs.js';
import { CHANNELS, type Outcome, type RendererEncoding } from './preload.js';
import { OUTPUTS, type OutputName } from './results.js';
import type { DrawOptions, EncodeOptions, HeatmapOptions, SidecarState } from './sidecar.js';

/** The part of `VisionSidecar` that pages may use. */
export interface Served {
  readonly state: SidecarState;
  encode(input: Input, options?: EncodeOptions): Promise<RendererEncoding>;
  heatmap(input: Input, options?: DrawOptions): Promise<Uint8Array>;
  on(event: 'state', listener: (state: SidecarState) => void): unknown;
  off(event: 'state', listener: (state: SidecarState) => void): unknown;
}

/** The part of Electron's `WebFrameMain` that is used. */
export interface FrameLike {
  readonly url: string;
  readonly parent: FrameLike | null;
}

/** The part of Electron's `WebContents` that is used. */
export interface SenderLike {
  readonly id: number;
  send(channel: string, ...args: unknown[]): void;
  once(event: 'destroyed', listener: () => void): unknown;
  isDestroyed(): boolean;
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
   * inside a page may not ask.
   */
  readonly allow: readonly string[] | ((frame: FrameLike) => boolean);
  /** The largest input a page may send. Default: 64 MiB. */
  readonly maxBytes?: number;
  /** Calls that one page may have in flight. Default: 8. */
  readonly maxCalls?: number;
}

/** One page's calls in flight. A call without a token has a number instead. */
type Page = Map<string | number, AbortController>;

/**
 * Answers the pages that `exposeVision` serves. A page that is not allowed gets `ipc.forbidden`. A
 * sidecar that is still starting may be given as its promise: then a window can open meanwhile, and
 * its calls wait. Returns a function that takes the handlers away again.
 */
export function registerVisionIpc(
  ipcMain: IpcMainLike,
  sidecar: Served | PromiseLike<Served>,
  { allow, maxBytes = 64 * 2 ** 20, maxCalls = 8 }: IpcOptions,
): () => void {
  const pages = new Map<SenderLike, Page>();
  const watchers = new Set<SenderLike>();
  const started = Promise.resolve(sidecar);
  let state: SidecarState = 'state' in sidecar ? sidecar.state : 'starting';
  const permits =
    typeof allow === 'function' ? allow : (frame: FrameLike) => isListed(frame, allow);
  let calls = 0;

  const check = ({ senderFrame }: InvokeEventLike): void => {
    if (!senderFrame || !permits(senderFrame)) throw FORBIDDEN;
  };
  const pageOf = (sender: SenderLike): Page => {
    const known = pages.get(sender);
    if (known) return known;
    const page: Page = new Map();
    pages.set(sender, page);
    sender.once('destroyed', () => {
      pages.delete(sender);
      watchers.delete(sender);
      for (const call of page.values()) call.abort();
    });
    return page;
  };
  const serve = <T>(work: (served: Served, input: Input, options: Options) => Promise<T>) => {
    return async (event: InvokeEventLike, given: unknown, wanted: unknown): Promise<Outcome<T>> => {
      try {
        check(event);
        const input = readInput(given, maxBytes);
        const { token, ...options } = readOptions(wanted);
        const page = pageOf(event.sender);
        if (page.size >= maxCalls) throw busy(maxCalls);
        calls += 1;
        const key = token ?? calls;
        if (page.has(key)) throw malformed('the token is in use');
        const controller = new AbortController();
        page.set(key, controller);
        try {
          const { signal } = controller;
          return { ok: true, value: await work(await started, input, { ...options, signal }) };
        } finally {
          page.delete(key);
        }
      } catch (error) {
        return { ok: false, error: faultOf(error) };
      }
    };
  };

  ipcMain.handle(
    CHANNELS.encode,
    serve((served, input, options) => served.encode(input, options)),
  );
  ipcMain.handle(
    CHANNELS.heatmap,
    serve((served, input, { outputs, heatmap, ...options }) => served.heatmap(input, options)),
  );
  ipcMain.handle(CHANNELS.cancel, (event, token) => {
    check(event);
    if (typeof token === 'string') pages.get(event.sender)?.get(token)?.abort();
  });
  ipcMain.handle(CHANNELS.watch, (event) => {
    check(event);
    pageOf(event.sender);
    watchers.add(event.sender);
    event.sender.send(CHANNELS.state, state);
  });
  const tell = (now: SidecarState): void => {
    if (now === state) return;
    state = now;
    for (const watcher of watchers) if (!watcher.isDestroyed()) watcher.send(CHANNELS.state, state);
  };
  let forget = (): void => undefined;
  let disposed = false;
  void started.then(
    (served) => {
      if (disposed) return;
      served.on('state', tell);
      forget = () => void served.off('state', tell);
      tell(served.state);
    },
    () => tell('failed'),
  );

  return () => {
    disposed = true;
    forget();
    for (const channel of Object.values(CHANNELS)) ipcMain.removeHandler(channel);
    for (const page of pages.values()) for (const call of page.values()) call.abort();
  };
}

type Options = EncodeOptions & HeatmapOptions;

const FORBIDDEN = new SidecarError({
  code: 'ipc.forbidden',
  message:
    'this page may not use the vision sidecar. Add its origin to `allow` of registerVisionIpc.',
});

function isListed({ url, parent }: FrameLike, allowed: readonly string[]): boolean {
  if (parent) return false;
  return allowed.some((entry) => matches(url, entry));
}

function matches(url: string, entry: string): boolean {
  const page = parseUrl(url);
  const wanted = parseUrl(entry);
  if (!page || !wanted || page.protocol !== wanted.protocol) return false;
  if (wanted.protocol !== 'file:') return page.host === wanted.host;
  const inside = wanted.pathname.endsWith('/') && page.pathname.startsWith(wanted.pathname);
  return page.host === wanted.host && (inside || page.pathname === wanted.pathname);
}

function parseUrl(text: string): URL | undefined {
  return URL.canParse(text) ? new URL(text) : undefined;
}

/** What a page sent is anything at all: only what is known by name and type goes on. */
function readInput(given: unknown, maxBytes: number): Input {
  if (!isObject(given) || 'path' in given) throw malformed('expected image, rgb or pixelValues');
  const kinds = (['image', 'rgb', 'pixelValues'] as const).filter((kind) => kind in given);
  const [kind] = kinds;
  const array = kind && given[kind];
  if (!kind || kinds.length > 1 || !ArrayBuffer.isView(array)) {
    throw malformed('expected one of image, rgb and pixelValues, a typed array');
  }
  if (array.byteLength > maxBytes) {
    throw new SidecarError({
      code: 'request.too_large',
      message: `the input has ${array.byteLength} bytes; a page may send ${maxBytes}.`,
    });
  }
  const { width, height, shape } = given;
  return { [kind]: array, width, height, shape } as unknown as Input; // `prepare` checks the values
}

const CHECKS: Readonly<Record<string, (value: unknown) => boolean>> = {
  resolution: (value) =>
    isNumber(value) || (Array.isArray(value) && value.length === 2 && value.every(isNumber)),
  outputs: (value) =>
    Array.isArray(value) && value.every((name) => Object.hasOwn(OUTPUTS, name as string)),
  heatmap: (value) => typeof value === 'boolean' || isObject(value),
  timeoutMs: isNumber,
  token: (value) => typeof value === 'string' && value.length <= 128,
  colormap: (value) => typeof value === 'string' && value.length <= 32,
  blend: (value) => typeof value === 'string' && value.length <= 32,
  alpha: isNumber,
  threshold: isNumber,
  invert: (value) => typeof value === 'boolean',
  cells: (value) => typeof value === 'boolean',
  legend: (value) => typeof value === 'boolean' || isObject(value),
};

function readOptions(
  given: unknown,
): Omit<Options, 'signal'> & { token?: string; outputs?: OutputName[] } {
  if (given === undefined || given === null) return {};
  if (!isObject(given)) throw malformed('expected options that are an object');
  const known = Object.entries(given).filter(
    ([name, value]) => value !== undefined && name in CHECKS,
  );
  for (const [name, value] of known) {
    if (!CHECKS[name]?.(value)) throw malformed(`${name} has the wrong type`);
  }
  return Object.fromEntries(known);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isNumber(value: unknown): value is number {
  return typeof value === 'number' && Number.isFinite(value);
}

function malformed(what: string): SidecarError {
  return new SidecarError({
    code: 'request.malformed',
    message: `the page's request is wrong: ${what}.`,
  });
}

function busy(maxCalls: number): SidecarError {
  return new SidecarError({
    code: 'busy',
    message: `${maxCalls} calls of this page are in flight. Try again when one has been answered.`,
  });
}

/** A page is told what went wrong with its call, and nothing of our process. */
function faultOf(error: unknown): Extract<Outcome<never>, { ok: false }>['error'] {
  if (error instanceof SidecarError) {
    const { code, message, retryable } = error;
    return { code, message: code.startsWith('sidecar.') ? GENERAL : message, retryable };
  }
  return { code: 'internal', message: GENERAL, retryable: false };
}

const GENERAL = 'the vision sidecar cannot answer; the log of the main process says why.';
