/** Fetches a model over https when the app asks: resumed after an interruption, checked, all or nothing. The only file that opens a connection to elsewhere. */

import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { type FileHandle, mkdir, mkdtemp, open, readdir, rename, rm, stat } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import https from 'node:https';
import path from 'node:path';
import { pipeline } from 'node:stream/promises';
import { Unzip, UnzipInflate } from 'fflate';
import { type Fault, SidecarError } from './errors.js';

/** Where the model comes from, what it must be, and where it goes. */
export interface FetchModelOptions {
  /** Of the zip file that the build writes beside a model directory. `https:` only, redirections included. */
  readonly url: string | URL;
  /** The SHA-256 of that zip file, in hexadecimal: nothing else is unpacked. */
  readonly sha256: string;
  /** The model directory to make: for `modelDir` of `VisionSidecar.start`. */
  readonly dir: string;
  /** Bytes that are here, and in all where the server says so. */
  readonly onProgress?: (received: number, total: number | undefined) => void;
  readonly signal?: AbortSignal;
  /** Certificates of another authority than the system's, in PEM. */
  readonly ca?: string | Buffer;
}

const REDIRECTIONS = 5;
const SILENCE_MS = 30_000; // a connection over which nothing comes for so long is given up

/**
 * Downloads the zip file of a model and unpacks it as `dir`, whose path it returns. If `dir` is there already, nothing is
 * fetched. What an interruption leaves is beside `dir`, and goes on when called again.
 *
 * Rejects with a `SidecarError`: `model.download_failed` (retryable where the network failed), `model.mismatch` where the
 * file is not the one of `sha256`, `request.cancelled` after `signal`.
 */
export async function fetchModel(options: FetchModelOptions): Promise<string> {
  const { dir, sha256, signal } = checked(options);
  if (await kind(path.join(dir, 'manifest.json'))) return dir;
  const part = `${dir}.${sha256.slice(0, 16)}.part`;
  await guarded('the model cannot be written', signal, async () => {
    await mkdir(path.dirname(dir), { recursive: true });
  });
  await guarded('the model cannot be fetched', signal, () => download(options, part));
  await guarded('the model cannot be unpacked', signal, async () => {
    await verify(part, sha256);
    await unpack(part, dir, signal);
    await rm(part, { force: true });
  });
  return dir;
}

function checked(options: FetchModelOptions) {
  const { sha256, dir, signal } = options;
  if (typeof dir !== 'string' || dir === '') throw failure('expected a path as dir.');
  if (!/^[0-9a-f]{64}$/i.test(String(sha256))) {
    throw failure('expected the SHA-256 of the zip file as sha256: 64 hexadecimal digits.');
  }
  return { dir: path.resolve(dir), sha256: sha256.toLowerCase(), signal };
}

/** Appends what is missing to `part`; begins anew where the server cannot go on. */
async function download(options: FetchModelOptions, part: string): Promise<void> {
  const here = (await kind(part))?.size ?? 0;
  const response = await get(new URL(options.url), options, here, REDIRECTIONS);
  const { statusCode, headers } = response;
  if (statusCode === 416) {
    response.resume();
    return; // there is no more: the checksum tells whether all of it is right
  }
  if (statusCode !== 200 && statusCode !== 206) {
    response.resume();
    const retryable = statusCode === 429 || (statusCode ?? 0) >= 500;
    throw failure(`the server answered ${statusCode}. Check the url.`, retryable);
  }
  const begun = statusCode === 206 ? here : 0;
  const length = Number(headers['content-length']);
  const total = Number.isFinite(length) ? begun + length : undefined;
  let received = begun;
  options.onProgress?.(received, total);
  await pipeline(
    response,
    async function* (chunks: AsyncIterable<Buffer>) {
      for await (const chunk of chunks) {
        received += chunk.length;
        options.onProgress?.(received, total);
        yield chunk;
      }
    },
    createWriteStream(part, { flags: begun ? 'a' : 'w' }),
    { signal: options.signal },
  );
  if (total !== undefined && received !== total) {
    throw failure(`expected ${total} bytes, received ${received}. Try again: it goes on.`, true);
  }
}

async function get(
  url: URL,
  options: FetchModelOptions,
  from: number,
  redirections: number,
): Promise<IncomingMessage> {
  if (url.protocol !== 'https:') {
    throw failure(`expected an https address, got ${url.protocol}//${url.host}.`);
  }
  const { ca, signal } = options;
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    const headers = { 'accept-encoding': 'identity', ...(from && { range: `bytes=${from}-` }) };
    const request = https.get(url, { headers, ca, signal, timeout: SILENCE_MS }, resolve);
    request.on('timeout', () => request.destroy(new Error('the server is silent')));
    request.on('error', reject);
  });
  const { statusCode = 0, headers } = response;
  if (![301, 302, 303, 307, 308].includes(statusCode)) return response;
  response.resume();
  if (redirections === 0) throw failure('the server redirects without end. Check the url.');
  return get(new URL(headers.location ?? '', url), options, from, redirections - 1);
}

