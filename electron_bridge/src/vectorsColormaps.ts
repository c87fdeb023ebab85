/** Written from sidecar/colormaps.py, which says what these are: see its test. */

// biome-ignore format: one map a line, as there
export const COLORMAPS = {
  amber: 'ffffff ffeeb8 ffd45e ffae1f f98600',
  ember: '000000 1c0900 4a1c00 963a00 ff7a1e',
  turbo: '30123b 4662d7 36aaf9 1ae4b6 72fe5e c8ef34 faba39 f66b19 cb2a04 7a0403',
  viridis: '440154 482878 3e4a89 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725',
  inferno: '000004 1b0c41 4a0c6b 781c6d a52c60 cf4446 ed6925 fb9b06 f7d13d fcffa4',
  grey: '000000 ffffff',
} as const;
