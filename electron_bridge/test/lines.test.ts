import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Lines } from '../src/lines.js';

function split(max: number, ...chunks: (string | Uint8Array)[]): { lines: string[]; open: Lines } {
  const lines: string[] = [];
  const open = new Lines(max, (line, cut) => lines.push(cut ? `${line}…` : line));
  for (const chunk of chunks) open.push(typeof chunk === 'string' ? Buffer.from(chunk) : chunk);
  return { lines, open };
}

test('lines come whole, however the bytes are cut', () => {
  assert.deepEqual(split(9, 'on', 'e\ntw', 'o\n').lines, ['one', 'two']);
});

test('a letter may be cut in two', () => {
  const bytes = Buffer.from('né\n');
  assert.deepEqual(split(9, bytes.subarray(0, 2), bytes.subarray(2)).lines, ['né']);
});

test('Windows line ends and empty lines leave nothing', () => {
  assert.deepEqual(split(9, 'a\r\n\r\n\nb\n').lines, ['a', 'b']);
});

test('of a line that is too long the beginning is kept, and the next one is whole', () => {
  assert.deepEqual(split(3, 'abcdefgh', 'ijk\nxy\n').lines, ['abc…', 'xy']);
});

test('an endless line is told before it ends', () => {
  assert.equal(split(3, 'abc').open.overlong, false);
  assert.equal(split(3, 'abc', 'd').open.overlong, true);
});
