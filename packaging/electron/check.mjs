// Packs the example app, from the tarballs in dist/npm, around a stand-in for Electron's binary: with electron-builder, and
// with the packager of Electron Forge. Then a Node process starts the packed sidecar with the packed bridge, as the app would;
// once with the bridge as a package, once inside a main process that Vite bundled.
//
//     node packaging/electron/check.mjs IMAGE
//
// Electron's own binary comes from outside the npm registry; Node's takes its place. What this cannot show is Electron
// itself: its windows, its patched file system, its sandbox.

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
import { builtinModules, createRequire } from 'node:module';
import path from 'node:path';

const here = import.meta.dirname;
const root = path.resolve(here, '..', '..');
const work = path.join(root, '.work', 'electron-app');
const app = path.join(work, 'app');
const electron = path.join(work, 'electron');
const tarballs = path.join(root, 'dist', 'npm');
const [image] = process.argv.slice(2).map((each) => path.resolve(each));
assert(image, 'usage: node packaging/electron/check.mjs IMAGE');
assert(existsSync(tarballs), 'expected tarballs in dist/npm; found none. Type: make npm');
const VERSION = '45.4.1';
const BUNDLE = 'encode.bundle.cjs';

prepareApp();
prepareStandIn();
const require = createRequire(path.join(app, 'package.json'));
const installed = (name) => path.join(app, 'node_modules', name);
const program = installed(`electron-vision-sidecar-${process.platform}-${process.arch}`);
const model = installed('electron-vision-sidecar-demo-model');
await bundle();
await electronBuilder();
await forge();

/** The example with the three packages, as `npm install` leaves them. */
function prepareApp() {
  rmSync(app, { recursive: true, force: true });
  cpSync(here, app, { recursive: true });
  rmSync(path.join(app, 'check.mjs'));
  const packages = readdirSync(tarballs).map((name) => path.join(tarballs, name));
  npm(app, 'install', '--ignore-scripts', '--no-audit', '--no-fund', ...packages);
  writeFileSync(
    path.join(app, 'encode.js'),
    `import { VisionSidecar } from 'electron-vision-sidecar';
VisionSidecar.start().then(async (sidecar) => {
  const { attentionScores } = await sidecar.encode({ path: process.env.IMAGE });
  await sidecar.close();
  console.log(attentionScores.shape.join());
});
`,
  );
}

/** A folder shaped like Electron's release for Linux. */
function prepareStandIn() {
  rmSync(electron, { recursive: true, force: true });
  mkdirSync(path.join(electron, 'resources'), { recursive: true });
  mkdirSync(path.join(electron, 'locales'));
  cpSync(process.execPath, path.join(electron, 'electron'), { dereference: true });
  for (const name of ['LICENSE', 'LICENSES.chromium.html', 'version']) {
    writeFileSync(path.join(electron, name), '');
  }
}

/** A main process in one file, as electron-vite and Forge's plugin make it. */
async function bundle() {
  const vite = path.dirname(require.resolve('vite/package.json'));
  const { build } = await import(path.join(vite, 'dist/node/index.js'));
  await build({
    root: app,
    configFile: false,
    logLevel: 'warn',
    resolve: { conditions: ['node'], mainFields: ['module', 'jsnext:main', 'jsnext'] },
    build: {
      outDir: path.join(work, 'bundle'),
      lib: { entry: path.join(app, 'encode.js'), formats: ['cjs'], fileName: () => BUNDLE },
      rollupOptions: {
        external: ['electron', ...builtinModules.flatMap((name) => [name, `node:${name}`])],
      },
    },
  });
  cpSync(path.join(work, 'bundle', BUNDLE), path.join(app, BUNDLE));
}

async function electronBuilder() {
  const words = [
    '--dir',
    '--linux',
    '--config',
    'electron-builder.cjs',
    '-c.electronDist',
    electron,
  ];
  execFileSync(installed('.bin/electron-builder'), words, { cwd: app, stdio: 'inherit' });
  const resources = path.join(app, 'release', 'linux-unpacked', 'resources');
  checkFolders(resources);
  const unpacked = extract(resources);
  assert(existsSync(path.join(unpacked, 'main.cjs')));
  for (const left of ['vision-sidecar', 'vision-model'])
    assert(!existsSync(path.join(unpacked, left)), left);
  for (const left of [program, model, installed('zeromq/src')]) {
    assert(!existsSync(path.join(unpacked, path.relative(app, left))), `${left} is in app.asar`);
  }
  encode('electron-builder', resources, unpacked, `require('electron-vision-sidecar')`);
  encode('electron-builder, bundled by Vite', resources, unpacked);
  rmSync(path.join(app, 'release'), { recursive: true });
}

