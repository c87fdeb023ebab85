/**
 * The whole way through a real Electron: page → preload → main → sidecar and back. Untried: where this
 * was written, Electron's binary could not be had. The workflow runs it on three systems.
 *
 *   electron e2e.cjs IMAGE       beside vision-sidecar/ and vision-model/
 */

const assert = require('node:assert/strict');
const { mkdtempSync, readFileSync, writeFileSync } = require('node:fs');
const { tmpdir } = require('node:os');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const { app, BrowserWindow, ipcMain } = require('electron');
const { closeBeforeQuit, registerVisionIpc, VisionSidecar } = require('electron-vision-sidecar');

const image = readFileSync(process.argv.at(-1)).toString('base64');
const page = path.join(mkdtempSync(path.join(tmpdir(), 'vision-e2e-')), 'index.html');
writeFileSync(page, '<!doctype html><title>e2e</title>');

async function main() {
  const starting = VisionSidecar.start();
  closeBeforeQuit(app, starting);
  await app.whenReady();
  const sidecar = await starting;
  const preload = require.resolve('electron-vision-sidecar/preload-script');
  const window = new BrowserWindow({ show: false, webPreferences: { preload, sandbox: true } });
  const ask = (options) =>
    window.webContents.executeJavaScript(`(async () => {
      const image = Uint8Array.from(atob(${JSON.stringify(image)}), (letter) => letter.charCodeAt(0));
      const outcome = await window.vision.encode({ image }, ${JSON.stringify(options)});
      if (!outcome.ok) return outcome.error.code;
      const { attentionScores, heatmapPng } = outcome.value;
      return { shape: attentionScores.shape, scores: attentionScores.data.length, png: heatmapPng?.length };
    })()`);

  let undo = registerVisionIpc(ipcMain, sidecar, { allow: ['app://another'] });
  await window.loadFile(page);
  assert.equal(await ask({}), 'ipc.forbidden');
  undo();
  undo = registerVisionIpc(ipcMain, sidecar, { allow: [pathToFileURL(page).href] });
  const answer = await ask({ heatmap: true });
  assert.deepEqual([answer.shape, answer.scores], [[1, 256], 256]);
  assert.ok(answer.png > 0);

  const bitmap = await window.webContents.capturePage();
  assert.ok(bitmap.toBitmap().length % 4 === 0);
  const { pid } = sidecar;
  app.once('quit', () => {
    assert.throws(() => process.kill(pid, 0)); // closed before the app quits
    console.log('ok');
  });
  app.quit();
}

main().catch((error) => {
  console.error(error);
  app.exit(1);
});
