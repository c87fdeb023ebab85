/** Abort signals: one listener on each, however many calls carry it. Knows no calls. */

import { SidecarError } from './errors.js';

interface Watch {
  readonly actions: Set<() => void>;
  stop(): void;
}

/** Node warns of a leak where more than ten listeners are on one signal. */
const watches = new WeakMap<AbortSignal, Watch>();

/** Calls `action` when `signal` is aborted; the returned function calls that off. */
export function onAbort(signal: AbortSignal, action: () => void): () => void {
  const watch = watches.get(signal) ?? startWatch(signal);
  const once = (): void => action(); // the same action may be given twice
  watch.actions.add(once);
  return () => {
    watch.actions.delete(once);
    if (watch.actions.size === 0) watch.stop();
  };
}

/** The error that a call rejects with when its signal was aborted. */
export function cancelled(signal: AbortSignal | undefined): SidecarError {
  return new SidecarError(
    { code: 'request.cancelled', message: 'the call was aborted.' },
    { cause: signal?.reason },
  );
}

function startWatch(signal: AbortSignal): Watch {
  const actions = new Set<() => void>();
  const fire = (): void => {
    stop();
    for (const action of [...actions]) action();
  };
  const stop = (): void => {
    signal.removeEventListener('abort', fire);
    watches.delete(signal);
  };
  signal.addEventListener('abort', fire);
  const watch = { actions, stop };
  watches.set(signal, watch);
  return watch;
}
