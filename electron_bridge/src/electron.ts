/** An app's lifecycle: quitting and sleeping. Electron itself is not imported: it comes as arguments. */

import { abortStart } from './starting.js';

/** The part of Electron's `app` that is used. */
export interface AppLike {
  on(event: 'before-quit', listener: (event: { preventDefault(): void }) => void): unknown;
  off(event: 'before-quit', listener: (event: { preventDefault(): void }) => void): unknown;
  quit(): void;
}

/** The part of Electron's `powerMonitor` that is used. */
export interface PowerMonitorLike {
  on(event: 'suspend', listener: () => void): unknown;
  on(event: 'resume', listener: () => void): unknown;
  off(event: 'suspend', listener: () => void): unknown;
  off(event: 'resume', listener: () => void): unknown;
}

/**
 * Holds the app's quitting until the sidecar has been closed (up to 2 s; 5 s where it has to be
 * killed). A sidecar that is still starting may be given as its promise: the start is then ended. Where
 * the promise is another one than `VisionSidecar.start` gave, 5 s are waited for it; the sidecar ends with
 * the app in any case. Returns how to undo it.
 */
export function closeBeforeQuit(app: AppLike, sidecar: Closing | PromiseLike<Closing>): () => void {
  let closing = false;
  const hold = (event: { preventDefault(): void }): void => {
    event.preventDefault();
    if (closing) return;
    closing = true;
    void close(sidecar).then(() => {
      undo();
      app.quit();
    });
  };
  const undo = (): void => void app.off('before-quit', hold);
  app.on('before-quit', hold);
  return undo;
}

/** Tells the sidecar of the computer's sleep, so that it is not taken for a crash. Returns how to undo it. */
export function followPower(
  powerMonitor: PowerMonitorLike,
  sidecar: { suspended(): void; resumed(): void },
): () => void {
  const suspend = (): void => sidecar.suspended();
  const resume = (): void => sidecar.resumed();
  powerMonitor.on('suspend', suspend);
  powerMonitor.on('resume', resume);
  return () => {
    powerMonitor.off('suspend', suspend);
    powerMonitor.off('resume', resume);
  };
}

interface Closing {
  close(): Promise<void>;
}

const PATIENCE_MS = 5000;

async function close(sidecar: Closing | PromiseLike<Closing>): Promise<void> {
  abortStart(sidecar); // of no effect on one that has started
  let timer: NodeJS.Timeout | undefined;
  const patience = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, PATIENCE_MS);
  });
  try {
    await Promise.race([closed(sidecar), patience]);
  } catch {
    // it never started: nothing is left to close
  } finally {
    clearTimeout(timer);
  }
}

async function closed(sidecar: Closing | PromiseLike<Closing>): Promise<void> {
  await (await sidecar).close();
}
