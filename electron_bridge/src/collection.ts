/** Collections of cases: what an app asks of one, as requests, and what it reads of the replies. Knows no process. */

import { flag, type Reader, record, type Table, text, whole, wrong } from './checks.js';
import { SidecarError } from './errors.js';
import { type Input, prepare, prepareEmbeddings } from './inputs.js';
import {
  ENCODE,
  type EncodeOptions,
  type HeatmapChoice,
  REQUEST,
  type RequestOptions,
  readRequest,
} from './options.js';
import { paramsOf } from './params.js';
import type { Done, NamedArray, Op } from './protocol.js';
import {
  ALL_OUTPUTS,
  type CollectionInfo,
  type Encoding,
  type EncodingDetails,
  type Match,
  type OutputName,
  readCollectionInfo,
  readEncoding,
  readMatches,
  type Tensor,
} from './results.js';

/** Which collection, and whether it may be changed. */
export interface CollectionOptions {
  /** The file; `add` makes it where it does not exist. A relative path is one of the working directory. */
  readonly path: string;
  /** Only search and look: opens on read-only media, and there for any number of processes. Default: false. */
  readonly readOnly?: boolean;
}

/** What JSON knows. */
export type Json =
  | string
  | number
  | boolean
  | null
  | readonly Json[]
  | { readonly [key: string]: Json };

/** What is kept with a case: a JSON object of at most 64 KiB. Never logged. */
export type Metadata = { readonly [key: string]: Json };

/** An image that was encoded already: an encoding with both arrays, as `encode` gave it. */
export interface EmbeddingsInput {
  readonly projectedEmbeddings: Tensor;
  readonly pooledEmbedding: Tensor;
  readonly resolution: readonly [number, number];
}

/** What a case is called, and what is kept with it. */
export interface CaseOptions {
  /** 1 to 256 bytes of UTF-8; unique in the collection. */
  readonly id: string;
  readonly metadata?: Metadata;
  /** Whether another case of this id is replaced, and not refused with `collection.exists`. Default: false. */
  readonly replace?: boolean;
}

/** `encode`'s options, and what the case is called. */
export type AddOptions<
  O extends OutputName = OutputName,
  H extends HeatmapChoice = HeatmapChoice,
> = EncodeOptions<O, H> & CaseOptions;

/** Which cases to look for. */
export interface FindOptions {
  /** Number of matches, 1 to 1000. Default: 10. */
  readonly k?: number;
  /** Whether to tell where the two images look alike. Default: false. */
  readonly regions?: boolean;
  /** Only cases whose metadata have equal values under these top-level keys. */
  readonly where?: Metadata;
}

/** `encode`'s options, and which cases to look for. */
export type SearchOptions<
  O extends OutputName = OutputName,
  H extends HeatmapChoice = HeatmapChoice,
> = EncodeOptions<O, H> & FindOptions;

/** What a search gives: the most similar case first, and the encoding of the image. */
export interface SearchResult<E> {
  readonly matches: readonly Match[];
  /** Number of cases in the collection. */
  readonly count: number;
  readonly encoding: E;
}

/** How a collection asks the sidecar. `inputs` is called when the call begins. */
export type Ask = (
  op: Op,
  params: Readonly<Record<string, unknown>>,
  options: { readonly [K in keyof RequestOptions]: RequestOptions[K] | undefined },
  inputs?: (maxBytes: number, settled: AbortSignal) => Promise<readonly NamedArray[]>,
) => Promise<{ readonly done: Done; readonly roundTripMs: number }>;

const json: Reader<Metadata> = (value, what) => {
  if (typeof value === 'object' && value !== null && !Array.isArray(value))
    return value as Metadata;
  throw wrong(what, 'an object of JSON', value); // the rest is looked at when it is written
};

export const caseId: Reader<string> = (value, what) => {
  const bytes = typeof value === 'string' ? Buffer.byteLength(value) : 0;
  if (typeof value === 'string' && bytes >= 1 && bytes <= 256) return value;
  throw wrong(what, 'text of 1 to 256 bytes', value);
};

export const CASE: Table<CaseOptions> = { id: caseId, metadata: json, replace: flag };
export const FIND: Table<FindOptions> = { k: whole(1, 1000), regions: flag, where: json };

export const readCollection = record<CollectionOptions>({ path: text, readOnly: flag });

const readAdd = record<AddOptions>({ ...ENCODE, ...CASE });
const readSearch = record<SearchOptions>({ ...ENCODE, ...FIND });
const readAddEmbeddings = record<CaseOptions & RequestOptions>({ ...REQUEST, ...CASE });
const readSearchEmbeddings = record<FindOptions & RequestOptions>({ ...REQUEST, ...FIND });

/**
 * A collection of cases, in one file that belongs to one model, projection and resolution. Opens nothing until
 * it is asked, and names the file with each request: a restart of the sidecar changes nothing.
 */
export class Collection {
  readonly #path: string;
  readonly #readOnly: boolean;
  readonly #ask: Ask;

  /** @internal Apps call `sidecar.collection()`. */
  constructor(path: string, readOnly: boolean, ask: Ask) {
    this.#path = path;
    this.#readOnly = readOnly;
    this.#ask = ask;
  }

