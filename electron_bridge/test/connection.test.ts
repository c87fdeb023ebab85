import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { type TestContext, test } from 'node:test';
import * as zmq from 'zeromq';
import { type Connection, loadTransport } from '../src/connection.js';

const frame = (value: number): Uint8Array[] => [Uint8Array.of(value)];

/** A router with keys, and a connection to it that keeps what it hears. */
async function pair(t: TestContext): Promise<{
  router: zmq.Router;
  connection: Connection;
  heard: number[];
}> {
  const keys = zmq.curveKeyPair();
  const router = new zmq.Router({
    curveServer: true,
    curvePublicKey: keys.publicKey,
    curveSecretKey: keys.secretKey,
    linger: 0,
  });
  await router.bind('tcp://127.0.0.1:*');
  const transport = await loadTransport();
  const heard: number[] = [];
  const connection = transport.connect(
    { endpoint: router.lastEndpoint as string, serverKey: keys.publicKey },
    transport.newKeys(),
    {
      message: ([first]) => heard.push(first?.[0] as number),
      broken: (error) => assert.fail(String(error)),
    },
  );
  t.after(() => {
    connection.close();
    router.close();
  });
  return { router, connection, heard };
}

test('messages leave in order, and answers come back', async (t) => {
  const { router, connection, heard } = await pair(t);
  for (const value of [1, 2, 3]) connection.send(frame(value), false);
  for (const value of [1, 2, 3]) {
    const [client, got] = await router.receive();
    assert.equal(got?.[0], value);
    await router.send([client as Buffer, Buffer.of(value + 10)]);
  }
  while (heard.length < 3) await new Promise(setImmediate);
  assert.deepEqual(heard, [11, 12, 13]);
});

/** A connection to a server that takes no handshake: nothing can leave. */
async function stuck(t: TestContext): Promise<Connection> {
  const server = createServer((socket) => socket.on('error', () => undefined));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const transport = await loadTransport();
  const connection = transport.connect(
    { endpoint: `tcp://127.0.0.1:${port}`, serverKey: zmq.curveKeyPair().publicKey },
    transport.newKeys(),
    { message: () => undefined, broken: () => undefined },
  );
  t.after(() => {
    connection.close();
    server.close();
  });
  return connection;
}

test('ZeroMQ holds two messages at most: the others can be taken back', async (t) => {
  const connection = await stuck(t);
  const unsend = Array.from({ length: 60 }, (_, value) => connection.send(frame(value), false));
  await new Promise((resolve) => setTimeout(resolve, 50)); // a chance to take more than it should
  const taken = unsend.map((take) => take());
  assert.ok(taken.filter((was) => !was).length <= 2, 'more than two have left');
  assert.deepEqual(taken.slice(2), Array(58).fill(true));
  assert.deepEqual(
    unsend.slice(2).map((take) => take()),
    Array(58).fill(false),
  ); // once
});

test('an urgent message goes before those that wait', async (t) => {
  const { router, connection } = await pair(t);
  for (const value of [1, 2, 3, 4, 5]) connection.send(frame(value), false);
  connection.send(frame(9), true);
  const order: number[] = [];
  while (order.length < 6) order.push((await router.receive())[1]?.[0] as number);
  assert.ok(order.indexOf(9) < order.indexOf(4), String(order));
  assert.deepEqual(
    order.filter((value) => value !== 9),
    [1, 2, 3, 4, 5],
  );
});

test('a connection that was closed sends nothing, and is not said to be broken', async (t) => {
  const connection = await stuck(t);
  const unsend = connection.send(frame(1), false);
  const waiting = connection.send(frame(2), false);
  connection.close();
  assert.deepEqual([unsend(), waiting()], [false, false]);
  await new Promise(setImmediate);
});
