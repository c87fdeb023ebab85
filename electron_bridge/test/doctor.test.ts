import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import {
  appendFileSync,
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, test } from 'node:test';
import { asText, type Circumstances, doctor } from '../src/doctor.js';
import { program, tinyModel } from './real.js';

const root = mkdtempSync(path.join(tmpdir(), 'doctor-'));
after(() => rmSync(root, { recursive: true }));
const node = process.versions.node;

/** An empty project, which may hold a copy of the model, spoilt or not. */
function project(name: string, spoil?: (model: string) => void): Circumstances {
  const cwd = path.join(root, name);
  mkdirSync(cwd);
  if (spoil) {
    cpSync(tinyModel(), path.join(cwd, 'vision-model'), { recursive: true });
    spoil(path.join(cwd, 'vision-model'));
  }
  return { cwd, node, here: cwd };
}

const whole = () => undefined;

test('where all is well it says so, with the time of an image at each resolution', async () => {
  const { cwd, ...around } = project('well', whole);
  const modelDir = path.join(cwd, 'vision-model');
  const report = await doctor({ ...around, ...program, cwd: program.cwd ?? cwd, modelDir });
  assert.equal(report.ok, true, asText(report));
  const names = report.findings.map((each) => each.name);
  const all = ['node', 'electron', 'program', 'model', 'start', 'kernels', 'speed', 'memory'];
  assert.deepEqual(names, all);
  assert.ok(Object.values(report.secondsPerImage ?? {}).every((seconds) => seconds > 0));
  assert.match(asText(report), /An app would work here\.$/);
});

test('each thing that is broken has its sentence, and what to do', async () => {
  const sealed = path.join(root, 'sealed');
  writeFileSync(sealed, '#!/bin/sh\n', { mode: 0o644 });
  chmodSync(sealed, 0o644);
  const changed = project('changed', (model) =>
    appendFileSync(path.join(model, 'vision_encoder_quant.onnx'), 'x'),
  );
  const old = { ...project('old', whole), ...program, node: '18.20.8' };
  const spoilt = { ...changed, ...program, modelDir: path.join(changed.cwd, 'vision-model') };
  const cases: [string, Circumstances, RegExp][] = [
    [
      'program',
      project('bare', whole),
      /^sidecar\.not_found: .*npm install electron-vision-sidecar-/,
    ],
    ['program', { ...project('bits', whole), command: sealed }, /chmod \+x/],
    ['model', { ...project('none'), ...program, cwd: root }, /^model\.not_found: .*demo-model/],
    ['start', { ...spoilt, cwd: program.cwd ?? root }, /^model\.invalid: .*vision_encoder_quant/],
    ['node', old, /Node\.js 18\.20\.8, but 20 or newer is needed/],
  ];
  for (const [name, around, sentence] of cases) {
    const report = await doctor(around);
    assert.equal(report.ok, false, name);
    const finding = report.findings.find((each) => !each.ok);
    assert.equal(finding?.name, name);
    assert.match(finding?.detail ?? '', sentence);
    assert.match(asText(report), /would not work/);
  }
});

test('an Electron that is too old is told with its version', async () => {
  const around = project('electron');
  const folder = path.join(around.cwd, 'node_modules', 'electron');
  mkdirSync(folder, { recursive: true });
  writeFileSync(path.join(folder, 'package.json'), '{ "version": "28.3.3" }');
  const { findings } = await doctor(around);
  const finding = findings.find((each) => each.name === 'electron');
  assert.equal(finding?.ok, false);
  assert.match(finding?.detail ?? '', /Electron 28\.3\.3, but 29 or newer/);
});

const cli = path.join(__dirname, '..', 'src', 'cli.js');

test('the command prints JSON, and its exit code is that of the verdict', () => {
  const { cwd } = project('command');
  const { status, stdout } = spawnSync(process.execPath, [cli, 'doctor', '--json'], { cwd });
  assert.equal(status, 1);
  const report = JSON.parse(stdout.toString());
  assert.equal(report.ok, false);
});

test('without a command it says which there are', () => {
  const { status, stdout } = spawnSync(process.execPath, [cli], { encoding: 'utf8' });
  assert.equal(status, 2);
  assert.match(stdout, /doctor/);
  assert.match(execFileSync(process.execPath, [cli, '--help'], { encoding: 'utf8' }), /encode/);
});

test('other commands are the program’s, with the model that an app would find', {
  skip: process.platform === 'win32',
}, () => {
  const { cwd } = project('pass', whole);
  mkdirSync(path.join(cwd, 'vision-sidecar'));
  const file = path.join(cwd, 'vision-sidecar', 'vision-sidecar');
  writeFileSync(file, '#!/bin/sh\nprintf "%s\\n" "$@"\nexit 7\n', { mode: 0o755 });
  const run = (...words: string[]) =>
    spawnSync(process.execPath, [cli, ...words], { cwd, encoding: 'utf8' });
  const model = path.join(cwd, 'vision-model');
  assert.deepEqual(run('verify').stdout.trim().split('\n'), ['verify', '--model', model]);
  assert.equal(run('verify').status, 7);
  assert.equal(run('encode', 'a.png', '--model', 'mine').stdout, 'encode\na.png\n--model\nmine\n');
});
