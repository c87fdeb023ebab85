/** What a user does first: the README's example pasted into an .mjs and a .cjs file of a new directory. */

import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { prepare } from './fresh.mjs';

const fresh = prepare();
try {
  const example = /```js\n(import [\s\S]*?)```/.exec(readFileSync('README.md', 'utf8'))[1];
  const [first, ...rest] =
    `${example}console.log(pooledEmbedding.shape, attentionScores.shape, heatmapPng.length)`.split(
      '\n',
    );
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
