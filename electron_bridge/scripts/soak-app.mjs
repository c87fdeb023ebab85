/** An app that soak.mjs kills: it starts a sidecar and encodes for as long as it lives. */

import { VisionSidecar } from './real.mjs';

const [options, picture] = process.argv.slice(2);
const sidecar = await VisionSidecar.start(JSON.parse(options));
for (;;) await sidecar.encode({ path: picture });
