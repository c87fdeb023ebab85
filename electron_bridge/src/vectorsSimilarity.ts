/** Which vectors look alike: cosines, without Node, DOM or sidecar. */

/** What `encode` gives as `projectedEmbeddings`, or its plain numbers, 256 tokens of one image. */
export type Embeddings =
  | ArrayLike<number>
  | { readonly data: ArrayLike<number>; readonly shape: readonly number[] };

const GRID = 16;
const TOKENS = GRID * GRID;

/**
 * The cosine of two vectors of one length, −1…1; 0 where one of them is all zeros. For ranking: the
 * cosine of two images' pooled embeddings is high even for images that have nothing in common.
 * Throws a `RangeError` where their lengths differ.
 */
export function cosine(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length || a.length === 0) {
    throw new RangeError(
      `expected two vectors of one length, not empty; ${a.length} and ${b.length} numbers came.`,
    );
  }
  let dot = 0;
  let squaresA = 0;
  let squaresB = 0;
  for (let i = 0; i < a.length; i += 1) {
    const x = a[i] as number;
    const y = b[i] as number;
    dot += x * y;
    squaresA += x * x;
    squaresB += y * y;
  }
  const size = Math.sqrt(squaresA) * Math.sqrt(squaresB);
  return size > 0 ? Math.min(Math.max(dot / size, -1), 1) : 0;
}

/**
 * Which places of an image look like the one at `[row, column]` of its 16×16 tokens: 256 cosines, −1…1,
 * row-major, of that token with all. The image's mean token is taken off first: what all tokens have in
 * common would make them all alike. Of a batch, the first image counts. Throws a `RangeError`.
 */
export function similarityMap(
  embeddings: Embeddings,
  [row, column]: readonly [row: number, column: number],
): Float32Array<ArrayBuffer> {
  const data = 'data' in embeddings ? embeddings.data : embeddings;
  const width = 'data' in embeddings ? (embeddings.shape.at(-1) ?? 0) : data.length / TOKENS;
  if (!Number.isInteger(width) || width < 1 || data.length < TOKENS * width) {
    throw new RangeError(
      `expected the projected embeddings of one image, 256 tokens; ${data.length} numbers came.`,
    );
  }
  for (const at of [row, column]) {
    if (!Number.isInteger(at) || at < 0 || at >= GRID) {
      throw new RangeError(`expected a row and a column from 0 to 15; ${row} and ${column} came.`);
    }
  }
  const mean = new Float64Array(width);
  for (let token = 0; token < TOKENS; token += 1) {
    for (let i = 0; i < width; i += 1) {
      mean[i] = (mean[i] as number) + (data[token * width + i] as number) / TOKENS;
    }
  }
  const centred = (token: number): Float64Array =>
    mean.map((common, i) => (data[token * width + i] as number) - common);
  const chosen = centred(row * GRID + column);
  return Float32Array.from({ length: TOKENS }, (_, token) => cosine(chosen, centred(token)));
}

/**
 * A similarity map as scores that `paintHeatmap` paints: 0 is the least alike, or not alike (a cosine of
 * 0 or less), 1 the chosen place itself.
 */
export function similarityScores(map: ArrayLike<number>): Float32Array<ArrayBuffer> {
  return Float32Array.from({ length: map.length }, (_, at) => Math.max(map[at] as number, 0));
}
