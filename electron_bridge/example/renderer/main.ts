/** The page: puts queue, viewer, texts and exports together. Knows `window.vision` and `window.app`. */

import type { VisionApi } from 'electron-vision-sidecar/preload';
import {
  type Blend,
  type Colormap,
  heatmapColors,
  type PaintOptions,
  similarityMap,
  similarityScores,
} from 'electron-vision-sidecar/vectors';
import type { AppApi, Status } from '../api.js';
import { connect } from './browser.js';
import { element, input, select, setText } from './dom.js';
import * as exporting from './export.js';
import { dropped, images } from './files.js';
import { Library } from './library.js';
import { LibraryPanel } from './libraryPanel.js';
import { type Item, isOpen, Queue } from './queue.js';
import {
  duration,
  getLanguage,
  type Key,
  type Language,
  number,
  setLanguage,
  stateText,
  text,
} from './texts.js';
import { forCase, forQueue } from './thumbnail.js';
import { Viewer } from './viewer.js';

declare global {
  interface Window {
    readonly vision?: VisionApi;
    readonly app?: AppApi;
  }
}

const { vision, app } = reach();
const viewer = new Viewer(element('frame'));
let status: Status = { state: 'starting', developer: false };
let shown: { item: Item; image: ImageBitmap } | undefined;
let place: [number, number] | undefined;

const queue = new Queue({
  encode: async (item, resolution, token) => {
    const image = new Uint8Array(await item.file.arrayBuffer());
    const outcome = await vision.encode({ image }, { resolution, token });
    void refresh();
    // Before the next image's turn, or the search would wait for it.
    // A search that fails is tried again when the image is looked at.
    if (outcome.ok) await library.encoded(item, outcome.value).catch(() => undefined);
    return outcome;
  },
  cancel: (token) => void vision.cancel(token),
  changed: () => update(),
  now: () => performance.now(),
});

const library = new Library(vision.collection('library'), {
  thumbnail: forCase,
  cancel: (token) => void vision.cancel(token),
  ready,
  changed: () => update(),
  now: () => performance.now(),
});

/** Electron's preload script gave us both; in a browser the server that sent the page stands in. */
function reach(): { vision: VisionApi; app: AppApi } {
  const token = document.querySelector<HTMLMetaElement>('meta[name="vision-token"]')?.content;
  if (window.vision && window.app) return { vision: window.vision, app: window.app };
  if (token) return connect(token);
  throw new Error('open this page in the app, or through serve.mjs');
}

// What the sidecar is and does

async function refresh(): Promise<void> {
  status = await app.status();
  const { model } = status;
  if (model) {
    const full = model.defaultResolution; // a draft has half of it
    const draft = model.resolutions.findLast((side) => side <= full / 2);
    queue.sizes = draft ? [draft, full] : [full];
    library.firstSide = draft ?? full;
  }
  queue.expectedMs = status.expectedMs ?? queue.expectedMs;
  queue.pause(status.state !== 'ready');
  update();
}

const panel = new LibraryPanel(library, viewer, {
  selected: () => queue.selected,
  takesPlaces: () => shown?.item === queue.selected && isOpenPanel('cases') && !isPicking(),
  isReady: () => status.state === 'ready',
});
const waiting: (() => void)[] = [];

/** Resolves once the sidecar is ready. */
function ready(): Promise<void> {
  if (status.state === 'ready') return Promise.resolve();
  return new Promise((resolve) => waiting.push(resolve));
}

vision.onState((state) => {
  status = { ...status, state }; // at once: what is asked for next may be of a later state
  showState();
  void refresh();
  if (state !== 'ready') return;
  for (const go of waiting.splice(0)) go();
  library.forgetFailures();
  void library.refresh();
});
setInterval(() => {
  if (queue.open.length > 0 || panel.isImporting) update();
}, 500);

// What is shown

let updating = false;

