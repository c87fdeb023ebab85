import assert from 'node:assert/strict';
import { test } from 'node:test';
import { handshakeRequest, readLine } from '../src/handshake.js';

const key = 'rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7';
const listening = {
  event: 'listening',
  protocol: 1,
  endpoint: 'tcp://127.0.0.1:40123',
  server_public_key: key,
  pid: 7,
};

test('the request is one line that tells our versions and our public key, and nothing else', () => {
  const line = handshakeRequest(key);
  assert.deepEqual(JSON.parse(line), { protocol: [1, 1], client_public_key: key });
  assert.equal(line.indexOf('\n'), line.length - 1);
});

test('a sidecar that listens tells where, and by which key', () => {
  assert.deepEqual(readLine(JSON.stringify(listening)), {
    event: 'listening',
    endpoint: 'tcp://127.0.0.1:40123',
    serverKey: key,
  });
});

const cases: Record<string, [object | string, string]> = {
  ready: [{ event: 'ready' }, 'ready'],
  'a reason to give up': [{ event: 'fatal', code: 'model.invalid', message: 'x' }, 'fatal'],
  'an event of a newer sidecar': [{ event: 'progress', done: 0.5 }, 'unknown'],
  'another protocol version': [{ ...listening, protocol: 2 }, 'version'],
  'an endpoint on another machine': [{ ...listening, endpoint: 'tcp://10.0.0.1:1' }, 'junk'],
  'an endpoint by name': [{ ...listening, endpoint: 'tcp://localhost:1' }, 'junk'],
  'a key that is too short': [{ ...listening, server_public_key: 'abc' }, 'junk'],
  'a fatal without a code': [{ event: 'fatal' }, 'junk'],
  'JSON without an event': [{ hello: 'world' }, 'junk'],
  'JSON that is no object': ['null', 'junk'],
  'no JSON': ['Loading shared libraries…', 'junk'],
};

for (const [what, [said, event]] of Object.entries(cases)) {
  test(`${what} is read as ${event}`, () => {
    assert.equal(readLine(typeof said === 'string' ? said : JSON.stringify(said)).event, event);
  });
}
