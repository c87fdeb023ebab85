/** The images and their turn: first a draft of each, then the full size. Knows no DOM and no sidecar. */

import type { Outcome, RendererEncoding } from 'electron-vision-sidecar/preload';

export type Stage = 'draft' | 'full';
export type ItemStatus = 'waiting' | 'encoding' | 'done' | 'failed' | 'cancelled';

/** One image. `stage` is the next, or the one that is being encoded. */
export interface Item {
  readonly id: number;
  readonly name: string;
  readonly file: Blob;
  status: ItemStatus;
  stage: Stage;
  attempts: number;
  startedAt?: number;
  result?: RendererEncoding;
  /** Whether `result` is of the draft. */
  isDraft: boolean;
  why?: string;
}

export interface Work {
  encode(item: Item, resolution: number, token: string): Promise<Outcome<RendererEncoding>>;
  cancel(token: string): void;
  changed(item?: Item): void;
  now(): number;
}

export const ATTEMPTS = 3; // of one image, while its errors may pass
const KEPT = 16; // images whose 2.6 MB of embeddings are kept, for similarity and export

/** `sizes`: the draft's and the full side length; one size alone means no draft. */
export class Queue {
  readonly items: Item[] = [];
  selected: Item | undefined;
  sizes: readonly number[] = [];
  expectedMs: Readonly<Record<string, number>> = {};
  readonly #work: Work;
  readonly #recent: Item[] = [];
  #next = 1;
  #busy = false;
  #paused = true;

  constructor(work: Work) {
    this.#work = work;
  }

  add(files: readonly { readonly name: string; readonly file: Blob }[]): void {
    for (const { name, file } of files) {
      const item: Item = {
        id: this.#next,
        name,
        file,
        status: 'waiting',
        stage: 'draft',
        attempts: 0,
        isDraft: true,
      };
      this.#next += 1;
      this.items.push(item);
      this.selected ??= item;
    }
    this.#changed();
  }

  /** While paused, nothing new begins: the sidecar is not ready. */
  pause(paused: boolean): void {
    this.#paused = paused;
    this.#changed();
  }

  select(item: Item): void {
    this.selected = item;
    this.#changed(item);
  }

  cancel(item: Item): void {
    if (item.status === 'encoding') this.#work.cancel(tokenOf(item));
    if (isOpen(item)) item.status = item.result ? 'done' : 'cancelled';
    this.#changed(item);
  }

  cancelAll(): void {
    for (const item of this.items) if (isOpen(item)) this.cancel(item);
  }

  retry(item: Item): void {
    item.status = 'waiting';
    item.attempts = 0;
    item.stage = item.result && !item.isDraft ? 'full' : 'draft';
    this.#changed(item);
  }

  get open(): Item[] {
    return this.items.filter(isOpen);
  }

  /** Milliseconds until all is done, or undefined before anything is known. */
  get leftMs(): number | undefined {
    let left = 0;
    for (const item of this.open) {
      for (const size of this.sizes.slice(item.stage === 'full' ? -1 : 0)) {
        const expected = this.expectedMs[`${size}x${size}`];
        if (expected === undefined) return undefined;
        left += expected;
      }
      if (item.startedAt !== undefined) left -= this.#work.now() - item.startedAt;
    }
    return Math.max(left, 0);
  }

  /** 0…1 of what is being encoded, or undefined where it is not known. */
  progress(item: Item): number | undefined {
    const size = item.stage === 'draft' ? this.sizes[0] : this.sizes.at(-1);
    const expected = this.expectedMs[`${size}x${size}`];
    if (expected === undefined || item.startedAt === undefined) return undefined;
    return Math.min((this.#work.now() - item.startedAt) / expected, 0.97);
  }

  #changed(item?: Item): void {
    this.#work.changed(item);
    void this.#run();
  }

  /** The one that is looked at comes first, and drafts before full sizes. */
  #turn(): Item | undefined {
    const waiting = this.items.filter(({ status }) => status === 'waiting');
    const drafts = waiting.filter(({ stage }) => stage === 'draft');
    const of = (some: Item[]): Item | undefined =>
      some.find((item) => item === this.selected) ?? some[0];
    return of(drafts) ?? of(waiting);
  }

  async #run(): Promise<void> {
    if (this.#busy || this.#paused || this.sizes.length === 0) return;
    const item = this.#turn();
    if (!item) return;
    this.#busy = true;
    const size = (item.stage === 'draft' ? this.sizes[0] : this.sizes.at(-1)) as number;
    item.status = 'encoding';
    item.startedAt = this.#work.now();
    this.#work.changed(item);
    const outcome = await this.#work.encode(item, size, tokenOf(item));
    delete item.startedAt;
    this.#busy = false;
    if (item.status === 'encoding') this.#settle(item, outcome);
    this.#changed(item);
  }

  #settle(item: Item, outcome: Outcome<RendererEncoding>): void {
    if (outcome.ok) {
      item.result = outcome.value;
      item.isDraft = item.stage === 'draft' && this.sizes.length > 1;
      item.status = item.isDraft ? 'waiting' : 'done';
      item.stage = 'full';
      item.attempts = 0;
      this.#keep(item);
    } else if (item.attempts + 1 < ATTEMPTS && worthAnother(item.attempts, outcome.error)) {
      item.attempts += 1;
      item.status = 'waiting';
    } else if (outcome.error.code === 'request.cancelled') {
      item.status = item.result ? 'done' : 'cancelled';
    } else {
      item.status = 'failed';
      item.why = outcome.error.message;
    }
  }

  #keep(item: Item): void {
    const at = this.#recent.indexOf(item);
    if (at >= 0) this.#recent.splice(at, 1);
    this.#recent.push(item);
    if (this.#recent.length <= KEPT) return;
    const oldest = this.#recent.find((each) => each !== this.selected);
    if (!oldest?.result) return;
    this.#recent.splice(this.#recent.indexOf(oldest), 1);
    const { projectedEmbeddings, ...rest } = oldest.result;
    oldest.result = rest;
  }
}

/** An image with which the sidecar died is tried once more: the first time may have been chance. */
export function worthAnother(
  attempts: number,
  { code, retryable }: { readonly code: string; readonly retryable: boolean },
): boolean {
  return code === 'sidecar.exited' ? attempts === 0 : retryable;
}

export function isOpen({ status }: Item): boolean {
  return status === 'waiting' || status === 'encoding';
}

function tokenOf({ id, stage }: Item): string {
  return `${id}-${stage}`;
}
