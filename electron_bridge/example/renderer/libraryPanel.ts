/** The panel of the library: how many cases there are, adding and importing, and those that look like the picture. */

import { boxes, Cards } from './cases.js';
import { element, input, setText } from './dom.js';
import { images } from './files.js';
import type { Library, Similar } from './library.js';
import { type Item, isOpen } from './queue.js';
import { duration, number, text } from './texts.js';
import type { Viewer } from './viewer.js';

/** What the panel asks of the page. */
export interface Page {
  /** The image that was chosen. */
  selected(): Item | undefined;
  /** Whether places may be drawn over it: it is shown, and nothing else is marked in it. */
  takesPlaces(): boolean;
  isReady(): boolean;
}

export class LibraryPanel {
  readonly #library: Library;
  readonly #viewer: Viewer;
  readonly #page: Page;
  readonly #cards = new Cards(element('matches'));
  /** Why the last thing that the user asked for was not done. */
  #refused: string | undefined;

  constructor(library: Library, viewer: Viewer, page: Page) {
    this.#library = library;
    this.#viewer = viewer;
    this.#page = page;
    this.#cards.onPick = () => this.showPlaces();
    this.#cards.onRemove = ({ id }) => void this.#try(() => library.remove(id));
    element('add').addEventListener('click', () => this.addOrRemove());
    element('import').addEventListener('click', () => input('import-files').click());
    input('import-files').addEventListener('change', () => {
      const files = [...(input('import-files').files ?? [])];
      input('import-files').value = '';
      element('bad-list').replaceChildren();
      void library.import(images(files).named);
    });
    element('import-cancel').addEventListener('click', () => library.cancelImport());
  }

  get isImporting(): boolean {
    return this.#library.importing?.ended === false;
  }

  show(): void {
    this.#showLibrary();
    this.#showImport();
    this.#showCases();
  }

  /** In the picture, the places of the case that is picked. */
  showPlaces(): void {
    const item = this.#page.selected();
    const shows = item && this.#library.similar(item) && this.#page.takesPlaces();
    const regions = shows ? (this.#cards.picked?.regions ?? []) : [];
    this.#viewer.places(boxes(regions.map(({ query }) => query)));
  }

  /** By rank, from 0. */
  pick(at: number): void {
    this.#cards.pick(at);
  }

  /** Adds the picture to the library, or takes it out again. */
  addOrRemove(): void {
    const item = this.#page.selected();
    if (!item?.result || this.#library.readOnly || !this.#page.isReady()) return;
    const similar = this.#library.similar(item);
    void this.#try(() =>
      similar?.isCase ? this.#library.remove(similar.id) : this.#library.add(item),
    );
  }

  async #try(work: () => Promise<string | undefined>): Promise<void> {
    this.#refused = undefined;
    this.#refused = await work();
    this.show();
  }

  #showLibrary(): void {
    const { count, why, readOnly } = this.#library;
    const many = count === 1 ? text('oneCase') : text('caseCount', { count: number(count, 9) });
    const words = count === 0 ? text('noCases') : many;
    setText(element('library'), readOnly ? `${words} ${text('readOnlyNote')}` : words);
    for (const id of ['add', 'import']) element(id).hidden = readOnly;
    element<HTMLButtonElement>('import').disabled = this.isImporting || !this.#page.isReady();
    const problem = why ?? this.#refused;
    element('library-problem').hidden = !problem;
    setText(element('library-problem'), problem ?? '');
  }

  #showImport(): void {
    const { importing, leftMs } = this.#library;
    element('importing').hidden = !this.isImporting;
    if (!importing) return;
    const { done, total, bad, ended } = importing;
    element<HTMLProgressElement>('import-progress').value = done / Math.max(total, 1);
    const state = !ended ? 'importing' : done < total ? 'importCancelled' : 'imported';
    const values = { done: number(done, 9), all: number(total, 9) };
    const words = text(state, { ...values, count: number(done - bad.length, 9) });
    const left = leftMs ? text('left', { time: duration(leftMs) }) : '';
    element('import-text').hidden = false;
    setText(element('import-text'), [words, left].filter(Boolean).join(' · '));
    element('bad').hidden = bad.length === 0;
    setText(element('bad-text'), text('notImported', { count: number(bad.length, 9) }));
    const list = element('bad-list');
    for (const line of bad.slice(list.childElementCount)) {
      const entry = document.createElement('li');
      entry.textContent = line;
      list.append(entry);
    }
  }

  #showCases(): void {
    const item = this.#page.selected();
    const similar = item && this.#library.similar(item);
    const add = element<HTMLButtonElement>('add');
    add.disabled = !item?.result || !this.#page.isReady();
    setText(add, text(similar?.isCase ? 'removeThis' : 'addCase'));
    this.#cards.show(item, similar?.matches ?? [], !this.#library.readOnly);
    element('cases-note').hidden = !similar?.matches.length;
    setText(element('cases-text'), this.#words(item, similar));
    this.showPlaces();
    const isFresh = !item || this.#library.isFresh(item) || !this.#library.info;
    element('matches').setAttribute('aria-busy', String(!isFresh)); // a search will replace them
    if (isFresh) return;
    if (this.isImporting || !this.#page.isReady()) return;
    const settled = item.result && !isOpen(item);
    if (this.#library.hasEncoding(item) || settled) void this.#library.search(item);
  }

  #words(item: Item | undefined, similar: Similar | undefined): string {
    if (this.#library.why) return '';
    if (this.#library.count === 0) return text('noCasesNote');
    if (!item) return text('noImageNote');
    if (!similar) return item.status === 'failed' ? '' : text('searching');
    const { length } = similar.matches;
    return similar.why ?? (length === 0 ? text('onlyCase') : text('foundCases', { count: length }));
  }
}
