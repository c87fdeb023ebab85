/** Small pictures of images: for the queue, and as text that fits into a case's metadata. */

const PLACE = 88; // pixels wide, in the queue
const MOST = 44_000; // bytes: in base64 still below the 64 KiB of a case's metadata
const TRIES = [
  [480, 0.75],
  [480, 0.5],
  [320, 0.5],
  [160, 0.4],
] as const; // longest side, quality of the WebP file

/** For the list of images. Rejects where the browser cannot show the image. */
export async function forQueue(file: Blob): Promise<Blob> {
  const small = await createImageBitmap(file, { resizeWidth: PLACE, resizeQuality: 'medium' });
  return drawn(small, small.width, small.height).convertToBlob();
}

/** As a data: URL for a case's metadata, or undefined where the browser cannot show the image. */
export async function forCase(file: Blob): Promise<string | undefined> {
  const image = await createImageBitmap(file).catch(() => undefined);
  if (!image) return undefined;
  try {
    for (const [side, quality] of TRIES) {
      const scale = Math.min(1, side / Math.max(image.width, image.height));
      const [width, height] = [image.width, image.height].map((each) =>
        Math.max(1, Math.round(each * scale)),
      ) as [number, number];
      const canvas = drawn(image, width, height);
      const small = await canvas.convertToBlob({ type: 'image/webp', quality });
      if (small.size <= MOST) return `data:${small.type};base64,${await base64(small)}`;
    }
    return undefined;
  } finally {
    image.close();
  }
}

/** The picture that a case's metadata hold, or undefined: anybody may have written them. */
export function ofCase(thumbnail: unknown): Blob | undefined {
  if (typeof thumbnail !== 'string') return undefined;
  const [, type, text] =
    /^data:(image\/(?:png|jpeg|webp));base64,([\w+/]+=*)$/.exec(thumbnail) ?? [];
  if (!text) return undefined;
  try {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Blob([bytes], { type: type as string });
  } catch {
    return undefined; // no base64
  }
}

function drawn(image: ImageBitmap, width: number, height: number): OffscreenCanvas {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext('2d') as OffscreenCanvasRenderingContext2D;
  context.fillStyle = 'white'; // as the sidecar does with what is transparent
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = 'high';
  context.drawImage(image, 0, 0, width, height);
  return canvas;
}

async function base64(file: Blob): Promise<string> {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = '';
  for (let at = 0; at < bytes.length; at += 2 ** 15) {
    text += String.fromCharCode(...bytes.subarray(at, at + 2 ** 15));
  }
  return btoa(text);
}
