/** Many inputs, a few of them at work at a time, results in order. Knows neither images nor the sidecar. */

import { cancelled, onAbort } from './abort.js';
import { wrong } from './checks.js';

/** What can be gone through: a list, a set, a generator, a stream. */
export type Many<T> = Iterable<T> | AsyncIterable<T>;

/**
 * Yields what `work` resolves with, in the order of the inputs, with `concurrency` of them at work. Its signal
 * is aborted when the consumer stops. Throws `request.cancelled` when `signal` is aborted, and what the inputs
 * throw, once the results before that have been yielded.
 */
export async function* inOrder<T, R>(
  inputs: Many<T>,
  { concurrency, signal }: { concurrency: number; signal: AbortSignal | undefined },
  work: (input: T, index: number, signal: AbortSignal) => Promise<R>,
): AsyncGenerator<R, void, undefined> {
  const iterator = iteratorOf(inputs);
  const controller = new AbortController();
  const stop = signal && onAbort(signal, () => controller.abort(signal.reason));
  const begun: Promise<R>[] = [];
  const ended = abortion(controller.signal);
  let open = true; // the inputs have more, as far as we know
  const finish = async (): Promise<R> => {
    const result = await (begun.shift() as Promise<R>);
    if (signal?.aborted) throw cancelled(signal);
    return result;
  };
  try {
    for (let index = 0; ; index += 1) {
      if (signal?.aborted) throw cancelled(signal);
      let step: IteratorResult<T>;
      try {
        step = await Promise.race([iterator.next(), ended]);
      } catch (error) {
        if (controller.signal.aborted) throw error;
        open = false;
        while (begun.length > 0) yield await finish();
        throw error;
      }
      if (step.done) break;
      const result = work(step.value, index, controller.signal);
      result.catch(() => undefined); // whoever waits for it hears of it; an abandoned one is nobody's affair
      begun.push(result);
      if (begun.length >= concurrency) yield await finish();
    }
    open = false;
    while (begun.length > 0) yield await finish();
  } finally {
    stop?.();
    controller.abort();
    // Not awaited: a source that hangs would hold up the consumer's `break`.
    if (open) Promise.resolve(iterator.return?.()).catch(() => undefined);
  }
}

/** How many there are, where that is known beforehand. */
export function countOf(inputs: Many<unknown>): number | undefined {
  if (Array.isArray(inputs)) return inputs.length;
  return inputs instanceof Set ? inputs.size : undefined;
}

function iteratorOf<T>(inputs: Many<T>): Iterator<T> | AsyncIterator<T> {
  const isObject = typeof inputs === 'object' && inputs !== null; // the letters of a text are no inputs
  if (isObject && Symbol.asyncIterator in inputs) return inputs[Symbol.asyncIterator]();
  if (isObject && Symbol.iterator in inputs) return inputs[Symbol.iterator]();
  throw wrong('inputs', 'a list or another iterable', inputs);
}

/** Rejects when `signal` is aborted, and is nobody's unhandled rejection. */
function abortion(signal: AbortSignal): Promise<never> {
  const promise = new Promise<never>((_, reject) => {
    signal.addEventListener('abort', () => reject(cancelled(signal)), { once: true });
  });
  promise.catch(() => undefined);
  return promise;
}
