/** The case library: one collection that the main process gave the page by name. Knows no DOM. */

import type {
  Outcome,
  RendererEmbeddings,
  RendererEncoding,
  RendererInput,
  VisionCollection,
} from 'electron-vision-sidecar/preload';
import type { Named } from './files.js';
import { ATTEMPTS, type Item, worthAnother } from './queue.js';

type Info = Extract<Awaited<ReturnType<VisionCollection['info']>>, { ok: true }>['value'];
type Found = Extract<Awaited<ReturnType<VisionCollection['search']>>, { ok: true }>['value'];
export type Match = Found['matches'][number];

/** What a search found for one image, or why it failed. `id`: the image's own, were it a case. */
export interface Similar {
  readonly id: string;
  readonly matches: readonly Match[];
  /** Whether the image itself is a case. */
  readonly isCase: boolean;
  readonly why?: string;
  /** The state of the library that it is of. */
  readonly version: number;
}

/** An import that is under way, or its end. */
export interface Import {
  readonly total: number;
  done: number;
  readonly bad: string[];
  ended: boolean;
  readonly begun: number;
  /** Of its call in flight. */
  readonly token: string;
}

export interface LibraryWork {
  /** A small picture of an image, as a data: URL, or undefined where it cannot be shown. */
  thumbnail(file: Blob): Promise<string | undefined>;
  cancel(token: string): void;
  /** Resolves once the sidecar is ready. */
  ready(): Promise<void>;
  changed(): void;
  now(): number;
}

const MATCHES = 8;
const ENCODINGS = 16; // of images, at the library's resolution, 2.6 MB each

export class Library {
  /** Missing while there is no collection yet. */
  info: Info | undefined;
  /** Why the collection cannot be used. */
  why: string | undefined;
  readOnly = false;
  importing: Import | undefined;
  /** The side length at which a new collection begins. */
  firstSide = 0;
  readonly #cases: VisionCollection;
  readonly #work: LibraryWork;
  readonly #similar = new Map<Item, Similar>();
  readonly #encodings = new Map<Item, RendererEncoding>();
  readonly #ids = new WeakMap<Blob, Promise<string>>();
  #searching: Item | undefined;
  #imports = 0;
  #version = 0;

  constructor(cases: VisionCollection, work: LibraryWork) {
    this.#cases = cases;
    this.#work = work;
  }

  get count(): number {
    return this.info?.count ?? 0;
  }

  /** Pixels a side that the library's images are encoded at. */
  get side(): number {
    return this.info?.resolution[0] ?? this.firstSide;
  }

  /** What is known of an image. Shown until a newer search replaces it, so that nothing flickers. */
  similar(item: Item): Similar | undefined {
    return this.#similar.get(item);
  }

  /** Whether no case was added or removed since. */
  isFresh(item: Item): boolean {
    return this.#similar.get(item)?.version === this.#version;
  }

  /** Whether a search for it would cost no inference. */
  hasEncoding(item: Item): boolean {
    return this.#encodings.has(item);
  }

