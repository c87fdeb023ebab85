// Bundles a small main process with esbuild, Vite and webpack, as CommonJS and as ES modules, with the configurations that
// Electron projects use, and lets each bundle start the sidecar and encode an image under Node.
//
//     node packaging/bundlers/check.mjs SIDECAR MODEL IMAGE
//
// SIDECAR is the folder of the frozen program. The bundlers and the packed bridge are installed in .work/bundlers.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { builtinModules, createRequire } from 'node:module';
import path from 'node:path';

const here = import.meta.dirname;
const root = path.resolve(here, '..', '..');
const work = path.join(root, '.work', 'bundlers');
const [sidecar, model, image] = process.argv.slice(2).map((each) => path.resolve(each));
assert(image, 'usage: node packaging/bundlers/check.mjs SIDECAR MODEL IMAGE');

const entry = path.join(work, 'main.js');
const external = ['electron', ...builtinModules, ...builtinModules.map((name) => `node:${name}`)];
prepare();
const require = createRequire(path.join(work, 'package.json'));
const bundlers = { esbuild, vite, webpack };
const failures = [];
for (const [name, bundle] of Object.entries(bundlers)) {
  for (const format of ['cjs', 'esm']) {
    const out = path.join(work, 'out', name, `${format}.${format === 'cjs' ? 'cjs' : 'mjs'}`);
    await bundle(format, out);
    const problem = tried(out);
    console.log(
      `${name} ${require(`${name}/package.json`).version}, ${format}: ${problem ?? 'encodes'}`,
    );
    if (problem) failures.push(out);
  }
}
process.exit(failures.length ? 1 : 0);

/** The bundlers, the bridge as npm packs it, and a main process that uses it. */
function prepare() {
  mkdirSync(work, { recursive: true });
  rmSync(path.join(work, 'out'), { recursive: true, force: true });
  for (const file of ['package.json', 'package-lock.json'])
    cpSync(path.join(here, file), path.join(work, file));
  npm(work, 'ci', '--no-audit', '--no-fund');
  const bridge = path.join(root, 'electron_bridge');
  const [packed] = JSON.parse(
    npm(bridge, 'pack', '--json', '--ignore-scripts', '--pack-destination', work),
  );
  npm(work, 'install', '--no-save', '--no-audit', '--no-fund', path.join(work, packed.filename));
  writeFileSync(
    entry,
    `import { VisionSidecar } from 'electron-vision-sidecar';
const [command, modelDir, image] = process.argv.slice(2);
VisionSidecar.start({ command, modelDir })
  .then(async (sidecar) => {
    const { attentionScores } = await sidecar.encode({ path: image });
    await sidecar.close();
    console.log(attentionScores.shape.join('x'));
  })
  .catch((error) => {
    console.log(error.code, error.message, error.cause?.message);
    process.exit(1);
  });
`,
  );
}

/** As in a build script: \`esbuild main.js --bundle --platform=node --external:electron\`. */
async function esbuild(format, outfile) {
  const { build } = require('esbuild');
  const options = { bundle: true, platform: 'node', external: ['electron'], logLevel: 'warning' };
  await build({ ...options, entryPoints: [entry], format, outfile });
}

/** As Electron Forge's Vite plugin and electron-vite do: a library for Node, only Node's own modules external. */
async function vite(format, outfile) {
  const { build } = await import(
    path.join(path.dirname(require.resolve('vite/package.json')), 'dist/node/index.js')
  );
  await build({
    root: work,
    configFile: false,
    logLevel: 'warn',
    resolve: { conditions: ['node'], mainFields: ['module', 'jsnext:main', 'jsnext'] },
    build: {
      outDir: path.dirname(outfile),
      emptyOutDir: false,
      lib: {
        entry,
        formats: [format === 'cjs' ? 'cjs' : 'es'],
        fileName: () => path.basename(outfile),
      },
      rollupOptions: { external },
    },
  });
}

/** As Electron Forge's webpack plugin does: the target is Electron's main process. */
async function webpack(format, outfile) {
  const compile = require('webpack');
  const esm = format === 'esm';
  const configuration = {
    context: work,
    entry,
    target: 'electron-main',
    mode: 'production',
    devtool: false,
    experiments: { outputModule: esm },
    output: { path: path.dirname(outfile), filename: path.basename(outfile), module: esm },
  };
  await new Promise((resolve, reject) => {
    compile(configuration, (error, stats) => {
      if (error || stats.hasErrors()) reject(error ?? new Error(stats.toString('errors-only')));
      else resolve();
    });
  });
}

/** What went wrong when Node ran the bundle; undefined where the sidecar answered. */
function tried(bundle) {
  const program = path.join(
    sidecar,
    process.platform === 'win32' ? 'vision-sidecar.exe' : 'vision-sidecar',
  );
  try {
    const said = execFileSync(process.execPath, [bundle, program, model, image], {
      cwd: work,
      encoding: 'utf8',
    });
    return said.trim() === '1x256' ? undefined : said.trim();
  } catch (error) {
    return `${error.stdout}${error.stderr}`.trim().split('\n').slice(0, 8).join('\n');
  }
}

function npm(cwd, ...args) {
  return execFileSync('npm', args, { cwd, encoding: 'utf8', shell: process.platform === 'win32' });
}
