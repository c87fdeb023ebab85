/** The real sidecar and a tiny model, for scripts: as test/real.ts finds them. */

import { createRequire } from 'node:module';
import path from 'node:path';

process.chdir(path.dirname(import.meta.dirname));
const require = createRequire(import.meta.url);

export const { VisionSidecar } = require('../dist/index.js');
export const { POLICY } = require('../dist/supervisor.js');
export const { picture, program, tinyModel } = require('../.test/test/real.js');
