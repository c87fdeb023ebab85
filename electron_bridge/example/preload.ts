/** The preload script: all that the page can reach. Sandboxed, so it imports nothing but electron. */

import { contextBridge, ipcRenderer } from 'electron';
import { exposeVision } from 'electron-vision-sidecar/preload';
import { APP_CHANNELS, type AppApi } from './api.js';

exposeVision(contextBridge, ipcRenderer);
contextBridge.exposeInMainWorld('app', {
  status: () => ipcRenderer.invoke(APP_CHANNELS.status),
  kill: () => ipcRenderer.invoke(APP_CHANNELS.kill),
  restart: () => ipcRenderer.invoke(APP_CHANNELS.restart),
} satisfies AppApi);
