/**
 * What a user does first: `npm install` of the packed package in a new directory outside of the
 * repository, and the README's example pasted into an .mjs and a .cjs file. Needs the npm registry.
 */

import { execFileSync, execSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { picture, program, tinyModel } from './real.mjs';

const fresh = mkdtempSync(path.join(tmpdir(), 'smoke-'));
const run = (line, cwd = fresh) => execSync(line, { cwd, encoding: 'utf8' }).trim();

try {
  const tarball = run(`npm pack --silent --pack-destination ${fresh}`, process.cwd())
    .split('\n')
    .at(-1);
  writeFileSync(path.join(fresh, 'package.json'), '{ "private": true }');
  run(`npm install --silent --no-fund --no-audit ./${tarball}`);
  cpSync(tinyModel(), path.join(fresh, 'vision-model'), { recursive: true });
  copyFileSync(picture, path.join(fresh, 'scan.png'));
  placeProgram(path.join(fresh, 'vision-sidecar'));

  const example = /```js\n(import [\s\S]*?)```/.exec(readFileSync('README.md', 'utf8'))[1];
  const [first, ...rest] =
    `${example}console.log(pooledEmbedding.shape, attentionScores.shape, png.length)`.split('\n');
  const required = "const { VisionSidecar } = require('electron-vision-sidecar');";
  writeFileSync(path.join(fresh, 'example.mjs'), [first, ...rest].join('\n'));
  writeFileSync(
    path.join(fresh, 'example.cjs'),
    [required, '(async () => {', ...rest, '})()'].join('\n'),
  );
  for (const file of ['example.mjs', 'example.cjs']) {
    const said = execFileSync(process.execPath, [file], { cwd: fresh, encoding: 'utf8' }).trim();
    if (!/^\[ 1, \d+ \] \[ 1, 256 \] \d+$/.test(said)) throw new Error(`${file} printed ${said}`);
    console.log(`${file}: ${said}`);
  }
} finally {
  rmSync(fresh, { recursive: true });
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
