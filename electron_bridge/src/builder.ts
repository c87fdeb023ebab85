/** `electron-vision-sidecar/builder`: what the sidecar needs, added to a configuration of electron-builder. */

import { shipped, type VisionResources, within } from './shipped.js';

export type { VisionResources } from './shipped.js';

/** The settings of electron-builder that are changed here; all others stay as they are. */
interface Settings {
  asar?: boolean | object | null;
  asarUnpack?: unknown;
  files?: unknown;
  extraResources?: unknown;
  npmRebuild?: boolean;
  win?: { signExts?: string[] | null } | null;
}

/** zeromq's package carries its library for every system, and the tools to compile it: 34 MB become 4. */
const ZEROMQ = [
  '!node_modules/zeromq/{src,script}{,/**/*}',
  '!node_modules/zeromq/build/*/**',
  // biome-ignore lint/suspicious/noTemplateCurlyInString: electron-builder's own macros
  'node_modules/zeromq/build/${platform}/${arch}/node/{glibc,libc,msvc}-{115,127}-Release/*',
  '!node_modules/node-addon-api{,/**/*}',
  '!node_modules/cmake-ts/{src,*.mts}{,/**/*}',
  '!node_modules/cmake-ts/build/!(loader.js)',
];

/**
 * A configuration with which electron-builder ships the program and the model beside `app.asar`, where the app looks for
 * them, and zeromq's library outside of it. Your own settings stay; lists are extended.
 *
 *     module.exports = withVisionSidecar({ appId: 'org.example.app', linux: { target: 'deb' } })
 *
 * Throws a `SidecarError` where the program or the model is not installed: its message says what to type.
 */
export function withVisionSidecar<C extends object>(config: C, options: VisionResources = {}): C {
  const own = config as C & Settings;
  const { programDir, modelDir, projectDir } = shipped(options);
  const inside = [programDir, modelDir].flatMap((folder) => within(projectDir, folder) ?? []);
  return {
    ...own,
    // An archive is one file: nothing inside it can be started, or loaded as a library. `smartUnpack` would put all of
    // zeromq's package beside it, and a second copy of the program.
    asar: own.asar === false ? false : { smartUnpack: false, ...asObject(own.asar) },
    asarUnpack: [...list(own.asarUnpack), '**/*.node'],
    extraResources: [
      ...list(own.extraResources),
      { from: forEachTarget(programDir), to: 'vision-sidecar' },
      { from: modelDir, to: 'vision-model' },
    ],
    files: [
      ...(own.files === undefined || own.files === null ? ['**/*'] : list(own.files)),
      '!node_modules/electron-vision-sidecar-*{,/**/*}',
      ...inside
        .filter((folder) => !folder.startsWith('node_modules/'))
        .map((folder) => `!${folder}{,/**/*}`),
      ...ZEROMQ,
    ],
    npmRebuild: own.npmRebuild ?? false, // zeromq's libraries are loaded as they are, by Node and by Electron
    win: { ...own.win, signExts: [...list(own.win?.signExts), '.dll', '.pyd', '.node'] },
  };
}

/** The installed package of this computer names its platform; another target's lies beside it under its own name. */
function forEachTarget(programDir: string): string {
  // biome-ignore lint/suspicious/noTemplateCurlyInString: electron-builder's own macros
  const macros = 'electron-vision-sidecar-${platform}-${arch}';
  return programDir.replace(
    `electron-vision-sidecar-${process.platform}-${process.arch}`,
    () => macros,
  );
}

function asObject(value: unknown): object {
  return typeof value === 'object' && value !== null ? value : {};
}

function list(value: unknown): unknown[] {
  if (value === undefined || value === null) return [];
  return Array.isArray(value) ? value : [value];
}
