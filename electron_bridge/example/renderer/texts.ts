/** Every word that the page shows, by language. A new language is one more table like these. */

const en = {
  title: 'Vision Sidecar',
  intro: 'Drop images or a folder here, paste one, or choose files. They stay on this computer.',
  open: 'Open images',
  folder: 'Open folder',
  images: 'Images',
  noImages: 'No images yet.',
  left: 'About {time} left',
  counts: '{done} of {all} done',
  cancel: 'Cancel',
  cancelAll: 'Cancel all',
  retry: 'Again',
  waiting: 'Waiting',
  encoding: 'Encoding',
  refining: 'Draft shown; refining',
  draft: 'Draft',
  done: 'Done',
  cancelled: 'Cancelled',
  failed: 'Failed: {why}',
  state: {
    starting: 'Starting',
    ready: 'Ready',
    restarting: 'Restarting',
    failed: 'Stopped',
    closed: 'Closed',
  },
  where: [
    ['top left', 'top', 'top right'],
    ['left', 'centre', 'right'],
    ['bottom left', 'bottom', 'bottom right'],
  ],
  restartingNote: 'The model stopped and is being started again. Images go on by themselves.',
  failedNote: 'The model does not start. The log of the main process says why.',
  startAgain: 'Start again',
  developer: 'Developer',
  kill: 'Kill the sidecar',
  language: 'Language',
  picture: 'Picture',
  pictureLabel: '{name} with its heatmap. Arrow keys move, plus and minus zoom.',
  similarLabel: '{name}: places like row {row}, column {column}. Arrow keys move the place.',
  zoomIn: 'Zoom in',
  zoomOut: 'Zoom out',
  fit: 'Fit',
  compare: 'Before and after',
  similar: 'Similar places',
  similarHint: 'Click a place to see which other places look alike.',
  look: 'Look',
  opacity: 'Opacity',
  threshold: 'Threshold',
  blend: 'Blend',
  colormap: 'Colours',
  cells: 'Show the 16 × 16 cells',
  invert: 'Invert',
  auto: 'Automatic',
  multiply: 'Multiply',
  screen: 'Screen',
  over: 'Over',
  amber: 'Amber',
  ember: 'Ember',
  turbo: 'Turbo',
  viridis: 'Viridis',
  inferno: 'Inferno',
  grey: 'Grey',
  details: 'Details',
  model: 'Model',
  resolution: 'Resolution',
  norms: 'Norms',
  timing: 'Inference',
  kernels: 'Kernels',
  on: 'on',
  off: 'off',
  unknown: 'not known yet',
  export: 'Export',
  exportPng: 'Picture (PNG)',
  exportNpz: 'Arrays (npz)',
  exportJson: 'Figures (JSON)',
  low: 'low',
  high: 'high',
  norm: 'norm',
  alike: 'alike',
  unlike: 'not alike',
  note: 'relative embedding norm; not attention, not evidence for a diagnosis',
  similarNote: 'cosine of embeddings, less the image’s mean; not evidence for a diagnosis',
  flat: 'Nothing stands out: the norms differ no more than those of an empty image.',
  unreadable: 'This browser cannot show the image.',
  skipped: '{count} files are no PNG, JPEG or WebP images.',
  keys: 'Keyboard',
  keysText:
    'O open · ↑ ↓ next image · + − 0 zoom · arrows move · B bare image · S similar places · 1 to 8 similar case · A add to the library · E export the picture · Esc cancel',
  panels: 'Panels',
  cases: 'Cases',
  similarCases: 'Similar cases',
  casesNote:
    'Similar means: looks alike. It is not the same diagnosis. The order is all that counts.',
  oneCase: '1 case in the library',
  caseCount: '{count} cases in the library',
  noCases: 'The library is empty.',
  noCasesNote:
    'Add this image, or import a folder of images. From then on the cases that look most like the picture are shown here. Vectors and a small picture of each image are kept, on this computer.',
  noImageNote: 'Open an image to see the cases that look like it.',
  onlyCase: 'No other case is in the library yet.',
  foundCases: 'The {count} most similar, by rank.',
  searching: 'Looking for similar cases …',
  addCase: 'Add this image',
  removeThis: 'Remove this image',
  importFolder: 'Import folder',
  importing: '{done} of {all} imported',
  imported: 'Imported: {count}',
  notImported: 'Not imported: {count}',
  importCancelled: 'Import cancelled after {done} of {all}.',
  readOnlyNote: 'This library can be searched only.',
  rank: 'Rank {rank}: {name}',
  removeSure: 'Remove?',
  removeLabel: '{name}: remove from the library',
  places: '{count} places look alike',
  onePlace: 'One place looks alike',
  noPlaces: 'No place stands out',
  placeText: 'Place {number}: {here} here, {there} in the case.',
  noPicture: 'No picture kept',
};

