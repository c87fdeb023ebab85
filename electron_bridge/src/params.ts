/** An encode's options become the wire's params and output names. Pure. */

import type { EncodeOptions, HeatmapChoice, HeatmapOptions } from './options.js';
import { OUTPUTS, type OutputName } from './results.js';

/** Those that were left out are undefined, and are not sent. */
export type EncodeParams = {
  readonly resolution: EncodeOptions['resolution'] | undefined;
  readonly outputs: readonly string[];
  readonly heatmap: HeatmapOptions | undefined;
  readonly priority: 'low' | undefined;
};

/** What of an encode's options may be undefined rather than left out. */
type Rest = { readonly [K in 'resolution' | 'priority']?: EncodeOptions[K] | undefined };

export function paramsOf(
  outputs: readonly OutputName[],
  heatmap: HeatmapChoice,
  { resolution, priority }: Rest,
): EncodeParams {
  const names = outputs.map((name) => OUTPUTS[name]);
  return {
    resolution,
    outputs: heatmap ? [...names, 'heatmap_png'] : names,
    heatmap: drawing(heatmap),
    priority: priority === 'low' ? priority : undefined, // `normal` goes without saying
  };
}

/** Nothing where the defaults will do. */
function drawing(how: HeatmapChoice): HeatmapOptions | undefined {
  return typeof how === 'object' && Object.keys(how).length > 0 ? how : undefined;
}