/** Everything that follows from the state, at the next frame. */
function update(): void {
  if (updating) return;
  updating = true;
  requestAnimationFrame(() => {
    updating = false;
    showState();
    showQueue();
    void showPicture();
    showDetails();
    panel.show();
  });
}

function showState(): void {
  const pill = element('state');
  const words = stateText(status.state);
  if (pill.textContent !== words) pill.textContent = words;
  pill.dataset.state = status.state;
  element('developer').hidden = !status.developer;
  const note: Partial<Record<Status['state'], Key>> = {
    restarting: 'restartingNote',
    failed: 'failedNote',
  };
  const key = note[status.state];
  element('banner').hidden = !key;
  element('banner-text').textContent = key ? text(key) : '';
  element('restart').hidden = status.state !== 'failed';
}

function showQueue(): void {
  const list = element('queue');
  const { items, open } = queue;
  element('empty').hidden = items.length > 0;
  element('cancel-all').hidden = open.length === 0;
  const counts = text('counts', { done: items.length - open.length, all: items.length });
  const left = open.length > 0 && queue.leftMs !== undefined;
  const words = [
    items.length > 0 ? counts : '',
    left ? text('left', { time: duration(queue.leftMs as number) }) : '',
  ];
  setText(element('left'), words.filter(Boolean).join(' · '));
  for (const item of items) row(list, item);
}

function row(list: HTMLElement, item: Item): void {
  const id = `item-${item.id}`;
  const existing = document.getElementById(id);
  const entry = existing ?? document.createElement('li');
  if (!existing) {
    entry.id = id;
    entry.innerHTML = `<button type="button" class="pick"><img class="thumb" alt="" /><span><span
      class="name"></span><span class="quiet"></span></span></button><button type="button"
      class="small act"></button><progress max="1" hidden></progress>`;
    const [pick, act] = entry.querySelectorAll('button');
    pick?.addEventListener('click', () => choose(item));
    act?.addEventListener('click', () => (isOpen(item) ? queue.cancel(item) : queue.retry(item)));
    setText(entry.querySelector('.name') as HTMLElement, item.name);
    list.append(entry);
    void thumbnail(item, entry.querySelector('img') as HTMLImageElement);
  }
  const [pick, act] = entry.querySelectorAll('button');
  entry.toggleAttribute('data-selected', item === queue.selected);
  pick?.setAttribute('aria-current', String(item === queue.selected));
  setText(entry.querySelector('.quiet') as HTMLElement, statusText(item));
  if (act) {
    const again = item.status === 'failed' || item.status === 'cancelled';
    act.hidden = !again && !isOpen(item);
    setText(act, again ? '↻' : '×');
    act.setAttribute('aria-label', `${text(again ? 'retry' : 'cancel')}: ${item.name}`);
  }
  const bar = entry.querySelector('progress') as HTMLProgressElement;
  bar.hidden = item.status !== 'encoding';
  bar.setAttribute('aria-label', item.name);
  const share = queue.progress(item);
  if (share === undefined) bar.removeAttribute('value');
  else bar.value = share;
}

function statusText(item: Item): string {
  if (item.status === 'failed') return text('failed', { why: item.why ?? '' });
  if (isOpen(item) && item.result) return text('refining');
  return text(item.status);
}

async function thumbnail(item: Item, image: HTMLImageElement): Promise<void> {
  try {
    image.src = URL.createObjectURL(await forQueue(item.file));
  } catch {
    // the sidecar says what is wrong with it
  }
}

let decoding: Item | undefined;

async function showPicture(): Promise<void> {
  const item = queue.selected;
  element('drop').hidden = item !== undefined;
  for (const id of ['frame', 'toolbar', 'legend']) element(id).hidden = item === undefined;
  if (!item) return;
  if (shown?.item !== item) {
    if (decoding === item) return;
    decoding = item;
    const image = await createImageBitmap(item.file).catch(() => undefined);
    if (decoding !== item || queue.selected !== item) return;
    decoding = undefined;
    shown?.image.close();
    place = undefined;
    shown = image ? { item, image } : undefined;
    viewer.show(image);
    panel.showPlaces();
  }
  paint();
}

