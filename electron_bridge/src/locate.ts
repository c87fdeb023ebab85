/**
 * Where the frozen sidecar and the model are, in development and in a packaged app. Looks at the file
 * system, starts nothing.
 */

import { statSync } from 'node:fs';
import path from 'node:path';
import { type Fault, SidecarError } from './errors.js';
import { DEMO_MODEL, installedPackage, programPackage } from './packages.js';

/** Names that `extraResources` gives the two directories; see docs/bridge.md. */
export const PROGRAM = 'vision-sidecar';
export const MODEL = 'vision-model';

export interface Wanted {
  readonly command?: string | undefined;
  readonly args?: readonly string[] | undefined;
  readonly modelDir?: string | undefined;
}

export interface Located {
  readonly command: string;
  readonly args: readonly string[];
  readonly modelDir: string;
}

/** What locating depends on, besides what the app asked for. */
export interface Environment {
  readonly cwd: string;
  readonly platform: NodeJS.Platform;
  /** Electron's `process.resourcesPath`, in a packaged app only. */
  readonly resources?: string | undefined;
  readonly arch?: string | undefined;
  /** Where this package lies; as it is unless a test says otherwise. */
  readonly here?: string | undefined;
}

export function environment(): Environment {
  const electron = process as { resourcesPath?: string; defaultApp?: boolean };
  const packaged = process.versions.electron !== undefined && !electron.defaultApp;
  return {
    cwd: process.cwd(),
    platform: process.platform,
    resources: packaged ? electron.resourcesPath : undefined,
  };
}

/** Throws `sidecar.not_found` or `model.not_found`. */
export function locate(wanted: Wanted, around: Environment): Located {
  return {
    command: wanted.command === undefined ? findProgram(around) : asGiven(wanted.command, around),
    args: wanted.args ?? [],
    modelDir: findModel(wanted.modelDir, around),
  };
}

/** Throws `sidecar.not_found`. */
export function findProgram(around: Environment): string {
  const file = around.platform === 'win32' ? `${PROGRAM}.exe` : PROGRAM;
  const name = programPackage(around.platform, around.arch ?? process.arch);
  const places = directories(around, name).map((directory) => path.join(directory, PROGRAM, file));
  const found = places.find((place) => kindOf(place) === 'file');
  if (!found) {
    const remedy = around.resources
      ? `Let withVisionSidecar of electron-vision-sidecar/builder or /forge package it, or pass command.`
      : `Type: npm install ${name}. Or pass command.`;
    throw notFound('sidecar.not_found', 'the sidecar program', places, remedy);
  }
  return found;
}

/** Throws `model.not_found`. */
export function findModel(given: string | undefined, around: Environment): string {
  const places =
    given === undefined
      ? directories(around, DEMO_MODEL).map((directory) => path.join(directory, MODEL))
      : [outsideAsar(path.resolve(around.cwd, given), 'model.not_found')];
  const found = places.find((place) => kindOf(path.join(place, 'manifest.json')) === 'file');
  if (!found) {
    const remedy = around.resources
      ? 'Let withVisionSidecar of electron-vision-sidecar/builder or /forge package it, or pass modelDir.'
      : `Build one from your checkpoint, or try the demo model: npm install ${DEMO_MODEL}. Or pass modelDir.`;
    throw notFound('model.not_found', 'a model directory with a manifest.json', places, remedy);
  }
  return found;
}

/** A packaged app looks nowhere but into its own resources: a working directory may be anyone's. */
function directories(around: Environment, name: string): string[] {
  const { resources, cwd } = around;
  const packages = installedPackage(name, around) ?? [];
  if (resources) return [resources].concat(packages);
  return [packages, cwd, path.join(cwd, 'resources'), path.join(cwd, 'dist')].flat();
}

/** A bare name is left to the system's search path. */
function asGiven(command: string, { cwd }: Environment): string {
  if (!/[\\/]/.test(command)) return command;
  return outsideAsar(path.resolve(cwd, command), 'sidecar.not_found');
}

function outsideAsar(place: string, code: Fault['code']): string {
  if (/\.asar([\\/]|$)/.test(place)) {
    throw new SidecarError({
      code,
      message: `${place} is inside an asar archive, where no other program can read. Ship it by extraResources.`,
    });
  }
  return place;
}

function notFound(
  code: Fault['code'],
  what: string,
  places: string[],
  remedy: string,
): SidecarError {
  return new SidecarError({
    code,
    message: `expected ${what} at ${places.join(' or ')}; found none. ${remedy}`,
  });
}

function kindOf(place: string): 'file' | 'other' | undefined {
  const stats = statSync(place, { throwIfNoEntry: false });
  return stats && (stats.isFile() ? 'file' : 'other');
}
