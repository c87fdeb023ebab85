import assert from 'node:assert/strict';
import { test } from 'node:test';
import { encode } from '@msgpack/msgpack';
import { SidecarError } from '../src/errors.js';
import { type Request, readReply, writeRequest } from '../src/protocol.js';
import * as golden from './golden.js';

/** Every op, every kind of input, every parameter; ids at the borders of msgpack's integer sizes. */
const requests: Record<string, { id: number } & Request> = {
  hello: { id: 0, op: 'hello' },
  stats: { id: 127, op: 'stats' },
  cancel: { id: 128, op: 'cancel', params: { target: 4294967295 } },
  shutdown: { id: 4294967295, op: 'shutdown' },
  'encode-image': {
    id: 65535,
    op: 'encode',
    inputs: [
      {
        name: 'image',
        datatype: 'UINT8',
        shape: [4],
        data: Uint8Array.of(0x89, 0x50, 0x4e, 0x47),
      },
    ],
    params: { resolution: undefined, outputs: undefined, heatmap: undefined },
  },
  'encode-rgb': {
    id: 65536,
    op: 'encode',
    inputs: [
      {
        name: 'rgb',
        datatype: 'UINT8',
        shape: [1, 2, 3],
        data: Uint8Array.of(255, 0, 0, 0, 0, 255),
      },
    ],
    params: {
      resolution: [448, 896],
      outputs: ['pooled_embedding', 'heatmap_png'],
      heatmap: { colormap: 'viridis', alpha: 1, threshold: 0.25, invert: true, legend: false },
    },
  },
  'encode-pixel-values': {
    id: 7,
    op: 'encode',
    inputs: [
      {
        name: 'pixel_values',
        datatype: 'FP32',
        shape: [1, 3, 1, 1],
        data: new Uint8Array(Float32Array.of(-1, 0.5, 1).buffer),
      },
    ],
    params: { resolution: 224, outputs: ['attention_scores'] },
  },
  'collection-add': {
    id: 8,
    op: 'collection.add',
    inputs: [{ name: 'image', datatype: 'UINT8', shape: [4], data: Uint8Array.of(1, 2, 3, 4) }],
    params: {
      collection: '/nonexistent/folder/cases',
      id: 'Fall 7 心電図',
      metadata: { age: 71, tags: ['a', null, true], note: { by: 'x', score: 0.5 } },
      replace: true,
      resolution: 448,
      outputs: [],
      priority: 'low',
    },
  },
  'collection-search': {
    id: 9,
    op: 'collection.search',
    inputs: [
      {
        name: 'projected_embeddings',
        datatype: 'FP32',
        shape: [1, 2, 1],
        data: new Uint8Array(Float32Array.of(0.5, 1.5).buffer),
      },
      {
        name: 'pooled_embedding',
        datatype: 'FP32',
        shape: [1, 1],
        data: new Uint8Array(Float32Array.of(1).buffer),
      },
    ],
    params: {
      collection: '/nonexistent/folder/cases',
      k: 3,
      regions: true,
      where: { age: 71 },
      read_only: true,
      resolution: [448, 448],
    },
  },
  'collection-remove': {
    id: 10,
    op: 'collection.remove',
    params: { collection: '/nonexistent/folder/cases', id: 'case 7' },
  },
  'collection-info': {
    id: 11,
    op: 'collection.info',
    params: { collection: '/nonexistent/folder/cases', read_only: true },
  },
};

for (const [name, { id, ...request }] of Object.entries(requests)) {
  test(`the request ${name} is written as both languages know it`, () => {
    const frames = writeRequest(id, request);
    if (process.env.UPDATE_GOLDEN) golden.write(name, frames);
    assert.deepEqual(frames.map(hex), golden.read('requests', name).map(hex));
  });
}

test('every golden request is one that we write', () => {
  assert.deepEqual(golden.names('requests').sort(), Object.keys(requests).sort());
});

for (const name of golden.names('replies')) {
  test(`the reply ${name}, written by Python, can be read`, () => {
    const reply = readReply(golden.read('replies', name));
    if (reply.ok) assert.ok(reply.outputs.every((output) => output.data instanceof Uint8Array));
    else assert.ok(golden.codes().includes(reply.error.code));
  });
}

test('a payload is sent from the memory that was handed in', () => {
  const data = new Uint8Array(8);
  const inputs = [{ name: 'image', datatype: 'UINT8', shape: [8], data } as const];
  assert.equal(writeRequest(1, { op: 'encode', inputs })[1], data);
});

test('a reply tells its arrays by name and type', () => {
  const outputs = [{ name: 'pooled_embedding', datatype: 'FP32', shape: [1, 2] }];
  const header = encode({ v: 1, id: 3, ok: true, outputs, model: 'm' });
  const reply = readReply([header, new Uint8Array(8)]);
  assert.ok(reply.ok);
  assert.deepEqual(reply.outputs[0]?.shape, [1, 2]);
  assert.equal(reply.header.model, 'm');
});

test('a failure keeps its code, its sentence and whether to try again', () => {
  const error = { code: 'busy', message: 'full.', retryable: true };
  const reply = readReply([encode({ v: 1, id: null, ok: false, error })]);
  assert.deepEqual(reply, { id: null, ok: false, error });
});

const output = { name: 'a', datatype: 'FP32', shape: [2] };
const good = { v: 1, id: 3, ok: true, outputs: [output] };
const malformed: Record<string, Uint8Array[]> = {
  'no frames': [],
  'a header that is not msgpack': [Uint8Array.of(0xc1)],
  'a header that is a list': [encode([])],
  'no id': [encode({ ...good, id: undefined, outputs: [] }, { ignoreUndefined: true })],
  'an id below zero': [encode({ ...good, id: -1, outputs: [] })],
  'neither ok nor not': [encode({ ...good, ok: 'yes', outputs: [] })],
  'an error without a code': [encode({ v: 1, id: 3, ok: false, error: { message: 'x' } })],
  'a payload too few': [encode(good)],
  'a payload too many': [encode(good), new Uint8Array(8), new Uint8Array(8)],
  'a payload too short': [encode(good), new Uint8Array(7)],
  'an unknown datatype': [
    encode({ ...good, outputs: [{ ...output, datatype: 'FP16' }] }),
    new Uint8Array(4),
  ],
  'a shape with a fraction': [
    encode({ ...good, outputs: [{ ...output, shape: [0.5] }] }),
    new Uint8Array(2),
  ],
};

for (const [what, frames] of Object.entries(malformed)) {
  test(`not a reply: ${what}`, () => {
    assert.throws(() => readReply(frames), { name: 'SidecarError', code: 'sidecar.malformed' });
  });
}

test('a reply of another protocol version is told apart', () => {
  const newer = [encode({ ...good, v: 2, outputs: [] })];
  assert.throws(() => readReply(newer), { code: 'protocol.version' });
});

test('mutated replies raise nothing but a SidecarError', () => {
  const frame = encode({ ...good, model: 'abc', resolution: [448, 448] });
  let seed = 1;
  const random = (below: number): number => {
    seed = (seed * 48271) % 2147483647;
    return seed % below;
  };
  for (let round = 0; round < 20_000; round += 1) {
    const mutated = frame.slice(0, 1 + random(frame.length));
    for (let flips = random(4); flips >= 0; flips -= 1)
      mutated[random(mutated.length)] = random(256);
    try {
      readReply([mutated, new Uint8Array(8)]);
    } catch (error) {
      assert.ok(error instanceof SidecarError, String(error));
    }
  }
});

function hex(frame: Uint8Array): string {
  return Buffer.from(frame).toString('hex');
}
