/**
 * Where the time of a call goes, beyond its inference: a native RGB image in, all three arrays out.
 * `npm run roundtrip [MODEL [TIMES]]` (the demo's model, 30), on a quiet machine. First comes what
 * nobody can save: frames of the same sizes there and back between zeromq.js and pyzmq, CURVE on.
 */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import * as zmq from 'zeromq';
import { program, VisionSidecar } from './real.mjs';

const [model = path.join('..', '.work', 'demo-model'), times = 30] = process.argv.slice(2);
const sidecar = await VisionSidecar.start({ ...program, modelDir: path.resolve(model) });
const side = sidecar.info.defaultResolution;
const width = sidecar.info.textHidden;
const answer = [256 * width * 4, 256 * 4, width * 4];

const beyond = [];
const preprocess = [];
const queue = [];
await sidecar.encode(picture());
for (let round = 0; round < times; round += 1) {
  const input = picture();
  const begun = performance.now();
  const { timing } = await sidecar.encode(input);
  beyond.push(performance.now() - begun - timing.inferenceMs);
  preprocess.push(timing.preprocessMs);
  queue.push(timing.queueMs);
}
await sidecar.close();
const rest = beyond.map((ms, round) => ms - preprocess[round] - queue[round]);

console.log(`${side} × ${side} RGB in, ${answer.join(' + ')} bytes out, ${times} times, ms:`);
report('frames there and back, CURVE', await echo());
report('a call less its inference', beyond);
report('  preprocessing', preprocess);
report('  waiting for the worker', queue);
report('  the rest: transport, checks', rest);

function picture() {
  const rgb = Uint8Array.from({ length: side * side * 3 }, (_, at) => (at * 2654435761) >>> 24);
  return { rgb, width: side, height: side };
}

async function echo() {
  const script = `
import os, sys, zmq
parent = os.getppid()
public, secret = zmq.curve_keypair()
router = zmq.Context().socket(zmq.ROUTER)
router.curve_server, router.curve_publickey, router.curve_secretkey = True, public, secret
port = router.bind_to_random_port("tcp://127.0.0.1")
print(f"{port} {public.decode()}", flush=True)
answer = [bytes(int(size)) for size in sys.argv[1:]]
while os.getppid() == parent:
    if router.poll(1000):
        client, *_ = router.recv_multipart(copy=False)
        router.send_multipart([client, *answer], copy=False)
`;
  const python = program.args ? program.command : 'python3';
  const child = spawn(python, ['-c', script, ...answer.map(String)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [line] = await once(child.stdout, 'data');
  const [port, serverKey] = String(line).trim().split(' ');
  const { publicKey, secretKey } = zmq.curveKeyPair();
  const dealer = new zmq.Dealer({
    linger: 0,
    curveServerKey: serverKey,
    curvePublicKey: publicKey,
    curveSecretKey: secretKey,
  });
  dealer.connect(`tcp://127.0.0.1:${port}`);
  const found = [];
  for (let round = 0; round <= times; round += 1) {
    const { rgb } = picture();
    const begun = performance.now();
    await dealer.send([rgb]);
    await dealer.receive();
    if (round > 0) found.push(performance.now() - begun); // the first one connects
  }
  dealer.close();
  child.kill();
  return found;
}

function report(what, values) {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (share) => sorted[Math.round((sorted.length - 1) * share)].toFixed(1);
  console.log(`${what.padEnd(32)} median ${at(0.5)}, ${at(0)} to ${at(1)}`);
}
