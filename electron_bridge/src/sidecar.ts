/** Puts the parts together: `VisionSidecar`, what an app starts, asks and closes. */

import { EventEmitter } from 'node:events';
import { type CallOptions, Calls, cancelled } from './calls.js';
import { awakeClock, type Clock } from './clock.js';
import { type Fault, SidecarError } from './errors.js';
import { offer } from './handshake.js';
import { type Input, prepare } from './inputs.js';
import { locate, surroundings } from './locate.js';
import { Keeper, type Owner, type Program } from './process.js';
import { type Done, type Reply, readReply } from './protocol.js';
import {
  type Encoding,
  OUTPUTS,
  type OutputName,
  readEncoding,
  readInfo,
  readPng,
  type SidecarInfo,
  type Stats,
} from './results.js';
import { CLOSED, type Kernels, POLICY, type Policy, type State } from './supervisor.js';
import {
  type Connection,
  type Keys,
  loadTransport,
  type Peer,
  type Transport,
} from './transport.js';
import type { Blend, Colormap } from './vectorsPaint.js';

/**
 * `starting`: the process runs, the model loads. `restarting`: it died and comes back; calls wait.
 * `failed`: it died too often, or cannot start; `start()` tries again. `closed`: for good.
 */
export type SidecarState = 'starting' | 'ready' | 'restarting' | 'failed' | 'closed';

/** What a state comes with. */
export interface StateDetail {
  /** In `starting`: whether the sidecar has answered yet and now loads its model. */
  readonly phase?: 'handshake' | 'loading';
  /** In `failed`: why. */
  readonly error?: SidecarError;
}

/** A line of the sidecar's log, or of the bridge's own. Never holds pixels, image paths or keys. */
export interface LogEntry {
  readonly source: 'sidecar' | 'bridge';
  readonly level: 'debug' | 'info' | 'warning' | 'error';
  readonly message: string;
  /** What else the sidecar's line told: `request`, `op`, `code`, times. */
  readonly fields?: Readonly<Record<string, unknown>>;
}

/** The events of a `VisionSidecar`, and what their listeners are called with. */
export interface SidecarEvents {
  state: [state: SidecarState, detail: StateDetail];
  /** The sidecar died in machine code and goes on with ONNX Runtime's own operators only. */
  kernelsOff: [reason: string];
  log: [entry: LogEntry];
}

/** How a sidecar is found and run. Without any, it is the app's own, with its own model. */
export interface StartOptions {
  /** The model directory. Default: `vision-model` among the app's resources. */
  readonly modelDir?: string;
  /** The expected SHA-256 of the model's `manifest.json`, in hex; another model is refused. */
  readonly manifestSha256?: string;
  /** The program, in place of the frozen sidecar among the app's resources. */
  readonly command?: string;
  /** Arguments that come before `serve`. */
  readonly args?: readonly string[];
  /** The program's working directory. */
  readonly cwd?: string;
  /** The program's environment. Default: the app's own. */
  readonly env?: NodeJS.ProcessEnv;
  /** Threads for inference. Default: one per physical core. */
  readonly threads?: number;
  /** Beside other processes. Default: `low`, so that windows stay smooth while it encodes. */
  readonly priority?: 'low' | 'normal';
  /** `off`: ONNX Runtime's own operators only. Default: `auto`, and `off` after a crash in machine code. */
  readonly kernels?: Kernels;
  /** How long the sidecar may take to be ready. Default: 120000. */
  readonly startTimeoutMs?: number;
  /** Called for every line of the sidecar's log and the bridge's own. */
  readonly log?: (entry: LogEntry) => void;
  /** As the `state` event, from the very first on. */
  readonly onState?: (state: SidecarState, detail: StateDetail) => void;
  /** Aborts the start. */
  readonly signal?: AbortSignal;
  /** How often a ready sidecar is asked whether it lives, and how long it may take to answer. */
  readonly heartbeat?: { readonly intervalMs: number; readonly timeoutMs: number };
}

/** The legend's words, to be translated: Latin, Greek or Cyrillic letters, at most 300 of each. */
export interface LegendWords {
  /** Default: `low`. */
  readonly low?: string;
  /** Default: `high`. */
  readonly high?: string;
  /** Stands before the norms that the ends of the scale mean. Default: `norm`. */
  readonly norm?: string;
  /** What scores are and are not. Default: the English one. */
  readonly note?: string;
  /** In place of the scale where nothing stands out. Default: the English one. */
  readonly flat?: string;
}

