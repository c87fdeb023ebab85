import assert from 'node:assert/strict';
import { EventEmitter } from 'node:events';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { runInNewContext } from 'node:vm';
import { closeBeforeQuit, followPower } from '../src/electron.js';

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
    'cancel',
    'onState',
  ]);
  assert.deepEqual([...new Set(required)], ['electron']);
});
