/** The main process: one window, one sidecar, and nothing that a page could misuse. */

import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { app, BrowserWindow, ipcMain, powerMonitor, session } from 'electron';
import {
  closeBeforeQuit,
  followPower,
  registerVisionIpc,
  SidecarError,
  VisionSidecar,
} from 'electron-vision-sidecar';
import { registerStatus } from './status.js';

const page = path.join(__dirname, 'index.html'); // this file runs from dist/
const url = pathToFileURL(page).href;

async function main(): Promise<void> {
  const starting = VisionSidecar.start({
    log: ({ source, level, message }) => console.error(`${source} ${level}: ${message}`),
  });
  // The window need not wait for the model, and the user may quit while it loads.
  closeBeforeQuit(app, starting);
  const library = path.join(app.getPath('userData'), 'library.cases');
  registerVisionIpc(ipcMain, starting, {
    allow: [url],
    collections: { library: { path: library, writable: true } }, // the page knows the name, not the file
  });
  registerStatus(ipcMain, starting, {
    allow: (asking) => asking.split(/[?#]/)[0] === url,
    developer: !app.isPackaged,
  });
  starting.then(
    (sidecar) => followPower(powerMonitor, sidecar),
    (error: unknown) =>
      console.error(error instanceof SidecarError ? `${error.code}: ${error.message}` : error),
  );

  await app.whenReady();
  session.defaultSession.setPermissionRequestHandler((_, __, decide) => decide(false));
  const window = new BrowserWindow({
    width: 1280,
    height: 860,
    minWidth: 720,
    minHeight: 520,
    webPreferences: {
      preload: path.join(__dirname, 'preload.cjs'),
      contextIsolation: true,
      nodeIntegration: false,
      sandbox: true,
    },
  });
  window.webContents.setWindowOpenHandler(() => ({ action: 'deny' }));
  window.webContents.on('will-navigate', (event) => event.preventDefault());
  await window.loadFile(page);
}

app.on('window-all-closed', () => app.quit());

main().catch((error: unknown) => {
  console.error(error);
  app.exit(1);
});
