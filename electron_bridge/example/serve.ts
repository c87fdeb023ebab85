/**
 * The same page in a browser, without Electron: `node serve.mjs [--port N] [--model DIR] [--library FILE] [-- PROGRAM ARG…]`.
 * It stands in for Electron's IPC over loopback HTTP. Each start has a token of its own, which the page
 * carries; a request with another token, host or origin is refused. For development, not for shipping.
 */

import { randomBytes, timingSafeEqual } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import path from 'node:path';
import { parseArgs } from 'node:util';
import {
  type InvokeEventLike,
  type IpcMainLike,
  registerVisionIpc,
  SidecarError,
  VisionSidecar,
} from 'electron-vision-sidecar';
import { pack, unpack } from './codec.js';
import { registerStatus } from './status.js';

const TYPES: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
};
const MAX_BYTES = 80 * 2 ** 20;
const root = import.meta.dirname;
const token = randomBytes(24).toString('hex');

const { values, positionals } = parseArgs({
  options: {
    port: { type: 'string', default: '0' },
    model: { type: 'string' },
    cwd: { type: 'string' },
    threads: { type: 'string' },
    library: { type: 'string', default: 'library.cases' },
    'read-only': { type: 'boolean', default: false },
  },
  allowPositionals: true,
});
const [command, ...args] = positionals;
// npm runs scripts in the package's own directory: the user's files are where npm was called.
if (process.env.INIT_CWD) process.chdir(process.env.INIT_CWD);
const library = path.resolve(values.library);

/** Electron's ipcMain, as much of it as is used. */
const handlers = new Map<string, Parameters<IpcMainLike['handle']>[1]>();
const ipcMain: IpcMainLike = {
  handle: (channel, listener) => void handlers.set(channel, listener),
  removeHandler: (channel) => void handlers.delete(channel),
};

/** One open page: what is sent to it waits until its stream of events is open. */
class Page extends EventEmitter {
  readonly id: number;
  #stream: ServerResponse | undefined;
  #waiting: string[] = [];
  #gone = false;

  constructor(id: number) {
    super();
    this.id = id;
  }

  isDestroyed(): boolean {
    return this.#gone;
  }

  send(channel: string, ...sent: unknown[]): void {
    const line = `data: ${JSON.stringify([channel, ...sent])}\n\n`;
    if (this.#stream) this.#stream.write(line);
    else this.#waiting.push(line);
  }

  open(stream: ServerResponse): void {
    this.#stream = stream;
    stream.write(`: open\n\n${this.#waiting.splice(0).join('')}`);
    stream.on('close', () => {
      this.#gone = true;
      this.emit('destroyed');
    });
  }
}

const pages = new Map<string, Page>();

function pageOf(name: string): Page {
  const known = pages.get(name);
  if (known) return known;
  const page = new Page(pages.size + 1);
  pages.set(name, page);
  page.once('destroyed', () => pages.delete(name));
  return page;
}

async function body(request: IncomingMessage): Promise<Uint8Array> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size > MAX_BYTES) throw new Error('too large');
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const origin = `http://${request.headers.host}`;
  const url = new URL(request.url ?? '/', origin);
  if (!hosts.has(request.headers.host ?? '')) return end(response, 403);
  if (url.pathname === '/ipc' || url.pathname === '/events') {
    const given = request.headers['x-vision-token'] ?? url.searchParams.get('token') ?? '';
    if (!isToken(String(given))) return end(response, 403);
    const name = String(request.headers['x-vision-page'] ?? url.searchParams.get('page'));
    if (url.pathname === '/events') {
      response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
      return pageOf(name).open(response);
    }
    if (request.method !== 'POST') return end(response, 405);
    const [channel, ...sent] = unpack(await body(request)) as [string, ...unknown[]];
    const handler = handlers.get(channel);
    if (!handler) return end(response, 404);
    const senderFrame = { url: `${origin}/`, parent: null };
    const event = { sender: pageOf(name), senderFrame } satisfies InvokeEventLike;
    const value = await handler(event, ...sent);
    return end(response, 200, 'application/octet-stream', pack(value ?? null));
  }
  if (url.pathname === '/favicon.ico') return end(response, 204);
  const file = path.join(root, url.pathname === '/' ? 'index.html' : url.pathname);
  const type = TYPES[path.extname(file)];
  if (!type || !file.startsWith(root + path.sep) || !existsSync(file)) return end(response, 404);
  const content = readFileSync(file);
  const served = file.endsWith('index.html') ? forBrowser(content.toString()) : content;
  end(response, 200, type, served);
}

/** The page as it is, but that it may speak to us, and knows the token. */
function forBrowser(html: string): string {
  return html
    .replace("default-src 'none';", "default-src 'none'; connect-src 'self';")
    .replace('<head>', `<head>\n    <meta name="vision-token" content="${token}" />`);
}

function isToken(given: string): boolean {
  const [a, b] = [Buffer.from(given), Buffer.from(token)];
  return a.length === b.length && timingSafeEqual(a, b);
}

function end(
  response: ServerResponse,
  status: number,
  type = 'text/plain',
  content: string | Uint8Array = '',
): void {
  response.writeHead(status, {
    'content-type': type,
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
    'x-frame-options': 'DENY',
    'cross-origin-resource-policy': 'same-origin',
    'referrer-policy': 'no-referrer',
  });
  response.end(content);
}

const hosts = new Set<string>();
const server = createServer((request, response) => {
  answer(request, response).catch(() => {
    if (!response.headersSent) end(response, 400);
  });
});
server.listen(Number(values.port), '127.0.0.1', () => {
  const { port } = server.address() as { port: number };
  for (const name of ['127.0.0.1', 'localhost']) hosts.add(`${name}:${port}`);
  const starting = VisionSidecar.start({
    ...(command ? { command, args } : {}),
    ...(values.model ? { modelDir: values.model } : {}),
    ...(values.cwd ? { cwd: values.cwd } : {}),
    ...(values.threads ? { threads: Number(values.threads) } : {}),
  });
  const allow = [...hosts].map((host) => `http://${host}`);
  registerVisionIpc(ipcMain, starting, {
    allow,
    collections: { library: { path: library, writable: !values['read-only'] } },
  });
  registerStatus(ipcMain, starting, {
    allow: (asking) => allow.some((origin) => asking === `${origin}/`),
    developer: true,
  });
  const stop = (): void => {
    server.closeAllConnections();
    server.close();
    starting.then(
      (sidecar) => sidecar.close().then(() => process.exit()),
      () => process.exit(),
    );
  };
  process.once('SIGINT', stop);
  process.once('SIGTERM', stop);
  starting.catch((error: unknown) => {
    console.error(error instanceof SidecarError ? `${error.code}: ${error.message}` : error);
  });
  console.log(`http://127.0.0.1:${port}/`);
});
