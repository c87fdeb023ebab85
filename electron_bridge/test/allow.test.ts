import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Allow, permits } from '../src/allow.js';

/** What asks, where it lies, its origin if Electron tells it, the list, and whether it may. */
const cases: Record<string, [string, string | undefined, Allow, boolean]> = {
  'the same origin': ['app://main/a.html', undefined, ['app://main'], true],
  'the same origin, as Electron tells it': ['app://main/a', 'app://main', ['app://main'], true],
  'another page of an allowed site': ['https://a.org/x?y', undefined, ['https://a.org'], true],
  'a site whose entry ends in a slash': ['https://a.org/x', undefined, ['https://a.org/'], true],
  'the second of two entries': ['app://b/', undefined, ['app://a', 'app://b'], true],
  'another site': ['https://a.org.evil.com/', undefined, ['https://a.org'], false],
  'another port': ['https://a.org:444/', undefined, ['https://a.org'], false],
  'another scheme': ['http://a.org/', undefined, ['https://a.org'], false],
  'a sandboxed page at an allowed URL': ['https://a.org/', 'null', ['https://a.org'], false],
  'a sandboxed file in an allowed directory': ['file:///a/b.html', 'null', ['file:///a/'], false],
  'a page that runs under another origin': [
    'https://a.org/',
    'https://b.org',
    ['https://a.org'],
    false,
  ],
  'a page whose origin has another scheme': ['app://a/', 'https://a', ['app://a'], false],
  'a page whose origin is no URL': ['https://a.org/', '', ['https://a.org'], false],
  'a file in an allowed directory': ['file:///app/ui/a.html', 'file://', ['file:///app/ui/'], true],
  'a file outside of it': ['file:///app/ui/../../etc/a', 'file://', ['file:///app/ui/'], false],
  'a file whose path begins like an entry': [
    'file:///opt/app-evil/a.html',
    undefined,
    ['file:///opt/app'],
    false,
  ],
  'an allowed file': ['file:///app/a.html', undefined, ['file:///app/a.html'], true],
  'a file beside it': ['file:///app/b.html', undefined, ['file:///app/a.html'], false],
  'a file on another host': ['file://nas/app/a.html', undefined, ['file:///app/'], false],
  'no page at all': ['about:blank', undefined, ['app://main'], false],
  'what is no URL': ['', undefined, ['app://main'], false],
  'anybody, where nobody is listed': ['app://main/', undefined, [], false],
  'whom the app’s own function allows': ['about:blank', 'null', () => true, true],
  'whom the app’s own function refuses': ['app://main/', undefined, () => false, false],
};

for (const [who, [url, origin, allow, may]] of Object.entries(cases)) {
  test(`${who} ${may ? 'may' : 'may not'} ask`, () => {
    const frame = { url, parent: null, ...(origin !== undefined && { origin }) };
    assert.equal(permits(allow)(frame), may);
  });
}

test('a frame inside an allowed page may not ask', () => {
  const parent = { url: 'app://main/', parent: null };
  assert.equal(permits(['app://main'])({ url: 'app://main/', parent }), false);
});

const wrong: Record<string, [unknown, RegExp]> = {
  'an entry with a path': [['https://a.org/app/'], /names a page/],
  'an entry with a query': [['https://a.org?x'], /names a page/],
  'an entry with a user': [['https://me@a.org'], /names a page/],
  'an entry without a scheme': [['a.org'], /expected an origin or a file: URL; "a\.org" came/],
  'an entry that is no text': [[5], /5 came/],
  'a list that is text': ['https://a.org', /to be a list or a function; "https:\/\/a\.org" came/],
};

for (const [what, [allow, message]] of Object.entries(wrong)) {
  test(`${what} is refused when the handlers are registered`, () => {
    assert.throws(() => permits(allow as Allow), { code: 'request.malformed', message });
  });
}
