// Writes `electron_bridge/THIRD_PARTY_LICENSES.txt`: the terms of what the bridge brings into an app.
//
//     node packaging/npm_licences.mjs [--check]
//
// `--check` writes nothing, and fails if the file is not what it would write.

import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const here = path.dirname(fileURLToPath(import.meta.url));
const bridge = path.join(here, '..', 'electron_bridge');
const file = path.join(bridge, 'THIRD_PARTY_LICENSES.txt');
const rule = '='.repeat(78);

/** Every package that is installed with the bridge in an app, in a stable order. */
function packages() {
  const lock = JSON.parse(readFileSync(path.join(bridge, 'package-lock.json'), 'utf8'));
  return Object.entries(lock.packages)
    .filter(([where, entry]) => where !== '' && !entry.dev && !entry.optional)
    .map(([where]) => part(path.join(bridge, where)))
    .sort((a, b) => (a.title < b.title ? -1 : 1));
}

function part(folder) {
  const about = JSON.parse(readFileSync(path.join(folder, 'package.json'), 'utf8'));
  const texts = readdirSync(folder)
    .filter((name) => /^(licen[cs]e|copying|notice)/i.test(name))
    .sort()
    .map((name) => readFileSync(path.join(folder, name), 'utf8').trim());
  const author = about.author?.name ?? about.author;
  const stated = `The package carries no licence text. Its package.json says: ${about.license}, by ${author}.`;
  return {
    title: `${about.name} ${about.version}`,
    licence: about.license,
    texts: texts.length > 0 ? texts : [stated],
  };
}

/** What zeromq's compiled library holds beside zeromq's own code. */
function compiledIn() {
  const text = (name) => readFileSync(path.join(here, 'notices', name), 'utf8').trim();
  const source =
    'Its source is at https://github.com/zeromq/libzmq; the terms are those of zeromq above, MPL-2.0.';
  return [
    { title: 'libzmq, inside zeromq', licence: 'MPL-2.0', texts: [source] },
    { title: 'libsodium, inside zeromq', licence: 'ISC', texts: [text('libsodium.txt')] },
  ];
}

const parts = [...packages(), ...compiledIn()];
const lines = [
  'electron-vision-sidecar needs the software below at run time.',
  'The frozen sidecar carries a file of the same name for what is frozen into it.',
  '',
  ...parts.map((each) => `- ${each.title}: ${each.licence}`),
  ...parts.flatMap((each) => [
    '',
    rule,
    each.title,
    rule,
    '',
    ...each.texts.flatMap((text) => [text, '']),
  ]),
];
const wanted = `${lines.join('\n').trimEnd()}\n`;

if (!process.argv.includes('--check')) {
  writeFileSync(file, wanted);
} else if (!existsSync(file) || readFileSync(file, 'utf8') !== wanted) {
  console.error(`${file} is out of date; run: node packaging/npm_licences.mjs`);
  process.exitCode = 1;
}
