/** Options become the program that is started, its arguments and its environment. The only place that knows the command line. */

import type { Program } from './child.js';
import { environment, locate } from './locate.js';
import type { StartOptions } from './options.js';
import type { Kernels } from './supervisor.js';

/** A program that depends only on whether its kernels are off. Throws `sidecar.not_found` or `model.not_found`. */
export function programFor(options: StartOptions): (kernels: Kernels) => Program {
  const { command, args, modelDir } = locate(options, environment());
  const { threads, priority, cwd } = options;
  const env = childEnvironment(options.env ?? process.env);
  return (kernels) => ({
    command,
    args: [
      ...args,
      'serve',
      '--model',
      modelDir,
      ...(threads === undefined ? [] : ['--threads', String(threads)]),
      ...(priority === undefined ? [] : ['--priority', priority]),
      ...(kernels === 'off' ? ['--kernels', 'off'] : []),
    ],
    cwd,
    env,
  });
}

/** Electron's own switches mean nothing to a child, and one would turn a helper into Node. */
function childEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const { ELECTRON_RUN_AS_NODE, ELECTRON_NO_ASAR, ...rest } = env;
  return rest;
}
