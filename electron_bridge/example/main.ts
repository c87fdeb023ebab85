/** The main process of a small app: one window, one sidecar, and nothing that a page could misuse. */

import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { app, BrowserWindow, ipcMain, powerMonitor } from 'electron';
import {
  closeBeforeQuit,
  followPower,
  registerVisionIpc,
  SidecarError,
  VisionSidecar,
} from 'electron-vision-sidecar';

const page = path.join(__dirname, '..', 'index.html'); // this file runs from dist/

async function main(): Promise<void> {
  const starting = VisionSidecar.start({
    log: ({ source, level, message }) => console.error(`${source} ${level}: ${message}`),
  });
  // The window need not wait for the model, and the user may quit while it loads.
  closeBeforeQuit(app, starting);
  registerVisionIpc(ipcMain, starting, { allow: [pathToFileURL(page).href] });

  await app.whenReady();
  const window = new BrowserWindow({
    width: 1000,
    height: 800,
    webPreferences: {
      preload: require.resolve('electron-vision-sidecar/preload-script'),
      contextIsolation: true,
      sandbox: true,
    },
  });
  await window.loadFile(page);
  followPower(powerMonitor, await starting);
}

app.on('window-all-closed', () => app.quit());

main().catch((error: unknown) => {
  console.error(error instanceof SidecarError ? `${error.code}: ${error.message}` : error);
  app.exit(1);
});
