import assert from 'node:assert/strict';
import { EventEmitter } from 'node:events';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { runInNewContext } from 'node:vm';
import { closeBeforeQuit, followPower } from '../src/electron.js';
import { child, lives, startFake } from './fake.js';

/** Electron's `app`: `quit` asks `before-quit`, and quits if nobody minds. */
class FakeApp extends EventEmitter {
  quits = 0;

  quit(): void {
    let held = false;
    this.emit('before-quit', { preventDefault: () => (held = true) });
    if (!held) this.quits += 1;
  }
}

const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

test('an app quits once its sidecar is closed, and closes it once', async () => {
  const app = new FakeApp();
  let closed = 0;
  let finish = (): void => undefined;
  const close = (): Promise<void> => {
    closed += 1;
    return new Promise((resolve) => {
      finish = resolve;
    });
  };
  closeBeforeQuit(app, { close });
  app.quit();
  app.quit();
  await settled();
  assert.deepEqual([app.quits, closed], [0, 1]);
  finish();
  await settled();
  assert.deepEqual([app.quits, closed, app.listenerCount('before-quit')], [1, 1, 0]);
});

test('an app whose sidecar never started quits all the same', async () => {
  const app = new FakeApp();
  const starting = Promise.reject(new Error('no model'));
  closeBeforeQuit(app, starting);
  app.quit();
  await settled();
  assert.equal(app.quits, 1);
});

test('an app that quits while the sidecar starts waits for no model, and leaves no process', async (t) => {
  const app = new FakeApp();
  let pid: number | undefined;
  const starting = startFake(t, 'never-ready', {
    log: ({ message }) => {
      pid ??= Number(message);
    },
    args: [child, 'never-ready+tells-pid'],
    onState: (_, { phase }) => void (phase === 'loading' && app.quit()),
  });
  closeBeforeQuit(app, starting);
  await assert.rejects(starting, { code: 'request.cancelled' });
  while (app.quits === 0) await settled();
  assert.equal(lives(pid as number), false);
});

test('an app that quits before the sidecar’s process is there starts none', async (t) => {
  const app = new FakeApp();
  const states: string[] = [];
  const starting = startFake(t, 'good', { onState: (state) => void states.push(state) });
  closeBeforeQuit(app, starting);
  app.quit();
  await assert.rejects(starting, { code: 'request.cancelled' });
  while (app.quits === 0) await settled();
  assert.deepEqual(states, []);
});

test('of a start that the app wrapped in a promise of its own, the app waits 5 s', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const app = new FakeApp();
  closeBeforeQuit(app, new Promise<never>(() => undefined));
  app.quit();
  t.mock.timers.tick(4999);
  await settled();
  assert.equal(app.quits, 0);
  t.mock.timers.tick(1);
  await settled();
  assert.equal(app.quits, 1);
});

test('what wires an app can be undone', () => {
  const app = new FakeApp();
  closeBeforeQuit(app, { close: async () => undefined })();
  app.quit();
  assert.equal(app.quits, 1);
});

test('the computer’s sleep is told to the sidecar', () => {
  const monitor = new EventEmitter();
  const told: string[] = [];
  const undo = followPower(monitor, {
    suspended: () => told.push('suspended'),
    resumed: () => told.push('resumed'),
  });
  monitor.emit('suspend');
  monitor.emit('resume');
  undo();
  monitor.emit('suspend');
  assert.deepEqual(told, ['suspended', 'resumed']);
});

test('the ready-made preload script needs nothing but electron', () => {
  const script = path.resolve(__dirname, '..', '..', 'dist', 'preload-script.js');
  const exposed = new Map<string, object>();
  const electron = {
    contextBridge: { exposeInMainWorld: exposed.set.bind(exposed) },
    ipcRenderer: { invoke: () => undefined },
  };
  const required: string[] = [];
  const require = (name: string): object => {
    required.push(name);
    return electron;
  };
  runInNewContext(readFileSync(script, 'utf8'), { require, exports: {}, module: {} });
  assert.deepEqual(Object.keys(exposed.get('vision') as object), [
    'encode',
    'heatmap',
    'collection',
    'cancel',
    'onState',
  ]);
  assert.deepEqual([...new Set(required)], ['electron']);
});