/** How the map is drawn over the image. docs/heatmap.md shows what each does. */
export interface HeatmapOptions {
  /** Default: `auto`, which goes with the blend: `amber` (multiply), `ember` (screen), `turbo` (over). */
  readonly colormap?: Colormap;
  /** How the map meets the image. Default: `auto`: `multiply` on bright images, `screen` on dark ones. */
  readonly blend?: Blend;
  /** Weight of the map at the highest score, 0 to 1. Default: 0.75. */
  readonly alpha?: number;
  /** Scores below it, 0 to 1, show the bare image. Default: 0. */
  readonly threshold?: number;
  /** Low scores count as high ones. Default: false. */
  readonly invert?: boolean;
  /** The 16×16 cells as they are, not smoothed. Default: false. */
  readonly cells?: boolean;
  /** Whether a legend stands below the picture, or its words. Default: true. */
  readonly legend?: boolean | LegendWords;
}

/** Whether `encode` draws a heatmap too, and how. */
export type HeatmapChoice = boolean | HeatmapOptions | undefined;

/** What every call takes. */
export interface RequestOptions {
  /** Aborting it rejects the call with `request.cancelled` and stops the work. */
  readonly signal?: AbortSignal;
  /** Default: 120000. The time that a call waits for a restart counts. */
  readonly timeoutMs?: number;
}

export interface EncodeOptions<
  O extends OutputName = OutputName,
  H extends HeatmapChoice = HeatmapChoice,
> extends RequestOptions {
  /** Side length in pixels, or `[height, width]`. Default: the model's own. See `info.resolutions`. */
  readonly resolution?: number | readonly [number, number];
  /** Default: all three. Fewer are less to send. */
  readonly outputs?: readonly O[];
  /** Draw a heatmap too (one image only): `true`, or how. */
  readonly heatmap?: H;
}

export interface DrawOptions extends HeatmapOptions, RequestOptions {
  readonly resolution?: number | readonly [number, number];
}

/** One of `encodeEach`'s results, in the order of the inputs. */
export type Encoded<O extends OutputName = OutputName, H = undefined> =
  | { readonly index: number; readonly encoding: Encoding<O, H> }
  | { readonly index: number; readonly error: SidecarError };

const NO_HELLO: Fault = {
  code: 'sidecar.malformed',
  message: 'expected the sidecar to tell its model and limits; something else came.',
};

const TIMEOUT_MS = 120_000;
const CONTROL_MS = 10_000;
const HEARTBEAT = { intervalMs: 5000, timeoutMs: 15_000 };

/** The rest of what a start depends on; tests change it. */
export interface Workings {
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
 */
export class VisionSidecar extends EventEmitter<SidecarEvents> implements AsyncDisposable {
  readonly #options: StartOptions;
  readonly #transport: Transport;
  readonly #clock: Clock;
  readonly #calls: Calls;
  readonly #keeper: Keeper;
  #keys: Keys | undefined;
  #connection: Connection | undefined;
  #info: SidecarInfo | undefined;
  #stopHeartbeat: () => void = () => undefined;
  #asleep = false;
  #waiting: ((state: State) => boolean)[] = [];
  #shown = '';

  /**
   * Finds the program and the model, spawns the one with the other, and resolves when it is ready.
   * Rejects with `sidecar.not_found`, `model.not_found`, `model.invalid`, `model.mismatch`,
   * `sidecar.spawn_failed`, `sidecar.start_timeout`, `sidecar.malformed`, `protocol.version`,
   * `sidecar.exited` or `request.cancelled`; then no process is left.
   */
  static async start(
    options: StartOptions = {},
    workings?: Partial<Workings>,
  ): Promise<VisionSidecar> {
    const { signal } = options;
    if (signal?.aborted) throw cancelled(signal);
    const { command, args, modelDir } = locate(options, surroundings());
    const threads = options.threads === undefined ? [] : ['--threads', String(options.threads)];
    const priority = options.priority === undefined ? [] : ['--priority', options.priority];
    const program = {
      command,
      args: [...args, 'serve', '--model', modelDir, ...threads, ...priority],
      cwd: options.cwd,
      env: childEnvironment(options.env ?? process.env),
    };
    const sidecar = new VisionSidecar(program, options, await loadTransport(), workings);
    const abort = (): void => void sidecar.close();
    signal?.addEventListener('abort', abort, { once: true });
    try {
      await sidecar.start();
      return sidecar;
    } catch (error) {
      if (!signal?.aborted) throw error;
      await sidecar.close(); // what we leave behind is no process
      throw cancelled(signal);
    } finally {
      signal?.removeEventListener('abort', abort);
    }
  }

