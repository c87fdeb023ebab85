/**
 * `electron-vision-sidecar/vectors`: what a page or a main process does with scores and embeddings that
 * are there already. The public API of that entry and nothing else; no Node, no DOM, no sidecar.
 */

export {
  type Blend,
  type Colormap,
  heatmapColors,
  isBright,
  type PaintOptions,
  paintHeatmap,
} from './vectorsPaint.js';
export { cosine, type Embeddings, similarityMap, similarityScores } from './vectorsSimilarity.js';
