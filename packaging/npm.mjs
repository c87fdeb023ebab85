// Makes the npm packages in dist/npm/: the bridge, the frozen program for this platform, and the demo model.
//
//     node packaging/npm.mjs [--only bridge|program|model] [SIDECAR] [MODEL]
//
// SIDECAR is dist/vision-sidecar, MODEL is .work/demo-model unless named. All have the version of electron_bridge/package.json.

import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';

const root = path.resolve(import.meta.dirname, '..');
const work = path.join(root, '.work', 'npm');
const out = path.join(root, 'dist', 'npm');
const bridge = path.join(root, 'electron_bridge');
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { only: { type: 'string' } },
});
const sidecar = path.resolve(positionals[0] ?? path.join(root, 'dist', 'vision-sidecar'));
const model = path.resolve(positionals[1] ?? path.join(root, '.work', 'demo-model'));

const PLATFORMS = ['linux-x64', 'darwin-arm64', 'darwin-x64', 'win32-x64'];
const own = JSON.parse(readFileSync(path.join(bridge, 'package.json'), 'utf8'));
const { name, version, license } = own;
const common = { version, license, ...addresses() };

const kinds = {
  bridge: ['the compiled bridge', path.join(bridge, 'dist', 'index.js'), 'make install', main],
  program: ['a frozen program', path.join(sidecar, '_internal'), 'make freeze', program],
  model: ['a model directory', path.join(model, 'manifest.json'), 'make demo', demoModel],
};
const wanted = values.only ? [values.only] : Object.keys(kinds);
for (const kind of wanted) {
  assert(
    kinds[kind],
    'usage: node packaging/npm.mjs [--only bridge|program|model] [SIDECAR] [MODEL]',
  );
  const [what, file, remedy] = kinds[kind];
  if (!existsSync(file)) {
    console.error(`expected ${what} with ${file}; found none. Type: ${remedy}`);
    process.exit(1);
  }
}
if (!addresses().repository) {
  console.log(
    'This clone has no remote: the packages will name no repository, homepage or bug tracker.',
  );
}
rmSync(work, { recursive: true, force: true });
if (!values.only) rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
const stages = Object.fromEntries(wanted.map((kind) => [kind, kinds[kind].at(-1)()]));
if (stages.program) proveItRuns();
for (const stage of Object.values(stages)) pack(stage);

/** The program as it will be installed, without its links: it says its version, or runs the model once. */
function proveItRuns() {
  const file = process.platform === 'win32' ? 'vision-sidecar.exe' : 'vision-sidecar';
  const verify = ['verify', '--model', path.join(stages.model ?? '', 'vision-model')];
  execFileSync(
    path.join(stages.program, 'vision-sidecar', file),
    stages.model ? verify : ['--version'],
    { stdio: ['ignore', 'ignore', 'inherit'] },
  );
}

/** The bridge, which asks npm for the program of the user's platform. */
function main() {
  const stage = path.join(work, name);
  for (const each of ['dist', 'LICENSE', 'README.md', 'THIRD_PARTY_LICENSES.txt']) {
    copy(path.join(bridge, each), stage);
  }
  const pages = readdirSync(path.join(root, 'docs')).filter((page) => page.endsWith('.md'));
  for (const page of pages) copy(path.join(root, 'docs', page), path.join(stage, 'docs'));
  const optionalDependencies = Object.fromEntries(
    PLATFORMS.map((platform) => [`${name}-${platform}`, version]),
  );
  const { devDependencies, scripts, files, ...kept } = own;
  return write(stage, { ...kept, ...addresses(), files: [...files, 'docs'], optionalDependencies });
}

/** The frozen program. npm installs it only where it can run. */
function program() {
  const { platform, arch } = process;
  const full = `${name}-${platform}-${arch}`;
  const stage = path.join(work, full);
  copy(sidecar, stage, 'vision-sidecar');
  copy(path.join(root, 'LICENSE'), stage);
  const text = `The program of [electron-vision-sidecar](https://www.npmjs.com/package/${name}) for ${platform} on ${arch}. Install that package;
it brings this one. Terms of everything in it: \`vision-sidecar/THIRD_PARTY_LICENSES.txt\`.`;
  const libc = platform === 'linux' ? { libc: ['glibc'] } : {};
  const description = `The vision sidecar's program for ${platform} on ${arch}.`;
  return write(
    stage,
    {
      name: full,
      ...common,
      description,
      os: [platform],
      cpu: [arch],
      ...libc,
      files: ['vision-sidecar'],
    },
    text,
  );
}

/** The model of \`make demo\`, with the terms of what it was made from. */
function demoModel() {
  const full = `${name}-demo-model`;
  const stage = path.join(work, full);
  copy(model, stage, 'vision-model');
  copy(path.join(root, 'packaging', 'notices', 'demo-model.txt'), stage, 'NOTICE.txt');
  copy(path.join(root, 'LICENSE'), stage);
  const text = `A small stand-in model for [electron-vision-sidecar](https://www.npmjs.com/package/${name}), to try it with. It has had no medical
training: never use its embeddings for anything but a trial. It was made from a DINOv2-S backbone; see \`NOTICE.txt\`.`;
  const description = 'A small stand-in model for electron-vision-sidecar, to try it with.';
  return write(
    stage,
    { name: full, ...common, description, files: ['vision-model', 'NOTICE.txt'] },
    text,
  );
}

/** Where the project lives, as far as this clone or the workflow knows. */
function addresses() {
  const { GITHUB_REPOSITORY: known, GITHUB_SERVER_URL: server = 'https://github.com' } =
    process.env;
  const url = known ? `${server}/${known}` : remote();
  if (!url) return {};
  return {
    repository: { type: 'git', url: `git+${url}.git` },
    homepage: `${url}#readme`,
    bugs: `${url}/issues`,
  };
}

function remote() {
  const { status, stdout } = spawnSync('git', ['-C', root, 'remote', 'get-url', 'origin'], {
    encoding: 'utf8',
  });
  const [, place] = /^(?:https:\/\/|git@)(.+?)(?:\.git)?$/.exec(status ? '' : stdout.trim()) ?? [];
  return place && `https://${place.replace(':', '/')}`;
}

/**
 * npm leaves symbolic links out of a package. On Linux those of a bundle only repeat libraries that are found by their
 * run path; elsewhere they become what they point to.
 */
function copy(source, stage, as = path.basename(source)) {
  const filter = (file) => process.platform !== 'linux' || !lstatSync(file).isSymbolicLink();
  cpSync(realpathSync(source), path.join(stage, as), {
    recursive: true,
    dereference: true,
    filter,
  });
}

function write(stage, manifest, readme) {
  writeFileSync(path.join(stage, 'package.json'), `${JSON.stringify(manifest, undefined, 2)}\n`);
  if (readme) writeFileSync(path.join(stage, 'README.md'), `# ${manifest.name}\n\n${readme}\n`);
  return stage;
}

function pack(stage) {
  const args = ['pack', '--json', '--ignore-scripts', '--pack-destination', out];
  const said = execFileSync('npm', args, {
    cwd: stage,
    encoding: 'utf8',
    shell: process.platform === 'win32',
    maxBuffer: 2 ** 26,
  });
  const [packed] = JSON.parse(said);
  const { filename, entryCount } = packed;
  const { size } = statSync(path.join(out, filename));
  assert(entryCount > 3, filename);
  console.log(`dist/npm/${filename}: ${(size / 1e6).toFixed(1)} MB, ${entryCount} files`);
}