function look(): PaintOptions {
  return {
    alpha: Number(input('alpha').value) / 100,
    threshold: Number(input('threshold').value) / 100,
    blend: select('blend').value as Blend,
    colormap: select('colormap').value as Colormap,
    cells: input('cells').checked,
    invert: input('invert').checked,
    flat: shown?.item.result?.flat[0] ?? false,
  };
}

/** The scores and options that are painted now: of the norms, or of the places like the marked one. */
function painted(): { scores: ArrayLike<number> | undefined; options: PaintOptions } {
  const result = shown?.item.result;
  const embeddings = result?.projectedEmbeddings;
  if (place && embeddings) {
    const scores = similarityScores(similarityMap(embeddings, place));
    return { scores, options: { ...look(), flat: false, invert: false } };
  }
  return { scores: result?.attentionScores?.data, options: look() };
}

function paint(): void {
  const { scores, options } = painted();
  viewer.paint(scores, options);
  viewer.mark(place);
  for (const id of ['alpha', 'threshold']) {
    setText(element(`${id}-value`), number(Number(input(id).value) / 100, 2));
  }
  showLegend(options);
}

function showLegend(options: PaintOptions): void {
  const item = queue.selected;
  const result = shown?.item.result;
  const flat = options.flat === true;
  const bar = element<HTMLCanvasElement>('bar');
  const context = bar.getContext('2d');
  for (const [level, [r, g, b]] of heatmapColors(options, viewer.ground).entries()) {
    if (!context) break;
    context.fillStyle = `rgb(${r} ${g} ${b})`;
    context.fillRect(level, 0, 1, 1);
  }
  const [least, most] = result?.norms[0] ?? [];
  const ends =
    least === undefined || most === undefined || place
      ? ['0', '1']
      : [`0 (${text('norm')} ${number(least)})`, `1 (${text('norm')} ${number(most)})`];
  const [low, high] = place ? [text('unlike'), text('alike')] : [text('low'), text('high')];
  bar.hidden = flat;
  setText(element('low'), flat ? text('flat') : `${low} ${ends[0]}`);
  setText(element('high'), flat ? '' : `${ends[1]} ${high}`);
  setText(element('note'), text(place ? 'similarNote' : 'note'));
  const picking = element('similar').getAttribute('aria-pressed') === 'true';
  setText(element('hint'), picking && !place ? text('similarHint') : '');
  element('frame').classList.toggle('picking', picking);
  element('draft').hidden = !(result && shown?.item.isDraft);
  if (!item) return;
  const label = place
    ? text('similarLabel', { name: item.name, row: place[0] + 1, column: place[1] + 1 })
    : text('pictureLabel', { name: item.name });
  element('frame').setAttribute('aria-label', label);
}

function showDetails(): void {
  const result = shown?.item.result;
  const { model, kernels } = status;
  const rows: [Key, string][] = [
    ['model', model ? `${model.id} (${model.recipe}), ${model.digest.slice(0, 12)}` : ''],
    [
      'resolution',
      result
        ? `${result.resolution.join(' × ')}${shown?.item.isDraft ? ` (${text('draft')})` : ''}`
        : '',
    ],
    ['norms', result ? (result.norms[0] ?? []).map((norm) => number(norm)).join(' … ') : ''],
    ['timing', result ? `${number(Math.round(result.timing.inferenceMs))} ms` : ''],
    ['kernels', kernels ? `${text(kernels.on ? 'on' : 'off')}: ${kernels.why}` : ''],
  ];
  const list = element('details');
  list.replaceChildren(
    ...rows.flatMap(([key, value]) => {
      const term = document.createElement('dt');
      const words = document.createElement('dd');
      term.textContent = text(key);
      words.textContent = value || text('unknown');
      return [term, words];
    }),
  );
  for (const id of ['export-png', 'export-npz', 'export-json']) {
    element<HTMLButtonElement>(id).disabled = !result;
  }
  element<HTMLButtonElement>('export-npz').disabled = !result?.projectedEmbeddings;
}

