import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { reached, startFake } from './fake.js';

const modelDir = mkdtempSync(path.join(tmpdir(), 'host-'));
writeFileSync(path.join(modelDir, 'manifest.json'), '{}');
after(() => rmSync(modelDir, { recursive: true }));

interface Told {
  readonly heard: string[];
  readonly states: string[];
  readonly uncaught: string[];
}

/** In a process of its own: what reaches an app as an uncaught exception would end this one. */
function runApp(throws: 'yes' | 'no'): Told {
  const app = path.resolve(__dirname, '..', '..', 'test', 'fixtures', 'throwing-app.cjs');
  const bridge = path.resolve(__dirname, '..', 'src');
  const printed = execFileSync(process.execPath, [app, bridge, modelDir, throws], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  return JSON.parse(printed) as Told;
}

test('listeners that throw at every transition change nothing, and each error reaches the app once', {
  skip: process.platform === 'win32', // no other process can be made to die of SIGSEGV
}, () => {
  const calm = runApp('no');
  const loud = runApp('yes');
  assert.deepEqual(calm.uncaught, []);
  assert.deepEqual(loud.heard, calm.heard);
  assert.deepEqual(loud.states, calm.states);
  assert.deepEqual(loud.uncaught, loud.heard);
  for (const name of ['starting loading', 'ready', 'restarting', 'failed', 'closed']) {
    assert.ok(loud.heard.includes(`state ${name}`), name);
  }
  assert.ok(loud.heard.includes('kernelsOff signal SIGSEGV'));
  assert.ok(loud.heard.some((told) => told.startsWith('log the sidecar died in machine code')));
});

test('a listener may close the sidecar in the middle of what it is told', async (t) => {
  const told: string[] = [];
  const sidecar = await startFake(t, 'good');
  sidecar.on('state', (state) => {
    told.push(`first ${state}`);
    if (state === 'restarting') void sidecar.close();
  });
  sidecar.on('state', (state) => told.push(`second ${state}`));
  process.kill(sidecar.pid as number, 'SIGKILL');
  while (sidecar.state !== 'closed') await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(told, [
    'first restarting',
    'second restarting',
    'first closed',
    'second closed',
  ]);
});

test('a listener that was added for one event hears one', async (t) => {
  const told: string[] = [];
  const sidecar = await startFake(t, 'good');
  sidecar.once('state', (state) => told.push(state));
  process.kill(sidecar.pid as number, 'SIGKILL');
  await reached(sidecar, 'restarting');
  await reached(sidecar, 'ready');
  assert.deepEqual(told, ['restarting']);
});
