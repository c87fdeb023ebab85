import assert from 'node:assert/strict';
import { getEventListeners } from 'node:events';
import { mock, test } from 'node:test';
import { onAbort } from '../src/abort.js';

test('an abort reaches all who wait for it, once', () => {
  const controller = new AbortController();
  const [first, second] = [mock.fn(), mock.fn()];
  onAbort(controller.signal, first);
  onAbort(controller.signal, second);
  controller.abort();
  assert.deepEqual([first.mock.callCount(), second.mock.callCount()], [1, 1]);
});

test('one who has called it off hears nothing', () => {
  const controller = new AbortController();
  const [kept, dropped] = [mock.fn(), mock.fn()];
  onAbort(controller.signal, kept);
  onAbort(controller.signal, dropped)();
  controller.abort();
  assert.deepEqual([kept.mock.callCount(), dropped.mock.callCount()], [1, 0]);
});

test('the same action given twice is two', () => {
  const controller = new AbortController();
  const action = mock.fn();
  onAbort(controller.signal, action);
  onAbort(controller.signal, action)();
  controller.abort();
  assert.equal(action.mock.callCount(), 1);
});

test('many share one listener, and none is left behind', () => {
  const { signal } = new AbortController();
  const stops = Array.from({ length: 30 }, () => onAbort(signal, () => undefined));
  assert.equal(getEventListeners(signal, 'abort').length, 1);
  for (const stop of stops) stop();
  assert.equal(getEventListeners(signal, 'abort').length, 0);
  onAbort(signal, () => undefined);
  assert.equal(getEventListeners(signal, 'abort').length, 1);
});
