/**
 * The example app as an app would have it, from the packed package: its main process under plain Node and
 * its page in headless Chromium. The page, its security policy, the preload script and registerVisionIpc are
 * the real ones, and of Electron there stands in what they use. `npm run electron-page [PICTURE.png]` writes
 * what the page then looks like. Then `npm run page` of the installed package shows the same page in a browser.
 * Needs Chromium (at CHROMIUM, else /usr/bin/chromium) and the npm registry.
 */

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { cpSync, existsSync, readFileSync, rmSync } from 'node:fs';
import Module, { createRequire } from 'node:module';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';
import { chromium } from 'playwright-core';
import { buildApp } from '../example/build.mjs';
import { prepare } from './fresh.mjs';

const picture = path.resolve(process.argv[2] ?? path.join('..', '.work', 'page.png'));
const fresh = prepare();
const app = path.join(fresh, 'app');
cpSync('example', app, { recursive: true });
const esm = (name) => path.resolve('dist', 'esm', `${name}.js`);
await buildApp(path.join(app, 'dist'), {
  'electron-vision-sidecar/vectors': esm('vectors'),
  'electron-vision-sidecar/preload': esm('preload'),
});
process.chdir(fresh);

const handlers = new Map();
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--allow-file-access-from-files'],
});

class App extends EventEmitter {
  isPackaged = false;
  whenReady = async () => undefined;
  getPath = () => fresh;
  exit = (code) => process.exit(code);

  quit() {
    let held = false;
    this.emit('before-quit', { preventDefault: () => (held = true) });
    if (!held) this.emit('quit');
  }
}

class BrowserWindow {
  webContents = Object.assign(new EventEmitter(), { setWindowOpenHandler: () => undefined });
  #options;

  constructor(options) {
    this.#options = options;
  }

  async loadFile(file) {
    const { width, height, webPreferences } = this.#options;
    const page = await browser.newPage({ viewport: { width, height } });
    await exposeIpc(page);
    await page.addInitScript(preload(readFileSync(webPreferences.preload, 'utf8')));
    await page.goto(pathToFileURL(file).href);
    opened(page);
  }
}

/** Between the page and the handlers; typed arrays are cloned, as Electron does. */
async function exposeIpc(page) {
  const sender = Object.assign(new EventEmitter(), {
    id: 1,
    isDestroyed: () => page.isClosed(),
    send: (...message) => void page.evaluate((sent) => globalThis.hear(...sent), message),
  });
  await page.exposeBinding('invoke', ({ frame }, channel, ...args) => {
    const senderFrame = { url: frame.url(), parent: frame.parentFrame() };
    return handlers.get(channel)({ sender, senderFrame }, ...args);
  });
}

/** The script as a sandboxed preload runs: it can require electron and nothing else. */
function preload(script) {
  return `(() => {
    const heard = new EventTarget();
    globalThis.hear = (channel, value) =>
      heard.dispatchEvent(new CustomEvent(channel, { detail: value }));
    const electron = {
      contextBridge: { exposeInMainWorld: (name, api) => { globalThis[name] = api; } },
      ipcRenderer: {
        invoke: globalThis.invoke,
        on: (channel, listener) =>
          heard.addEventListener(channel, (event) => listener(event, event.detail)),
      },
    };
    const require = (name) => {
      if (name === 'electron') return electron;
      throw new Error('a sandboxed preload cannot require ' + name);
    };
    ((exports) => { ${script} })({});
  })()`;
}

const electron = {
  app: new App(),
  BrowserWindow,
  ipcMain: {
    handle: (channel, listener) => handlers.set(channel, listener),
    removeHandler: (channel) => handlers.delete(channel),
  },
  powerMonitor: new EventEmitter(),
  session: { defaultSession: { setPermissionRequestHandler: () => undefined } },
};
const load = Module._load;
Module._load = (name, ...rest) => (name === 'electron' ? electron : load(name, ...rest));

/** `npm run page` of the package that is installed in `fresh`, seen in Chromium. */
async function served() {
  const installed = path.join('node_modules', 'electron-vision-sidecar');
  const args = [
    'run',
    '--silent',
    'page',
    '--prefix',
    installed,
    '--',
    '--library',
    'served.cases',
  ];
  const server = spawn('npm', args, {
    cwd: fresh,
    stdio: ['ignore', 'pipe', 'inherit'],
    detached: true,
  });
  try {
    const [address] = await once(createInterface(server.stdout), 'line');
    const page = await browser.newPage();
    await page.goto(address);
    await page.locator('#state[data-state=ready]').waitFor({ timeout: 120_000 });
    await page.setInputFiles('#files', path.join(fresh, 'scan.png'));
    await page.locator('#queue .quiet', { hasText: 'Done' }).waitFor({ timeout: 120_000 });
    await page.click('#add');
    await page.locator('#library', { hasText: '1 case' }).waitFor();
    assert.ok(existsSync(path.join(fresh, 'served.cases')));
  } finally {
    process.kill(-server.pid, 'SIGTERM'); // npm passes no signal on
    if (server.exitCode === null && server.signalCode === null) await once(server, 'exit');
  }
}

let opened;
const opening = new Promise((resolve) => {
  opened = resolve;
});
createRequire(import.meta.url)(path.join(app, 'dist', 'main.cjs'));

try {
  const page = await opening;
  const errors = [];
  page.on('pageerror', (error) => errors.push(error.message));
  page.on('console', (line) => line.type() === 'error' && errors.push(line.text()));
  const item = (pattern) =>
    page.waitForFunction(
      (expected) =>
        new RegExp(expected).test(
          document.querySelector('#queue li:last-child .quiet')?.textContent,
        ),
      pattern,
    );
  await page.waitForFunction(() => document.getElementById('state').dataset.state === 'ready');
  await page.setInputFiles('#files', path.join(fresh, 'scan.png'));
  await item('^Done$');
  await page.waitForFunction(() => document.getElementById('frame').dataset.painted > 0);
  await page.click('#add');
  await page.waitForFunction(() => document.getElementById('library').textContent.includes('1 '));
  assert.ok(existsSync(path.join(fresh, 'library.cases'))); // in the app's user data
  await page.screenshot({ path: picture, fullPage: true });
  const text = { name: 'text.png', mimeType: 'image/png', buffer: Buffer.from('no image') };
  await page.setInputFiles('#files', text);
  await item('^Failed: expected the bytes of a PNG');
  await page.goto(pathToFileURL(path.join(fresh, 'package.json')).href);
  const refused = await page.evaluate(() => globalThis.vision.encode({ image: Uint8Array.of(1) }));
  assert.equal(refused.error.code, 'ipc.forbidden');
  assert.deepEqual(errors, []);
  const quit = new Promise((resolve) => electron.app.once('quit', resolve));
  electron.app.emit('window-all-closed');
  await quit;
  console.log(`ok: the page shows its picture, ${picture}`);
  await served();
  console.log('ok: npm run page of the installed package shows it in a browser');
} finally {
  await browser.close();
  rmSync(fresh, { recursive: true });
}