  /** What failed may be tried again. */
  forgetFailures(): void {
    for (const [item, { why }] of this.#similar) if (why) this.#similar.delete(item);
  }

  async refresh(): Promise<void> {
    const outcome = await this.#cases.info();
    if (outcome.ok) {
      this.info = outcome.value;
      this.readOnly ||= outcome.value.readOnly;
      this.why = undefined;
    } else {
      this.info = undefined;
      this.why = outcome.error.code === 'collection.not_found' ? undefined : outcome.error.message;
    }
    this.#work.changed();
  }

  /** Takes in an encoding that was made for the picture: at the library's size it costs no inference more. */
  async encoded(item: Item, encoding: RendererEncoding): Promise<void> {
    if (!this.#fits(encoding)) return;
    this.#encodings.delete(item);
    this.#encodings.set(item, encoding);
    const [oldest] = this.#encodings.keys();
    if (this.#encodings.size > ENCODINGS && oldest) this.#encodings.delete(oldest);
    this.#similar.delete(item);
    await this.search(item);
  }

  /** Finds what looks like it, unless that is known. One at a time: another image is asked for again. */
  async search(item: Item): Promise<void> {
    if (!this.info || this.isFresh(item) || this.#searching) return;
    this.#searching = item;
    const version = this.#version;
    try {
      const id = await this.#idOf(item.file);
      const input = await this.#input(item);
      // One more than are shown, as the image itself may be among them.
      const outcome = await this.#cases.search(input.image, {
        ...input.options,
        k: MATCHES + 1,
        regions: true,
      });
      if (outcome.ok) {
        const others = outcome.value.matches.filter((match) => match.id !== id);
        const isCase = others.length < outcome.value.matches.length;
        this.#similar.set(item, { id, matches: others.slice(0, MATCHES), isCase, version });
      } else if (outcome.error.code === 'collection.not_found') {
        this.info = undefined;
      } else {
        const why = outcome.error.message;
        this.#similar.set(item, { id, matches: [], isCase: false, why, version });
      }
    } finally {
      this.#searching = undefined;
    }
    this.#work.changed();
  }

  /** Adds an image as a case, or says why not. */
  async add(item: Item): Promise<string | undefined> {
    const input = await this.#input(item);
    const made = await this.#case(item);
    const outcome = await this.#cases.add(input.image, { ...input.options, ...made });
    if (outcome.ok) this.#note(made.id, true);
    return this.#changed(outcome);
  }

  async remove(id: string): Promise<string | undefined> {
    const outcome = await this.#cases.remove(id);
    if (outcome.ok || outcome.error.code === 'collection.not_found') this.#note(id, false);
    return this.#changed(outcome);
  }

  /** Adds all of them, one after another. A bad file stops nothing; what a full disk or a lock refuses does. */
  async import(images: readonly Named[]): Promise<void> {
    if (this.importing && !this.importing.ended) return;
    const { now } = this.#work;
    this.#imports += 1;
    const token = `import-${this.#imports}`;
    const run: Import = {
      total: images.length,
      done: 0,
      bad: [],
      ended: false,
      begun: now(),
      token,
    };
    this.importing = run;
    this.#work.changed();
    for (const image of images) {
      const outcome = await this.#importOne(image, run);
      if (!outcome || run.ended) break; // cancelled meanwhile
      run.done += 1;
      if (!outcome.ok) run.bad.push(`${image.name}: ${outcome.error.message}`);
      if (!outcome.ok && stopsAll(outcome.error.code)) break;
      this.#work.changed();
    }
    run.ended = true;
    await this.#changed({ ok: true, value: undefined });
  }

  cancelImport(): void {
    if (!this.importing || this.importing.ended) return;
    this.importing.ended = true;
    this.#work.cancel(this.importing.token);
    this.#work.changed();
  }

  /** Milliseconds until the import is done, at the pace so far. */
  get leftMs(): number | undefined {
    const run = this.importing;
    if (!run || run.ended || run.done === 0) return undefined;
    return ((this.#work.now() - run.begun) / run.done) * (run.total - run.done);
  }

  /** Undefined where the import was cancelled before the sidecar was asked. */
  async #importOne(image: Named, run: Import): Promise<Outcome<RendererEncoding> | undefined> {
    const made = await this.#case(image);
    for (let attempts = 0; ; attempts += 1) {
      await this.#work.ready();
      const bytes = new Uint8Array(await image.file.arrayBuffer());
      if (run.ended) return undefined;
      const options = { ...made, resolution: this.side, outputs: [], token: run.token };
      const outcome = await this.#cases.add({ image: bytes }, options);
      if (outcome.ok || run.ended) return outcome;
      if (attempts + 1 >= ATTEMPTS || !worthAnother(attempts, outcome.error)) return outcome;
    }
  }

  /** The id is of the file's content: the same image is the same case, whatever its name. */
  async #case({ name, file }: { readonly name: string; readonly file: Blob }): Promise<{
    id: string;
    metadata: { name: string; thumbnail?: string };
    replace: boolean;
  }> {
    const thumbnail = await this.#work.thumbnail(file);
    const metadata = { name, ...(thumbnail && { thumbnail }) };
    return { id: await this.#idOf(file), metadata, replace: true };
  }

  /** The encoding that is there already, else the image. */
  async #input(item: Item): Promise<{
    image: RendererInput | RendererEmbeddings;
    options: { resolution?: number; outputs?: [] };
  }> {
    const encoding = this.#encodings.get(item);
    if (encoding && this.#fits(encoding)) return { image: encoding, options: {} };
    const image = new Uint8Array(await item.file.arrayBuffer());
    return { image: { image }, options: { resolution: this.side, outputs: [] } };
  }

  #fits(encoding: RendererEncoding): encoding is RendererEncoding & RendererEmbeddings {
    const { projectedEmbeddings, pooledEmbedding, resolution } = encoding;
    return Boolean(projectedEmbeddings && pooledEmbedding) && resolution[0] === this.side;
  }

  #idOf(file: Blob): Promise<string> {
    const known = this.#ids.get(file);
    if (known) return known;
    const id = file.arrayBuffer().then(async (bytes) => {
      const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
      return [...digest].map((byte) => byte.toString(16).padStart(2, '0')).join('');
    });
    this.#ids.set(file, id);
    return id;
  }

  /** What is known without a search of a case that is there now, or gone. */
  #note(id: string, isCase: boolean): void {
    for (const [item, similar] of this.#similar) {
      const matches = similar.matches.filter((match) => match.id !== id);
      const own = similar.id === id ? isCase : similar.isCase;
      if (
        isCase
          ? similar.id === id
          : own !== similar.isCase || matches.length < similar.matches.length
      )
        this.#similar.set(item, { ...similar, matches, isCase: own });
    }
  }

  async #changed(outcome: Outcome<unknown>): Promise<string | undefined> {
    if (!outcome.ok && outcome.error.code === 'ipc.forbidden') this.readOnly = true;
    this.#version += 1;
    await this.refresh();
    return outcome.ok ? undefined : outcome.error.message;
  }
}

/** Failures of the library itself: every further image would meet them too. */
function stopsAll(code: string): boolean {
  return /^(ipc\.|collection\.)/.test(code) || code === 'sidecar.failed';
}
