/** The cards of similar cases, with the places that look alike. Knows the DOM, and no sidecar. */

import type { Match } from './library.js';
import { number, text, whereText } from './texts.js';
import { ofCase } from './thumbnail.js';

type Box = readonly number[];

export class Cards {
  onPick: (match: Match) => void = () => undefined;
  onRemove: (match: Match) => void = () => undefined;
  readonly #list: HTMLElement;
  #shown:
    | { of: unknown; matches: readonly Match[]; removable: boolean; language: string }
    | undefined;
  /** By all that a card shows. */
  #entries = new Map<string, HTMLElement>();
  #picked = 0;

  constructor(list: HTMLElement) {
    this.#list = list;
  }

  /** The case whose places are shown. */
  get picked(): Match | undefined {
    return this.#shown?.matches[this.#picked];
  }

  /** The matches of one image. A case that is picked stays picked when the image's matches are new. */
  show(of: unknown, matches: readonly Match[], removable: boolean): void {
    const { lang: language } = document.documentElement;
    const before = this.#shown;
    const same = before?.matches === matches || !(before?.matches.length || matches.length);
    if (same && before?.removable === removable && before.language === language) return;
    const { id } = this.picked ?? {};
    const kept = before?.of === of ? matches.findIndex((match) => match.id === id) : 0;
    this.#picked = Math.max(kept, 0);
    this.#shown = { of, matches, removable, language };
    const held = this.#at(document.activeElement);
    const old = this.#entries;
    this.#entries = new Map();
    for (const [at, match] of matches.entries()) {
      const places = match.regions?.map((pair) => [pair.query, pair.match]);
      const key = JSON.stringify([at, match.id, match.metadata, places, removable, language]);
      const entry = old.get(key) ?? this.#card(match, at, removable);
      old.delete(key);
      this.#entries.set(key, entry);
    }
    for (const gone of old.values()) this.#drop(gone);
    // Those that stay are not touched: one of them may have the focus.
    for (const [at, entry] of [...this.#entries.values()].entries()) {
      if (this.#list.children[at] !== entry) {
        this.#list.insertBefore(entry, this.#list.children[at] ?? null);
      }
    }
    this.#mark();
    if (held >= 0 && !this.#list.contains(document.activeElement)) {
      this.#buttons()[Math.min(held, matches.length - 1)]?.focus();
    }
  }

  /** By rank, from 0. */
  pick(at: number): void {
    const match = this.#shown?.matches[at];
    if (!match) return;
    this.#picked = at;
    this.#mark();
    this.#list.children[at]?.scrollIntoView({ block: 'nearest' });
    this.onPick(match);
  }

  #drop(entry: HTMLElement): void {
    entry.remove();
    const { src } = entry.querySelector('img') ?? {};
    if (src) URL.revokeObjectURL(src);
  }

  #buttons(): HTMLButtonElement[] {
    return [...this.#list.querySelectorAll<HTMLButtonElement>('.pick')];
  }

  #at(inside: Element | null): number {
    return [...this.#list.children].findIndex((entry) => entry.contains(inside));
  }

  #mark(): void {
    for (const [at, button] of this.#buttons().entries()) {
      button.setAttribute('aria-pressed', String(at === this.#picked));
    }
  }

  #card(match: Match, at: number, removable: boolean): HTMLElement {
    const entry = document.createElement('li');
    const name = nameOf(match);
    const pick = made('button', 'pick');
    pick.type = 'button';
    pick.addEventListener('click', () => this.pick(at));
    pick.append(this.#figure(match));
    const words = made('span', 'words');
    words.append(
      made('span', 'hidden', text('rank', { rank: number(at + 1), name })),
      silent(made('span', 'rank', number(at + 1))),
      silent(made('span', 'name', name)),
      made('span', 'quiet line', factsOf(match)),
      made('span', 'quiet line', placesOf(match)),
    );
    for (const [index, { query, match: there }] of (match.regions ?? []).entries()) {
      const values = { number: index + 1, here: whereText(query), there: whereText(there) };
      words.append(made('span', 'hidden', text('placeText', values)));
    }
    pick.append(words);
    entry.append(pick);
    if (removable) entry.append(this.#remove(match, name));
    return entry;
  }

  #figure(match: Match): HTMLElement {
    const figure = made('span', 'figure');
    const picture = ofCase(match.metadata.thumbnail);
    if (picture) {
      const image = document.createElement('img');
      image.alt = '';
      image.src = URL.createObjectURL(picture);
      figure.append(image);
    } else {
      figure.append(made('span', 'quiet', text('noPicture')));
    }
    figure.append(...boxes((match.regions ?? []).map((pair) => pair.match)));
    const well = made('span', 'well');
    well.append(figure);
    return well;
  }

  /** Asks once more before a case is gone. */
  #remove(match: Match, name: string): HTMLElement {
    const button = made('button', 'small remove');
    button.type = 'button';
    let sure = false;
    const ask = (asking: boolean) => {
      sure = asking;
      button.textContent = asking ? text('removeSure') : '×';
      button.classList.toggle('sure', asking);
      const label = asking ? `${text('removeSure')} ${name}` : text('removeLabel', { name });
      button.setAttribute('aria-label', label);
    };
    ask(false);
    button.addEventListener('click', () => (sure ? this.onRemove(match) : ask(true)));
    button.addEventListener('blur', () => ask(false));
    return button;
  }
}

/** Numbered frames over a picture; the same number is the same pair. */
export function boxes(of: readonly Box[]): HTMLElement[] {
  return of.map(([top = 0, left = 0, bottom = 0, right = 0], index) => {
    const frame = silent(made('span', 'place'));
    frame.append(made('span', 'number', number(index + 1)));
    frame.dataset.pair = String(index + 1);
    frame.style.top = `${top * 100}%`;
    frame.style.left = `${left * 100}%`;
    frame.style.height = `${(bottom - top) * 100}%`;
    frame.style.width = `${(right - left) * 100}%`;
    return frame;
  });
}

export function nameOf({ id, metadata }: Match): string {
  return typeof metadata.name === 'string' && metadata.name ? metadata.name : id;
}

/** What else is known of a case, as far as it is short. */
function factsOf({ metadata }: Match): string {
  return Object.entries(metadata)
    .filter(([key]) => key !== 'name' && key !== 'thumbnail')
    .filter(([, value]) => typeof value === 'number' || typeof value === 'string')
    .map(([, value]) => String(value).slice(0, 60))
    .slice(0, 3)
    .join(' · ');
}

function placesOf({ regions = [] }: Match): string {
  if (regions.length === 0) return text('noPlaces');
  return regions.length === 1 ? text('onePlace') : text('places', { count: regions.length });
}

function made<Name extends 'span' | 'button'>(
  tag: Name,
  classes: string,
  words = '',
): HTMLElementTagNameMap[Name] {
  const node = document.createElement(tag);
  node.className = classes;
  node.textContent = words;
  return node;
}

/** For the eye only: a screen reader is told otherwise. */
function silent<Node extends HTMLElement>(node: Node): Node {
  node.setAttribute('aria-hidden', 'true');
  return node;
}