const de: typeof en = {
  title: 'Vision Sidecar',
  intro:
    'Bilder oder einen Ordner hierher ziehen, einfügen oder auswählen. Sie bleiben auf diesem Computer.',
  open: 'Bilder öffnen',
  folder: 'Ordner öffnen',
  images: 'Bilder',
  noImages: 'Noch keine Bilder.',
  left: 'Noch etwa {time}',
  counts: '{done} von {all} fertig',
  cancel: 'Abbrechen',
  cancelAll: 'Alle abbrechen',
  retry: 'Noch einmal',
  waiting: 'Wartet',
  encoding: 'Wird berechnet',
  refining: 'Entwurf; wird verfeinert',
  draft: 'Entwurf',
  done: 'Fertig',
  cancelled: 'Abgebrochen',
  failed: 'Fehler: {why}',
  state: {
    starting: 'Startet',
    ready: 'Bereit',
    restarting: 'Startet neu',
    failed: 'Angehalten',
    closed: 'Beendet',
  },
  where: [
    ['oben links', 'oben', 'oben rechts'],
    ['links', 'in der Mitte', 'rechts'],
    ['unten links', 'unten', 'unten rechts'],
  ],
  restartingNote:
    'Das Modell ist stehen geblieben und wird neu gestartet. Es geht von selbst weiter.',
  failedNote: 'Das Modell startet nicht. Das Protokoll des Hauptprozesses sagt, warum.',
  startAgain: 'Neu starten',
  developer: 'Entwickler',
  kill: 'Sidecar abschießen',
  language: 'Sprache',
  picture: 'Bild',
  pictureLabel: '{name} mit Heatmap. Pfeiltasten verschieben, Plus und Minus vergrößern.',
  similarLabel: '{name}: Stellen wie Zeile {row}, Spalte {column}. Pfeiltasten bewegen die Stelle.',
  zoomIn: 'Vergrößern',
  zoomOut: 'Verkleinern',
  fit: 'Einpassen',
  compare: 'Vorher und nachher',
  similar: 'Ähnliche Stellen',
  similarHint: 'Eine Stelle anklicken, um zu sehen, welche anderen ihr ähneln.',
  look: 'Darstellung',
  opacity: 'Deckkraft',
  threshold: 'Schwelle',
  blend: 'Mischen',
  colormap: 'Farben',
  cells: 'Die 16 × 16 Felder zeigen',
  invert: 'Umkehren',
  auto: 'Automatisch',
  multiply: 'Multiplizieren',
  screen: 'Aufhellen',
  over: 'Decken',
  amber: 'Bernstein',
  ember: 'Glut',
  turbo: 'Turbo',
  viridis: 'Viridis',
  inferno: 'Inferno',
  grey: 'Grau',
  details: 'Details',
  model: 'Modell',
  resolution: 'Auflösung',
  norms: 'Normen',
  timing: 'Rechenzeit',
  kernels: 'Kernel',
  on: 'an',
  off: 'aus',
  unknown: 'noch nicht bekannt',
  export: 'Exportieren',
  exportPng: 'Bild (PNG)',
  exportNpz: 'Felder (npz)',
  exportJson: 'Zahlen (JSON)',
  low: 'niedrig',
  high: 'hoch',
  norm: 'Norm',
  alike: 'ähnlich',
  unlike: 'unähnlich',
  note: 'relative Norm der Einbettungen; keine Aufmerksamkeit, kein Beleg für eine Diagnose',
  similarNote:
    'Kosinus der Einbettungen ohne den Mittelwert des Bildes; kein Beleg für eine Diagnose',
  flat: 'Nichts sticht hervor: Die Normen unterscheiden sich nicht mehr als die eines leeren Bildes.',
  unreadable: 'Dieser Browser kann das Bild nicht zeigen.',
  skipped: '{count} Dateien sind keine PNG-, JPEG- oder WebP-Bilder.',
  keys: 'Tastatur',
  keysText:
    'O öffnen · ↑ ↓ nächstes Bild · + − 0 Größe · Pfeile verschieben · B Bild ohne Karte · S ähnliche Stellen · 1 bis 8 ähnlicher Fall · A in die Sammlung · E Bild exportieren · Esc abbrechen',
  panels: 'Bereiche',
  cases: 'Fälle',
  similarCases: 'Ähnliche Fälle',
  casesNote:
    'Ähnlich heißt: sieht ähnlich aus. Es heißt nicht: dieselbe Diagnose. Nur die Reihenfolge zählt.',
  oneCase: '1 Fall in der Sammlung',
  caseCount: '{count} Fälle in der Sammlung',
  noCases: 'Die Sammlung ist leer.',
  noCasesNote:
    'Dieses Bild aufnehmen oder einen Ordner mit Bildern einlesen. Danach stehen hier die Fälle, die dem Bild am ähnlichsten sehen. Vektoren und ein kleines Bild von jedem werden auf diesem Computer gespeichert.',
  noImageNote: 'Ein Bild öffnen, um die Fälle zu sehen, die ihm ähneln.',
  onlyCase: 'Noch ist kein anderer Fall in der Sammlung.',
  foundCases: 'Die {count} ähnlichsten, nach Rang.',
  searching: 'Ähnliche Fälle werden gesucht …',
  addCase: 'Bild aufnehmen',
  removeThis: 'Bild entfernen',
  importFolder: 'Ordner einlesen',
  importing: '{done} von {all} eingelesen',
  imported: 'Eingelesen: {count}',
  notImported: 'Nicht eingelesen: {count}',
  importCancelled: 'Nach {done} von {all} abgebrochen.',
  readOnlyNote: 'Diese Sammlung kann nur durchsucht werden.',
  rank: 'Rang {rank}: {name}',
  removeSure: 'Entfernen?',
  removeLabel: '{name}: aus der Sammlung entfernen',
  places: '{count} Stellen sehen ähnlich aus',
  onePlace: 'Eine Stelle sieht ähnlich aus',
  noPlaces: 'Keine Stelle sticht hervor',
  placeText: 'Stelle {number}: hier {here}, im Fall {there}.',
  noPicture: 'Kein Bild gespeichert',
};

