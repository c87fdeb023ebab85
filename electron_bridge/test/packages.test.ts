import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { locate } from '../src/locate.js';
import { DEMO_MODEL, installedPackage } from '../src/packages.js';

const root = mkdtempSync(path.join(tmpdir(), 'packages-'));
after(() => rmSync(root, { recursive: true }));
const PROGRAM = 'electron-vision-sidecar-linux-x64';

function file(...parts: string[]): string {
  const place = path.join(root, ...parts);
  mkdirSync(path.dirname(place), { recursive: true });
  writeFileSync(place, '{}');
  return place;
}

/** Both packages, installed in `folder`; the program and the model that they bring. */
function install(...folder: string[]) {
  file(...folder, 'node_modules', PROGRAM, 'package.json');
  file(...folder, 'node_modules', DEMO_MODEL, 'package.json');
  return {
    program: file(...folder, 'node_modules', PROGRAM, 'vision-sidecar', 'vision-sidecar'),
    model: path.dirname(
      file(...folder, 'node_modules', DEMO_MODEL, 'vision-model', 'manifest.json'),
    ),
  };
}

const linux = { platform: 'linux', arch: 'x64' } as const;

test('in development the installed packages serve, from a folder below too', () => {
  const { program, model } = install('project');
  const cwd = path.join(root, 'project', 'src');
  mkdirSync(cwd);
  const found = locate({}, { ...linux, cwd, here: cwd });
  assert.equal(found.command, program);
  assert.equal(found.modelDir, model);
});

test('packages that are installed beside this one serve whatever the working directory is', () => {
  const { program } = install('elsewhere');
  const here = path.join(root, 'elsewhere', 'node_modules', 'electron-vision-sidecar', 'dist');
  assert.equal(locate({}, { ...linux, cwd: root, here }).command, program);
});

test('a packaged app finds what was unpacked beside its archive', () => {
  const { program, model } = install('packed', 'app.asar.unpacked');
  const resources = path.join(root, 'packed');
  const found = locate({}, { ...linux, cwd: root, resources });
  assert.equal(found.command, program);
  assert.equal(found.modelDir, model);
});

test('a packaged app without an archive finds them in its folder', () => {
  const { program } = install('plain', 'app');
  const resources = path.join(root, 'plain');
  assert.equal(locate({}, { ...linux, cwd: root, resources }).command, program);
});

test('what extraResources brought comes before the packages', () => {
  install('both', 'app.asar.unpacked');
  const program = file('both', 'vision-sidecar', 'vision-sidecar');
  const resources = path.join(root, 'both');
  assert.equal(locate({}, { ...linux, cwd: root, resources }).command, program);
});

test('a packaged app takes no package from the folder that it was started in', () => {
  install('foreign');
  const around = { ...linux, cwd: path.join(root, 'foreign'), resources: path.join(root, 'none') };
  assert.equal(installedPackage(PROGRAM, around), undefined);
  assert.throws(() => locate({}, around), {
    code: 'sidecar.not_found',
    message: /withVisionSidecar/,
  });
});

test('what is missing is named with the command that brings it', () => {
  const cwd = path.join(root, 'nothing');
  mkdirSync(cwd);
  const around = { ...linux, cwd, here: cwd };
  assert.throws(() => locate({}, around), {
    code: 'sidecar.not_found',
    message: /npm install electron-vision-sidecar-linux-x64\b/,
  });
  assert.throws(() => locate({ command: 'x' }, around), {
    code: 'model.not_found',
    message: /npm install electron-vision-sidecar-demo-model\b/,
  });
});