  private constructor(
    program: Program,
    options: StartOptions,
    transport: Transport,
    { policy = POLICY, clock = awakeClock }: Partial<Workings> = {},
  ) {
    super();
    this.#options = options;
    this.#transport = transport;
    this.#clock = clock;
    this.#calls = new Calls(clock);
    const { kernels = 'auto', startTimeoutMs = policy.startMs } = options;
    this.#keeper = new Keeper(
      program,
      kernels,
      { ...policy, startMs: startTimeoutMs },
      clock,
      this.#owner(),
    );
    if (options.log) this.on('log', options.log);
    if (options.onState) this.on('state', options.onState);
  }

  /** As the `state` event told last. */
  get state(): SidecarState {
    return publicState(this.#keeper.state);
  }

  /** The sidecar's process id, while one runs. */
  get pid(): number | undefined {
    return this.#keeper.pid;
  }

  /** Of the sidecar that is, or last was, ready. */
  get info(): SidecarInfo {
    if (this.#info) return this.#info;
    throw new SidecarError({
      code: 'model.loading',
      message: 'the sidecar has not been ready yet.',
    });
  }

  /** `off` where it was asked for, or where the sidecar died in machine code. */
  get kernels(): Kernels {
    return this.#keeper.state.kernels;
  }

  /**
   * Resolves when the sidecar is ready, after a failure too: then it is started again, with a clean
   * record. Rejects as `VisionSidecar.start` does, or with `sidecar.failed` or `sidecar.closed`.
   */
  async start(): Promise<void> {
    this.#keeper.dispatch({ kind: 'start' });
    const state = await this.#reach('ready', 'failed', 'stopping', 'closed');
    if (state.kind === 'failed') throw new SidecarError(state.fault);
    if (state.kind !== 'ready') throw new SidecarError(CLOSED);
  }

  /** Encodes one image, or one batch of pixel values. Every failure of docs/bridge.md may come. */
  async encode<const O extends OutputName = OutputName, const H extends HeatmapChoice = undefined>(
    input: Input,
    options: EncodeOptions<O, H> = {},
  ): Promise<Encoding<O, H>> {
    const { outputs = Object.keys(OUTPUTS) as OutputName[], heatmap, resolution } = options;
    const names: string[] = outputs.map((name) => wireName(name));
    if (heatmap) names.push('heatmap_png');
    const params = { resolution, outputs: names, heatmap: drawing(heatmap) };
    const begun = this.#clock.now();
    const done = await this.#encode(input, params, options);
    const encoding = readEncoding(done, outputs, this.#clock.now() - begun);
    const all = heatmap ? { ...encoding, heatmapPng: readPng(done) } : encoding;
    return all as unknown as Encoding<O, H>;
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
    const { resolution, signal, timeoutMs, ...how } = options;
    const params = { resolution, outputs: ['heatmap_png'], heatmap: drawing(how) };
    return readPng(await this.#encode(input, params, options));
  }

  /** What the sidecar counts: results, queue, latencies, memory. */
  async stats(options: RequestOptions = {}): Promise<Stats> {
    this.#checkOpen();
    const done = await this.#calls.call({ op: 'stats' }, callOptions(options, CONTROL_MS));
    const { v, id, ok, outputs, ...stats } = done.header;
    return stats as unknown as Stats;
  }

  /**
   * Ends the sidecar; calls in flight reject with `sidecar.closed`. Resolves when the process is gone,
   * which takes up to 2 s, or 5 s where it has to be killed.
   */
  async close(): Promise<void> {
    this.#keeper.dispatch({ kind: 'stop' });
    await this.#reach('closed');
  }

  /** `close`, at the end of the block of an `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Tell that the computer goes to sleep: until `resumed`, nothing that happens counts as a crash. */
  suspended(): void {
    this.#asleep = true;
    this.#stopHeartbeat();
    this.#keeper.dispatch({ kind: 'suspended' });
  }

  /** Tell that the computer woke up. */
  resumed(): void {
    this.#asleep = false;
    this.#keeper.dispatch({ kind: 'resumed' });
    if (this.#keeper.state.kind === 'ready') this.#startHeartbeat();
  }

  async #encode(
    input: Input,
    params: Record<string, unknown>,
    options: RequestOptions,
  ): Promise<Done> {
    this.#checkOpen();
    const maxBytes = this.#info?.limits.maxFrameBytes ?? Number.POSITIVE_INFINITY;
    const array = await prepare(input, maxBytes);
    this.#checkOpen(); // reading a file takes its time
    return this.#calls.call(
      { op: 'encode', inputs: [array], params },
      callOptions(options, TIMEOUT_MS),
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

  /** Resolves with the first state, from the present one on, that is of one of `kinds`. */
  #reach(...kinds: State['kind'][]): Promise<State> {
    return new Promise((resolve) => {
      const arrived = (state: State): boolean => {
        const there = kinds.includes(state.kind);
        if (there) resolve(state);
        return there;
      };
      if (!arrived(this.#keeper.state)) this.#waiting.push(arrived);
    });
  }

  #checkOpen(): void {
    const state = this.#keeper.state;
    if (state.kind === 'failed') throw new SidecarError(state.fault);
    if (state.kind === 'closed' || state.kind === 'stopping') throw new SidecarError(CLOSED);
  }

  /** What the keeper asks of us. */
  #owner(): Owner {
    return {
      offer: () => {
        this.#keys = this.#transport.newKeys();
        return offer(this.#keys.publicKey);
      },
      listening: (peer) => this.#connect(peer),
      ready: () => void this.#verify(),
      gone: () => this.#calls.hold(),
      perform: (effect) => {
        switch (effect.kind) {
          case 'admit':
            this.#calls.admit();
            break;
          case 'shutdown':
            void this.#calls
              .ask({ op: 'shutdown' }, { timeoutMs: CONTROL_MS })
              .catch(() => undefined);
            break;
          case 'disconnect':
            this.#disconnect();
            this.#calls.disconnect(effect.fault);
            break;
          case 'failAll':
            this.#calls.failAll(effect.fault);
            break;
          case 'kernelsOff':
            this.#log(
              'warning',
              `the sidecar died in machine code (${effect.reason}); it goes on with kernels off`,
            );
            this.emit('kernelsOff', effect.reason);
            break;
        }
      },
      changed: (state) => this.#changed(state),
      stderr: (line) => this.emit('log', readLogLine(line)),
    };
  }

  #connect(peer: Peer): void {
    this.#disconnect();
    const keys = this.#keys;
    if (!keys) return;
    this.#keys = undefined;
    const connection = this.#transport.connect(
      peer,
      keys,
      (frames) => this.#receive(frames),
      (error) =>
        this.#broken({ code: 'sidecar.exited', message: `the connection broke: ${String(error)}` }),
    );
    this.#connection = connection;
    this.#calls.connect((frames) => connection.send(frames));
  }

  #disconnect(): void {
    this.#connection?.close();
    this.#connection = undefined;
  }

  #receive(frames: Uint8Array[]): void {
    let reply: Reply;
    try {
      reply = readReply(frames);
    } catch (error) {
      if (!(error instanceof SidecarError)) throw error;
      this.#broken({ code: error.code, message: error.message });
      return;
    }
    if (!this.#calls.receive(reply) && !reply.ok) {
      this.#log('warning', `the sidecar could not read a request: ${reply.error.code}`);
    }
  }