export const LANGUAGES = { en, de } as const;
export type Language = keyof typeof LANGUAGES;
export type Key = Exclude<keyof typeof en, 'state' | 'where'>;

let language: Language = navigator.language.startsWith('de') ? 'de' : 'en';

export function setLanguage(chosen: Language): void {
  language = chosen;
}

export function getLanguage(): Language {
  return language;
}

/** The words for `key`, with `{names}` filled in. */
export function text(key: Key, values: Readonly<Record<string, string | number>> = {}): string {
  return LANGUAGES[language][key].replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ''));
}

export function stateText(state: keyof typeof en.state): string {
  return LANGUAGES[language].state[state];
}

/** Where a box [top, left, bottom, right], in fractions of an image, lies. */
export function whereText([top, left, bottom, right]: readonly number[]): string {
  const third = (from = 0, to = 0) => Math.min(Math.floor(((from + to) / 2) * 3), 2);
  return LANGUAGES[language].where[third(top, bottom)]?.[third(left, right)] ?? '';
}

export function number(value: number, digits = 3): string {
  return new Intl.NumberFormat(language, { maximumSignificantDigits: digits }).format(value);
}

export function duration(ms: number): string {
  const seconds = Math.max(1, Math.round(ms / 1000));
  const [value, unit] = seconds < 90 ? [seconds, 'second'] : [Math.round(seconds / 60), 'minute'];
  return new Intl.NumberFormat(language, { style: 'unit', unit: String(unit) }).format(
    Number(value),
  );
}