async function verify(part: string, sha256: string): Promise<void> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(part), hash);
  const found = hash.digest('hex');
  if (found === sha256) return;
  await rm(part, { force: true }); // going on from it would never end well
  throw new SidecarError({
    code: 'model.mismatch',
    message: `expected a model with SHA-256 ${sha256}, received one with ${found}. Check url and sha256, and try again.`,
  });
}

/** A plain zip file of files, in a directory or not; `dir` appears whole or not at all. */
async function unpack(file: string, dir: string, signal: AbortSignal | undefined): Promise<void> {
  const fresh = await mkdtemp(`${dir}.new-`);
  try {
    const writer = new Writer(fresh);
    try {
      const unzip = new Unzip((entry) => {
        entry.ondata = (error, chunk) => {
          if (error) throw error;
          writer.put(entry.name, chunk);
        };
        entry.start();
      });
      unzip.register(UnzipInflate);
      for await (const chunk of createReadStream(file, { signal })) {
        unzip.push(chunk);
        await writer.flush();
      }
      unzip.push(new Uint8Array(0), true);
    } finally {
      await writer.close();
    }
    await rename(await manifestOf(fresh), dir);
  } finally {
    await rm(fresh, { recursive: true, force: true });
  }
}

/** Files below one directory, written one after another. */
class Writer {
  readonly #directory: string;
  readonly #waiting: [string, Uint8Array][] = [];
  #open: { name: string; file: FileHandle } | undefined;

  constructor(directory: string) {
    this.#directory = directory;
  }

  /** Throws on a name that leads out of the directory. */
  put(name: string, chunk: Uint8Array): void {
    const place = path.resolve(this.#directory, name);
    const outside = !place.startsWith(this.#directory + path.sep) || /[\\:]/.test(name);
    if (outside) throw failure('the zip file names a file outside of its directory.');
    if (!name.endsWith('/')) this.#waiting.push([place, chunk]);
  }

  async flush(): Promise<void> {
    for (const [name, chunk] of this.#waiting.splice(0)) {
      if (this.#open?.name !== name) {
        await this.#open?.file.close();
        this.#open = undefined;
        await mkdir(path.dirname(name), { recursive: true });
        this.#open = { name, file: await open(name, 'w') };
      }
      await this.#open.file.writeFile(chunk);
    }
  }

  async close(): Promise<void> {
    await this.flush();
    await this.#open?.file.close();
  }
}

/** Where the manifest is: at the top of the zip file, or in the one directory there. */
async function manifestOf(fresh: string): Promise<string> {
  const names = await readdir(fresh);
  for (const place of [fresh, ...names.map((name) => path.join(fresh, name))]) {
    if (await kind(path.join(place, 'manifest.json'))) return place;
  }
  throw failure('expected a zip file of a model directory, found no manifest.json in it.');
}

/** Whatever goes wrong becomes one error; `what` says which part of the work it was. */
async function guarded(
  what: string,
  signal: AbortSignal | undefined,
  work: () => Promise<void>,
): Promise<void> {
  try {
    await work();
  } catch (error) {
    if (error instanceof SidecarError) throw error;
    if (signal?.aborted) {
      const fault: Fault = { code: 'request.cancelled', message: 'fetching was cancelled.' };
      throw new SidecarError(fault, { cause: signal.reason });
    }
    const { code = '', message } = error as NodeJS.ErrnoException;
    const remedy = REMEDIES[code] ?? 'Try again: it goes on where it was.';
    throw failure(`${what}: ${code || message}. ${remedy}`, !(code in REMEDIES), error);
  }
}

const REMEDIES: Readonly<Record<string, string>> = {
  ENOSPC: 'The disk is full: make room, and try again.',
  EDQUOT: 'The disk is full: make room, and try again.',
  EACCES: 'Choose a dir that the app may write to.',
  EPERM: 'Choose a dir that the app may write to.',
  EROFS: 'Choose a dir that the app may write to.',
  ENOTDIR: 'Choose another dir.',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'The server cannot prove who it is: check the url, or pass ca.',
  SELF_SIGNED_CERT_IN_CHAIN: 'The server cannot prove who it is: check the url, or pass ca.',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'The server cannot prove who it is: check the url, or pass ca.',
  CERT_HAS_EXPIRED: 'The server cannot prove who it is: check the url.',
  ERR_TLS_CERT_ALTNAME_INVALID: 'The server cannot prove who it is: check the url.',
};

function failure(message: string, retryable = false, cause?: unknown): SidecarError {
  return new SidecarError({ code: 'model.download_failed', message, retryable }, { cause });
}

async function kind(file: string): Promise<{ size: number } | undefined> {
  const stats = await stat(file).catch(() => undefined);
  return stats?.isFile() ? { size: stats.size } : undefined;
}