/** The part of Forge that applies `packagerConfig` and its hook; with the Vite plugin's kind of app, which has no node_modules. */
async function forge() {
  const { withVisionSidecar } = require('electron-vision-sidecar/forge');
  const { packager } = await import(require.resolve('@electron/packager'));
  execFileSync('python3', ['-m', 'zipfile', '-c', zip(), ...readdirSync(electron)], {
    cwd: electron,
  });
  for (const vite of [false, true]) {
    const plugins = vite ? [{ name: 'vite' }] : [];
    const config = withVisionSidecar({ plugins }, { projectDir: app });
    const own = vite
      ? {
          ignore: (file) =>
            file !== '' && !/^\/(package\.json|main\.cjs|encode\.bundle\.cjs)$/.test(file),
        }
      : {};
    const [made] = await packager({
      dir: app,
      out: path.join(work, vite ? 'forge-vite' : 'forge'), // @electron/asar remembers archives by name
      overwrite: true,
      quiet: true,
      prune: !vite,
      electronVersion: VERSION,
      electronZipDir: work,
      afterCopy: [
        (...copied) => {
          const done = copied.pop();
          config.hooks.packageAfterCopy(undefined, ...copied).then(() => done(), done);
        },
      ],
      ...config.packagerConfig,
      ...own,
    });
    const resources = path.join(made, 'resources');
    checkFolders(resources);
    const unpacked = extract(resources);
    assert(
      !existsSync(path.join(unpacked, path.relative(app, program), 'vision-sidecar')),
      'the program is in app.asar',
    );
    if (vite) encode('Forge, bundled by Vite', resources, unpacked);
    else encode('Forge', resources, unpacked, `require('electron-vision-sidecar')`);
  }
}

function zip() {
  return path.join(work, `electron-v${VERSION}-${process.platform}-${process.arch}.zip`);
}

/** Sidecar and model lie where the bridge looks, whole, and what may be run may still be run. */
function checkFolders(resources) {
  assert.deepEqual(
    listing(path.join(resources, 'vision-sidecar')),
    listing(path.join(program, 'vision-sidecar')),
  );
  assert.deepEqual(
    listing(path.join(resources, 'vision-model')),
    listing(path.join(model, 'vision-model')),
  );
  assert(statSync(path.join(resources, 'vision-sidecar', 'vision-sidecar')).mode & 0o111);
  const libraries = listing(path.join(resources, 'app.asar.unpacked')).map(([name]) => name);
  const own = path.join('node_modules/zeromq/build', process.platform, process.arch);
  assert(libraries.length > 0);
  for (const name of libraries) assert(name.startsWith(own) && name.endsWith('.node'), name);
}

/** Every file with its size and whether it may be run. */
function listing(folder) {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath, entry.name))
    .map((file) => [path.relative(folder, file), statSync(file).size, statSync(file).mode & 0o111])
    .sort();
}

function extract(resources) {
  const out = path.join(work, 'extracted');
  rmSync(out, { recursive: true, force: true });
  require('@electron/asar').extractAll(path.join(resources, 'app.asar'), out);
  return out;
}

/** A Node process is told what Electron would tell it, and encodes: with the bridge's package, or with the bundle. */
function encode(what, resources, unpacked, bridge) {
  const start = bridge
    ? `const { VisionSidecar } = ${bridge};
       VisionSidecar.start().then(async (sidecar) => {
         const { attentionScores } = await sidecar.encode({ path: process.env.IMAGE });
         await sidecar.close();
         console.log(attentionScores.shape.join());
       });`
    : `require('./${BUNDLE}')`;
  const code = `
    Object.defineProperty(process, 'versions', { value: { ...process.versions, electron: '${VERSION}' } });
    process.resourcesPath = ${JSON.stringify(resources)};
    ${start}`;
  const env = { ...process.env, IMAGE: image };
  const out = execFileSync(process.execPath, ['-e', code], {
    cwd: unpacked,
    env,
    encoding: 'utf8',
  });
  assert.equal(out.trim().split('\n').at(-1), '1,256');
  console.log(
    `${what}: the packed bridge started ${path.relative(root, resources)}/vision-sidecar and encoded an image`,
  );
}

function npm(cwd, ...args) {
  return execFileSync('npm', args, { cwd, encoding: 'utf8', shell: process.platform === 'win32' });
}
