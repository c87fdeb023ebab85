/** Kills the sidecar while the bridge adds and removes cases, and looks at what is left of the collection. */

import assert from 'node:assert/strict';
import { existsSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Collection, EmbeddingsInput } from '../src/collection.js';
import type { VisionSidecar } from '../src/sidecar.js';
import { reached } from './fake.js';

const DIMS = 96; // of the tiny model
const IDS = 90; // each is added, and removed at its next turn
const AT_ONCE = 3; // calls

/** Pseudorandom numbers in 0…1, always the same ones for a seed. */
export type Draws = () => number;

export function draws(seed: number): Draws {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** What is known of the collection: cases that are there, and those of which a kill took the answer. */
export interface Known {
  readonly there: Set<string>;
  readonly open: Set<string>;
}

/**
 * Changes the collection until a kill, waits for the restart, and checks: every acknowledged change is
 * there, no case is half, none is there twice. Rejects with an AssertionError where that does not hold.
 * Resolves to the number of changes that the kill left without an answer.
 */
export async function killOnce(
  sidecar: VisionSidecar,
  file: string,
  known: Known,
  next: Draws,
): Promise<number> {
  const cases = sidecar.collection({ path: file });
  const pid = sidecar.pid as number;
  let killed = false;
  let left = 1 + Math.floor(next() * 30); // changes before the kill
  const busy = new Set<string>();
  const change = async () => {
    while (!killed) {
      const id = `case ${Math.floor(next() * IDS)}`;
      if (busy.has(id)) continue;
      busy.add(id);
      known.open.add(id);
      const add = !known.there.has(id);
      try {
        await (add ? cases.add(vectors(id), { id, metadata: metadata(id) }) : cases.remove(id));
      } catch (error) {
        assert.ok(killed, String(error));
        assert.equal((error as { code?: unknown }).code, 'sidecar.exited');
        return;
      }
      if (add) known.there.add(id);
      else known.there.delete(id);
      known.open.delete(id);
      busy.delete(id);
      left -= 1;
    }
  };
  const kill = async () => {
    while (left > 0) await sleep(1);
    await sleep(next() * 4); // in the middle of a change
    const restarting = reached(sidecar, 'restarting');
    killed = true;
    process.kill(pid, 'SIGKILL');
    await restarting;
  };
  await Promise.all([kill(), ...Array.from({ length: AT_ONCE }, change)]);
  const unanswered = known.open.size;
  await check(cases, file, known);
  return unanswered;
}

async function check(cases: Collection, file: string, { there, open }: Known): Promise<void> {
  if (!existsSync(file) && there.size === 0) {
    open.clear();
    return;
  }
  const { matches, count } = await cases.search(vectors('a query'), { k: 1000, regions: true });
  assert.equal(matches.length, count);
  const ids = new Set(matches.map(({ id }) => id));
  assert.equal(ids.size, count, 'a case is there twice');
  const sure = (of: Set<string>) => [...of].filter((id) => !open.has(id)).sort();
  assert.deepEqual(sure(ids), sure(there), 'an acknowledged change is lost');
  // The same case again changes nothing; another one of that id would be refused.
  for (const id of ids) await cases.add(vectors(id), { id, metadata: metadata(id) });
  assert.equal((await cases.info()).count, count);
  for (const id of open) {
    if (ids.has(id)) there.add(id);
    else there.delete(id);
  }
  open.clear();
}

/** After `close`, a collection is one file. */
export function checkAlone(file: string): void {
  const beside = readdirSync(path.dirname(file)).filter((name) => name !== path.basename(file));
  assert.deepEqual(beside, []);
}

function metadata(id: string): { of: string; long: string } {
  return { of: id, long: 'x'.repeat((seedOf(id) % 20) * 100) };
}

function vectors(id: string): EmbeddingsInput {
  const next = draws(seedOf(id));
  const tokens = Float32Array.from({ length: 256 * DIMS }, () => next() - 0.5);
  const pooled = new Float32Array(DIMS);
  tokens.forEach((value, at) => {
    pooled[at % DIMS] = (pooled[at % DIMS] as number) + value / 256;
  });
  return {
    projectedEmbeddings: { data: tokens, shape: [1, 256, DIMS] },
    pooledEmbedding: { data: pooled, shape: [1, DIMS] },
    resolution: [224, 224],
  };
}

function seedOf(id: string): number {
  let seed = 17;
  for (const character of id)
    seed = (Math.imul(seed, 31) + (character.codePointAt(0) as number)) >>> 0;
  return seed;
}
