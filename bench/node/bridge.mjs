// What an app sees: round trips and a hundred files through the real bridge, from plain Node.
// Takes JSON: `bridge` (its directory), `command`, `args`, `cwd`, `model`, `threads`, and either
// `times` (round trips of a native RGB image) or `files` and `inFlight` (bulk).
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';

const asked = JSON.parse(process.argv[2]);
const { VisionSidecar } = createRequire(join(asked.bridge, 'package.json'))(
  'electron-vision-sidecar',
);
const sidecar = await VisionSidecar.start({
  modelDir: asked.model,
  command: asked.command,
  args: asked.args,
  cwd: asked.cwd,
  threads: asked.threads,
});

async function roundTrips(times) {
  const side = Math.max(...sidecar.info.resolutions);
  // The bridge sends without copying: a buffer of its own for each request.
  const picture = () => ({
    rgb: Uint8Array.from({ length: side * side * 3 }, (_, i) => (i * 2654435761) >>> 24),
    width: side,
    height: side,
  });
  await sidecar.encode(picture());
  const beyond = [];
  for (let i = 0; i < times; i++) {
    const input = picture();
    const begun = performance.now();
    const { timing } = await sidecar.encode(input);
    beyond.push(performance.now() - begun - timing.inferenceMs);
  }
  return { beyond_inference_ms: beyond };
}

async function bulk(files, inFlight) {
  await sidecar.encode({ path: files[0] });
  const waiting = [...files];
  const preprocess = [];
  const inference = [];
  const begun = performance.now();
  const next = async () => {
    for (let path = waiting.shift(); path !== undefined; path = waiting.shift()) {
      const { timing } = await sidecar.encode({ path });
      preprocess.push(timing.preprocessMs);
      inference.push(timing.inferenceMs);
    }
  };
  await Promise.all(Array.from({ length: inFlight }, next));
  return {
    seconds: (performance.now() - begun) / 1e3,
    preprocess_ms: preprocess,
    inference_ms: inference,
  };
}

try {
  const found = asked.files
    ? await bulk(asked.files, asked.inFlight)
    : await roundTrips(asked.times);
  console.log(JSON.stringify(found));
} finally {
  await sidecar.close();
}
