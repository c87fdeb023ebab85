/** What an app starts, asks and closes: `VisionSidecar`. Its process is host.ts's affair. */

import { EventEmitter } from 'node:events';
import { cancelled, onAbort } from './abort.js';
import { programFor } from './argv.js';
import { Calls } from './calls.js';
import type { Program } from './child.js';
import { awakeClock, type Clock } from './clock.js';
import { loadTransport, type Transport } from './connection.js';
import { SidecarError } from './errors.js';
import { Host, type Notification, publicState } from './host.js';
import { type Input, prepare } from './inputs.js';
import {
  type DrawOptions,
  type Encoded,
  type EncodeOptions,
  type HeatmapChoice,
  type HeatmapOptions,
  type RequestOptions,
  readDraw,
  readEncode,
  readRequest,
  readStart,
  type SidecarEvents,
  type SidecarState,
  type StartOptions,
} from './options.js';
import type { Done } from './protocol.js';
import {
  type Encoding,
  OUTPUTS,
  type OutputName,
  readEncoding,
  readPng,
  readStats,
  type SidecarInfo,
  type Stats,
} from './results.js';
import { remember } from './starting.js';
import { CLOSED, type Kernels, POLICY, type Policy } from './supervisor.js';

const ALL = Object.keys(OUTPUTS) as OutputName[];
const TIMEOUT_MS = 120_000;
const STATS_MS = 10_000;

/** The rest of what a start depends on; tests change it. */
export interface Internals {
  readonly policy: Policy;
  readonly clock: Clock;
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
    try {
      const program = programFor(options);
      const transport = await loadTransport();
      return await VisionSidecar.#launch(program, options, transport, internals, controller.signal);
    } finally {
      stop?.();
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
    const { outputs = ALL, heatmap, resolution, ...request } = readEncode(options, 'options');
    const names: string[] = outputs.map((name) => OUTPUTS[name]);
    if (heatmap) names.push('heatmap_png');
    const params = { resolution, outputs: names, heatmap: drawing(heatmap) };
    const begun = this.#clock.now();
    const done = await this.#encode(input, params, request);
    const encoding = readEncoding(done, outputs, this.#clock.now() - begun);
    const all = heatmap ? { ...encoding, heatmapPng: readPng(done) } : encoding;
    return all as unknown as Encoding<O, H>; // as `outputs` and `heatmap` say
  }

  /**
   * Encodes many inputs, `concurrency` at a time (2 keep the sidecar busy), and yields the results in
   * order. One that fails yields its error; the others go on.
   */
  async *encodeEach<
    const O extends OutputName = OutputName,
    const H extends HeatmapChoice = undefined,
  >(
    inputs: Iterable<Input> | AsyncIterable<Input>,
    options: EncodeOptions<O, H> & { readonly concurrency?: number } = {},
  ): AsyncGenerator<Encoded<O, H>, void, undefined> {
    const { concurrency = 2, ...rest } = options;
    const begun: Promise<Encoded<O, H>>[] = [];
    let index = 0;
    for await (const input of inputs) {
      begun.push(this.#attempt(index, input, rest as EncodeOptions<O, H>));
      index += 1;
      if (begun.length >= concurrency) yield await (begun.shift() as Promise<Encoded<O, H>>);
    }
    for (const result of begun) yield await result;
  }

  /** Encodes one image and draws its heatmap: the bytes of a PNG. */
  async heatmap(input: Input, options: DrawOptions = {}): Promise<Uint8Array> {
    const { resolution, signal, timeoutMs, ...how } = readDraw(options, 'options');
    const params = { resolution, outputs: ['heatmap_png'], heatmap: drawing(how) };
    return readPng(await this.#encode(input, params, { signal, timeoutMs }));
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

  async #encode(
    input: Input,
    params: Record<string, unknown>,
    { signal, timeoutMs = TIMEOUT_MS }: Requested,
  ): Promise<Done> {
    this.#checkOpen();
    const maxBytes = this.#host.state.info?.limits.maxFrameBytes ?? Number.POSITIVE_INFINITY;
    return this.#calls.call(
      async (settled) => ({
        op: 'encode',
        inputs: [await prepare(input, maxBytes, settled)],
        params,
      }),
      { signal, timeoutMs },
    );
  }

  async #attempt<O extends OutputName, H extends HeatmapChoice>(
    index: number,
    input: Input,
    options: EncodeOptions<O, H>,
  ): Promise<Encoded<O, H>> {
    try {
      return { index, encoding: await this.encode(input, options) };
    } catch (error) {
      if (error instanceof SidecarError) return { index, error };
      throw error;
    }
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

/** What every call takes, with what was left out as undefined. */
type Requested = { readonly [K in keyof RequestOptions]: RequestOptions[K] | undefined };

/** The wire's `params.heatmap`: nothing where the defaults will do. */
function drawing(how: HeatmapChoice): HeatmapOptions | undefined {
  return typeof how === 'object' && Object.keys(how).length > 0 ? how : undefined;
}
