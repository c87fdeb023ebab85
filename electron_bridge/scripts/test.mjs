/** Builds the package and its tests, and runs the tests with Node's own runner: all of them, or those that are named. */

import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const root = path.dirname(import.meta.dirname);
const out = path.join(root, '.test');
const require = createRequire(import.meta.url);
const tsc = require.resolve('typescript/bin/tsc');

function run(...args) {
  const { status } = spawnSync(process.execPath, args, { stdio: 'inherit', cwd: root });
  if (status !== 0) process.exit(status ?? 1);
}

rmSync(out, { recursive: true, force: true });
run('scripts/build.mjs');
run('scripts/app.mjs');
run(tsc, '-p', 'tsconfig.test.json');
const wanted = process.argv.slice(2);
const files = readdirSync(path.join(out, 'test'))
  .filter((name) => name.endsWith('.test.js'))
  .filter((name) => wanted.length === 0 || wanted.some((part) => name.includes(part)))
  .map((name) => path.join(out, 'test', name));
// Once, before test files that run side by side both want to build it.
const needsModel = files.some((file) => readFileSync(file, 'utf8').includes('./real.js'));
if (needsModel) run('-e', `require('./.test/test/real.js').tinyModel()`);
const tests = ['--test', '--test-concurrency=2', ...files];
// A name that fits none only compiles: the soak and the smoke test use what the tests use. Coverage, printed last,
// is that of all tests; what is below the floor in .c8rc.json fails them.
if (wanted.length === 0) run(require.resolve('c8/bin/c8.js'), process.execPath, ...tests);
else if (files.length > 0) run(...tests);
