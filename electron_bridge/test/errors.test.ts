import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { BRIDGE_CODES, codeFrom, SIDECAR_CODES, SidecarError } from '../src/errors.js';
import { codes, repository } from './golden.js';

test('the sidecar’s codes are the list that both languages hold', () => {
  assert.deepEqual([...SIDECAR_CODES], codes());
});

test('the bridge’s own codes collide with none of the sidecar’s', () => {
  assert.equal(
    new Set([...SIDECAR_CODES, ...BRIDGE_CODES]).size,
    SIDECAR_CODES.length + BRIDGE_CODES.length,
  );
});

test('every code stands in the documentation, with a remedy', () => {
  const [, page = ''] = readFileSync(path.join(repository, 'docs', 'bridge.md'), 'utf8').split(
    '## Errors\n',
  );
  const documented = [...page.matchAll(/^\| `([a-z]+\.?[a-z_]*)` \| .+ \| .+ \|$/gm)].map(
    (row) => row[1],
  );
  assert.deepEqual(documented.sort(), [...SIDECAR_CODES, ...BRIDGE_CODES].sort());
});

test('whether to try again follows from the code, unless the sidecar says so', () => {
  assert.equal(new SidecarError({ code: 'busy', message: '' }).retryable, true);
  assert.equal(new SidecarError({ code: 'image.unreadable', message: '' }).retryable, false);
  assert.equal(
    new SidecarError({ code: codeFrom('new.code'), message: '', retryable: true }).retryable,
    true,
  );
});
