import assert from 'node:assert/strict';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import * as builder from '../src/builder.js';
import * as forge from '../src/forge.js';

const root = mkdtempSync(path.join(tmpdir(), 'shipped-'));
after(() => rmSync(root, { recursive: true }));
const platform = `${process.platform}-${process.arch}`;
const executable = process.platform === 'win32' ? 'vision-sidecar.exe' : 'vision-sidecar';

function file(...parts: string[]): string {
  const place = path.join(root, ...parts);
  mkdirSync(path.dirname(place), { recursive: true });
  writeFileSync(place, '{}');
  return place;
}

/** A project with the program's package, and with a model directory of its own. */
function project(name: string): string {
  const installed = [name, 'node_modules', `electron-vision-sidecar-${platform}`];
  file(...installed, 'package.json');
  file(...installed, 'vision-sidecar', executable);
  file(name, 'vision-model', 'manifest.json');
  return path.join(root, name);
}

const projectDir = project('app');
const model = path.join(projectDir, 'vision-model');

/** What a test reads of a configuration. */
// biome-ignore lint/suspicious/noExplicitAny: settings of two tools, which are not installed here
type Settings = any;

test('electron-builder ships both folders under the names that the app looks for', () => {
  const config: Settings = builder.withVisionSidecar({ appId: 'x' }, { projectDir });
  assert.equal(config.appId, 'x');
  const [program, data] = config.extraResources;
  assert.match(program.from, /electron-vision-sidecar-\$\{platform\}-\$\{arch\}.vision-sidecar$/);
  assert.deepEqual([program.to, data], ['vision-sidecar', { from: model, to: 'vision-model' }]);
  assert.ok(config.asarUnpack.includes('**/*.node'));
  assert.equal(config.files[0], '**/*');
  assert.ok(config.files.includes('!vision-model{,/**/*}'));
});

test('electron-builder’s own settings of the app stay, and lists are extended', () => {
  const given = {
    asar: { smartUnpack: true },
    asarUnpack: 'a/**',
    extraResources: ['b'],
    files: ['dist'],
    npmRebuild: true,
    win: { target: 'nsis' },
  };
  const config: Settings = builder.withVisionSidecar(given, { projectDir });
  assert.deepEqual(config.asar, { smartUnpack: true });
  assert.deepEqual(config.asarUnpack, ['a/**', '**/*.node']);
  assert.equal(config.extraResources[0], 'b');
  assert.equal(config.files[0], 'dist');
  assert.equal(config.npmRebuild, true);
  assert.equal(config.win.target, 'nsis');
  assert.deepEqual(given.extraResources, ['b']);
});

test('an app without an archive keeps none', () => {
  const off = { asar: false };
  assert.equal((builder.withVisionSidecar(off, { projectDir }) as Settings).asar, false);
  const packager = { packagerConfig: { asar: false } };
  const config: Settings = forge.withVisionSidecar(packager, { projectDir });
  assert.equal(config.packagerConfig.asar, false);
});

test('Forge ships both folders, unpacks libraries, and leaves the rest out of the archive', () => {
  const given = {
    packagerConfig: { asar: { unpack: 'x/**' }, extraResource: 'b', ignore: /^\/secret/ },
  };
  const { packagerConfig, rebuildConfig }: Settings = forge.withVisionSidecar(given, {
    projectDir,
  });
  const [first, program, data] = packagerConfig.extraResource;
  assert.deepEqual([first, path.basename(program), data], ['b', 'vision-sidecar', model]);
  assert.equal(packagerConfig.asar.unpack, '{x/**,**/*.node}');
  const left = (name: string) => packagerConfig.ignore.some((each: RegExp) => each.test(name));
  assert.ok(left('/secret'));
  assert.ok(left('/vision-model/manifest.json'));
  assert.ok(left(`/node_modules/electron-vision-sidecar-${platform}/vision-sidecar`));
  assert.ok(left('/node_modules/zeromq/build/other/x64/node/a.node'));
  assert.ok(!left(`/node_modules/zeromq/build/${process.platform}/${process.arch}/node/a.node`));
  assert.ok(!left('/node_modules/electron-vision-sidecar/dist/index.js'));
  assert.deepEqual(rebuildConfig.onlyModules, []);
});

test('a function that ignores goes on to be asked', () => {
  const packagerConfig = { ignore: (name: string) => name === '/mine' };
  const config: Settings = forge.withVisionSidecar({ packagerConfig }, { projectDir });
  const { ignore } = config.packagerConfig;
  assert.deepEqual(['/mine', '/vision-model', '/other'].map(ignore), [true, true, false]);
});

test('where a plugin bundles the app, it chooses the files, and zeromq is put back', async () => {
  const calls: unknown[][] = [];
  const hooks = { packageAfterCopy: async (...given: unknown[]) => void calls.push(given) };
  const plugins = [{ name: '@electron-forge/plugin-vite', config: {} }];
  const config: Settings = forge.withVisionSidecar({ plugins, hooks }, { projectDir });
  assert.equal(config.packagerConfig.ignore, undefined);
  const app = path.join(root, 'packed');
  mkdirSync(app);
  await config.hooks.packageAfterCopy({}, app, '45.0.0', process.platform, process.arch);
  assert.equal(calls.length, 1);
  assert.ok(existsSync(path.join(app, 'node_modules', 'zeromq', 'lib', 'index.js')));
  assert.ok(existsSync(path.join(app, 'node_modules', 'cmake-ts', 'build', 'loader.js')));
});

test('what is missing or misnamed is said when the app is packaged', () => {
  const empty = path.join(root, 'empty');
  mkdirSync(empty);
  const without = { projectDir: empty, programDir: 'x' };
  assert.throws(() => builder.withVisionSidecar({}, without), { code: 'model.not_found' });
  const other = path.dirname(file('app', 'medgemma', 'manifest.json'));
  assert.throws(() => forge.withVisionSidecar({}, { projectDir, modelDir: other }), {
    code: 'model.not_found',
    message: /expected a folder named vision-model/,
  });
});
