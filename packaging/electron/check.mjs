// Packs the example app with electron-builder around a stand-in for Electron's binary, and lets a
// Node process start the packed sidecar with the packed bridge, as the app would.
//
//     node packaging/electron/check.mjs SIDECAR MODEL IMAGE
//
// Electron's own binary comes from outside the npm registry; Node's takes its place. What this
// cannot show is Electron itself: its windows, its patched file system, its sandbox.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const here = path.dirname(fileURLToPath(import.meta.url));
const root = path.resolve(here, '..', '..');
const work = path.join(root, '.work', 'electron-app');
const app = path.join(work, 'app');
const dist = path.join(work, 'electron');
const [sidecar, model, image] = process.argv.slice(2).map((each) => path.resolve(each));
assert(image, 'usage: node packaging/electron/check.mjs SIDECAR MODEL IMAGE');

prepareApp();
prepareStandIn();
execFileSync(
  path.join(app, 'node_modules/.bin/electron-builder'),
  ['--dir', '--linux', '-c.electronDist', dist],
  { cwd: app, stdio: 'inherit' },
);
const resources = path.join(app, 'release', 'linux-unpacked', 'resources');
checkFolders();
const unpacked = extract();
checkArchive();
encodeAsTheApp();

function prepareApp() {
  rmSync(app, { recursive: true, force: true });
  cpSync(here, app, { recursive: true });
  rmSync(path.join(app, 'check.mjs'));
  cpSync(sidecar, path.join(app, 'vision-sidecar'), { recursive: true, verbatimSymlinks: true });
  cpSync(model, path.join(app, 'vision-model'), { recursive: true });
  const bridge = path.join(root, 'electron_bridge');
  const packed = JSON.parse(
    npm(bridge, 'pack', '--json', '--ignore-scripts', '--pack-destination', work),
  );
  npm(
    app,
    'install',
    '--ignore-scripts',
    '--no-audit',
    '--no-fund',
    path.join(work, packed[0].filename),
  );
}

/** A folder shaped like Electron's release for Linux. */
function prepareStandIn() {
  rmSync(dist, { recursive: true, force: true });
  mkdirSync(path.join(dist, 'resources'), { recursive: true });
  mkdirSync(path.join(dist, 'locales'));
  cpSync(process.execPath, path.join(dist, 'electron'), { dereference: true });
  for (const name of ['LICENSE', 'LICENSES.chromium.html', 'version']) {
    writeFileSync(path.join(dist, name), '');
  }
}

/** Sidecar and model lie where the bridge looks, whole, and what may be run may still be run. */
function checkFolders() {
  assert.deepEqual(listing(path.join(resources, 'vision-sidecar')), listing(sidecar));
  assert.deepEqual(listing(path.join(resources, 'vision-model')), listing(model));
  assert(statSync(path.join(resources, 'vision-sidecar', 'vision-sidecar')).mode & 0o111);
}

/** Every file with its size and whether it may be run. */
function listing(folder) {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath, entry.name))
    .map((file) => [path.relative(folder, file), statSync(file).size, statSync(file).mode & 0o111])
    .sort();
}

function extract() {
  const asar = createRequire(path.join(app, 'package.json'))('@electron/asar');
  const out = path.join(work, 'extracted');
  rmSync(out, { recursive: true, force: true });
  asar.extractAll(path.join(resources, 'app.asar'), out);
  return out;
}

/** The archive holds the app and the bridge; libraries lie outside, and only this system's. */
function checkArchive() {
  assert(existsSync(path.join(unpacked, 'main.cjs')));
  for (const left of ['vision-sidecar', 'vision-model', 'node_modules/zeromq/src']) {
    assert(!existsSync(path.join(unpacked, left)), `${left} is in app.asar`);
  }
  const outside = path.join(resources, 'app.asar.unpacked');
  const libraries = listing(outside).map(([name]) => name);
  const own = path.join('node_modules/zeromq/build', process.platform, process.arch);
  assert(libraries.length > 0);
  for (const name of libraries) assert(name.startsWith(own) && name.endsWith('.node'), name);
  console.log(`${libraries.length} unpacked libraries:\n  ${libraries.join('\n  ')}`);
}

/** The packed program, which is Node here, is told what Electron would tell it, and encodes. */
function encodeAsTheApp() {
  const program = path.join(path.dirname(resources), 'vision-example');
  const code = `
    Object.defineProperty(process, 'versions', { value: { ...process.versions, electron: '45.4.1' } });
    process.resourcesPath = ${JSON.stringify(resources)};
    const { VisionSidecar } = require('electron-vision-sidecar');
    VisionSidecar.start().then(async (sidecar) => {
      const { pooledEmbedding, attentionScores } = await sidecar.encode({ path: process.argv[1] });
      await sidecar.close();
      console.log(JSON.stringify([attentionScores.shape, pooledEmbedding.shape]));
    });`;
  const out = execFileSync(program, ['-e', code, image], { cwd: unpacked, encoding: 'utf8' });
  const [scores, pooled] = JSON.parse(out.trim().split('\n').at(-1));
  assert.deepEqual(scores, [1, 256]);
  assert.equal(pooled.length, 2);
  console.log(
    `the packed app's bridge started ${path.join(resources, 'vision-sidecar')} and encoded an image`,
  );
}

function npm(cwd, ...args) {
  return execFileSync('npm', args, { cwd, encoding: 'utf8', shell: process.platform === 'win32' });
}
