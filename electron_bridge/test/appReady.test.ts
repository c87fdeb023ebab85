import assert from 'node:assert/strict';
import { test } from 'node:test';
import { watchReady } from '../src/appReady.js';
import { FakeClock } from './fakeClock.js';

/** The warnings that are given while `act` runs. */
function warnings(t: import('node:test').TestContext, act: (clock: FakeClock) => void): string[] {
  const emit = t.mock.method(process, 'emitWarning', () => undefined);
  act(new FakeClock());
  const told = emit.mock.calls.map(({ arguments: [message] }) => String(message));
  emit.mock.restore();
  return told;
}

test('outside of Electron, and in an app that is ready, nothing is said', (t) => {
  const told = warnings(t, (clock) => {
    watchReady(clock);
    watchReady(clock, { isReady: () => true });
    clock.advance(60_000);
    assert.equal(clock.pending, 0);
  });
  assert.deepEqual(told, []);
});

test('an app that becomes ready meanwhile, and a start that is over soon, are no reason to warn', (t) => {
  const told = warnings(t, (clock) => {
    let ready = false;
    watchReady(clock, { isReady: () => ready });
    watchReady(clock, { isReady: () => false })();
    ready = true;
    clock.advance(60_000);
  });
  assert.deepEqual(told, []);
});

test('an app that is held back is warned once', (t) => {
  const told = warnings(t, (clock) => {
    for (let start = 0; start < 3; start += 1) {
      watchReady(clock, { isReady: () => false });
      clock.advance(60_000);
    }
  });
  assert.equal(told.length, 1);
  assert.match(told[0] as string, /do not await VisionSidecar\.start at its top level/);
});
