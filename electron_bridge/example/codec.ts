/** Values with typed arrays as bytes and back, as Electron's IPC clones them; for serve.ts and its page. */

const KINDS = { Uint8Array, Float32Array } as const;
type Kind = keyof typeof KINDS;

/** [u32 length of the JSON][JSON][padding][arrays, each padded to 8 bytes]. */
export function pack(value: unknown): Uint8Array<ArrayBuffer> {
  const parts: Uint8Array[] = [];
  let offset = 0;
  // Cloned, as Electron does: what is left has no toJSON, which would list the numbers of an array.
  const json = JSON.stringify(structuredClone(value), (_, item) => {
    if (!ArrayBuffer.isView(item)) return item;
    const kind: Kind = item instanceof Float32Array ? 'Float32Array' : 'Uint8Array';
    parts.push(new Uint8Array(item.buffer, item.byteOffset, item.byteLength));
    const entry = { $array: [kind, offset, item.byteLength] };
    offset += padded(item.byteLength);
    return entry;
  });
  const header = new TextEncoder().encode(json ?? 'null');
  const start = padded(4 + header.length);
  const bytes = new Uint8Array(start + offset);
  new DataView(bytes.buffer).setUint32(0, header.length, true);
  bytes.set(header, 4);
  let at = start;
  for (const part of parts) {
    bytes.set(part, at);
    at += padded(part.length);
  }
  return bytes;
}

/** Throws where the bytes are not `pack`'s. */
export function unpack(bytes: Uint8Array): unknown {
  const copy = new Uint8Array(bytes).buffer; // a Buffer's own slice would share its memory
  const length = new DataView(copy).getUint32(0, true);
  const start = padded(4 + length);
  return JSON.parse(new TextDecoder().decode(new Uint8Array(copy, 4, length)), (_, item) => {
    if (!Array.isArray(item?.$array)) return item;
    const [kind, offset, size] = item.$array as [Kind, number, number];
    const make = KINDS[kind];
    return new make(copy, start + offset, size / make.BYTES_PER_ELEMENT);
  });
}

function padded(length: number): number {
  return Math.ceil(length / 8) * 8;
}
