/** What leaves the page: the picture with its legend, the arrays, the figures. Made here, without inference. */

import type { RendererEncoding } from 'electron-vision-sidecar/preload';
import {
  heatmapColors,
  isBright,
  type PaintOptions,
  paintHeatmap,
} from 'electron-vision-sidecar/vectors';
import { zipSync } from 'fflate';

type Tensor = NonNullable<RendererEncoding['attentionScores']>;

const WHITE: [number, number, number] = [255, 255, 255];
const DARK: [number, number, number] = [16, 16, 16];

export interface LegendTexts {
  readonly low: string;
  readonly high: string;
  readonly note: string;
}

/** The whole picture at its own size, painted, with its legend below. */
export async function png(
  image: ImageBitmap,
  scores: ArrayLike<number>,
  options: PaintOptions,
  legend: LegendTexts,
): Promise<Blob> {
  const { width, height } = image;
  const unit = Math.max(9, Math.min(Math.floor(width / 64), Math.floor(height / 18)));
  const canvas = new OffscreenCanvas(width, height + Math.round(unit * 4));
  const context = canvas.getContext('2d') as OffscreenCanvasRenderingContext2D;
  context.fillStyle = 'white';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, width, height);
  const ground = isBright(pixels.data, width, height) ? WHITE : DARK;
  paintHeatmap(scores, pixels.data, width, height, { ...options, into: pixels.data });
  context.putImageData(pixels, 0, 0);
  context.font = `${unit}px system-ui, sans-serif`;
  context.textBaseline = 'middle';
  context.fillStyle = '#181818';
  const top = height + unit;
  if (!options.flat) {
    const left = unit + context.measureText(legend.low).width + unit / 2;
    const bar = Math.min(
      26 * unit,
      width - left - context.measureText(legend.high).width - 2 * unit,
    );
    context.fillText(legend.low, unit, top);
    context.fillText(legend.high, left + bar + unit / 2, top);
    for (const [level, [r, g, b]] of heatmapColors(options, ground).entries()) {
      context.fillStyle = `rgb(${r} ${g} ${b})`;
      context.fillRect(left + (level / 256) * bar, top - unit / 2, bar / 256 + 1, unit);
    }
    context.fillStyle = '#181818';
  }
  context.fillText(legend.note, unit, top + unit * 1.7, width - 2 * unit);
  return canvas.convertToBlob({ type: 'image/png' });
}

/** The arrays as NumPy's npz, with the names that the sidecar's own command line gives them. */
export function npz(result: RendererEncoding): Blob {
  const arrays: [string, Tensor | undefined][] = [
    ['projected_embeddings', result.projectedEmbeddings],
    ['attention_scores', result.attentionScores],
    ['pooled_embedding', result.pooledEmbedding],
  ];
  const files: Record<string, Uint8Array> = {};
  for (const [name, tensor] of arrays) if (tensor) files[`${name}.npy`] = npy(tensor);
  return new Blob([zipSync(files, { level: 0 }) as Uint8Array<ArrayBuffer>]);
}

function npy({ data, shape }: Tensor): Uint8Array {
  const tuple = `(${shape.join(', ')}${shape.length === 1 ? ',' : ''})`;
  const dictionary = `{'descr': '<f4', 'fortran_order': False, 'shape': ${tuple}, }`;
  const length = Math.ceil((10 + dictionary.length + 1) / 64) * 64;
  const header = `${dictionary.padEnd(length - 10 - 1)}\n`;
  const file = new Uint8Array(length + data.byteLength);
  file.set([0x93, ...new TextEncoder().encode('NUMPY'), 1, 0]);
  new DataView(file.buffer).setUint16(8, header.length, true);
  file.set(new TextEncoder().encode(header), 10);
  file.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), length);
  return file;
}

/** What can be read by eye: no embeddings. */
export function json(name: string, result: RendererEncoding, isDraft: boolean): Blob {
  const { model, resolution, norms, flat, timing, attentionScores } = result;
  const figures = {
    image: name,
    model,
    resolution,
    draft: isDraft,
    norms: norms[0],
    flat: flat[0],
    scores: [...(attentionScores?.data ?? [])],
    timing,
  };
  return new Blob([`${JSON.stringify(figures, undefined, 2)}\n`], { type: 'application/json' });
}

export function save(blob: Blob, name: string): void {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
