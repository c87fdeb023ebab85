/**
 * The renderer's side: a few functions over IPC. Imports nothing at run time, so that a sandboxed
 * preload can hold it; keys, sockets and file paths stay in the main process.
 */

import type { CaseOptions, EmbeddingsInput, FindOptions, SearchResult } from './collection.js';
import type { Fault } from './errors.js';
import type { ImageInput, PixelInput, RgbInput } from './inputs.js';
import type { HeatmapOptions, SidecarState } from './options.js';
import type { CollectionInfo, EncodingDetails, OutputName, Tensor } from './results.js';

/** Names of the IPC channels; `registerVisionIpc` answers them. */
export const CHANNELS = {
  encode: 'vision-sidecar:encode',
  heatmap: 'vision-sidecar:heatmap',
  collection: 'vision-sidecar:collection',
  cancel: 'vision-sidecar:cancel',
  watch: 'vision-sidecar:watch',
  state: 'vision-sidecar:state',
} as const;

/** As the main process's `Input`, without paths: a page has no business among the user's files. */
export type RendererInput = ImageInput | RgbInput | PixelInput;

/** As the main process's options; `token` is for `cancel`, as signals do not cross to a page. */
export interface RendererOptions {
  readonly resolution?: number | readonly [number, number];
  readonly outputs?: readonly OutputName[];
  readonly heatmap?: boolean | HeatmapOptions;
  readonly timeoutMs?: number;
  readonly token?: string;
}

/** As the main process's: an encoding that the page got, with both arrays. */
export type RendererEmbeddings = EmbeddingsInput;

/** A collection that the main process gives pages, by its name. */
export interface VisionCollection {
  /** Adds a case; `ipc.forbidden` where the app lets pages only search. */
  add(
    input: RendererInput | RendererEmbeddings,
    options: RendererOptions & CaseOptions,
  ): Promise<Outcome<RendererEncoding>>;
  /** Finds the cases that look most alike. */
  search(
    input: RendererInput | RendererEmbeddings,
    options?: RendererOptions & FindOptions,
  ): Promise<Outcome<SearchResult<RendererEncoding>>>;
  /** Removes a case; `ipc.forbidden` where the app lets pages only search. */
  remove(id: string): Promise<Outcome<void>>;
  info(): Promise<Outcome<CollectionInfo>>;
}

/** What a page gets: the arrays that it asked for, and the PNG where it asked for a heatmap. */
export type RendererEncoding = EncodingDetails & {
  readonly [name in OutputName]?: Tensor;
} & { readonly heatmapPng?: Uint8Array };

/** Failures are values here: an error that crosses to a page would lose its code. */
export type Outcome<T> =
  | { readonly ok: true; readonly value: T }
  | { readonly ok: false; readonly error: Required<Omit<Fault, 'stderr'>> };

/** What a page finds at `window.vision`. */
export interface VisionApi {
  /** Encodes one image, or one batch of pixel values. */
  encode(input: RendererInput, options?: RendererOptions): Promise<Outcome<RendererEncoding>>;
  /** The bytes of a PNG. */
  heatmap(
    input: RendererInput,
    options?: HeatmapOptions & Pick<RendererOptions, 'resolution' | 'timeoutMs' | 'token'>,
  ): Promise<Outcome<Uint8Array>>;
  /** The collection that the main process calls `name`. */
  collection(name: string): VisionCollection;
  /** Cancels the call that was made with this token. */
  cancel(token: string): Promise<void>;
  /** Calls `listener` with the state, now and after each change. Returns how to stop that. */
  onState(listener: (state: SidecarState) => void): () => void;
}

/** The part of Electron's `contextBridge` that is used. */
export interface ContextBridgeLike {
  exposeInMainWorld(name: string, api: VisionApi): void;
}

/** The part of Electron's `ipcRenderer` that is used. */
export interface IpcRendererLike {
  invoke(channel: string, ...args: unknown[]): Promise<unknown>;
  on(channel: string, listener: (event: unknown, state: SidecarState) => void): unknown;
  off(channel: string, listener: (event: unknown, state: SidecarState) => void): unknown;
}

/** Call it from a preload script: the page finds a `VisionApi` at `window[name]`. */
export function exposeVision(
  contextBridge: ContextBridgeLike,
  ipcRenderer: IpcRendererLike,
  name = 'vision',
): void {
  const invoke = ipcRenderer.invoke.bind(ipcRenderer) as <T>(
    channel: string,
    ...args: unknown[]
  ) => Promise<T>;
  contextBridge.exposeInMainWorld(name, {
    encode: (input, options) => invoke(CHANNELS.encode, input, options),
    heatmap: (input, options) => invoke(CHANNELS.heatmap, input, options),
    collection: (name) => {
      const ask = <T>(op: string, input?: unknown, options?: unknown): Promise<Outcome<T>> =>
        invoke(CHANNELS.collection, name, op, input, options);
      return {
        add: (input, options) => ask('add', input, options),
        search: (input, options) => ask('search', input, options),
        remove: (id) => ask('remove', id),
        info: () => ask('info'),
      };
    },
    cancel: (token) => invoke(CHANNELS.cancel, token),
    onState: (listener) => {
      const heard = (_event: unknown, state: SidecarState): void => listener(state);
      ipcRenderer.on(CHANNELS.state, heard);
      const stop = (): void => void ipcRenderer.off(CHANNELS.state, heard);
      void invoke(CHANNELS.watch).catch(stop); // a page that is not allowed hears nothing
      return stop;
    },
  });
}
