import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { zipSync } from 'fflate';
import { type FetchModelOptions, fetchModel } from '../src/download.js';

const openssl = spawnSync('openssl', ['version']).status === 0;
const root = mkdtempSync(path.join(tmpdir(), 'download-'));
after(() => rmSync(root, { recursive: true, force: true }));

// Enough that a transfer can be cut in the middle of it.
const noise = Uint8Array.from(
  { length: 400_000 },
  (_, index) => ((index * 2654435761) >>> 13) & 255,
);
const contents = { 'manifest.json': new TextEncoder().encode('{}'), 'weights.bin': noise };
const flat = zipSync(contents, { level: 0 });
const nested = zipSync({ model: contents }, { level: 9 });
const sha = (data: Uint8Array) => createHash('sha256').update(data).digest('hex');

type Answer = (request: IncomingMessage, response: ServerResponse) => void;

/** Sends `data`, from where the request asks. */
function send(data: Uint8Array, from = 0): Answer {
  return (_, response) => {
    const range = from
      ? { 'content-range': `bytes ${from}-${data.length - 1}/${data.length}` }
      : {};
    response.writeHead(from ? 206 : 200, { 'content-length': data.length - from, ...range });
    response.end(data.subarray(from));
  };
}

function resumable(data: Uint8Array): Answer {
  return (request, response) => {
    const from = Number(/bytes=(\d+)-/.exec(request.headers.range ?? '')?.[1] ?? 0);
    if (from < data.length) return send(data, from)(request, response);
    response.writeHead(416).end();
  };
}

/** Promises all of `data`, and hangs up after some of it. */
function cut(data: Uint8Array, after: number): Answer {
  return (_, response) => {
    response.writeHead(200, { 'content-length': data.length });
    response.write(data.subarray(0, after), () => response.destroy());
  };
}

