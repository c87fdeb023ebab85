/**
 * Compiles src/ to dist/: CommonJS, which both `require` and `import` use in Node; the same as ES modules in
 * dist/esm for bundlers; and the one-file preload script that a sandboxed page can have.
 */

import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const root = path.dirname(import.meta.dirname);
const dist = path.join(root, 'dist');
const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc');

rmSync(dist, { recursive: true, force: true });
execFileSync(process.execPath, [tsc, '-p', root], { stdio: 'inherit' });
const esm = path.join(dist, 'esm');
const modules = ['--module', 'es2022', '--moduleResolution', 'bundler', '--declaration', 'false'];
execFileSync(process.execPath, [tsc, '-p', root, '--outDir', esm, ...modules], {
  stdio: 'inherit',
});
writeFileSync(path.join(esm, 'package.json'), '{ "type": "module" }\n');

// A sandboxed preload can require nothing but electron: preload.js itself, and one line more.
const preload = readFileSync(path.join(dist, 'preload.js'), 'utf8');
const call = 'exposeVision(require("electron").contextBridge, require("electron").ipcRenderer);';
writeFileSync(path.join(dist, 'preload-script.js'), `${preload}\n${call}\n`);
