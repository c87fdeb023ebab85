/**
 * Builds the app with Vite into dist/: the page; main.cjs and preload.cjs for Electron; serve.mjs, which
 * shows the same page in a browser. A sandboxed preload script must be one CommonJS file.
 */

import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { build } from 'vite';

const root = import.meta.dirname;

export const ENTRIES = [
  ['main.ts', 'cjs', 'main.cjs'],
  ['preload.ts', 'cjs', 'preload.cjs'],
  ['serve.ts', 'es', 'serve.mjs'],
];

/** `alias`: where the package is found when the app is built inside of the package's own repository. */
export async function buildApp(outDir = path.join(root, 'dist'), alias = {}, entries = ENTRIES) {
  const shared = { root, configFile: false, logLevel: 'warn', publicDir: false };
  await build({
    ...shared,
    base: './',
    resolve: { alias },
    build: { outDir, emptyOutDir: true, target: 'chrome120', modulePreload: { polyfill: false } },
  });
  for (const [entry, format, file] of entries) {
    await build({
      ...shared,
      // The package stays outside of what runs in Node: it finds its program and its addon by its place.
      resolve: entry === 'preload.ts' ? { alias, conditions: ['default'] } : {},
      build: {
        outDir,
        emptyOutDir: false,
        minify: false,
        target: 'node20',
        lib: { entry: path.join(root, entry), formats: [format], fileName: () => file },
        rolldownOptions: {
          external: [
            /^node:/,
            'electron',
            ...(entry === 'preload.ts' ? [] : [/^electron-vision-sidecar/]),
          ],
        },
      },
    });
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await buildApp();