  /**
   * Adds a case: an image, or an encoding of one. Resolves to the encoding once the case is on disk: nothing
   * that was acknowledged is lost. The same case again is a success. Rejects as `encode` does, or with
   * `collection.exists`, `.mismatch`, `.unreadable`, `.busy`, `.read_only` or `.disk_full`.
   */
  add<E extends EmbeddingsInput>(encoding: E, options: CaseOptions & RequestOptions): Promise<E>;
  add<const O extends OutputName = OutputName, const H extends HeatmapChoice = undefined>(
    input: Input,
    options: AddOptions<O, H>,
  ): Promise<Encoding<O, H>>;
  add(input: Input | EmbeddingsInput, options: AddOptions): Promise<EncodingDetails>;
  async add(input: Input | EmbeddingsInput, options: AddOptions): Promise<unknown> {
    this.#checkWritable();
    if (isEncoding(input)) {
      const { id, metadata, replace, ...rest } = readAddEmbeddings(options, 'options');
      const kept = { id: caseId(id, 'options.id'), metadata, replace };
      await this.#withEmbeddings('collection.add', input, kept, rest);
      return input;
    }
    const { id, metadata, replace, ...rest } = readAdd(options, 'options');
    const kept = { id: caseId(id, 'options.id'), metadata, replace };
    const { encoding } = await this.#withImage('collection.add', input, kept, rest);
    return encoding;
  }

  /**
   * Finds the cases that look most alike. Rejects as `encode` does, or with `collection.not_found`,
   * `.mismatch`, `.unreadable` or `.busy`.
   */
  search<E extends EmbeddingsInput>(
    encoding: E,
    options?: FindOptions & RequestOptions,
  ): Promise<SearchResult<E>>;
  search<const O extends OutputName = OutputName, const H extends HeatmapChoice = undefined>(
    input: Input,
    options?: SearchOptions<O, H>,
  ): Promise<SearchResult<Encoding<O, H>>>;
  search(
    input: Input | EmbeddingsInput,
    options?: SearchOptions,
  ): Promise<SearchResult<EncodingDetails>>;
  async search(input: Input | EmbeddingsInput, options: SearchOptions = {}): Promise<unknown> {
    if (isEncoding(input)) {
      const { k, regions, where, ...rest } = readSearchEmbeddings(options, 'options');
      const find = { k, regions, where, ...this.#reading() };
      const done = await this.#withEmbeddings('collection.search', input, find, rest);
      return { ...readMatches(done), encoding: input };
    }
    const { k, regions, where, ...rest } = readSearch(options, 'options');
    const find = { k, regions, where, ...this.#reading() };
    const { done, encoding } = await this.#withImage('collection.search', input, find, rest);
    return { ...readMatches(done), encoding };
  }

  /** Removes a case; its bytes are gone from the file too. Rejects with `collection.not_found` if it is not there. */
  async remove(id: string, options: RequestOptions = {}): Promise<void> {
    this.#checkWritable();
    const params = { collection: this.#path, id: caseId(id, 'id') };
    await this.#ask('collection.remove', params, readRequest(options, 'options'));
  }

  /** What the collection holds, and what it belongs to. */
  async info(options: RequestOptions = {}): Promise<CollectionInfo> {
    const params = { collection: this.#path, ...this.#reading() };
    const { done } = await this.#ask('collection.info', params, readRequest(options, 'options'));
    return readCollectionInfo(done);
  }

  async #withImage(
    op: Op,
    input: Input,
    params: Readonly<Record<string, unknown>>,
    { outputs = ALL_OUTPUTS, heatmap, ...rest }: EncodeOptions,
  ): Promise<{ done: Done; encoding: unknown }> {
    const { done, roundTripMs } = await this.#ask(
      op,
      { collection: this.#path, ...params, ...paramsOf(outputs, heatmap, rest) },
      { signal: rest.signal, timeoutMs: rest.timeoutMs },
      async (maxBytes, settled) => [await prepare(input, maxBytes, settled)],
    );
    return { done, encoding: readEncoding(done, outputs, Boolean(heatmap), roundTripMs) };
  }

  async #withEmbeddings(
    op: Op,
    encoding: EmbeddingsInput,
    params: Readonly<Record<string, unknown>>,
    { signal, timeoutMs }: RequestOptions,
  ): Promise<Done> {
    const { arrays, resolution } = prepareEmbeddings(encoding);
    const { done } = await this.#ask(
      op,
      { collection: this.#path, ...params, resolution },
      { signal, timeoutMs },
      async () => arrays,
    );
    return done;
  }

  #reading(): object {
    return this.#readOnly ? { read_only: true } : {};
  }

  #checkWritable(): void {
    if (!this.#readOnly) return;
    throw new SidecarError({
      code: 'collection.read_only',
      message: 'the collection was opened with readOnly, and can be searched only.',
    });
  }
}

export function isEncoding(input: unknown): input is EmbeddingsInput {
  return typeof input === 'object' && input !== null && 'projectedEmbeddings' in input;
}
