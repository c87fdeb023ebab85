/** Compiles src/ to dist/, and makes the one-file preload script that a sandboxed page can have. */

import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const root = path.dirname(import.meta.dirname);
const dist = path.join(root, 'dist');
const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc');

rmSync(dist, { recursive: true, force: true });
execFileSync(process.execPath, [tsc, '-p', root], { stdio: 'inherit' });

// A sandboxed preload can require nothing but electron: preload.js itself, and one line more.
const preload = readFileSync(path.join(dist, 'preload.js'), 'utf8');
const call = 'exposeVision(require("electron").contextBridge, require("electron").ipcRenderer);';
writeFileSync(path.join(dist, 'preload-script.js'), `${preload}\n${call}\n`);