describe('fetchModel', { skip: openssl ? false : 'needs openssl for a certificate' }, () => {
  let answer: Answer = () => undefined;
  const ranges: (string | undefined)[] = [];
  let ca: Buffer;
  let server: ReturnType<typeof createServer>;
  let url: string;

  before(async () => {
    const [key, cert] = ['key.pem', 'cert.pem'].map((name) => path.join(root, name)) as [
      string,
      string,
    ];
    const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'];
    const words = [
      'req',
      '-x509',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:prime256v1',
      '-nodes',
    ];
    execFileSync('openssl', [...words, ...subject, '-keyout', key, '-out', cert], {
      stdio: 'ignore',
    });
    ca = readFileSync(cert);
    server = createServer({ key: readFileSync(key), cert: ca }, (request, response) => {
      ranges.push(request.headers.range);
      answer(request, response);
    });
    await new Promise<void>((resolve) => server.listen(0, 'localhost', resolve));
    url = `https://localhost:${(server.address() as AddressInfo).port}/model.zip`;
  });
  after(() => server?.close());

  let number = 0;
  function options(data = flat, more: Partial<FetchModelOptions> = {}): FetchModelOptions {
    ranges.length = 0;
    const dir = path.join(root, `case-${number++}`, 'model');
    return { url, sha256: sha(data), dir, ca, ...more };
  }

  /** Rejects with the code, and leaves nothing that could be taken for a model. */
  async function fails(given: FetchModelOptions, code: string, message: RegExp, retryable = false) {
    await assert.rejects(fetchModel(given), { code, message, retryable });
    assert.ok(!existsSync(given.dir));
    const folder = path.dirname(given.dir);
    const left = existsSync(folder) ? readdirSync(folder) : [];
    assert.deepEqual(
      left.filter((name) => name.includes('.new-')),
      [],
    );
  }

  for (const [what, data] of [
    ['at the top', flat],
    ['in a directory', nested],
  ] as const) {
    test(`a zip file with the model ${what} becomes the model directory`, async () => {
      answer = resumable(data);
      const told: [number, number | undefined][] = [];
      const given = options(data, { onProgress: (...each) => told.push(each) });
      assert.equal(await fetchModel(given), given.dir);
      assert.deepEqual(readdirSync(given.dir).sort(), ['manifest.json', 'weights.bin']);
      assert.deepEqual(new Uint8Array(readFileSync(path.join(given.dir, 'weights.bin'))), noise);
      assert.deepEqual(readdirSync(path.dirname(given.dir)), ['model']);
      assert.deepEqual(told.at(-1), [data.length, data.length]);
    });
  }

  test('what is there already is not fetched again', async () => {
    const given = options();
    mkdirSync(given.dir, { recursive: true });
    writeFileSync(path.join(given.dir, 'manifest.json'), '{}');
    assert.equal(await fetchModel(given), given.dir);
    assert.deepEqual(ranges, []);
  });

  test('an interrupted transfer goes on where it was', async () => {
    const given = options();
    answer = cut(flat, 150_000);
    await fails(given, 'model.download_failed', /Try again/, true);
    answer = resumable(flat);
    await fetchModel(given);
    const from = Number(/bytes=(\d+)-/.exec(ranges[1] ?? '')?.[1]);
    assert.ok(from > 0 && from <= 150_000, `asked from ${from}`);
  });

  test('a server that cannot go on sends all of it again', async () => {
    const given = options();
    answer = cut(flat, 150_000);
    await fails(given, 'model.download_failed', /Try again/, true);
    answer = send(flat);
    await fetchModel(given);
  });

  test('a transfer that was complete needs no more than the check', async () => {
    const given = options();
    mkdirSync(path.dirname(given.dir), { recursive: true });
    writeFileSync(`${given.dir}.${given.sha256.slice(0, 16)}.part`, flat);
    answer = resumable(flat);
    await fetchModel(given);
  });

  test('one changed byte is refused, and is not kept', async () => {
    const changed = flat.slice();
    changed[1000] = (changed[1000] ?? 0) ^ 1;
    answer = resumable(changed);
    const given = options();
    await fails(given, 'model.mismatch', /expected a model with SHA-256/);
    answer = resumable(flat);
    await fetchModel(given);
    assert.deepEqual(ranges, [undefined, undefined]);
  });

  test('a short file is refused', async () => {
    answer = send(flat.subarray(0, 1000));
    await fails(options(), 'model.mismatch', /SHA-256/);
  });

  test('redirections are followed within https, and not to http', async () => {
    const redirect =
      (location: string): Answer =>
      (request, response) => {
        if (request.url === '/there') return send(flat)(request, response);
        response.writeHead(302, { location }).end();
      };
    answer = redirect('/there');
    await fetchModel(options());
    answer = redirect('http://localhost/model.zip');
    await fails(options(), 'model.download_failed', /expected an https address, got http:/);
    answer = redirect('/again');
    await fails(options(), 'model.download_failed', /redirects without end/);
  });

  test('http, a bad digest and an empty dir are refused before anything is asked', async () => {
    const http = options(flat, { url: 'http://localhost/model.zip' });
    await fails(http, 'model.download_failed', /https/);
    await fails(options(flat, { sha256: 'abc' }), 'model.download_failed', /64 hexadecimal digits/);
    await assert.rejects(fetchModel(options(flat, { dir: '' })), /expected a path as dir/);
    assert.deepEqual(ranges, []);
  });

  test('a server with a certificate of nobody’s is not trusted', async () => {
    const { ca: _, ...given } = options();
    answer = resumable(flat);
    await fails(given, 'model.download_failed', /cannot prove who it is/);
  });

  test('what the server answers otherwise is told; whether to try again depends', async () => {
    answer = (_, response) => response.writeHead(404).end();
    await fails(options(), 'model.download_failed', /answered 404/);
    answer = (_, response) => response.writeHead(503).end();
    await fails(options(), 'model.download_failed', /answered 503/, true);
  });

  test('a zip file without a manifest is not a model', async () => {
    const other = zipSync({ 'readme.txt': noise });
    answer = resumable(other);
    await fails(options(other), 'model.download_failed', /no manifest\.json/);
  });

  test('a zip file that names a place elsewhere writes nothing there', async () => {
    for (const name of ['../outside', '/tmp/outside', 'a/../../outside', 'c:\\outside']) {
      const evil = zipSync({ 'manifest.json': contents['manifest.json'], [name]: noise });
      answer = resumable(evil);
      const given = options(evil);
      await fails(given, 'model.download_failed', /outside of its directory/);
      assert.ok(!existsSync(path.join(path.dirname(given.dir), 'outside')), name);
    }
  });

  test('aborting ends it', async () => {
    const controller = new AbortController();
    answer = (_, response) => {
      response.writeHead(200, { 'content-length': flat.length });
      response.write(flat.subarray(0, 1000), () => controller.abort());
    };
    await fails(options(flat, { signal: controller.signal }), 'request.cancelled', /cancelled/);
  });

  const limited = process.platform === 'win32' || process.getuid?.() === 0;
  test('a folder that may not be written to is one error', { skip: limited }, async () => {
    const given = options();
    mkdirSync(path.dirname(given.dir), { recursive: true });
    chmodSync(path.dirname(given.dir), 0o555);
    answer = resumable(flat);
    await fails(given, 'model.download_failed', /may write to/);
  });

  const full = process.platform === 'linux' && existsSync('/dev/full');
  test('a full disk is one error', { skip: !full }, async () => {
    const given = options();
    mkdirSync(path.dirname(given.dir), { recursive: true });
    symlinkSync('/dev/full', `${given.dir}.${given.sha256.slice(0, 16)}.part`);
    answer = resumable(flat);
    await fails(given, 'model.download_failed', /ENOSPC\. The disk is full/);
  });
});
