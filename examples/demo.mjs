/**
 * What an app's main process does: start the sidecar through the bridge, encode one image, draw its
 * heatmap. `make demo` runs it on the demo model: `node examples/demo.mjs MODEL_DIR`.
 */

import { mkdirSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const root = path.dirname(import.meta.dirname);
const fromBridge = createRequire(path.join(root, 'electron_bridge', 'package.json'));
const { VisionSidecar } = fromBridge('electron-vision-sidecar');
const { zipSync } = fromBridge('fflate');

const modelDir = process.argv[2];
if (!modelDir) {
  console.error('usage: node examples/demo.mjs MODEL_DIR');
  process.exit(2);
}
const python = process.platform === 'win32' ? 'Scripts/python.exe' : 'bin/python';
const image = path.join(root, 'examples', 'ecg.png');
const out = path.join(root, 'out');

const begun = performance.now();
const sidecar = await VisionSidecar.start({
  modelDir,
  command: path.join(root, '.venv', python), // an app ships the frozen sidecar and needs neither of
  args: ['-m', 'sidecar'], // these two lines
  cwd: root,
});
const ready = performance.now() - begun;
try {
  const encoding = await sidecar.encode({ path: image }, { heatmap: true });
  mkdirSync(out, { recursive: true });
  writeFileSync(path.join(out, 'ecg.npz'), npz(encoding));
  writeFileSync(path.join(out, 'ecg.heatmap.png'), encoding.heatmapPng);

  const { preprocessMs, inferenceMs, roundTripMs } = encoding.timing;
  const [height, width] = encoding.resolution;
  const { modelId } = sidecar.info;
  console.log(
    `${modelId}, ${height} x ${width}: ready after ${ms(ready)}, preprocessing ${ms(preprocessMs)}, ` +
      `inference ${ms(inferenceMs)}, the whole call with its heatmap ${ms(roundTripMs)}.`,
  );
  console.log('Written: out/ecg.npz (three arrays) and out/ecg.heatmap.png.');
  console.log(
    'The demo model is a stand-in. With a real checkpoint, a directory or a hub id:\n' +
      '  .venv/bin/python -m build convaiinnovations/medgemma-4b-ecginstruct --out medgemma\n' +
      '  node examples/demo.mjs medgemma',
  );
} finally {
  await sidecar.close();
}

/** The three arrays as NumPy's `savez` writes them, for `numpy.load`. */
function npz({ projectedEmbeddings, attentionScores, pooledEmbedding }) {
  const arrays = {
    'projected_embeddings.npy': npy(projectedEmbeddings),
    'attention_scores.npy': npy(attentionScores),
    'pooled_embedding.npy': npy(pooledEmbedding),
  };
  return zipSync(arrays, { level: 0, mtime: '1980-01-01' });
}

/** Version 1.0 of NumPy's format: magic, length, a Python dict padded to 64 bytes, the values. */
function npy({ data, shape }) {
  const dict = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(', ')},), }`;
  const length = Math.ceil((10 + dict.length + 1) / 64) * 64 - 10;
  const header = Buffer.alloc(10 + length, ' ');
  header.write('\x93NUMPY\x01\x00', 'latin1');
  header.writeUInt16LE(length, 8);
  header.write(dict, 10, 'latin1');
  header.write('\n', 9 + length, 'latin1');
  return Buffer.concat([header, Buffer.from(data.buffer, data.byteOffset, data.byteLength)]);
}

function ms(value) {
  return value < 10_000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}
