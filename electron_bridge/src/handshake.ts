/**
 * The one line that we write on the sidecar's stdin, and the lines that it answers with on stdout.
 * Pure: text in, values out. Twin of sidecar/handshake.py.
 */

import { codeFrom, type Fault } from './errors.js';
import { VERSION } from './protocol.js';

/** Where a sidecar listens, and the public key that it answers with (Z85). */
export interface Peer {
  readonly endpoint: string;
  readonly serverKey: string;
}

export type Announcement =
  | ({ readonly event: 'listening' } & Peer)
  | { readonly event: 'ready' }
  | { readonly event: 'fatal'; readonly fault: Fault }
  | { readonly event: 'version'; readonly protocol: unknown } // listening, in a version that we do not speak
  | { readonly event: 'unknown' } // well formed, and from a newer sidecar
  | { readonly event: 'junk' };

/** The line to write; `publicKey` is Z85. */
export function handshakeRequest(publicKey: string): string {
  return `${JSON.stringify({ protocol: [VERSION, VERSION], client_public_key: publicKey })}\n`;
}

/** What a line on stdout says. */
export function readLine(line: string): Announcement {
  const said = parse(line);
  switch (said?.event) {
    case 'listening':
      return readListening(said);
    case 'ready':
      return { event: 'ready' };
    case 'fatal':
      return readFatal(said);
    default:
      return typeof said?.event === 'string' ? { event: 'unknown' } : { event: 'junk' };
  }
}

function readListening(said: Record<string, unknown>): Announcement {
  if (said.protocol !== VERSION) return { event: 'version', protocol: said.protocol };
  const { endpoint, server_public_key: serverKey } = said;
  // Only ever this machine: an endpoint elsewhere would be sent pixels.
  if (typeof endpoint !== 'string' || !/^tcp:\/\/127\.0\.0\.1:\d{1,5}$/.test(endpoint)) {
    return { event: 'junk' };
  }
  if (typeof serverKey !== 'string' || !/^[!-~]{40}$/.test(serverKey)) return { event: 'junk' };
  return { event: 'listening', endpoint, serverKey };
}

function readFatal({ code, message, retryable }: Record<string, unknown>): Announcement {
  if (typeof code !== 'string' || typeof message !== 'string') return { event: 'junk' };
  return {
    event: 'fatal',
    fault: { code: codeFrom(code), message, retryable: retryable === true },
  };
}

function parse(line: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === 'object' && value !== null
      ? (value as Record<string, unknown>)
      : undefined;
  } catch {
    return undefined;
  }
}
