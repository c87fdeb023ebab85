/** The only file that sets a timer or reads a clock. Knows nothing of sidecars. */

/** Time as the rest of the bridge sees it; tests put a clock of their own in its place. */
export interface Clock {
  /** Milliseconds since some moment; never goes back. */
  now(): number;
  /** Calls `action` once after `ms`; the returned function calls that off. */
  after(ms: number, action: () => void): () => void;
}

const MAX_DELAY = 2 ** 31 - 1; // Node fires a longer one at once

/**
 * Timers that outlast a suspend. One that fires seconds late has slept through something (a closed
 * lid, a stopped process, a main thread that was busy), and whoever it watches had no time either:
 * it is armed once more. Some systems' monotonic clocks stand still meanwhile, hence the wall clock.
 */
export const awakeClock: Clock = {
  now: () => performance.now(),
  after(ms, action) {
    if (ms > MAX_DELAY) return () => undefined;
    let timer: NodeJS.Timeout;
    const arm = (): void => {
      const due = { steady: performance.now() + ms, wall: Date.now() + ms };
      timer = setTimeout(() => {
        const late = Math.max(performance.now() - due.steady, Date.now() - due.wall);
        if (late > SLEPT_MS) arm();
        else action();
      }, ms);
    };
    arm();
    return () => clearTimeout(timer);
  },
};

const SLEPT_MS = 2000;
