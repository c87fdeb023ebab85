// The smallest app around the sidecar: starts it with the window, ends it with the app.
'use strict';

const { app, BrowserWindow, ipcMain } = require('electron');
const { VisionSidecar } = require('electron-vision-sidecar');

app.whenReady().then(() => {
  const starting = VisionSidecar.start();
  ipcMain.handle('encode', async (_event, image) => (await starting).encode({ image }));
  app.on('before-quit', async () => (await starting).close());
  return new BrowserWindow({ width: 900, height: 700 }).loadURL('about:blank');
});
