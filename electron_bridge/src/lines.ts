/** Bytes in, lines out, with a bound on both. Knows nothing of what the lines mean. */

import { StringDecoder } from 'node:string_decoder';

/**
 * Splits a stream of UTF-8 into lines of at most `max` characters. Of a longer line the beginning is
 * kept, and `cut` is true.
 */
export class Lines {
  readonly #decoder = new StringDecoder('utf8');
  readonly #max: number;
  readonly #onLine: (line: string, cut: boolean) => void;
  #begun = '';
  #cut = false;

  constructor(max: number, onLine: (line: string, cut: boolean) => void) {
    this.#max = max;
    this.#onLine = onLine;
  }

  push(chunk: Uint8Array): void {
    const pieces = this.#decoder.write(chunk).split('\n');
    const rest = pieces.pop() ?? '';
    for (const piece of pieces) {
      this.#append(piece);
      this.flush();
    }
    this.#append(rest);
  }

  /** What has come so far is a line, though no line feed follows. */
  flush(): void {
    const line = this.#begun.replace(/\r$/, '');
    if (line) this.#onLine(line, this.#cut);
    this.#begun = '';
    this.#cut = false;
  }

  /** Whether a line that is still open has already been cut. */
  get overlong(): boolean {
    return this.#cut;
  }

  #append(piece: string): void {
    const room = this.#max - this.#begun.length;
    if (piece.length > room) this.#cut = true;
    this.#begun += piece.slice(0, room);
  }
}
