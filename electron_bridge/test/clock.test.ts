import assert from 'node:assert/strict';
import { mock, test } from 'node:test';
import { awakeClock } from '../src/clock.js';

test('a timer fires once, unless it was called off', (t) => {
  t.mock.timers.enable({ apis: ['setTimeout', 'Date'] });
  const [kept, dropped] = [mock.fn(), mock.fn()];
  awakeClock.after(100, kept);
  awakeClock.after(100, dropped)();
  t.mock.timers.tick(1000);
  assert.equal(kept.mock.callCount(), 1);
  assert.equal(dropped.mock.callCount(), 0);
});

test('a timer that slept through a suspend is armed once more, in full', (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const wall = t.mock.method(Date, 'now', () => 0);
  const action = mock.fn();
  awakeClock.after(100, action);
  wall.mock.mockImplementation(() => 3_600_000);
  t.mock.timers.tick(100);
  assert.equal(action.mock.callCount(), 0);
  t.mock.timers.tick(100);
  assert.equal(action.mock.callCount(), 1);
});

test('an endless wait sets no timer', (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const action = mock.fn();
  awakeClock.after(Number.POSITIVE_INFINITY, action);
  t.mock.timers.tick(10);
  assert.equal(action.mock.callCount(), 0);
});
