/**
 * `npm run kills [COUNT]` (500): kills the real sidecar in the middle of adds and removes that come through
 * the bridge. Nothing acknowledged may be lost, no case half, none there twice.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { POLICY, program, tinyModel, VisionSidecar } from './real.mjs';

const { checkAlone, draws, killOnce } = createRequire(import.meta.url)('../.test/test/kills.js');
const count = Number(process.argv[2] ?? 500);
const scratch = mkdtempSync(path.join(tmpdir(), 'kills-'));
const file = path.join(scratch, 'cases');
const policy = { ...POLICY, windowMs: 0, backoffMs: [1] }; // no number of crashes is too many here
const sidecar = await VisionSidecar.start(
  { ...program, modelDir: tinyModel(), threads: 1 },
  { policy },
);
const known = { there: new Set(), open: new Set() };
const next = draws(1);
let unanswered = 0;

try {
  for (let number = 1; number <= count; number += 1) {
    unanswered += await killOnce(sidecar, file, known, next);
    if (number % 50 === 0) console.error(`${number} kills, ${known.there.size} cases`);
  }
  await sidecar.close();
  checkAlone(file);
  console.log(
    `${count} kills: nothing acknowledged was lost, no case is half or there twice; ` +
      `${unanswered} changes had no answer; ${known.there.size} cases at the end`,
  );
} finally {
  await sidecar.close();
  rmSync(scratch, { recursive: true });
}
