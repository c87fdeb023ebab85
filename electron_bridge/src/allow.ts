/** Which pages may ask: an app's list against what Electron tells of a frame. Pure; knows no requests. */

import { malformed, show } from './checks.js';

/** The part of Electron's `WebFrameMain` that is used. */
export interface FrameLike {
  readonly url: string;
  /** `null`, as text, where a sandbox or a scheme without origins takes it away. */
  readonly origin?: string;
  readonly parent: FrameLike | null;
}

/** Origins, `file:` URLs (one that ends in `/` allows the directory), or a function that decides. */
export type Allow = readonly string[] | ((frame: FrameLike) => boolean);

/** Throws `request.malformed` where an entry is no origin or `file:` URL. */
export function permits(allow: Allow): (frame: FrameLike) => boolean {
  if (typeof allow === 'function') return allow;
  if (!Array.isArray(allow)) {
    throw malformed(`expected allow to be a list or a function; ${show(allow)} came.`);
  }
  const entries = allow.map(readEntry);
  return (frame) => frame.parent === null && entries.some((entry) => matches(frame, entry));
}

function readEntry(entry: unknown): URL {
  const url = typeof entry === 'string' ? parse(entry) : undefined;
  if (!url) {
    throw malformed(`allow: expected an origin or a file: URL; ${show(entry)} came.`);
  }
  if (url.protocol === 'file:') return url;
  if (!/^\/?$/.test(url.pathname) || url.search || url.hash || url.username) {
    throw malformed(
      `allow: ${show(entry)} names a page, and pages of one origin cannot be kept apart. Name the origin alone, or pass a function.`,
    );
  }
  return url;
}

function matches({ url, origin }: FrameLike, wanted: URL): boolean {
  const page = parse(url);
  if (!page || page.protocol !== wanted.protocol || page.host !== wanted.host) return false;
  if (origin === 'null') return false; // sandboxed: whoever wrote it, it is not that site
  if (wanted.protocol !== 'file:') return origin === undefined || isOf(origin, wanted);
  const inside = wanted.pathname.endsWith('/') && page.pathname.startsWith(wanted.pathname);
  return inside || page.pathname === wanted.pathname;
}

function isOf(origin: string, { protocol, host }: URL): boolean {
  const own = parse(origin);
  return own?.protocol === protocol && own.host === host;
}

function parse(text: string): URL | undefined {
  return URL.canParse(text) ? new URL(text) : undefined;
}
