/**
 * What an argument must be: readers that give back what they know, by name and type, or throw
 * `request.malformed` with what was expected and what came. Pure; knows no options.
 */

import { SidecarError } from './errors.js';

/** Reads one value; `what` is how a message calls it. */
export type Reader<T> = (value: unknown, what: string) => T;

/** A reader for each option. Exact: an option that is not in the table has no place in `T`. */
export type Table<T> = { readonly [K in keyof T]-?: Reader<NonNullable<T[K]>> };

/** An object whose entries `table` reads. Entries that are undefined are left out, unknown ones refused. */
export function record<T extends object>(table: Table<T>): Reader<T> {
  const names = Object.keys(table) as (keyof T & string)[];
  return (value, what) => {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw wrong(what, 'an object', value);
    }
    const stranger = Object.keys(value).find((name) => !Object.hasOwn(table, name));
    if (stranger !== undefined) {
      throw malformed(`${what}: ${quote(stranger)} is unknown; there are ${names.join(', ')}.`);
    }
    const known: Partial<T> = {};
    for (const name of names) {
      const item: unknown = get(value, name, what);
      if (item !== undefined) known[name] = table[name](item, `${what}.${name}`);
    }
    return known as T;
  };
}

export function oneOf<const T extends string>(...names: T[]): Reader<T> {
  return (value, what) => {
    const known = names.find((name) => name === value);
    if (known !== undefined) return known;
    throw wrong(what, `one of ${names.join(', ')}`, value);
  };
}

export function number(least: number, most: number): Reader<number> {
  return (value, what) => {
    if (typeof value === 'number' && value >= least && value <= most) return value;
    const limit =
      most === Number.POSITIVE_INFINITY ? `of at least ${least}` : `${least} to ${most}`;
    throw wrong(what, `a number ${limit}`, value);
  };
}

export function whole(least: number, most: number): Reader<number> {
  return (value, what) => {
    if (typeof value === 'number' && Number.isInteger(value) && value >= least && value <= most) {
      return value;
    }
    throw wrong(what, `a whole number ${least} to ${most}`, value);
  };
}

export const flag: Reader<boolean> = (value, what) => {
  if (typeof value === 'boolean') return value;
  throw wrong(what, 'true or false', value);
};

/** Text that a program can be given. */
export const text: Reader<string> = (value, what) => {
  if (typeof value === 'string') return value;
  throw wrong(what, 'text', value);
};

export function matching(pattern: RegExp, expected: string): Reader<string> {
  return (value, what) => {
    if (typeof value === 'string' && pattern.test(value)) return value;
    throw wrong(what, expected, value);
  };
}

export function listOf<T>(item: Reader<T>): Reader<readonly T[]> {
  return (value, what) => {
    if (!Array.isArray(value)) throw wrong(what, 'a list', value);
    return value.map((entry: unknown, at) => item(entry, `${what}[${at}]`));
  };
}

// biome-ignore lint/suspicious/noExplicitAny: a function's own types are the caller's affair
export const callback: Reader<(...args: any[]) => any> = (value, what) => {
  // biome-ignore lint/suspicious/noExplicitAny: as above
  if (typeof value === 'function') return value as (...args: any[]) => any;
  throw wrong(what, 'a function', value);
};

/** By its shape: Electron's and a test runner's may be of another realm. */
export const signal: Reader<AbortSignal> = (value, what) => {
  const like = value as Partial<AbortSignal> | null;
  if (typeof like === 'object' && typeof like?.aborted === 'boolean' && like.addEventListener) {
    return like as AbortSignal;
  }
  throw wrong(what, 'an AbortSignal', value);
};

/** `request.malformed`, saying what came. Long text and whole objects are named, not repeated. */
export function wrong(what: string, expected: string, came: unknown): SidecarError {
  return malformed(`expected ${what} to be ${expected}; ${show(came)} came.`);
}

export function malformed(message: string, options?: ErrorOptions): SidecarError {
  return new SidecarError({ code: 'request.malformed', message }, options);
}

/** What came, in words. */
export function show(value: unknown): string {
  switch (typeof value) {
    case 'string':
      return value.length <= 40 ? quote(value) : `text of ${value.length} characters`;
    case 'bigint':
      return `${value}n`;
    case 'function':
      return 'a function';
    case 'symbol':
      return 'a symbol';
    case 'object':
      if (value === null) return 'null';
      return Array.isArray(value) ? `a list of ${value.length}` : kindOf(value);
    default:
      return String(value);
  }
}

/** Of an object, the name of its class. */
function kindOf(value: object): string {
  try {
    const name: unknown = value.constructor?.name;
    if (typeof name === 'string' && name && name !== 'Object') return `a ${name}`;
  } catch {
    // a proxy that does not like to be asked
  }
  return 'an object';
}

function quote(value: string): string {
  return JSON.stringify(value.slice(0, 40));
}

function get(value: object, name: string, what: string): unknown {
  try {
    return (value as Record<string, unknown>)[name];
  } catch (cause) {
    throw malformed(`${what}.${name} cannot be read.`, { cause });
  }
}
