/** A preload script of one's own, for an app that has more to expose; main.ts uses the ready-made one. */

import { contextBridge, ipcRenderer } from 'electron';
import { exposeVision } from 'electron-vision-sidecar/preload';

exposeVision(contextBridge, ipcRenderer);