function translate(): void {
  document.documentElement.lang = getLanguage();
  for (const node of document.querySelectorAll<HTMLElement>('[data-text]')) {
    node.textContent = text(node.dataset.text as Key);
  }
  for (const node of document.querySelectorAll<HTMLElement>('[data-label]')) {
    node.setAttribute('aria-label', text(node.dataset.label as Key));
  }
  update();
}

// What the user does

function take(files: Iterable<File>): void {
  const { named, skipped } = images(files);
  queue.add(named);
  if (skipped > 0) setText(element('empty'), text('skipped', { count: skipped }));
}

function choose(item: Item | undefined): void {
  if (!item) return;
  library.forgetFailures();
  queue.select(item);
  document.getElementById(`item-${item.id}`)?.scrollIntoView({ block: 'nearest' });
}

function step(by: number): void {
  const at = queue.selected ? queue.items.indexOf(queue.selected) : 0;
  choose(queue.items[Math.min(Math.max(at + by, 0), queue.items.length - 1)]);
}

/** With the keyboard, a place is marked at once, to be moved with the arrows. */
function setPicking(on: boolean, byKey = false): void {
  element('similar').setAttribute('aria-pressed', String(on));
  place = on && byKey ? [8, 8] : undefined;
  if (on && byKey) element('frame').focus();
  paint();
  panel.showPlaces();
}

function setPlace(row: number, column: number): void {
  const within = (at: number) => Math.min(Math.max(at, 0), 15);
  place = [within(row), within(column)];
  paint();
}

const isPicking = () => element('similar').getAttribute('aria-pressed') === 'true';
const stem = (name: string) => (name.split(/[\\/]/).at(-1) ?? name).replace(/\.[^.]+$/, '');

async function exportPng(): Promise<void> {
  const { scores, options } = painted();
  if (!shown || !scores) return;
  const words = options.flat
    ? `${text('flat')} ${text('note')}`
    : text(place ? 'similarNote' : 'note');
  const [least, most] = shown.item.result?.norms[0] ?? [];
  const end = (score: number, norm: number | undefined) =>
    norm === undefined || place ? `${score}` : `${score} (${text('norm')} ${number(norm)})`;
  const legend = {
    low: `${text(place ? 'unlike' : 'low')} ${end(0, least)}`,
    high: `${end(1, most)} ${text(place ? 'alike' : 'high')}`,
    note: words,
  };
  const file = await exporting.png(shown.image, scores, options, legend);
  exporting.save(file, `${stem(shown.item.name)}.heatmap.png`);
}

const PANELS = ['cases', 'look', 'details'] as const;
type Panel = (typeof PANELS)[number];
const isOpenPanel = (name: Panel) => !element(`panel-${name}`).hidden;

function openPanel(open: Panel): void {
  for (const name of PANELS) {
    const tab = element(`tab-${name}`);
    tab.setAttribute('aria-selected', String(name === open));
    tab.tabIndex = name === open ? 0 : -1; // the arrow keys lead to the others
    element(`panel-${name}`).hidden = name !== open;
  }
  panel.showPlaces();
}

