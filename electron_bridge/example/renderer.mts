/** The page: pick an image, see its heatmap. Knows `window.vision` and nothing behind it. */

import type { VisionApi } from 'electron-vision-sidecar/preload';

declare global {
  interface Window {
    readonly vision: VisionApi;
  }
}

const file = element('file', HTMLInputElement);
const picture = element('picture', HTMLImageElement);
const status = element('status', HTMLParagraphElement);

file.addEventListener('change', () => void show(file.files?.[0]));
window.vision.onState((state) => {
  status.textContent = state === 'ready' ? 'Choose an image.' : `The model is ${state}.`;
});

async function show(chosen: File | undefined): Promise<void> {
  if (!chosen) return;
  await window.vision.cancel('shown'); // the user has changed their mind
  status.textContent = 'Working…';
  const image = new Uint8Array(await chosen.arrayBuffer());
  const outcome = await window.vision.encode(
    { image },
    { token: 'shown', heatmap: true, outputs: ['attentionScores'] },
  );
  if (!outcome.ok) {
    if (outcome.error.code !== 'request.cancelled') status.textContent = outcome.error.message;
    return;
  }
  const { heatmapPng, timing } = outcome.value;
  if (heatmapPng) picture.src = URL.createObjectURL(new Blob([new Uint8Array(heatmapPng)]));
  status.textContent = `${Math.round(timing.roundTripMs)} ms`;
}

function element<T extends HTMLElement>(id: string, type: new () => T): T {
  const found = document.getElementById(id);
  if (found instanceof type) return found;
  throw new Error(`the page has no ${type.name} with the id ${id}`);
}