  #broken(fault: Fault): void {
    this.#log('error', fault.message);
    this.#keeper.dispatch({ kind: 'refused', fault, final: false });
  }

  /** The child says that it is ready: see that it answers us, and with the model that was asked for. */
  async #verify(): Promise<void> {
    const connection = this.#connection;
    let info: SidecarInfo;
    try {
      info = readInfo(await this.#calls.ask({ op: 'hello' }, { timeoutMs: CONTROL_MS }));
    } catch (error) {
      if (connection !== this.#connection) return;
      const { code, message } = error instanceof SidecarError ? error : NO_HELLO;
      this.#broken({ code, message });
      return;
    }
    if (connection !== this.#connection) return;
    const expected = this.#options.manifestSha256?.toLowerCase();
    if (expected !== undefined && expected !== info.model) {
      const message = `expected the model whose manifest has SHA-256 ${expected}; the sidecar loaded ${info.model}. Ship the model directory that belongs to this app.`;
      this.#keeper.dispatch({
        kind: 'refused',
        fault: { code: 'model.mismatch', message },
        final: true,
      });
      return;
    }
    this.#info = info;
    this.#keeper.dispatch({ kind: 'ready' });
  }

  #changed(state: State): void {
    if (state.kind === 'ready') this.#startHeartbeat();
    else this.#stopHeartbeat();
    if (state.kind === 'closed' || state.kind === 'failed') this.#disconnect();
    this.#waiting = this.#waiting.filter((arrived) => !arrived(state));
    const shown = publicState(state);
    const detail: StateDetail = {
      ...(state.kind === 'starting' && { phase: state.phase }),
      ...(state.kind === 'failed' && { error: new SidecarError(state.fault) }),
    };
    const summary = `${shown} ${detail.phase ?? ''}`;
    if (summary === this.#shown || state.kind === 'condemned') return;
    this.#shown = summary;
    if (detail.error) this.#log('error', detail.error.message);
    this.emit('state', shown, detail);
  }

  #startHeartbeat(): void {
    this.#stopHeartbeat();
    if (this.#asleep) return;
    const { intervalMs, timeoutMs } = this.#options.heartbeat ?? HEARTBEAT;
    const connection = this.#connection;
    this.#stopHeartbeat = this.#clock.after(intervalMs, () => {
      this.#calls.ask({ op: 'hello' }, { timeoutMs }).then(
        () => connection === this.#connection && this.#startHeartbeat(),
        (error: SidecarError) => {
          if (connection !== this.#connection || error.code !== 'request.timeout' || this.#asleep)
            return;
          const message = `the sidecar did not answer for ${timeoutMs} ms; it was killed and is restarted.`;
          this.#log('error', message);
          this.#keeper.dispatch({ kind: 'wedged', fault: { code: 'sidecar.exited', message } });
        },
      );
    });
  }

  #log(level: LogEntry['level'], message: string): void {
    this.emit('log', { source: 'bridge', level, message });
  }
}

