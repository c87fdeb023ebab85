/** Builds the example app into dist/app: its page and the server that shows it in a browser. */

import { existsSync } from 'node:fs';
import path from 'node:path';

const root = path.dirname(import.meta.dirname);

if (existsSync(path.join(root, 'node_modules', 'vite'))) {
  const { buildApp, ENTRIES } = await import('../example/build.mjs');
  const esm = (name) => path.join(root, 'dist', 'esm', `${name}.js`);
  const alias = {
    'electron-vision-sidecar/vectors': esm('vectors'),
    'electron-vision-sidecar/preload': esm('preload'),
  };
  const served = ENTRIES.filter(([entry]) => entry === 'serve.ts'); // Electron's parts are built in an app
  await buildApp(path.join(root, 'dist', 'app'), alias, served);
} else {
  console.error('Vite is missing, so dist/app is left out. Run npm ci.');
}
