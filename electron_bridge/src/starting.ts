/** Which promise belongs to which start, so that an app that quits need not wait for it. Knows no sidecar. */

const starts = new WeakMap<object, AbortController>();

/** Remember that `promise` is a start which `controller` ends. */
export function remember(promise: object, controller: AbortController): void {
  starts.set(promise, controller);
}

/** End the start that `promise` stands for; the promise then rejects. False if it stands for none. */
export function abortStart(promise: object): boolean {
  const controller = starts.get(promise);
  controller?.abort();
  return controller !== undefined;
}
