/**
 * The example app in Chromium, with the real sidecar behind its loopback server: what a user does, by mouse
 * and by keyboard. Needs Chromium (at CHROMIUM, else /usr/bin/chromium). UPDATE_GOLDEN=1 writes the golden
 * screenshots anew; with VISION_MODEL=DIR and VISION_LIBRARY=FILE beside it, those of the README instead.
 */

import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, test } from 'node:test';
import { unzipSync } from 'fflate';
import { type Browser, chromium, type Page, type Route } from 'playwright-core';
import { repository } from './golden.js';
import { picture, program, runReal, tinyModel } from './real.js';

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

const model = process.env.VISION_MODEL;
const scratch = mkdtempSync(path.join(tmpdir(), 'app-'));
const library = path.join(scratch, 'library.cases');

/** Starts the page's server, and says where it is. */
async function serve(...options: string[]): Promise<string> {
  server = spawn(
    process.execPath,
    [
      path.join(application, 'serve.mjs'),
      ...['--model', model ?? tinyModel(), '--threads', '1', '--cwd', repository],
      ...['--library', library, ...options],
      ...['--', program.command as string, ...(program.args ?? [])],
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const ended = once(server, 'exit').then(() => {
    throw new Error('the page has no server. Run npm ci and npm run build.');
  });
  const line = once(createInterface(server.stdout as NodeJS.ReadableStream), 'line');
  const [told] = (await Promise.race([line, ended])) as [string];
  ended.catch(() => undefined);
  return told;
}

async function stop(): Promise<void> {
  server.kill('SIGTERM');
  if (server.exitCode === null && server.signalCode === null) await once(server, 'exit');
}

before(async () => {
  if (skip) return;
  if (process.env.VISION_LIBRARY) copyFileSync(process.env.VISION_LIBRARY, library);
  address = await serve();
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
  await stop();
  rmSync(scratch, { recursive: true });
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

/** An image of the queue. */
const row = (name: string) => page.locator('#queue li', { hasText: name });

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

const DRAWN = 36; // from 32 cases on the vectors are whitened, from 16 on there are places

/**
 * A folder of pictures that differ, each with some disks of its own; and beside it twin.png, which differs in
 * one pixel from the seventh.
 */
async function drawings(): Promise<string> {
  const files = await page.evaluate(async (count) => {
    let state = 1;
    const random = () => {
      state = (state * 48271) % 2147483647;
      return state / 2147483647;
    };
    const canvas = new OffscreenCanvas(224, 224);
    const context = canvas.getContext('2d') as OffscreenCanvasRenderingContext2D;
    const file = async () => {
      const bytes = new Uint8Array(await (await canvas.convertToBlob()).arrayBuffer());
      return btoa(String.fromCharCode(...bytes));
    };
    const made: string[] = [];
    let twin = '';
    for (let picture = 0; picture < count; picture += 1) {
      context.fillStyle = `hsl(${random() * 360} 40% 85%)`;
      context.fillRect(0, 0, 224, 224);
      for (let disk = 0; disk < 9; disk += 1) {
        context.fillStyle = `hsl(${random() * 360} 80% ${20 + random() * 60}%)`;
        context.beginPath();
        context.arc(random() * 224, random() * 224, 8 + random() * 36, 0, 7);
        context.fill();
      }
      made.push(await file());
      if (picture !== 7) continue;
      context.fillRect(100, 100, 1, 1);
      twin = await file();
    }
    return { made, twin };
  }, DRAWN);
  const folder = path.join(scratch, 'drawn');
  mkdirSync(folder);
  for (const [number, base64] of files.made.entries()) {
    writeFileSync(path.join(folder, `drawn-${number}.png`), Buffer.from(base64, 'base64'));
  }
  writeFileSync(path.join(scratch, 'twin.png'), Buffer.from(files.twin, 'base64'));
  return folder;
}

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
    if (model) await page.locator('#matches li').nth(7).waitFor();
    await screenshot('light');
    if (!model) return;
    await page.emulateMedia({ colorScheme: 'dark' });
    await screenshot('dark');
    await page.emulateMedia({ colorScheme: 'light' });
  });

  test('a slider paints at once, without a message to the sidecar', async () => {
    await page.locator('#tab-look').click();
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
    await page.locator('#alpha').focus();
    for (let step = 0; step < 30; step += 1) {
      const count = await paints();
      await page.keyboard.press('ArrowRight');
      await painted(count);
    }
    const spent = await page.evaluate(() =>
      performance.getEntriesByName('vision:paint').map(({ duration }) => duration),
    );
    const latest = spent.slice(-30).sort((a, b) => a - b);
    console.log(
      `# a slider's step paints 1400 x 1000 pixels in ${latest[15]?.toFixed(1)} ms, the median of 30; ` +
        `the slowest took ${latest[29]?.toFixed(1)} ms`,
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

  test('every control is reached with the Tab key, and the tabs with the arrow keys', async () => {
    await page.locator('#tab-cases').click();
    await page.locator('#tab-cases').focus();
    for (const [panel, next] of [
      ['cases', 'look'],
      ['look', 'details'],
      ['details', undefined],
    ]) {
      assert.equal(await page.locator(`#panel-${panel}`).isVisible(), true);
      await page.evaluate(() => (document.activeElement as HTMLElement | null)?.blur());
      const reached = new Set<string>();
      for (let press = 0; press < 40; press += 1) {
        await page.keyboard.press('Tab');
        const id = await page.evaluate(() => document.activeElement?.id ?? '');
        reached.add(id);
      }
      const controls = await page
        .locator('button:visible:enabled, input:visible, select:visible, #frame')
        .evaluateAll((nodes) =>
          nodes.filter((node) => (node as HTMLElement).tabIndex >= 0).map(({ id }) => id),
        );
      assert.deepEqual(
        controls.filter((id) => id && !reached.has(id)),
        [],
      );
      if (!next) break;
      await page.locator(`#tab-${panel}`).focus();
      await page.keyboard.press('ArrowRight'); // from one tab to the next
    }
    await page.locator('#tab-cases').click();
  });

  test('what is exported is what was encoded', async () => {
    await page.locator('#tab-details').click();
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
    await page.locator('#tab-cases').click();
  });

  const own = { skip: model ? 'the library is one that was given' : false };

  test('the picture becomes a case of the library, and is taken out again', own, async () => {
    assert.match(await page.locator('#library').innerText(), /empty/);
    assert.match(await page.locator('#cases-text').innerText(), /import a folder/);
    await page.locator('#add').click();
    await page.locator('#library', { hasText: '1 case' }).waitFor();
    await page.locator('#add', { hasText: 'Remove this image' }).waitFor();
    await page.locator('#cases-text', { hasText: 'No other case' }).waitFor();
    await page.locator('#add').click();
    await page.locator('#library', { hasText: 'empty' }).waitFor();
    await page.locator('#add', { hasText: 'Add this image' }).waitFor();
  });

  test(
    'a folder is imported with progress, can be cancelled, and a bad file stops nothing',
    own,
    async () => {
      const folder = await drawings();
      writeFileSync(path.join(folder, 'broken.png'), 'no image');
      writeFileSync(path.join(folder, 'notes.txt'), 'no image either');
      const held: Route[] = [];
      let holding = true;
      const hold = async (route: Route) => (holding ? void held.push(route) : route.continue());
      await page.route('**/ipc', hold);
      await page.setInputFiles('#import-files', folder);
      await page.locator('#import-cancel').click();
      await page
        .locator('#import-text', { hasText: `cancelled after 0 of ${DRAWN + 1}` })
        .waitFor();
      holding = false;
      await Promise.all(held.splice(0).map((route) => route.continue()));
      await page.unroute('**/ipc', hold);
      await page.locator('#import:enabled').waitFor();
      let passed = 0; // some images, and no more until the progress was seen
      holding = true;
      const holdLater = async (route: Route) => {
        passed += 1;
        return holding && passed > 8 ? void held.push(route) : route.continue();
      };
      await page.route('**/ipc', holdLater);
      await page.setInputFiles('#import-files', folder);
      await page.locator('#import-text', { hasText: / of 37 imported · About .* left/ }).waitFor();
      holding = false;
      await Promise.all(held.map((route) => route.continue()));
      await page.unroute('**/ipc', holdLater);
      await page.locator('#import-text', { hasText: `Imported: ${DRAWN}` }).waitFor();
      await page.locator('#library', { hasText: `${DRAWN} cases` }).waitFor();
      assert.equal(await page.locator('#bad-list li').count(), 1);
      assert.match((await page.locator('#bad-list').textContent()) ?? '', /broken\.png: expected/);
      assert.deepEqual(await violations(), []);
    },
  );

  test('the cases that look like the picture stand beside it, with their places', own, async () => {
    await page.locator('#matches li').nth(7).waitFor();
    const ranks = await page.locator('#matches .rank').allInnerTexts();
    assert.equal(ranks.join(), '1,2,3,4,5,6,7,8');
    assert.doesNotMatch(await page.locator('#panel-cases').innerText(), /%/);
    await page.setInputFiles('#files', path.join(scratch, 'twin.png'));
    await row('twin.png').locator('.pick').click();
    const first = page.locator('#matches li').first();
    await first.locator('.name', { hasText: 'drawn-7.png' }).waitFor();
    const frames = await first.locator('.place').count();
    assert.ok(frames > 0, 'an image and its twin have places in common');
    const there = page.locator('[data-part=places] .place');
    await there.nth(frames - 1).waitFor();
    assert.equal(await there.count(), frames);
    await row('ecg.png').locator('.pick').click();
    await first.locator('.name', { hasText: 'drawn-7.png' }).waitFor({ state: 'detached' });
    await row('twin.png').locator('.pick').click(); // known already: no search, and the same places
    await there.nth(frames - 1).waitFor();
    assert.match(await first.innerText(), /Place 1: .* here, .* in the case/);
    await settled('Done');
    await screenshot('cases');
  });

  test('what the library refuses is said, and the page goes on', own, async () => {
    const other = await browser.newPage({ locale: 'en-US' });
    other.setDefaultTimeout(120_000);
    await other.goto(address);
    await other.locator('#state[data-state=ready]').waitFor();
    await other.setInputFiles('#files', path.join(scratch, 'twin.png'));
    const [here, there] = [page, other].map((each) => each.locator('#matches li').nth(7));
    await there?.waitFor();
    const name = await here?.locator('.name').innerText();
    assert.equal(await there?.locator('.name').innerText(), name);
    for (const each of [there, here]) await each?.locator('.remove').dblclick();
    await other.locator('#library', { hasText: `${DRAWN - 1} cases` }).waitFor();
    await page.locator('#library-problem', { hasText: 'no case' }).waitFor();
    await other.close();
    await page.locator('#library', { hasText: `${DRAWN - 1} cases` }).waitFor();
    await page.locator('#matches .name', { hasText: name ?? '' }).waitFor({ state: 'detached' });
    await page.locator('#matches[aria-busy=false]').waitFor(); // searched again
  });

  test('similar cases go by keyboard, too', own, async () => {
    const picked = () => page.locator('#matches .pick[aria-pressed=true]');
    await page.locator('#frame').focus();
    await page.keyboard.press('2');
    assert.match(await picked().innerText(), /Rank 2:/);
    const name = await page.locator('#matches .name').nth(1).innerText();
    await picked().focus();
    await page.keyboard.press('Tab');
    await page.keyboard.press('Enter');
    assert.equal(await page.locator('#matches .sure').count(), 1); // asks once more
    await page.keyboard.press('Enter');
    await page.locator('#library', { hasText: `${DRAWN - 2} cases` }).waitFor();
    assert.equal(await page.locator('#library-problem').isVisible(), false);
    await page.locator('#matches .name', { hasText: name }).waitFor({ state: 'detached' });
    assert.equal(await page.evaluate(() => document.activeElement?.className), 'pick'); // not lost
    await row('ecg.png').locator('.pick').click();
    await page.locator('#frame').focus();
    await page.keyboard.press('a');
    await page.locator('#add', { hasText: 'Remove this image' }).waitFor();
    await page.keyboard.press('a');
    await page.locator('#add', { hasText: 'Add this image' }).waitFor();
  });

  test('waiting images can be cancelled, one and all, and done again', async () => {
    const held: Route[] = []; // else a fast machine is done before anything can be cancelled
    let holding = true;
    const hold = async (route: Route) => (holding ? void held.push(route) : route.continue());
    await page.route('**/ipc', hold);
    await drop(...Array.from({ length: 12 }, (_, number) => `many-${number}.png`));
    await page.locator('#cancel-all').waitFor();
    await row('many-11.png').locator('.act').click();
    await row('many-11.png').locator('.quiet', { hasText: 'Cancelled' }).waitFor();
    await page.locator('#cancel-all').click();
    holding = false;
    await Promise.all(held.map((route) => route.continue()));
    await settled('Done', 'Cancelled');
    assert.equal(await page.locator('#cancel-all').isVisible(), false);
    await row('many-11.png').locator('.act').click();
    await row('many-11.png').locator('.quiet', { hasText: 'Done' }).waitFor();
    await page.unroute('**/ipc', hold);
  });

  test('what is no image says so, and what is damaged fails alone', async () => {
    const broken = { name: 'broken.png', mimeType: 'image/png', buffer: Buffer.from('no image') };
    await page.setInputFiles('#files', [broken]);
    await row('broken.png').locator('.pick').click();
    await row('broken.png').locator('.quiet', { hasText: 'Failed: expected' }).waitFor();
    await row('ecg.png').locator('.pick').click();
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
    await row('after.png').locator('.quiet', { hasText: 'Done' }).waitFor();
    assert.equal(await page.locator('#banner').isVisible(), false);
  });

  test('in German and in the dark it is the same app, and axe finds nothing', async () => {
    assert.deepEqual(await violations(), []);
    await page.selectOption('#language', 'de');
    await page.emulateMedia({ colorScheme: 'dark' });
    assert.equal(await page.locator('html').getAttribute('lang'), 'de');
    await page.locator('#state', { hasText: 'Bereit' }).waitFor();
    assert.deepEqual(await violations(), []);
    await row('ecg.png').locator('.pick').click();
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

  test(
    'pages that may only search find what the command line finds, in its order',
    own,
    async () => {
      await stop();
      address = await serve('--read-only');
      await page.goto(address);
      await page.locator('#state[data-state=ready]').waitFor();
      await page.locator('#library', { hasText: `${DRAWN - 2} cases` }).waitFor();
      assert.equal(await page.locator('#add').isVisible(), false);
      assert.equal(await page.locator('#import').isVisible(), false);
      await drop('ecg.png');
      await page.locator('#matches li').nth(7).waitFor();
      const inApp = await page.locator('#matches .name').allInnerTexts();
      assert.equal(await page.locator('#matches .remove').count(), 0);
      await stop();
      const printed = runReal(
        ...['search', picture, '--model', tinyModel(), '--threads', '1'],
        ...['--collection', library, '-k', '8', '--json'],
      );
      const { matches } = JSON.parse(printed) as { matches: { metadata: { name: string } }[] };
      assert.deepEqual(
        inApp,
        matches.map(({ metadata }) => metadata.name),
      );
    },
  );
});
