/** Starts the bridge on a real sidecar with a tiny model: `VISION_SIDECAR` names a frozen one, else Python. */

import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, statSync } from 'node:fs';
import path from 'node:path';
import type { StartOptions } from '../src/options.js';
import { VisionSidecar } from '../src/sidecar.js';
import { repository } from './golden.js';

export const picture = path.join(repository, 'examples', 'ecg.png');
export const python = path.join(
  repository,
  '.venv',
  process.platform === 'win32' ? 'Scripts/python.exe' : 'bin/python',
);

const frozen = process.env.VISION_SIDECAR;
const asModule: StartOptions = { command: python, args: ['-m', 'sidecar'], cwd: repository };
export const program: StartOptions = frozen ? { command: frozen } : asModule;
/** What is tested, and beside a frozen program the module. */
export const programs = frozen && existsSync(python) ? [program, asModule] : [program];

/** Two random layers; built once, and again when what builds it has changed. */
export function tinyModel(): string {
  const directory = path.join(repository, '.work', 'bridge-model');
  const manifest = path.join(directory, 'manifest.json');
  const sources = ['build', 'sidecar', 'tests/tiny.py'].flatMap((place) => files(place));
  const newest = Math.max(...sources.map((file) => statSync(file).mtimeMs));
  if (!existsSync(manifest) || statSync(manifest).mtimeMs < newest) {
    execFileSync(python, ['-m', 'tests.tiny', directory], { cwd: repository, stdio: 'pipe' });
  }
  return directory;
}

export function startReal(
  options: StartOptions = {},
  internals: Parameters<typeof VisionSidecar.start>[1] = {},
): Promise<VisionSidecar> {
  const started = { ...program, modelDir: tinyModel(), threads: 1, ...options };
  return VisionSidecar.start(started, internals);
}

/** Runs the sidecar's own command line to its end; what it printed. */
export function runReal(...args: string[]): string {
  return run(program, ...args);
}

/** The same of one of `programs`. */
export function run({ command, args: first = [] }: StartOptions, ...args: string[]): string {
  return execFileSync(command as string, [...first, ...args], {
    cwd: repository,
    stdio: 'pipe',
    encoding: 'utf8',
  });
}

function files(place: string): string[] {
  const start = path.join(repository, place);
  if (statSync(start).isFile()) return [start];
  return readdirSync(start)
    .filter((name) => name.endsWith('.py'))
    .map((name) => path.join(start, name));
}
