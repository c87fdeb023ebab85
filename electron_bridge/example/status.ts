/** The main process's side of api.ts, for Electron's ipcMain and for serve.ts alike. */

import type { IpcMainLike, VisionSidecar } from 'electron-vision-sidecar';
import { APP_CHANNELS, type Status } from './api.js';

export interface StatusOptions {
  /** Whether this frame is our page. */
  readonly allow: (url: string) => boolean;
  readonly developer: boolean;
}

export function registerStatus(
  ipcMain: IpcMainLike,
  starting: Promise<VisionSidecar>,
  { allow, developer }: StatusOptions,
): void {
  let sidecar: VisionSidecar | undefined;
  let failed = false;
  starting.then(
    (started) => {
      sidecar = started;
    },
    () => {
      failed = true;
    },
  );
  const handle = (channel: string, answer: () => unknown): void =>
    ipcMain.handle(channel, (event) => {
      if (!event.senderFrame || event.senderFrame.parent || !allow(event.senderFrame.url)) {
        throw new Error('this page may not ask');
      }
      return answer();
    });
  handle(APP_CHANNELS.status, () => status(sidecar, failed, developer));
  handle(APP_CHANNELS.restart, () => sidecar?.start().catch(() => undefined));
  handle(APP_CHANNELS.kill, () => {
    if (developer && sidecar?.pid) process.kill(sidecar.pid, 'SIGKILL');
  });
}

async function status(
  sidecar: VisionSidecar | undefined,
  failed: boolean,
  developer: boolean,
): Promise<Status> {
  if (!sidecar) return { state: failed ? 'failed' : 'starting', developer };
  const { modelId, modelRevision, recipe, model, resolutions, defaultResolution } = sidecar.info;
  const known = {
    state: sidecar.state,
    developer,
    model: {
      id: modelId,
      revision: modelRevision,
      recipe,
      digest: model,
      resolutions,
      defaultResolution,
    },
  };
  if (sidecar.state !== 'ready') return known;
  try {
    const { kernels, expected_ms } = await sidecar.stats();
    return {
      ...known,
      ...(kernels ? { kernels: kernels as NonNullable<Status['kernels']> } : {}),
      expectedMs: (expected_ms ?? {}) as Record<string, number>,
    };
  } catch {
    return known; // it died meanwhile; the state tells the page
  }
}
