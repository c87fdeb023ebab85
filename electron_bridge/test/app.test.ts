/**
 * The example app in Chromium, with the real sidecar behind its loopback server: what a user does, by mouse
 * and by keyboard. Needs Chromium (at CHROMIUM, else /usr/bin/chromium). UPDATE_GOLDEN=1 writes the golden
 * screenshots anew; with VISION_MODEL=DIR beside it, those of the README instead.
 */

import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, test } from 'node:test';
import { unzipSync } from 'fflate';
import { type Browser, chromium, type Page, type Route } from 'playwright-core';
import { repository } from './golden.js';
import { picture, program, tinyModel } from './real.js';

const bridge = path.join(repository, 'electron_bridge');
const application = path.join(bridge, 'dist', 'app');
const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium';
const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');
const skip = process.env.VISION_SIDECAR
  ? 'the app is tested with the sidecar in Python; a frozen one answers it alike.'
  : existsSync(executablePath)
    ? false
    : `Chromium is missing at ${executablePath}: apt-get install chromium, or set CHROMIUM.`;

let server: ChildProcess;
let browser: Browser;
let page: Page;
let address: string;
const errors: string[] = [];
let messages = 0;

before(async () => {
  if (skip) return;
  server = spawn(
    process.execPath,
    [
      path.join(application, 'serve.mjs'),
      ...[
        '--model',
        process.env.VISION_MODEL ?? tinyModel(),
        '--threads',
        '1',
        '--cwd',
        repository,
      ],
      ...['--', program.command as string, ...(program.args ?? [])],
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const ended = once(server, 'exit').then(() => {
    throw new Error('the page has no server. Run npm ci and npm run build.');
  });
  const line = once(createInterface(server.stdout as NodeJS.ReadableStream), 'line');
  [address] = (await Promise.race([line, ended])) as [string];
  browser = await chromium.launch({
    executablePath,
    args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--no-first-run'],
  });
  page = await browser.newPage({ viewport: { width: 1280, height: 800 }, locale: 'en-US' });
  page.setDefaultTimeout(120_000);
  await page.addInitScript(keepDownloads);
  page.on('pageerror', (error) => errors.push(error.message));
  page.on('console', (line) => line.type() === 'error' && errors.push(line.text()));
  page.on('request', (sent) => {
    if (sent.url().endsWith('/ipc')) messages += 1;
  });
  await page.goto(address);
  await page.locator('#state[data-state=ready]').waitFor();
});

after(async () => {
  if (skip) return;
  await browser?.close();
  server.kill('SIGTERM');
  if (server.exitCode === null && server.signalCode === null) await once(server, 'exit');
});

/** In the page: what it would save is kept for the test, as a browser may ask before many downloads. */
function keepDownloads(): void {
  const saved: { name: string; file: Blob | undefined }[] = [];
  const files = new Map<string, Blob>();
  const create = URL.createObjectURL;
  URL.createObjectURL = (file) => {
    const url = create(file);
    files.set(url, file as Blob);
    return url;
  };
  HTMLAnchorElement.prototype.click = function () {
    saved.push({ name: this.download, file: files.get(this.href) });
  };
  Object.assign(globalThis, { saved });
}

/** As a drop from the desktop does. */
async function drop(...names: string[]): Promise<void> {
  const base64 = readFileSync(picture, 'base64');
  const transfer = await page.evaluateHandle(
    ({ base64, names }) => {
      const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
      const made = new DataTransfer();
      for (const name of names) {
        made.items.add(new File([bytes], name, { type: 'image/png' }));
      }
      return made;
    },
    { base64, names },
  );
  await page.dispatchEvent('main', 'drop', { dataTransfer: transfer });
}

/** Until every image of the queue says one of these. */
async function settled(...words: string[]): Promise<void> {
  await page.waitForFunction((expected) => {
    const shown = [...document.querySelectorAll('#queue .quiet')];
    return shown.length > 0 && shown.every((node) => expected.includes(node.textContent ?? ''));
  }, words);
}

const paints = () => page.locator('#frame').getAttribute('data-painted').then(Number);

async function painted(since: number): Promise<void> {
  await page.waitForFunction(
    (count) => Number(document.getElementById('frame')?.dataset.painted) > count,
    since,
  );
}

/** What the painted canvas shows, as the sum of its bytes: it differs where the picture does. */
const look = () =>
  page.evaluate(() => {
    const canvas = document.querySelector<HTMLCanvasElement>('[data-part=painted]');
    const data = canvas?.getContext('2d')?.getImageData(0, 0, canvas.width, canvas.height).data;
    return data?.reduce((sum, byte, at) => (sum + byte * (1 + (at % 251))) % 2 ** 31, 0);
  });

async function violations(): Promise<string[]> {
  await page.evaluate(axe);
  return page.evaluate(async () => {
    const { axe } = globalThis as unknown as {
      axe: { run(): Promise<{ violations: { id: string; nodes: { html: string }[] }[] }> };
    };
    const found = await axe.run();
    return found.violations.map(({ id, nodes }) => `${id}: ${nodes[0]?.html}`);
  });
}

/** How far two pictures are apart, 0 to 255, seen from so far that letters are grey. */
async function distance(a: Buffer, b: Buffer): Promise<number> {
  const blank = await browser.newPage();
  const apart = await blank.evaluate(
    async (files) => {
      const [one, other] = await Promise.all(
        files.map(async (base64) => {
          const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
          const bitmap = await createImageBitmap(new Blob([bytes]));
          const context = new OffscreenCanvas(40, 25).getContext('2d');
          if (!context) throw new Error('no canvas');
          context.imageSmoothingQuality = 'high';
          context.drawImage(bitmap, 0, 0, 40, 25);
          return context.getImageData(0, 0, 40, 25).data;
        }),
      );
      if (!one || !other) throw new Error('no picture');
      return one.reduce((sum, byte, at) => sum + Math.abs(byte - (other[at] ?? 0)), 0) / one.length;
    },
    [a.toString('base64'), b.toString('base64')],
  );
  await blank.close();
  return apart;
}

async function screenshot(name: string): Promise<void> {
  if (process.env.VISION_MODEL) {
    // The time on a machine that is busy with tests says nothing about the app.
    await page
      .locator('#details dd')
      .nth(3)
      .evaluate((node) => node.replaceChildren('…'));
  }
  const shot = await page.screenshot();
  const out = path.join(repository, '.work', 'app');
  mkdirSync(out, { recursive: true });
  writeFileSync(path.join(out, `${name}.png`), shot);
  if (process.env.VISION_MODEL) {
    if (!process.env.UPDATE_GOLDEN) return;
    writeFileSync(path.join(repository, 'docs', 'images', `app-${name}.png`), shot);
    return;
  }
  const golden = path.join(repository, 'tests', 'golden', 'app', `${name}.png`);
  if (process.env.UPDATE_GOLDEN) {
    mkdirSync(path.dirname(golden), { recursive: true });
    writeFileSync(golden, shot);
  }
  const apart = await distance(shot, readFileSync(golden));
  assert.ok(apart < 8, `${name} is ${apart} grey levels away from its golden picture: see ${out}`);
}

function get(url: string, headers: Record<string, string>): Promise<number> {
  return new Promise((resolve, reject) => {
    const asking = request(url, { headers }, (response) => {
      response.resume();
      resolve(response.statusCode ?? 0);
    });
    asking.on('error', reject).end();
  });
}

describe('the example app', { skip }, () => {
  test('is empty at first, and axe finds nothing', async () => {
    assert.equal(await page.locator('#drop').isVisible(), true);
    assert.deepEqual(await violations(), []);
  });

  test('a dropped image gets a draft, then its full size', async () => {
    await page.evaluate(() => {
      const [badge, details] = ['draft', 'details'].map((id) => document.getElementById(id));
      const observer = new MutationObserver(() => {
        if (badge?.hidden !== false || !details?.innerText.includes('(Draft)')) return;
        observer.disconnect();
        document.body.dataset.drafted = 'yes';
      });
      observer.observe(document.body, { attributes: true, subtree: true, childList: true });
    });
    await drop('ecg.png');
    await settled('Done');
    assert.equal(await page.locator('body').getAttribute('data-drafted'), 'yes');
    assert.equal(await page.locator('#draft').isVisible(), false);
    assert.match(await page.locator('#legend').innerText(), /norm \d/);
    await screenshot('light');
  });

  test('a slider paints at once, without a message to the sidecar', async () => {
    for (const [id, value] of [
      ['threshold', '60'],
      ['alpha', '40'],
    ] as const) {
      const [before, count, sent] = [await look(), await paints(), messages];
      await page.locator(`#${id}`).fill(value);
      await painted(count);
      assert.notEqual(await look(), before);
      assert.equal(messages, sent);
    }
    const spent = await page.evaluate(() =>
      performance.getEntriesByName('vision:paint').map(({ duration }) => duration),
    );
    const median = spent.sort((a, b) => a - b)[spent.length >> 1];
    console.log(
      `# painting 1400 x 1000 takes ${median?.toFixed(1)} ms, the median of ${spent.length}`,
    );
  });

  test('blend, colours and cells paint at once, too', async () => {
    const seen = new Set([await look()]);
    for (const [id, value] of [
      ['blend', 'over'],
      ['colormap', 'viridis'],
    ] as const) {
      const count = await paints();
      await page.selectOption(`#${id}`, value);
      await painted(count);
      seen.add(await look());
    }
    const count = await paints();
    await page.locator('#cells').check();
    await painted(count);
    seen.add(await look());
    assert.equal(seen.size, 4);
    await page.locator('#cells').uncheck();
    await page.selectOption('#blend', 'auto');
    await page.selectOption('#colormap', 'auto');
    await page.locator('#threshold').fill('0');
    await page.locator('#alpha').fill('75');
  });

  test('the bare image shows left of the line between before and after', async () => {
    await page.locator('#compare').fill('50');
    const clip = () =>
      page.locator('[data-part=painted]').evaluate((canvas) => getComputedStyle(canvas).clipPath);
    assert.match(await clip(), /50%/);
    await page.locator('#compare').fill('0');
  });

  test('a click on a place shows the places like it', async () => {
    const count = await paints();
    await page.locator('#similar').click();
    const box = await page.locator('[data-part=bare]').boundingBox();
    assert.ok(box);
    const sent = messages;
    await page.mouse.click(box.x + (box.width * 5.5) / 16, box.y + (box.height * 3.5) / 16);
    await painted(count);
    assert.match(
      (await page.locator('#frame').getAttribute('aria-label')) ?? '',
      /row 4, column 6/,
    );
    assert.equal(await page.locator('[data-part=mark]').isVisible(), true);
    assert.equal(messages, sent);
    await page.locator('#similar').click();
    assert.equal(await page.locator('[data-part=mark]').isVisible(), false);
  });

  test('all of this goes by keyboard', async () => {
    await page.locator('#open').focus();
    await page.keyboard.press('s');
    await page.keyboard.press('ArrowDown');
    await page.keyboard.press('ArrowRight');
    const label = () => page.locator('#frame').getAttribute('aria-label');
    assert.match((await label()) ?? '', /row 10, column 10/);
    await page.keyboard.press('Escape');
    assert.doesNotMatch((await label()) ?? '', /row \d/);
    const transform = () =>
      page.locator('[data-part=stage]').evaluate((stage) => getComputedStyle(stage).transform);
    const fitting = await transform();
    await page.keyboard.press('+');
    assert.notEqual(await transform(), fitting);
    await page.keyboard.press('0');
    assert.equal(await transform(), fitting);
    await page.evaluate(() => {
      const files = document.getElementById('files');
      files?.addEventListener('click', () => files.setAttribute('data-clicked', ''), {
        once: true,
      });
    });
    await page.keyboard.press('o');
    await page.locator('#files[data-clicked]').waitFor({ state: 'attached' });
  });

  test('every control is reached with the Tab key', async () => {
    await page.evaluate(() => (document.activeElement as HTMLElement | null)?.blur());
    const reached = new Set<string>();
    for (let press = 0; press < 40; press += 1) {
      await page.keyboard.press('Tab');
      const id = await page.evaluate(() => document.activeElement?.id ?? '');
      reached.add(id);
    }
    const controls = await page
      .locator('button:visible:enabled, input:visible, select:visible, #frame')
      .evaluateAll((nodes) => nodes.map(({ id }) => id).filter(Boolean));
    assert.deepEqual(
      controls.filter((id) => !reached.has(id)),
      [],
    );
  });

  test('what is exported is what was encoded', async () => {
    const save = async (id: string): Promise<[string, Buffer]> => {
      await page.evaluate(() => {
        const { saved } = globalThis as unknown as { saved: unknown[] };
        saved.length = 0;
      });
      await page.locator(id).click();
      await page.waitForFunction(() => (globalThis as unknown as { saved: [] }).saved.length > 0);
      assert.deepEqual(errors, []);
      const [name, base64] = await page.evaluate(async () => {
        const { saved } = globalThis as unknown as { saved: { name: string; file: Blob }[] };
        const [{ name, file } = { name: '', file: new Blob() }] = saved;
        const bytes = new Uint8Array(await file.arrayBuffer());
        let text = '';
        for (let at = 0; at < bytes.length; at += 2 ** 15) {
          text += String.fromCharCode(...bytes.subarray(at, at + 2 ** 15));
        }
        return [name, btoa(text)] as const;
      });
      return [name, Buffer.from(base64, 'base64')];
    };
    const [pngName, png] = await save('#export-png');
    assert.equal(pngName, 'ecg.heatmap.png');
    assert.equal(png.subarray(1, 4).toString(), 'PNG');
    assert.equal(png.readUInt32BE(16), 1400);
    assert.ok(png.readUInt32BE(20) > 1000); // the legend is below
    const [npzName, npz] = await save('#export-npz');
    assert.equal(npzName, 'ecg.npz');
    const arrays = unzipSync(npz);
    assert.deepEqual(Object.keys(arrays), [
      'projected_embeddings.npy',
      'attention_scores.npy',
      'pooled_embedding.npy',
    ]);
    const npy = Buffer.from(arrays['attention_scores.npy'] as Uint8Array);
    assert.match(npy.subarray(10, 128).toString(), /'shape': \(1, 256\)/);
    const [, json] = await save('#export-json');
    const figures = JSON.parse(json.toString());
    assert.equal(figures.draft, false);
    assert.equal(npy.readFloatLE(npy.length - 4), figures.scores[255]);
  });

  test('waiting images can be cancelled, one and all, and done again', async () => {
    const held: Route[] = []; // else a fast machine is done before anything can be cancelled
    let holding = true;
    const hold = async (route: Route) => (holding ? void held.push(route) : route.continue());
    await page.route('**/ipc', hold);
    await drop(...Array.from({ length: 12 }, (_, number) => `many-${number}.png`));
    await page.locator('#cancel-all').waitFor();
    await page.locator('#item-13 .act').click();
    await page.waitForFunction(
      () => document.querySelector('#item-13 .quiet')?.textContent === 'Cancelled',
    );
    await page.locator('#cancel-all').click();
    holding = false;
    await Promise.all(held.map((route) => route.continue()));
    await settled('Done', 'Cancelled');
    assert.equal(await page.locator('#cancel-all').isVisible(), false);
    await page.locator('#item-13 .act').click();
    await page.waitForFunction(
      () => document.querySelector('#item-13 .quiet')?.textContent === 'Done',
    );
    await page.unroute('**/ipc', hold);
  });

  test('what is no image says so, and what is damaged fails alone', async () => {
    const broken = { name: 'broken.png', mimeType: 'image/png', buffer: Buffer.from('no image') };
    await page.setInputFiles('#files', [broken]);
    await page.locator('#item-14 .pick').click();
    await page.waitForFunction(() =>
      document.querySelector('#item-14 .quiet')?.textContent?.startsWith('Failed: expected'),
    );
    await page.locator('#item-1 .pick').click();
  });

  test('a killed sidecar is a state, and images go on by themselves', async () => {
    await page.evaluate(() => {
      const banner = document.getElementById('banner');
      if (!banner) return;
      const note = () => {
        if (!banner.hidden) document.body.dataset.told = banner.innerText;
      };
      new MutationObserver(note).observe(banner, {
        attributes: true,
        subtree: true,
        childList: true,
      });
    });
    await drop('after.png');
    await page.locator('#developer summary').click();
    await page.locator('#kill').click();
    await page.waitForFunction(() => document.body.dataset.told);
    const told = await page.evaluate(() => document.body.dataset.told);
    assert.match(told ?? '', /started again/);
    await page.locator('#state[data-state=ready]').waitFor();
    await page.waitForFunction(
      () => document.querySelector('#item-15 .quiet')?.textContent === 'Done',
    );
    assert.equal(await page.locator('#banner').isVisible(), false);
  });

  test('in German and in the dark it is the same app, and axe finds nothing', async () => {
    assert.deepEqual(await violations(), []);
    await page.selectOption('#language', 'de');
    await page.emulateMedia({ colorScheme: 'dark' });
    assert.equal(await page.locator('html').getAttribute('lang'), 'de');
    await page.locator('#state', { hasText: 'Bereit' }).waitFor();
    assert.deepEqual(await violations(), []);
    await page.locator('#item-1 .pick').click();
    await screenshot('dark');
  });

  test('no text is left without a translation, and no error in the console', async () => {
    assert.deepEqual(await page.locator('[data-text]:empty').count(), 0);
    assert.deepEqual(errors, []);
  });

  test('nothing leaves the computer: the page may connect nowhere', () => {
    const html = readFileSync(path.join(application, 'index.html'), 'utf8');
    const [, policy = ''] = /Content-Security-Policy"\s+content="([^"]+)"/.exec(html) ?? [];
    assert.match(policy, /default-src 'none'/);
    assert.doesNotMatch(policy, /connect-src|unsafe|https?:|data:/);
  });

  test('the server answers its own page only', async () => {
    const { host } = new URL(address);
    assert.equal(await get(`${address}ipc`, {}), 403);
    assert.equal(await get(`${address}ipc`, { 'x-vision-token': 'a'.repeat(48) }), 403);
    assert.equal(await get(address, { host: 'example.org' }), 403);
    assert.equal(await get(`${address}../../package.json`, { host }), 404);
    assert.equal(await get(`${address}serve.mjs`, { host }), 404);
  });
});
