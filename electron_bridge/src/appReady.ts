/** Whether Electron's `ready` is held back by who waits for us. Knows nothing of sidecars. */

import { createRequire } from 'node:module';
import path from 'node:path';
import type { Clock } from './clock.js';

/** The part of Electron's `app` that is used. */
export interface ReadyLike {
  isReady(): boolean;
}

const PATIENCE_MS = 1500; // an app that nobody holds back is ready long before

let warned = false;

/**
 * Electron fires `ready` only after an ESM main script was evaluated, so a promise that it awaits at its top
 * level holds back every window. Warns once where a start takes long and the app is not ready. Returns how to
 * call that off.
 */
export function watchReady(clock: Clock, app: ReadyLike | undefined = electronApp()): () => void {
  if (!app || warned || app.isReady()) return () => undefined;
  return clock.after(PATIENCE_MS, () => {
    if (warned || app.isReady()) return;
    warned = true;
    process.emitWarning(
      'Electron is not ready while the vision sidecar starts. Where the main script is an ES module, do not await VisionSidecar.start at its top level: Electron fires `ready` only after that. Await it inside of a function.',
      { code: 'VISION_SIDECAR_HOLDS_READY' },
    );
  });
}

/** Of Electron's main process; found at run time, so that no bundler looks for it. */
function electronApp(): ReadyLike | undefined {
  if (process.versions.electron === undefined) return undefined;
  try {
    const electron: unknown = createRequire(path.resolve('_'))('electron');
    const app = (electron as { app?: Partial<ReadyLike> }).app;
    return typeof app?.isReady === 'function' ? (app as ReadyLike) : undefined;
  } catch {
    return undefined;
  }
}
