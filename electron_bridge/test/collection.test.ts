import assert from 'node:assert/strict';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import type { AddOptions, Collection, EmbeddingsInput } from '../src/collection.js';
import type { VisionSidecar } from '../src/sidecar.js';
import { startFake } from './fake.js';

const image = Uint8Array.of(1, 2, 3, 4);
const file = path.resolve('cases.db');
const encoding: EmbeddingsInput = {
  projectedEmbeddings: { data: Float32Array.of(1, 2), shape: [1, 2, 1] },
  pooledEmbedding: { data: Float32Array.of(3), shape: [1, 1] },
  resolution: [448, 448],
};

/** A collection of a sidecar that keeps what it is asked. */
async function open(
  t: TestContext,
  readOnly = false,
  behaviour = 'good',
): Promise<{ sidecar: VisionSidecar; cases: Collection; asked: () => Promise<unknown> }> {
  const sidecar = await startFake(t, behaviour);
  const cases = sidecar.collection({ path: 'cases.db', readOnly });
  return { sidecar, cases, asked: async () => (await sidecar.stats()).asked };
}

test('a case is added with one inference, and its encoding comes back', async (t) => {
  const { cases, asked } = await open(t);
  const { pooledEmbedding } = await cases.add(image, {
    id: 'a',
    metadata: { age: 71, tags: [null, true] },
    replace: true,
    outputs: ['pooledEmbedding'],
    resolution: 448,
    priority: 'low',
  });
  assert.deepEqual(pooledEmbedding.shape, [1, 1]);
  assert.deepEqual(await asked(), [
    {
      op: 'collection.add',
      params: {
        collection: file,
        id: 'a',
        metadata: { age: 71, tags: [null, true] },
        replace: true,
        resolution: 448,
        outputs: ['pooled_embedding'],
        priority: 'low',
      },
      inputs: [{ name: 'image', shape: [4] }],
    },
  ]);
});

test('what was encoded already is added without another inference', async (t) => {
  const { cases, asked } = await open(t);
  assert.equal(await cases.add(encoding, { id: 'a' }), encoding);
  assert.deepEqual(await asked(), [
    {
      op: 'collection.add',
      params: { collection: file, id: 'a', resolution: [448, 448] },
      inputs: [
        { name: 'projected_embeddings', shape: [1, 2, 1] },
        { name: 'pooled_embedding', shape: [1, 1] },
      ],
    },
  ]);
});

test('a search gives the matches, their number in all, and the encoding', async (t) => {
  const { cases, asked } = await open(t);
  const {
    matches,
    count,
    encoding: own,
  } = await cases.search(image, {
    k: 3,
    regions: true,
    where: { age: 71 },
    outputs: [],
  });
  assert.equal(count, 7);
  const [match] = matches;
  assert.deepEqual([match?.id, match?.similarity], ['case 7', 0.75]);
  assert.deepEqual(match?.regions?.[0]?.match, [0.5, 0.5, 0.75, 0.75]);
  assert.deepEqual(Object.keys(match?.metadata ?? {}), ['age', '__proto__']); // a key like any other
  assert.deepEqual(own.resolution, [1, 1]);
  const [request] = (await asked()) as { params: object }[];
  assert.deepEqual(request?.params, {
    collection: file,
    k: 3,
    regions: true,
    where: { age: 71 },
    outputs: [],
  });
});

test('a search with what was encoded already gives it back', async (t) => {
  const { cases } = await open(t);
  const found = await cases.search(encoding);
  assert.equal(found.encoding, encoding);
  assert.equal(found.matches.length, 1);
});

test('a collection that is read only is searched as such, and not changed', async (t) => {
  const { cases, asked } = await open(t, true);
  await cases.search(image, { outputs: [] });
  await cases.search(encoding);
  await cases.info();
  for (const { params } of (await asked()) as { params: { readOnly?: boolean } }[]) {
    assert.equal(params.readOnly, true);
  }
  await assert.rejects(cases.add(image, { id: 'a' }), { code: 'collection.read_only' });
  await assert.rejects(cases.remove('a'), { code: 'collection.read_only' });
});

test('a case can be removed, and what is left is told', async (t) => {
  const { cases, asked } = await open(t);
  await cases.remove('a');
  assert.deepEqual(await cases.info(), {
    count: 7,
    model: 'ab',
    projection: 'projector',
    resolution: [448, 448],
    bytes: 4096,
    fitted: 0,
    readOnly: false,
  });
  assert.deepEqual(await asked(), [
    { op: 'collection.remove', params: { collection: file, id: 'a' }, inputs: [] },
    { op: 'collection.info', params: { collection: file }, inputs: [] },
  ]);
});

test('matches that are none fail their call', async (t) => {
  const { cases } = await open(t, false, 'odd-matches');
  await assert.rejects(cases.search(encoding), { code: 'sidecar.malformed' });
});

test('an encoding’s memory is copied when it is handed in', async (t) => {
  const { cases } = await open(t);
  const data = Float32Array.of(1, 2);
  const adding = cases.add(
    { ...encoding, projectedEmbeddings: { data, shape: [1, 2, 1] } },
    { id: 'a' },
  );
  structuredClone(data, { transfer: [data.buffer] });
  await adding;
});

const odd: Record<string, (cases: Collection) => Promise<unknown>> = {
  'no id': (c) => c.add(image, {} as AddOptions),
  'no id of an encoding': (c) => c.add(encoding, {} as AddOptions),
  'no options': (c) => c.add(image, undefined as never),
  'an empty id': (c) => c.add(image, { id: '' }),
  'a long id': (c) => c.add(image, { id: 'é'.repeat(129) }),
  'an id that is a number': (c) => c.remove(5 as never),
  'metadata that are a list': (c) => c.add(image, { id: 'a', metadata: [] as never }),
  'metadata with a date': (c) => c.add(image, { id: 'a', metadata: { at: new Date() as never } }),
  'half a match': (c) => c.search(image, { k: 0.5 }),
  'a heatmap of an encoding': (c) => c.search(encoding, { heatmap: true } as never),
  'an encoding without a resolution': (c) =>
    c.search({ ...encoding, resolution: undefined } as never),
  'an encoding without its pooled vector': (c) =>
    c.search({ ...encoding, pooledEmbedding: undefined } as never),
  'an encoding of another shape': (c) =>
    c.search({ ...encoding, pooledEmbedding: { data: Float32Array.of(1), shape: [2] } }),
  'an encoding of lists': (c) =>
    c.search({ ...encoding, pooledEmbedding: { data: [1], shape: [1] } } as never),
};

test('whatever is wrong with an argument is told, and nothing is sent', async (t) => {
  const { cases, asked, sidecar } = await open(t);
  for (const [what, call] of Object.entries(odd)) {
    await assert.rejects(call(cases), { name: 'SidecarError', code: 'request.malformed' }, what);
  }
  assert.deepEqual(await asked(), []);
  assert.throws(() => sidecar.collection({} as never), { code: 'request.malformed' });
  assert.throws(() => sidecar.collection({ path: 5 } as never), { code: 'request.malformed' });
});