function publicState({ kind }: State): SidecarState {
  switch (kind) {
    case 'idle':
      return 'starting';
    case 'condemned': // not announced: what comes of it is
      return 'restarting';
    case 'stopping':
      return 'closed';
    default:
      return kind;
  }
}

function wireName(name: OutputName): string {
  const known = OUTPUTS[name];
  if (known) return known;
  throw new SidecarError({
    code: 'request.unsupported',
    message: `the output ${String(name)} is unknown; there are ${Object.keys(OUTPUTS).join(', ')}.`,
  });
}

/** The wire's `params.heatmap`: nothing where the defaults will do. */
function drawing(how: HeatmapChoice): HeatmapOptions | undefined {
  return typeof how === 'object' && Object.keys(how).length > 0 ? how : undefined;
}

function callOptions({ signal, timeoutMs }: RequestOptions, otherwise: number): CallOptions {
  return { signal, timeoutMs: timeoutMs ?? otherwise };
}

/** Electron's own switches mean nothing to a child, and one would turn a helper into Node. */
function childEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const { ELECTRON_RUN_AS_NODE, ELECTRON_NO_ASAR, ...rest } = env;
  return rest;
}

function readLogLine(line: string): LogEntry {
  try {
    const { level, message, time, ...fields } = JSON.parse(line);
    if (typeof message === 'string')
      return { source: 'sidecar', level: levelOf(level), message, fields };
  } catch {
    // not a line of our log: a library wrote to stderr
  }
  return { source: 'sidecar', level: 'info', message: line };
}

function levelOf(level: unknown): LogEntry['level'] {
  return level === 'debug' || level === 'warning' || level === 'error' ? level : 'info';
}
