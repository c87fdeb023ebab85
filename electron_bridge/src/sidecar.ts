/** What an app starts, asks and closes: `VisionSidecar`. Its process is host.ts's affair. */

import { EventEmitter } from 'node:events';
import { resolve } from 'node:path';
import { cancelled, onAbort } from './abort.js';
import { type ReadyLike, watchReady } from './appReady.js';
import { programFor } from './argv.js';
import { Calls } from './calls.js';
import { text, wrong } from './checks.js';
import type { Program } from './child.js';
import { awakeClock, type Clock } from './clock.js';
import { type Ask, Collection, type CollectionOptions, readCollection } from './collection.js';
import { loadTransport, type Transport } from './connection.js';
import { countOf, inOrder } from './each.js';
import { SidecarError } from './errors.js';
import { Host, type Notification, publicState } from './host.js';
import { type Input, prepare } from './inputs.js';
import {
  type DrawOptions,
  type Encoded,
  type EncodeEachOptions,
  type EncodeOptions,
  type HeatmapChoice,
  type RequestOptions,
  readDraw,
  readEach,
  readEncode,
  readRequest,
  readStart,
  type SidecarEvents,
  type SidecarState,
  type StartOptions,
} from './options.js';
import { type EncodeParams, paramsOf } from './params.js';
import type { Done } from './protocol.js';
import {
  ALL_OUTPUTS,
  type Encoding,
  type OutputName,
  readEncoding,
  readPng,
  readStats,
  type SidecarInfo,
  type Stats,
} from './results.js';
import { remember } from './starting.js';
import { CLOSED, type Kernels, POLICY, type Policy } from './supervisor.js';

const TIMEOUT_MS = 120_000;
const STATS_MS = 10_000;
/** With these codes no later call can do better. */
const GONE: ReadonlySet<string> = new Set(['sidecar.closed', 'sidecar.failed']);

/** The rest of what a start depends on; tests change it. */
export interface Internals {
  readonly policy: Policy;
  readonly clock: Clock;
  /** Electron's `app`. */
  readonly app: ReadyLike;
}

/**
 * A vision sidecar process and the connection to it.
 *
 * ```ts
 * const sidecar = await VisionSidecar.start();
 * const { pooledEmbedding } = await sidecar.encode({ path: 'scan.png' });
 * await sidecar.close();
 * ```
 *
 * Its listeners are called after the sidecar's state has changed. What one of them throws becomes an
 * uncaught exception of the app, and disturbs neither the other listeners nor the sidecar.
 */
export class VisionSidecar extends EventEmitter<SidecarEvents> implements AsyncDisposable {
  readonly #clock: Clock;
  readonly #calls: Calls;
  readonly #host: Host;

  /**
   * Finds the program and the model, spawns the one with the other, and resolves when it is ready.
   * Rejects with `request.malformed`, `sidecar.not_found`, `model.not_found`, `model.invalid`,
   * `model.mismatch`, `sidecar.spawn_failed`, `sidecar.start_timeout`, `sidecar.malformed`,
   * `protocol.version`, `sidecar.exited` or `request.cancelled`; then no process is left.
   */
  static start(
    options: StartOptions = {},
    internals: Partial<Internals> = {},
  ): Promise<VisionSidecar> {
    const controller = new AbortController();
    const starting = VisionSidecar.#start(options, internals, controller);
    remember(starting, controller);
    return starting;
  }

