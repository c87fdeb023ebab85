/**
 * Hours of an app's life in minutes, on a real sidecar with a tiny model; Linux only, as it reads /proc.
 * `npm run soak [ROUNDS [ENCODES]]` (200 and 10000; 0 leaves that part out): parents killed, sidecars
 * killed, and many encodes.
 */

import { fork } from 'node:child_process';
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { POLICY, picture, program, tinyModel, VisionSidecar } from './real.mjs';

const [rounds = 200, encodes = 10_000] = process.argv.slice(2).map(Number);
const scratch = mkdtempSync(path.join(tmpdir(), 'soak-'));
const modelDir = path.join(scratch, 'model'); // its name tells our sidecars from others
cpSync(tinyModel(), modelDir, { recursive: true });
const started = { ...program, modelDir, threads: 1 };
let failed = false;

try {
  if (rounds > 0) {
    await killParents();
    await killSidecars();
  }
  if (encodes > 0) await encodeMany();
} finally {
  rmSync(scratch, { recursive: true });
}
process.exit(failed ? 1 : 0);

/** An app that dies at any moment leaves no sidecar. */
async function killParents() {
  const app = path.join(import.meta.dirname, 'soak-app.mjs');
  const gone = [];
  let met = 0;
  let left = 0;
  for (let round = 0; round < rounds; round += 1) {
    const parent = fork(app, [JSON.stringify(started), picture], { stdio: 'ignore' });
    await sleep(100 + Math.random() * 1500);
    parent.kill('SIGKILL');
    const begun = performance.now();
    const before = sidecars().length;
    if (before > 0) met += 1;
    while (sidecars().length > 0 && performance.now() - begun < 1000) await sleep(5);
    if (before > 0) gone.push(performance.now() - begun);
    left += sidecars().length;
    for (const pid of sidecars()) process.kill(pid, 'SIGKILL');
  }
  report(
    left === 0 && met > 0,
    `${rounds} parents killed, ${met} of them with a sidecar: ${left} left after 1 s; gone after ${spread(gone)}`,
  );
}

/** A sidecar that dies at work: its calls reject, the next one succeeds. */
async function killSidecars() {
  const policy = { ...POLICY, windowMs: 0 }; // no number of crashes is too many here
  const sidecar = await VisionSidecar.start(started, { policy });
  const rejected = [];
  const back = [];
  let lost = 0;
  const odd = new Map();
  for (let round = 0; round < rounds; round += 1) {
    let killed = 0;
    const calls = Array.from({ length: 10 }, async () => {
      try {
        await sidecar.encode({ path: picture });
      } catch (error) {
        rejected.push(performance.now() - killed);
        lost += 1;
        if (error.code !== 'sidecar.exited') odd.set(error.code, (odd.get(error.code) ?? 0) + 1);
      }
    });
    await sidecar.stats();
    await sleep(Math.random() * 100);
    killed = performance.now();
    process.kill(sidecar.pid, 'SIGKILL');
    await Promise.all(calls);
    await sidecar.encode({ path: picture }, { outputs: ['pooledEmbedding'] });
    back.push(performance.now() - killed);
  }
  await sidecar.close();
  report(
    odd.size === 0 && lost > rounds && Math.max(...rejected) < 250,
    `${rounds} sidecars killed: ${lost} calls in flight rejected after ${spread(rejected)}, ` +
      `other codes ${JSON.stringify([...odd])}; the next call answered after ${spread(back)}`,
  );
}

/** Many encodes: nothing grows. The first tenth is for caches to fill. */
async function encodeMany() {
  const sidecar = await VisionSidecar.start(started);
  const { signal } = new AbortController();
  const [width, height] = [224, 224];
  const rgb = new Uint8Array(width * height * 3).map((_, at) => at % 251);
  const samples = [];
  for (let done = 0; done <= encodes; done += 1) {
    if (done % (encodes / 10) === 0 && done > 0) samples.push(await measure(sidecar));
    await sidecar.encode({ rgb, width, height }, { resolution: 224, signal });
  }
  const [first, last] = [samples[0], samples.at(-1)];
  const { memory } = await sidecar.stats();
  await sidecar.close();
  const mb = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
  const flat =
    last.heap - first.heap < 3e6 &&
    last.rss - first.rss < 30e6 &&
    last.sidecar - first.sidecar < 30e6 &&
    last.handles <= first.handles &&
    last.listeners === first.listeners;
  report(
    flat,
    `${encodes} encodes, from a tenth of them to all: heap ${mb(first.heap)} → ${mb(last.heap)}, ` +
      `RSS ${samples.map(({ rss }) => (rss / 1e6).toFixed(0)).join(' → ')} MB, the sidecar's ${mb(first.sidecar)} → ${mb(last.sidecar)} ` +
      `(peak ${mb(memory.peakRssBytes)}), open files ${first.handles} → ${last.handles}, ` +
      `listeners ${first.listeners} → ${last.listeners}`,
  );
}

async function measure(sidecar) {
  globalThis.gc();
  await sleep(50); // what the collector let go of is freed
  globalThis.gc();
  const { heapUsed, rss } = process.memoryUsage();
  return {
    heap: heapUsed,
    rss,
    sidecar: (await sidecar.stats()).memory.rssBytes,
    handles: readdirSync('/proc/self/fd').length,
    listeners: sidecar.eventNames().reduce((sum, name) => sum + sidecar.listenerCount(name), 0),
  };
}

/** Process ids of the sidecars that serve our model. */
function sidecars() {
  return readdirSync('/proc').filter((pid) => {
    if (!/^\d+$/.test(pid)) return false;
    try {
      const line = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
      return line.includes('serve') && line.includes(modelDir);
    } catch {
      return false; // gone meanwhile
    }
  });
}

function spread(times) {
  const sorted = times.toSorted((a, b) => a - b);
  const at = (share) => Math.round(sorted[Math.floor((sorted.length - 1) * share)]);
  return `median ${at(0.5)}, p99 ${at(0.99)}, at most ${at(1)} ms`;
}

function report(good, line) {
  console.log(`${good ? 'ok' : 'NOT OK'}  ${line}`);
  failed ||= !good;
}
