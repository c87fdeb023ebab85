/**
 * A file of src/ imports only from files above it in ARCHITECTURE.md's table, and each file stands there. What
 * the table names as the importers of a library are the only ones.
 */

const { readdirSync, readFileSync } = require('node:fs');
const path = require('node:path');

const page = readFileSync(path.join(__dirname, '..', 'ARCHITECTURE.md'), 'utf8');
const [, section = ''] = page.split('\n## electron_bridge/');
const [table] = section.split('\n## ');
const rows = table.split('\n').filter((line) => line.startsWith('| `'));
const order = rows.flatMap((row) => names(row.split('|')[1]));
const missing = readdirSync(path.join(__dirname, 'src'))
  .filter((file) => /\.m?ts$/.test(file) && !order.includes(file))
  .map((file) => `src/${file}`);
if (missing.length) throw new Error(`ARCHITECTURE.md does not name ${missing.join(', ')}`);

function names(cell = '') {
  return [...cell.matchAll(/`([^`]+)`/g)].map(([, name]) => name);
}

function pattern(files) {
  return `^src/(${files.join('|').replaceAll('.', '\\.')})$`;
}

const downward = order.slice(0, -1).map((file, at) => ({
  name: `${file} is above`,
  comment: 'a file imports only from files above it in ARCHITECTURE.md',
  severity: 'error',
  from: { path: pattern([file]) },
  to: { path: pattern(order.slice(at + 1)) },
}));

const importers = new Map();
for (const row of rows) {
  const [, files, , libraries] = row.split('|');
  for (const library of names(libraries)) {
    importers.set(library, [...(importers.get(library) ?? []), ...names(files)]);
  }
}
const seams = [...importers].map(([library, files]) => ({
  name: `${library} has its importers`,
  comment: 'ARCHITECTURE.md says which files are the only ones to import it',
  severity: 'error',
  from: { path: '^src/', pathNot: pattern(files) },
  to: { path: `(^|/)${library.replace('node:', '')}(/|$)`, dependencyTypesNot: ['type-only'] },
}));

module.exports = {
  forbidden: [...downward, ...seams],
  options: {
    doNotFollow: { path: 'node_modules' },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.json' },
    enhancedResolveOptions: { extensions: ['.ts', '.mts', '.js', '.d.ts'] },
  },
};
