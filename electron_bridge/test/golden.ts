/** Frames as both languages keep them in tests/golden: one line of hex for each frame. */

import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

/** Compiled tests run from `.test/test`; the repository is three levels up. */
export const repository = path.resolve(__dirname, '..', '..', '..');
const golden = path.join(repository, 'tests', 'golden');

export function names(kind: 'requests' | 'replies'): string[] {
  const directory = path.join(golden, kind);
  if (!existsSync(directory)) return [];
  return readdirSync(directory).map((file) => path.parse(file).name);
}

export function read(kind: 'requests' | 'replies', name: string): Uint8Array[] {
  const text = readFileSync(path.join(golden, kind, `${name}.hex`), 'utf8');
  return text
    .split('\n')
    .slice(0, -1)
    .map((line) => Buffer.from(line, 'hex'));
}

/** Only by hand, when the protocol grows: `UPDATE_GOLDEN=1 npm test protocol`. */
export function write(name: string, frames: readonly Uint8Array[]): void {
  const lines = frames.map((frame) => `${Buffer.from(frame).toString('hex')}\n`);
  writeFileSync(path.join(golden, 'requests', `${name}.hex`), lines.join(''));
}

export function codes(): string[] {
  return readFileSync(path.join(golden, 'codes.txt'), 'utf8').trim().split('\n');
}