  static async #start(
    given: StartOptions,
    internals: Partial<Internals>,
    controller: AbortController,
  ): Promise<VisionSidecar> {
    const options = readStart(given, 'options');
    const { signal } = options;
    if (signal?.aborted) throw cancelled(signal);
    const stop = signal && onAbort(signal, () => controller.abort(signal.reason));
    const stopWatch = watchReady(internals.clock ?? awakeClock, internals.app);
    try {
      const program = programFor(options);
      const transport = await loadTransport();
      return await VisionSidecar.#launch(program, options, transport, internals, controller.signal);
    } finally {
      stop?.();
      stopWatch();
    }
  }

  static async #launch(
    program: (kernels: Kernels) => Program,
    options: StartOptions,
    transport: Transport,
    internals: Partial<Internals>,
    signal: AbortSignal,
  ): Promise<VisionSidecar> {
    if (signal.aborted) throw cancelled(signal);
    const sidecar = new VisionSidecar(program, options, transport, internals);
    const stop = onAbort(signal, () => void sidecar.close());
    try {
      await sidecar.start();
      return sidecar;
    } catch (error) {
      if (!signal.aborted) throw error;
      await sidecar.close(); // what we leave behind is no process
      throw cancelled(signal);
    } finally {
      stop();
    }
  }

  private constructor(
    program: (kernels: Kernels) => Program,
    options: StartOptions,
    transport: Transport,
    { policy = POLICY, clock = awakeClock }: Partial<Internals>,
  ) {
    super();
    const { kernels = 'auto', startTimeoutMs, heartbeat, manifestSha256 } = options;
    this.#clock = clock;
    this.#calls = new Calls(clock);
    this.#host = new Host({
      program,
      kernels,
      policy: {
        ...policy,
        startMs: startTimeoutMs ?? policy.startMs,
        heartbeat: heartbeat ?? policy.heartbeat,
        manifestSha256: manifestSha256?.toLowerCase(),
      },
      clock,
      calls: this.#calls,
      transport,
      notify: (notification) => this.#notify(notification),
    });
    if (options.log) this.on('log', options.log);
    if (options.onState) this.on('state', options.onState);
  }

  /** As the `state` event told last. */
  get state(): SidecarState {
    return publicState(this.#host.state);
  }

  /** The sidecar's process id, while one runs. */
  get pid(): number | undefined {
    return this.#host.pid;
  }

  /** Of the sidecar that is, or last was, ready. */
  get info(): SidecarInfo {
    const { info } = this.#host.state;
    if (info) return info;
    throw new SidecarError({
      code: 'model.loading',
      message: 'the sidecar has not been ready yet.',
    });
  }

  /** `off` where it was asked for, or where the sidecar died in machine code. */
  get kernels(): Kernels {
    return this.#host.state.kernels;
  }

  /**
   * Resolves when the sidecar is ready, after a failure too: then it is started again, with a clean
   * record. Rejects as `VisionSidecar.start` does, or with `sidecar.failed` or `sidecar.closed`.
   */
  async start(): Promise<void> {
    this.#host.dispatch({ kind: 'start' });
    const state = await this.#host.reach('ready', 'failed', 'stopping', 'closed');
    if (state.kind === 'failed') throw new SidecarError(state.fault);
    if (state.kind !== 'ready') throw new SidecarError(CLOSED);
  }

  /** Encodes one image, or one batch of pixel values. Every failure of docs/bridge.md may come. */
  async encode<const O extends OutputName = OutputName, const H extends HeatmapChoice = undefined>(
    input: Input,
    options: EncodeOptions<O, H> = {},
  ): Promise<Encoding<O, H>> {
    const { outputs = ALL_OUTPUTS, heatmap, ...rest } = readEncode(options, 'options');
    if (outputs.length === 0 && !heatmap) {
      throw wrong('options.outputs', `to name one of ${ALL_OUTPUTS.join(', ')} or more`, outputs);
    }
    const { done, roundTripMs } = await this.#encode(input, paramsOf(outputs, heatmap, rest), rest);
    const encoding = readEncoding(done, outputs, Boolean(heatmap), roundTripMs);
    return encoding as unknown as Encoding<O, H>; // as `outputs` and `heatmap` say
  }

  /**
   * Encodes many inputs, `concurrency` at a time, and yields the results in order. One that fails yields its
   * error; the others go on. Stopping early cancels what is in flight. Throws `request.cancelled` when its
   * signal is aborted, `sidecar.closed` or `sidecar.failed` where there is no sidecar any more, and what the
   * inputs themselves throw, after the results of those before.
   */
  async *encodeEach<
    I extends Input,
    const O extends OutputName = OutputName,
    const H extends HeatmapChoice = undefined,
  >(
    inputs: Iterable<I> | AsyncIterable<I>,
    options: EncodeEachOptions<O, H> = {},
  ): AsyncGenerator<Encoded<O, H, I>, void, undefined> {
    const { concurrency = 2, signal, ...rest } = readEach(options, 'options');
    const begun = this.#clock.now();
    const work = async (input: I, index: number, stopped: AbortSignal) => {
      const asked = { priority: 'low', ...rest, signal: stopped } as EncodeOptions<O, H>;
      try {
        return { index, input, encoding: await this.encode(input, asked) };
      } catch (error) {
        if (error instanceof SidecarError) return { index, input, error };
        throw error;
      }
    };
    const total = countOf(inputs);
    for await (const result of inOrder(inputs, { concurrency, signal }, work)) {
      if ('error' in result && GONE.has(result.error.code)) throw result.error;
      if (total === undefined) yield result;
      else {
        const pace = (this.#clock.now() - begun) / (result.index + 1);
        yield { ...result, total, remainingMs: pace * Math.max(0, total - result.index - 1) };
      }
    }
  }

  /** Encodes one image and draws its heatmap: the bytes of a PNG. */
  async heatmap(input: Input, options: DrawOptions = {}): Promise<Uint8Array<ArrayBuffer>> {
    const { resolution, signal, timeoutMs, priority, ...how } = readDraw(options, 'options');
    const params = paramsOf([], how, { resolution, priority });
    const { done } = await this.#encode(input, params, { signal, timeoutMs });
    return readPng(done);
  }

  /**
   * A collection of similar images: opens nothing yet. The file belongs to the model that its first case was
   * encoded with. Throws `request.malformed`.
   */
  collection(options: CollectionOptions): Collection {
    const { path, readOnly = false } = readCollection(options, 'options');
    return new Collection(resolve(text(path, 'options.path')), readOnly, (...asked) =>
      this.#ask(...asked),
    );
  }

  /** What the sidecar counts: results, queue, latencies, memory. */
  async stats(options: RequestOptions = {}): Promise<Stats> {
    const { signal, timeoutMs = STATS_MS } = readRequest(options, 'options');
    this.#checkOpen();
    return readStats(await this.#calls.call({ op: 'stats' }, { signal, timeoutMs }));
  }

  /**
   * Ends the sidecar; calls in flight reject with `sidecar.closed`. Resolves when the process is gone,
   * which takes up to 2 s, or 5 s where it has to be killed.
   */
  async close(): Promise<void> {
    this.#host.dispatch({ kind: 'stop' });
    await this.#host.reach('closed');
  }

  /** `close`, at the end of the block of an `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Tell that the computer goes to sleep: until `resumed`, nothing that happens counts as a crash. */
  suspended(): void {
    this.#host.dispatch({ kind: 'suspended' });
  }

  /** Tell that the computer woke up. */
  resumed(): void {
    this.#host.dispatch({ kind: 'resumed' });
  }

  #encode(
    input: Input,
    params: EncodeParams,
    options: Parameters<Ask>[2],
  ): Promise<{ done: Done; roundTripMs: number }> {
    return this.#ask('encode', params, options, async (maxBytes, settled) => [
      await prepare(input, maxBytes, settled),
    ]);
  }

  /** One call that the sidecar works on. */
  async #ask(
    ...[op, params, { signal, timeoutMs = TIMEOUT_MS }, inputs]: Parameters<Ask>
  ): Promise<{ done: Done; roundTripMs: number }> {
    this.#checkOpen();
    const maxBytes = this.#host.state.info?.limits.maxFrameBytes ?? Number.POSITIVE_INFINITY;
    const begun = this.#clock.now();
    const request = inputs
      ? async (settled: AbortSignal) => ({ op, params, inputs: await inputs(maxBytes, settled) })
      : { op, params };
    const done = await this.#calls.call(request, { signal, timeoutMs });
    return { done, roundTripMs: this.#clock.now() - begun };
  }

  #checkOpen(): void {
    const state = this.#host.state;
    if (state.kind === 'failed') throw new SidecarError(state.fault);
    if (state.kind === 'closed' || state.kind === 'stopping') throw new SidecarError(CLOSED);
  }

  /** As `emit`, but a listener that throws keeps neither the others nor us from going on. */
  #notify([name, ...args]: Notification): void {
    for (const listener of this.rawListeners(name)) {
      try {
        Reflect.apply(listener, this, args);
      } catch (error) {
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }
}
