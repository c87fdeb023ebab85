/** `electron-vision-sidecar/forge`: what the sidecar needs, added to a configuration of Electron Forge. */

import { cpSync, existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { namedAsExpected, shipped, type VisionResources, within } from './shipped.js';

export type { VisionResources } from './shipped.js';

type Ignore = RegExp | string | ((file: string) => boolean);
type AfterCopy = (
  forge: unknown,
  buildPath: string,
  electron: string,
  platform: string,
  arch: string,
) => Promise<void>;

/** The settings of Forge that are changed here; all others stay as they are. */
interface Settings {
  packagerConfig?: {
    asar?: boolean | { unpack?: string };
    extraResource?: string | string[];
    ignore?: Ignore | (RegExp | string)[];
  };
  rebuildConfig?: object;
  plugins?: readonly unknown[];
  hooks?: { packageAfterCopy?: AfterCopy };
}

/**
 * A configuration with which Electron Forge ships the program and the model beside `app.asar`, where the app looks for
 * them, and zeromq's library outside of it. Your own settings stay; lists are extended. With the Vite or the webpack
 * plugin, which leave `node_modules` out, zeromq is put back.
 *
 *     module.exports = withVisionSidecar({ packagerConfig: {}, makers: [...] })
 *
 * Throws a `SidecarError` where the program or the model is not installed: its message says what to type.
 */
export function withVisionSidecar<C extends object>(config: C, options: VisionResources = {}): C {
  const own = config as C & Settings;
  const packager = own.packagerConfig ?? {};
  const parts = shipped(options);
  return {
    ...own,
    packagerConfig: {
      ...packager,
      asar: packager.asar === false ? false : withLibraries(packager.asar),
      extraResource: [packager.extraResource ?? [], namedAsExpected(parts)].flat(),
      // The plugins choose what is packaged themselves, and complain about an `ignore` that is not theirs.
      ...(bundled(own) ? {} : { ignore: ignoring(packager.ignore, unwanted(parts)) }),
    },
    rebuildConfig: { onlyModules: [], ...own.rebuildConfig }, // zeromq's libraries are loaded as they are
    hooks: {
      ...own.hooks,
      packageAfterCopy: async (...copied: Parameters<AfterCopy>) => {
        await own.hooks?.packageAfterCopy?.(...copied);
        const [, buildPath, , platform, arch] = copied;
        copyTransport(parts.projectDir, buildPath, platform, arch);
      },
    },
  };
}

function withLibraries(asar: boolean | { unpack?: string } | undefined) {
  const given = typeof asar === 'object' ? asar : {};
  return { ...given, unpack: given.unpack ? `{${given.unpack},**/*.node}` : '**/*.node' };
}

/** Is the main process bundled by one of Forge's plugins? */
function bundled({ plugins = [] }: Settings): boolean {
  return plugins.some((plugin) => /vite|webpack/.test((plugin as { name?: string }).name ?? ''));
}

/** As Forge names files: from the app's folder, with a slash before. */
function unwanted({ programDir, modelDir, projectDir }: ReturnType<typeof shipped>): RegExp[] {
  const escaped = (text: string) => text.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
  const inside = [programDir, modelDir].flatMap((folder) => within(projectDir, folder) ?? []);
  const target = `(?!manifest\\.json$|${process.platform}($|/${process.arch}($|/)))`;
  return [
    ...inside.map((folder) => new RegExp(`^/${escaped(folder)}($|/)`)),
    /^\/node_modules\/electron-vision-sidecar-[^/]+($|\/)/,
    /^\/node_modules\/zeromq\/(src|script)($|\/)/,
    new RegExp(`^/node_modules/zeromq/build/${target}`),
    /^\/node_modules\/node-addon-api($|\/)/,
  ];
}

/** Their `ignore`, and ours as well. */
function ignoring(theirs: Ignore | (RegExp | string)[] | undefined, ours: RegExp[]): unknown {
  if (typeof theirs !== 'function') return [theirs ?? [], ours].flat();
  return (file: string) => theirs(file) || ours.some((pattern) => pattern.test(file));
}

/** Puts zeromq into a packaged app that came without `node_modules`: what it loads, for one platform. */
function copyTransport(
  projectDir: string,
  buildPath: string,
  platform: string,
  arch: string,
): void {
  const modules = path.join(buildPath, 'node_modules');
  if (existsSync(path.join(modules, 'zeromq'))) return;
  const require = createRequire(__filename);
  const zeromq = root(
    require.resolve('zeromq/package.json', { paths: [__dirname, projectDir] }),
    1,
  );
  const loader = root(require.resolve('cmake-ts/build/loader', { paths: [zeromq] }), 2);
  const library = path.join('build', platform, arch, 'node');
  for (const part of ['package.json', 'lib', path.join('build', 'manifest.json'), library]) {
    cpSync(path.join(zeromq, part), path.join(modules, 'zeromq', part), { recursive: true });
  }
  for (const part of ['package.json', path.join('build', 'loader.js')]) {
    cpSync(path.join(loader, part), path.join(modules, 'cmake-ts', part), { recursive: true });
  }
}

/** The folder so many levels above a file. */
function root(file: string, levels: number): string {
  return path.resolve(file, ...Array<string>(levels).fill('..'));
}