for (const name of PANELS) {
  element(`tab-${name}`).addEventListener('click', () => openPanel(name));
}
viewer.onPick = (row, column) => {
  if (isPicking()) setPlace(row, column);
};
element('open').addEventListener('click', () => input('files').click());
element('folder').addEventListener('click', () => input('directory').click());
for (const id of ['files', 'directory']) {
  input(id).addEventListener('change', () => {
    take(input(id).files ?? []);
    input(id).value = '';
  });
}
element('cancel-all').addEventListener('click', () => queue.cancelAll());
element('kill').addEventListener('click', () => {
  element<HTMLDetailsElement>('developer').open = false;
  void app.kill();
});
element('restart').addEventListener('click', () => void app.restart());
element('zoom-in').addEventListener('click', () => viewer.zoom(1.4));
element('zoom-out').addEventListener('click', () => viewer.zoom(1 / 1.4));
element('fit').addEventListener('click', () => viewer.fit());
element('similar').addEventListener('click', (event) =>
  setPicking(!isPicking(), event.detail === 0),
);
element('export-png').addEventListener('click', () => void exportPng());
element('export-npz').addEventListener('click', () => {
  const item = shown?.item;
  if (item?.result) exporting.save(exporting.npz(item.result), `${stem(item.name)}.npz`);
});
element('export-json').addEventListener('click', () => {
  const item = shown?.item;
  if (!item?.result) return;
  const file = exporting.json(item.name, item.result, item.isDraft);
  exporting.save(file, `${stem(item.name)}.json`);
});
for (const id of ['alpha', 'threshold', 'cells', 'invert', 'blend', 'colormap']) {
  element(id).addEventListener('input', paint);
}
input('compare').addEventListener('input', () =>
  viewer.split(Number(input('compare').value) / 100),
);
select('language').value = getLanguage();
select('language').addEventListener('change', () => {
  setLanguage(select('language').value as Language);
  translate();
});

addEventListener('dragover', (event) => {
  event.preventDefault();
  document.body.classList.add('dragging');
});
addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) document.body.classList.remove('dragging');
});
addEventListener('drop', (event) => {
  event.preventDefault();
  document.body.classList.remove('dragging');
  if (event.dataTransfer) void dropped(event.dataTransfer).then(take);
});
addEventListener('paste', (event) => take(event.clipboardData?.files ?? []));

let bare = false;

addEventListener('keydown', (event) => {
  const { key, ctrlKey, metaKey, altKey } = event;
  const typing = (event.target as HTMLElement).matches?.('input, select');
  if (ctrlKey || metaKey || altKey || (typing && key !== 'Escape')) return;
  const onFrame = event.target === element('frame');
  const arrows: Record<string, [number, number]> = {
    ArrowUp: [-1, 0],
    ArrowDown: [1, 0],
    ArrowLeft: [0, -1],
    ArrowRight: [0, 1],
  };
  const arrow = arrows[key];
  const tab = PANELS.findIndex((name) => event.target === element(`tab-${name}`));
  const beside = tab < 0 || !arrow ? undefined : PANELS[tab + arrow[1]];
  if (beside && arrow?.[1]) {
    openPanel(beside);
    element(`tab-${beside}`).focus();
  } else if (arrow && onFrame && place) setPlace(place[0] + arrow[0], place[1] + arrow[1]);
  else if (arrow && onFrame) viewer.move(-40 * arrow[1], -40 * arrow[0]);
  else if (key === 'ArrowUp' || key === 'ArrowDown') step(key === 'ArrowUp' ? -1 : 1);
  else if (key === 'Escape') {
    if (isPicking()) setPicking(false);
    else if (queue.selected) queue.cancel(queue.selected);
  } else if (key === 'o') input('files').click();
  else if (key === '+') viewer.zoom(1.4);
  else if (key === '-') viewer.zoom(1 / 1.4);
  else if (key === '0') viewer.fit();
  else if (key === 's' && queue.selected) setPicking(!isPicking(), true);
  else if (key === 'e') void exportPng();
  else if (key === 'a') panel.addOrRemove();
  else if (/^[1-8]$/.test(key)) {
    openPanel('cases');
    panel.pick(Number(key) - 1);
  } else if (key === 'b') {
    bare = !bare;
    viewer.split(bare ? 1 : Number(input('compare').value) / 100);
  } else return;
  event.preventDefault();
});

openPanel('cases');
translate();
void refresh();
