/** Starts the bridge on test/fixtures/child.cjs, which misbehaves as told. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { TestContext } from 'node:test';
import type { Clock } from '../src/clock.js';
import type { StartOptions } from '../src/options.js';
import { VisionSidecar } from '../src/sidecar.js';
import { POLICY, type Policy } from '../src/supervisor.js';

export const child = path.resolve(__dirname, '..', '..', 'test', 'fixtures', 'child.cjs');

export interface Asked extends StartOptions {
  readonly policy?: Partial<Policy>;
  readonly clock?: Clock;
}

/** The start's own promise. Restarts come soon; what fails to start or is left open is closed when the test ends. */
export function startFake(
  t: TestContext,
  behaviour: string,
  { policy, clock, ...options }: Asked = {},
): Promise<VisionSidecar> {
  const modelDir = mkdtempSync(path.join(tmpdir(), 'fake-model-'));
  writeFileSync(path.join(modelDir, 'manifest.json'), '{}');
  const controller = new AbortController();
  const starting = VisionSidecar.start(
    {
      command: process.execPath,
      args: [child, behaviour],
      modelDir,
      signal: controller.signal,
      ...options,
    },
    {
      // A machine that is busy with other things is no failure.
      policy: {
        ...POLICY,
        handshakeMs: 90_000,
        verifyMs: 90_000,
        heartbeat: { intervalMs: 5000, timeoutMs: 90_000 },
        backoffMs: [50, 50, 50, 50],
        graceMs: 300,
        ...policy,
      },
      ...(clock && { clock }),
    },
  );
  t.after(async () => {
    controller.abort();
    const [started] = await Promise.allSettled([starting]);
    if (started.status === 'fulfilled') await started.value.close();
    rmSync(modelDir, { recursive: true });
  });
  return starting;
}

/** Whether a process with this id lives. */
export function lives(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** Resolves when the sidecar is in `state`. */
export function reached(sidecar: VisionSidecar, state: string): Promise<void> {
  return new Promise((resolve) => {
    const look = (): void => {
      if (sidecar.state !== state) return;
      sidecar.off('state', look);
      resolve();
    };
    sidecar.on('state', look);
    look();
  });
}

/** Resolves when the fake sidecar has got `count` encodes. */
export async function received(sidecar: VisionSidecar, count: number): Promise<void> {
  while ((await sidecar.stats()).encodes !== count) await new Promise(setImmediate);
}
