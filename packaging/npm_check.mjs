// Uses the packages in dist/npm as a stranger would: installs them in an empty directory, encodes an image without
// Python on the PATH, and lets `doctor` judge the installation, whole and with each thing broken in turn.
//
//     node packaging/npm_check.mjs IMAGE

import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import {
  appendFileSync,
  chmodSync,
  copyFileSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

const tarballs = path.resolve(import.meta.dirname, '..', 'dist', 'npm');
const [image] = process.argv.slice(2);
assert(image, 'usage: node packaging/npm_check.mjs IMAGE');
const project = mkdtempSync(path.join(tmpdir(), 'Herz & Röntgen '));
const modules = path.join(project, 'node_modules');
const program = `electron-vision-sidecar-${process.platform}-${process.arch}`;
const file = process.platform === 'win32' ? 'vision-sidecar.exe' : 'vision-sidecar';
const model = path.join(modules, 'electron-vision-sidecar-demo-model', 'vision-model');
const shell = process.platform === 'win32';
// Node is there, and nothing else: no Python, no compiler, no home directory.
const env = { PATH: path.dirname(process.execPath), SystemRoot: process.env.SystemRoot };

try {
  install();
  encodes();
  assert(judged().ok);
  console.log('doctor: an app would work');
  for (const [what, breakIt, sentence] of faults()) {
    const mend = breakIt();
    const report = judged();
    assert(!report.ok, what);
    const { detail } = report.findings.find((each) => !each.ok);
    assert.match(detail, sentence, what);
    console.log(`doctor, with ${what}: ${detail.replaceAll(project, '…')}`);
    mend();
  }
  assert(judged().ok);
} finally {
  rmSync(project, { recursive: true });
}

function install() {
  const packed = readdirSync(tarballs).map((name) => path.join(tarballs, name));
  writeFileSync(path.join(project, 'package.json'), '{ "private": true }');
  execFileSync('npm', ['install', '--no-audit', '--no-fund', '--silent', ...packed], {
    cwd: project,
    stdio: 'inherit',
    shell,
  });
  copyFileSync(image, path.join(project, 'ecg.png'));
}

function encodes() {
  const code = `import('electron-vision-sidecar').then(async ({ VisionSidecar }) => {
    const s = await VisionSidecar.start();
    console.log((await s.encode('ecg.png')).attentionScores.shape.join());
    await s.close();
  })`;
  const said = execFileSync(process.execPath, ['-e', code], {
    cwd: project,
    env,
    encoding: 'utf8',
  });
  assert.equal(said.trim(), '1,256');
  console.log('an empty directory, without Python: encodes');
}

/** What doctor reports; its exit code says the same. */
function judged() {
  const cli = path.join(modules, 'electron-vision-sidecar', 'dist', 'cli.js');
  const { status, stdout } = spawnSync(process.execPath, [cli, 'doctor', '--json'], {
    cwd: project,
    env,
  });
  const report = JSON.parse(stdout.toString());
  assert.equal(status, report.ok ? 0 : 1);
  return report;
}

/** A name, what breaks the installation and gives back what mends it, and the sentence expected. */
function faults() {
  const away = (name) => () => {
    renameSync(path.join(modules, name), path.join(project, 'away'));
    return () => renameSync(path.join(project, 'away'), path.join(modules, name));
  };
  const main = path.join(modules, program, 'vision-sidecar', file);
  const damaged = path.join(model, 'vision_encoder_quant.onnx');
  const runBit = () => {
    chmodSync(main, 0o644);
    return () => chmodSync(main, 0o755);
  };
  const oneByte = () => {
    copyFileSync(damaged, path.join(project, 'good'));
    appendFileSync(damaged, 'x');
    return () => renameSync(path.join(project, 'good'), damaged);
  };
  return [
    ['no program', away(program), /^sidecar\.not_found: .*npm install/],
    ...(process.platform === 'win32' ? [] : [['no run bit', runBit, /chmod \+x/]]),
    ['no model', away('electron-vision-sidecar-demo-model'), /^model\.not_found: .*npm install/],
    ['a changed model file', oneByte, /^model\.invalid: vision_encoder_quant\.onnx/],
    ['no addon', away('zeromq'), /^bridge\.transport_missing: .*zeromq/],
  ];
}
