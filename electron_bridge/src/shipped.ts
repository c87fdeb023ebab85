/** What a packaging tool must put beside an app: the program and the model, found as in development. Runs in the build only. */

import path from 'node:path';
import { SidecarError } from './errors.js';
import { findModel, findProgram, MODEL, PROGRAM } from './locate.js';

export interface VisionResources {
  /** The model directory to ship: the one that an app in development would find, unless given. */
  readonly modelDir?: string;
  /** The folder of the frozen program, likewise. */
  readonly programDir?: string;
  /** The app's own folder: the working directory, unless given. */
  readonly projectDir?: string;
}

export interface Shipped {
  readonly programDir: string;
  readonly modelDir: string;
  readonly projectDir: string;
}

/** Absolute paths. Throws `sidecar.not_found` or `model.not_found`, which say what to install. */
export function shipped(options: VisionResources): Shipped {
  const projectDir = path.resolve(options.projectDir ?? process.cwd());
  const around = { cwd: projectDir, platform: process.platform };
  const { programDir: given, modelDir } = options;
  return {
    programDir: given ? path.resolve(projectDir, given) : path.dirname(findProgram(around)),
    modelDir: findModel(modelDir, around),
    projectDir,
  };
}

/** For tools that keep a folder's name: the app looks for these two names only. */
export function namedAsExpected({ programDir, modelDir }: Shipped): string[] {
  for (const [folder, name] of [
    [programDir, PROGRAM],
    [modelDir, MODEL],
  ] as const) {
    if (path.basename(folder) !== name) {
      const code = name === MODEL ? 'model.not_found' : 'sidecar.not_found';
      const message = `expected a folder named ${name}, which the app will look for; ${folder} has another name. Rename it.`;
      throw new SidecarError({ code, message });
    }
  }
  return [programDir, modelDir];
}

/** Of `inner`, its path within `outer` with slashes; undefined if it lies elsewhere. */
export function within(outer: string, inner: string): string | undefined {
  const relative = path.relative(outer, inner);
  if (relative.startsWith('..') || path.isAbsolute(relative)) return undefined;
  return relative.split(path.sep).join('/');
}
