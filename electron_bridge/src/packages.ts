/** Which npm packages hold the program and the demo model, and where they are installed. Looks at files, loads none. */

import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

export const DEMO_MODEL = 'electron-vision-sidecar-demo-model';

/** The package with the program for one kind of computer, `electron-vision-sidecar-linux-x64` for example. */
export function programPackage(platform: string, arch: string): string {
  return `electron-vision-sidecar-${platform}-${arch}`;
}

export interface Installation {
  readonly platform: NodeJS.Platform;
  readonly arch?: string | undefined;
  readonly cwd: string;
  /** Electron's `process.resourcesPath`, in a packaged app only. */
  readonly resources?: string | undefined;
  /** Where this code lies; empty where a bundler took that knowledge away. */
  readonly here?: string | undefined;
}

/** Where a package is installed; undefined if it is not. */
export function installedPackage(name: string, around: Installation): string | undefined {
  if (around.resources === undefined) return resolved(name, around);
  // A packaged app looks nowhere but into its own resources, and nothing can be started inside an archive.
  return ['app.asar.unpacked', 'app']
    .map((folder) => path.join(around.resources ?? '', folder, 'node_modules', name))
    .find((place) => existsSync(path.join(place, 'package.json')));
}

/** As `require` finds it, so that the layouts of npm, pnpm and Yarn all work. */
function resolved(name: string, around: Installation): string | undefined {
  const here = around.here ?? (typeof __dirname === 'undefined' ? around.cwd : __dirname);
  for (const base of [here, around.cwd]) {
    try {
      return path.dirname(createRequire(path.join(base, '_')).resolve(`${name}/package.json`));
    } catch {
      // Not installed for this base; the next one may see it.
    }
  }
  return undefined;
}
