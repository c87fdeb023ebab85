/**
 * The one line that we write on the sidecar's stdin, and the lines that it answers with on stdout.
 * Pure: text in, values out. Twin of sidecar/handshake.py.
 */

import { VERSION } from './protocol.js';

export type Announcement =
  | { readonly event: 'listening'; readonly endpoint: string; readonly serverKey: string }
  | { readonly event: 'ready' }
  | { readonly event: 'fatal'; readonly code: string; readonly message: string }
  | { readonly event: 'version'; readonly protocol: unknown } // listening, in a version that we do not speak
  | { readonly event: 'unknown' } // well formed, and from a newer sidecar
  | { readonly event: 'junk' };

/** The line to write; `publicKey` is Z85. */
export function offer(publicKey: string): string {
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
      return typeof said.code === 'string' && typeof said.message === 'string'
        ? { event: 'fatal', code: said.code, message: said.message }
        : { event: 'junk' };
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
