import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { type Environment, locate } from '../src/locate.js';

const root = mkdtempSync(path.join(tmpdir(), 'locate-'));
after(() => rmSync(root, { recursive: true }));

/** A directory that holds the named files. */
function tree(name: string, ...files: string[]): string {
  for (const file of files) {
    mkdirSync(path.dirname(path.join(root, name, file)), { recursive: true });
    writeFileSync(path.join(root, name, file), '');
  }
  return path.join(root, name);
}

const shipped = tree('shipped', 'vision-sidecar/vision-sidecar', 'vision-model/manifest.json');
const empty = tree('empty', 'nothing');

function around(change: Partial<Environment>): Environment {
  return { cwd: empty, platform: 'linux', ...change };
}

test('a packaged app finds both among its resources', () => {
  assert.deepEqual(locate({}, around({ resources: shipped })), {
    command: path.join(shipped, 'vision-sidecar', 'vision-sidecar'),
    args: [],
    modelDir: path.join(shipped, 'vision-model'),
  });
});

test('in development both are found in the project’s directory', () => {
  assert.equal(locate({}, around({ cwd: shipped })).modelDir, path.join(shipped, 'vision-model'));
});

test('a packaged app does not run what lies in its working directory', () => {
  const places = around({ resources: empty, cwd: shipped });
  assert.throws(() => locate({}, places), { code: 'sidecar.not_found' });
});

test('on Windows the program is an .exe', () => {
  const windows = tree(
    'windows',
    'vision-sidecar/vision-sidecar.exe',
    'vision-model/manifest.json',
  );
  const found = locate({}, around({ platform: 'win32', resources: windows }));
  assert.match(found.command, /vision-sidecar\.exe$/);
  assert.throws(() => locate({}, around({ platform: 'win32', resources: shipped })), {
    code: 'sidecar.not_found',
  });
});

test('what the app names is taken, relative to its working directory', () => {
  const wanted = { command: './bin/python', args: ['-m', 'sidecar'], modelDir: 'vision-model' };
  assert.deepEqual(locate(wanted, around({ cwd: shipped })), {
    command: path.join(shipped, 'bin', 'python'),
    args: ['-m', 'sidecar'],
    modelDir: path.join(shipped, 'vision-model'),
  });
});

test('a bare command is left to the search path', () => {
  const wanted = { command: 'vision-sidecar', modelDir: path.join(shipped, 'vision-model') };
  assert.equal(locate(wanted, around({})).command, 'vision-sidecar');
});

test('a model directory without a manifest is none', () => {
  assert.throws(() => locate({ command: 'x', modelDir: empty }, around({})), {
    code: 'model.not_found',
    message: /manifest\.json/,
  });
});

test('nothing is run or read from inside app.asar', () => {
  const inside = path.join(shipped, 'app.asar', 'vision-sidecar');
  assert.throws(() => locate({ command: inside }, around({})), {
    code: 'sidecar.not_found',
    message: /extraResources/,
  });
  assert.throws(() => locate({ command: 'x', modelDir: inside }, around({})), {
    code: 'model.not_found',
  });
});

test('what was unpacked beside app.asar may be used', () => {
  const unpacked = path.join(shipped, 'app.asar.unpacked', 'vision-sidecar');
  const wanted = { command: unpacked, modelDir: path.join(shipped, 'vision-model') };
  assert.equal(locate(wanted, around({})).command, unpacked);
});
