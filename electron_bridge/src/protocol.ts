/**
 * Frames in, messages out: no sockets, no clocks, no model.
 *
 * A message is [header: msgpack map] [payload: raw bytes]*. The header is small and typed; pixels and
 * floats stay outside it, so nothing large is ever copied. Twin of sidecar/protocol.py; tests/golden
 * holds both to the same bytes.
 */

import { decode, encode } from '@msgpack/msgpack';
import { codeFrom, type Fault, SidecarError } from './errors.js';

export const VERSION = 1;
export const MAX_ID = 2 ** 32 - 1;
const MAX_HEADER = 128 * 1024; // bytes: the metadata of a case are part of it
const MAX_DEPTH = 16;

const ITEM_BYTES = { FP32: 4, UINT8: 1 } as const;

export type Datatype = keyof typeof ITEM_BYTES;

/** A named array and its memory: little-endian, row-major. */
export interface NamedArray {
  readonly name: string;
  readonly datatype: Datatype;
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

export type Op =
  | 'hello'
  | 'encode'
  | 'cancel'
  | 'stats'
  | 'shutdown'
  | 'collection.add'
  | 'collection.search'
  | 'collection.remove'
  | 'collection.info';

export interface Request {
  readonly op: Op;
  readonly inputs?: readonly NamedArray[];
  readonly params?: Readonly<Record<string, unknown>> | undefined;
}

/** `header` is the whole map, for the fields that belong to one op. */
export interface Done {
  readonly id: number;
  readonly ok: true;
  readonly outputs: readonly NamedArray[];
  readonly header: Readonly<Record<string, unknown>>;
}

/** `id` is null where the sidecar could not read the request's. */
export interface Failed {
  readonly id: number | null;
  readonly ok: false;
  readonly error: Fault;
}

export type Reply = Done | Failed;

/**
 * Write one request. The payloads are the inputs' own memory, not copies.
 * Throws `request.malformed` or `request.too_large` where the sidecar could not read it, as it could not
 * tell us either: it would not know the id.
 */
export function writeRequest(id: number, { op, inputs = [], params }: Request): Uint8Array[] {
  const described = inputs.map(({ name, datatype, shape }) => ({ name, datatype, shape }));
  const header = { v: VERSION, id, op, inputs: described, params };
  checkPlain(header, MAX_DEPTH);
  const frame = encode(header, { ignoreUndefined: true });
  if (frame.byteLength > MAX_HEADER) {
    throw new SidecarError({
      code: 'request.too_large',
      message: `the options of the call take ${frame.byteLength} bytes; ${MAX_HEADER} are allowed. Send less beside the image.`,
    });
  }
  return [frame, ...inputs.map((input) => input.data)];
}

/** Maps, lists, well-formed text, numbers, booleans and null, at most `depth` levels deep; else throws. */
function checkPlain(value: unknown, depth: number): void {
  if (value === null || value === undefined) return;
  if (typeof value === 'boolean' || typeof value === 'number') return;
  if (typeof value === 'string') {
    checkText(value);
    return;
  }
  if (typeof value !== 'object') throw unwritable(`a ${typeof value}`);
  if (depth === 0) throw unwritable(`something more than ${MAX_DEPTH} levels deep`);
  if (Array.isArray(value)) {
    for (const item of value) checkPlain(item, depth - 1);
    return;
  }
  const parent: unknown = Object.getPrototypeOf(value);
  const plain = parent === null || Object.getPrototypeOf(parent) === null; // of any realm
  if (!plain) throw unwritable(`a ${value.constructor?.name ?? 'special object'}`);
  for (const [key, item] of Object.entries(value)) {
    checkText(key);
    checkPlain(item, depth - 1);
  }
}

function checkText(text: string): void {
  if (/\p{Surrogate}/u.test(text)) throw unwritable('text with half a surrogate pair');
}

function unwritable(what: string): SidecarError {
  return new SidecarError({
    code: 'request.malformed',
    message: `expected options of maps, lists, text, numbers and booleans; ${what} came.`,
  });
}

/**
 * Read one reply. The outputs' memory is the frames' own.
 * Throws `protocol.version` or `sidecar.malformed`; anything else is our bug.
 */
export function readReply(frames: readonly Uint8Array[]): Reply {
  const header = readHeader(frames[0]);
  if (header.v !== VERSION) {
    throw new SidecarError({
      code: 'protocol.version',
      message: `the reply has protocol version ${String(header.v)}; this bridge speaks ${VERSION}. Ship the bridge and the sidecar of one release.`,
    });
  }
  const { id } = header;
  if (header.ok === false && (id === null || isCount(id))) {
    return { id, ok: false, error: readFault(header.error) };
  }
  if (header.ok !== true || !isCount(id)) throw malformed('neither a result nor an error');
  return { id, ok: true, outputs: readOutputs(header.outputs, frames.slice(1)), header };
}

function readHeader(frame: Uint8Array | undefined): Record<string, unknown> {
  if (!frame) throw malformed('a message without frames');
  let header: unknown;
  try {
    header = decode(frame);
  } catch {
    throw malformed('a header that is not msgpack');
  }
  if (!isMap(header)) throw malformed('a header that is not a map');
  return header;
}

function readFault(error: unknown): Fault {
  if (!isMap(error) || typeof error.code !== 'string' || typeof error.message !== 'string') {
    throw malformed('an error without code and message');
  }
  return {
    code: codeFrom(error.code),
    message: error.message,
    retryable: error.retryable === true,
  };
}

function readOutputs(described: unknown, payloads: readonly Uint8Array[]): NamedArray[] {
  if (!Array.isArray(described) || described.length !== payloads.length) {
    throw malformed('a list of outputs that does not match the payloads');
  }
  return payloads.map((data, index) => readOutput(described[index], data));
}

function readOutput(entry: unknown, data: Uint8Array): NamedArray {
  if (!isMap(entry) || typeof entry.name !== 'string' || !isShape(entry.shape)) {
    throw malformed('an output without name and shape');
  }
  const { name, datatype, shape } = entry;
  if (datatype !== 'FP32' && datatype !== 'UINT8') throw malformed('an unknown datatype');
  const expected = shape.reduce((product, side) => product * side, ITEM_BYTES[datatype]);
  if (data.byteLength !== expected) {
    throw malformed(`${datatype} [${shape.join(', ')}] in ${data.byteLength} bytes`);
  }
  return { name, datatype, shape, data };
}

function malformed(what: string): SidecarError {
  return new SidecarError({
    code: 'sidecar.malformed',
    message: `expected a reply of the vision sidecar; ${what} came. Ship the bridge and the sidecar of one release.`,
  });
}

function isMap(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isShape(value: unknown): value is number[] {
  return Array.isArray(value) && value.every(isCount);
}

function isCount(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) <= MAX_ID;
}
