/** Builds the package and its tests, and runs the tests with Node's own runner. */

import { spawnSync } from 'node:child_process';
import { readdirSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const root = path.dirname(import.meta.dirname);
const out = path.join(root, '.test');
const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc');

function run(...args) {
  const { status } = spawnSync(process.execPath, args, { stdio: 'inherit', cwd: root });
  if (status !== 0) process.exit(status ?? 1);
}

rmSync(out, { recursive: true, force: true });
run('scripts/build.mjs');
run(tsc, '-p', 'tsconfig.test.json');
const wanted = process.argv.slice(2);
const files = readdirSync(path.join(out, 'test'))
  .filter((name) => name.endsWith('.test.js'))
  .filter((name) => wanted.length === 0 || wanted.some((part) => name.includes(part)));
// A name that fits none only compiles: the soak and the smoke test use what the tests use.
if (files.length > 0)
  run('--test', '--test-concurrency=2', ...files.map((name) => path.join(out, 'test', name)));
