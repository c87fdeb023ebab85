/**
 * A new directory outside of the repository, as a user's: `npm install` of the packed package, and
 * beside it the program, a model and a picture. Needs the npm registry.
 */

import { execSync } from 'node:child_process';
import { chmodSync, copyFileSync, cpSync, mkdirSync, mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { picture, program, tinyModel } from './real.mjs';

export function prepare() {
  const fresh = mkdtempSync(path.join(tmpdir(), 'fresh-'));
  const run = (line, cwd = fresh) => execSync(line, { cwd, encoding: 'utf8' }).trim();
  const tarball = run(`npm pack --silent --pack-destination ${fresh}`, process.cwd())
    .split('\n')
    .at(-1);
  writeFileSync(path.join(fresh, 'package.json'), '{ "private": true }');
  run(`npm install --silent --no-fund --no-audit ./${tarball}`);
  cpSync(tinyModel(), path.join(fresh, 'vision-model'), { recursive: true });
  copyFileSync(picture, path.join(fresh, 'scan.png'));
  placeProgram(path.join(fresh, 'vision-sidecar'));
  return fresh;
}

/** The frozen sidecar where there is one, else a script in its place. */
function placeProgram(directory) {
  if (!program.args) {
    cpSync(path.dirname(program.command), directory, { recursive: true, verbatimSymlinks: true });
    return;
  }
  mkdirSync(directory);
  const file = path.join(directory, 'vision-sidecar');
  writeFileSync(
    file,
    `#!/bin/sh\ncd "${program.cwd}" && exec "${program.command}" ${program.args.join(' ')} "$@"\n`,
  );
  chmodSync(file, 0o755);
}
