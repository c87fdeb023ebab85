// onnxruntime-node in a process of its own: the twin of engines.py, for one engine.
// Takes the same configuration, and answers with the same line.
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';

const OUTPUTS = ['projected_embeddings', 'attention_scores', 'pooled_embedding'];

const asked = JSON.parse(process.argv[2]);
const { InferenceSession, Tensor } = createRequire(join(asked.modules, '/'))('onnxruntime-node');

const shape = [1, 3, asked.side, asked.side];
const inputs = asked.inputs.map((path) => {
  const { buffer, byteOffset, length } = readFileSync(path);
  return new Tensor(
    'float32',
    new Float32Array(buffer.slice(byteOffset, byteOffset + length)),
    shape,
  );
});
const loading = performance.now();
const session = await InferenceSession.create(asked.model.graph, {
  executionProviders: ['cpu'],
  intraOpNumThreads: asked.threads,
  extra: { session: { intra_op: { allow_spinning: '0' } } },
});
const loadSeconds = (performance.now() - loading) / 1e3;

for (let i = 0; i < asked.warmups; i++) {
  for (const pixels of inputs) await session.run({ pixel_values: pixels });
}
const seconds = [];
for (let i = 0; i < asked.runs; i++) {
  for (const [index, pixels] of inputs.entries()) {
    const begun = performance.now();
    const found = await session.run({ pixel_values: pixels });
    seconds.push((performance.now() - begun) / 1e3);
    if (asked.outputs === null) continue;
    for (const name of OUTPUTS) {
      const { buffer, byteOffset, byteLength } = found[name].data;
      writeFileSync(
        join(asked.outputs, `${index}.${name}`),
        Buffer.from(buffer, byteOffset, byteLength),
      );
    }
  }
}
const peak = process.resourceUsage().maxRSS * 1024; // Node gives kilobytes on every system
console.log(JSON.stringify({ load_s: loadSeconds, seconds, peak_bytes: peak, notes: {} }));
process.exit(0);
