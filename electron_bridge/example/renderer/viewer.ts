/** The picture: zoom and pan, before and after, and the map painted over it. Knows no sidecar. */

import { isBright, type PaintOptions, paintHeatmap } from 'electron-vision-sidecar/vectors';

const LARGEST = 2000; // pixels a side that are painted; an export paints them all
const MOST = 12;

export class Viewer {
  /** Called with the token under the pointer when the picture is clicked, without a drag. */
  onPick: (row: number, column: number) => void = () => undefined;
  readonly #frame: HTMLElement;
  readonly #stage: HTMLElement;
  readonly #bare: HTMLCanvasElement;
  readonly #painted: HTMLCanvasElement;
  readonly #mark: HTMLElement;
  readonly #places: HTMLElement;
  #pixels: ImageData | undefined;
  #into: ImageData | undefined;
  #scores: ArrayLike<number> | undefined;
  #options: PaintOptions = {};
  #bright = true;
  #queued = false;
  #zoom = 1;
  #x = 0;
  #y = 0;

  constructor(frame: HTMLElement) {
    const find = <T extends HTMLElement>(name: string): T =>
      frame.querySelector<T>(`[data-part="${name}"]`) as T;
    this.#frame = frame;
    this.#stage = find('stage');
    this.#bare = find('bare');
    this.#painted = find('painted');
    this.#mark = find('mark');
    this.#places = find('places');
    new ResizeObserver(() => this.fit()).observe(frame);
    this.#listen();
  }

  /** A new picture, or none. */
  show(image: ImageBitmap | undefined): void {
    this.#scores = undefined;
    this.#stage.hidden = !image;
    if (!image) return;
    const scale = Math.min(1, LARGEST / Math.max(image.width, image.height));
    const width = Math.max(1, Math.round(image.width * scale));
    const height = Math.max(1, Math.round(image.height * scale));
    for (const canvas of [this.#bare, this.#painted]) {
      canvas.width = width;
      canvas.height = height;
    }
    const context = this.#bare.getContext('2d', { willReadFrequently: true });
    if (!context) return;
    context.fillStyle = 'white'; // as the sidecar does with what is transparent
    context.fillRect(0, 0, width, height);
    context.imageSmoothingQuality = 'high';
    context.drawImage(image, 0, 0, width, height);
    this.#pixels = context.getImageData(0, 0, width, height);
    this.#into = new ImageData(width, height);
    this.#bright = isBright(this.#pixels.data, width, height);
    this.#painted.getContext('2d')?.clearRect(0, 0, width, height);
    this.fit();
  }

  /** A colour like the picture's ground, for the legend. */
  get ground(): [number, number, number] {
    return this.#bright ? [255, 255, 255] : [16, 16, 16];
  }

  /** Paints at the next frame, however often it is called until then. */
  paint(scores: ArrayLike<number> | undefined, options: PaintOptions): void {
    this.#scores = scores;
    this.#options = options;
    if (this.#queued) return;
    this.#queued = true;
    requestAnimationFrame(() => {
      this.#queued = false;
      this.#paint();
    });
  }

  /** Where the picture as it is ends and the painted one begins: 0 (all painted) to 1. */
  split(share: number): void {
    this.#painted.style.clipPath = `inset(0 0 0 ${share * 100}%)`;
  }

  mark(place: readonly [number, number] | undefined): void {
    this.#mark.hidden = !place;
    if (!place) return;
    this.#mark.style.top = `${(place[0] / 16) * 100}%`;
    this.#mark.style.left = `${(place[1] / 16) * 100}%`;
  }

  /** Frames over the picture, in place of those before. */
  places(frames: readonly HTMLElement[]): void {
    this.#places.replaceChildren(...frames);
  }

  fit(): void {
    const { width, height } = this.#bare;
    const { clientWidth, clientHeight } = this.#frame;
    if (!width || !clientWidth) return;
    this.#zoom = Math.min(clientWidth / width, clientHeight / height, 4) * 0.98;
    this.#x = (clientWidth - width * this.#zoom) / 2;
    this.#y = (clientHeight - height * this.#zoom) / 2;
    this.#place();
  }

  /** About the middle of the frame, or about a point of it. */
  zoom(factor: number, at?: { x: number; y: number }): void {
    const { clientWidth, clientHeight } = this.#frame;
    const { x, y } = at ?? { x: clientWidth / 2, y: clientHeight / 2 };
    const zoom = Math.min(Math.max(this.#zoom * factor, 0.02), MOST);
    const grown = zoom / this.#zoom;
    this.#x = x - (x - this.#x) * grown;
    this.#y = y - (y - this.#y) * grown;
    this.#zoom = zoom;
    this.#place();
  }

  move(x: number, y: number): void {
    this.#x += x;
    this.#y += y;
    this.#place();
  }

  #paint(): void {
    const { data, width, height } = this.#pixels ?? {};
    if (!data || !width || !height || !this.#into) return;
    const context = this.#painted.getContext('2d');
    performance.mark('paint');
    if (this.#scores) {
      paintHeatmap(this.#scores, data, width, height, { ...this.#options, into: this.#into.data });
      context?.putImageData(this.#into, 0, 0);
    } else {
      context?.clearRect(0, 0, width, height);
    }
    performance.measure('vision:paint', 'paint');
    this.#frame.dataset.painted = String(Number(this.#frame.dataset.painted ?? 0) + 1);
  }

  #place(): void {
    this.#stage.style.transform = `translate(${this.#x}px, ${this.#y}px) scale(${this.#zoom})`;
    this.#stage.style.setProperty('--zoom', String(this.#zoom));
    this.#frame.classList.toggle('close', this.#zoom > 3);
  }

  #listen(): void {
    const frame = this.#frame;
    frame.addEventListener(
      'wheel',
      (event) => {
        event.preventDefault();
        const { left, top } = frame.getBoundingClientRect();
        const at = { x: event.clientX - left, y: event.clientY - top };
        this.zoom(Math.exp(-event.deltaY / 400), at);
      },
      { passive: false },
    );
    let from: { x: number; y: number } | undefined;
    let travelled = 0;
    frame.addEventListener('pointerdown', (event) => {
      if (event.button !== 0) return;
      from = { x: event.clientX, y: event.clientY };
      travelled = 0;
      frame.setPointerCapture(event.pointerId);
    });
    frame.addEventListener('pointermove', (event) => {
      if (!from) return;
      const [x, y] = [event.clientX - from.x, event.clientY - from.y];
      travelled += Math.abs(x) + Math.abs(y);
      if (travelled > 4) this.move(x, y);
      from = { x: event.clientX, y: event.clientY };
    });
    frame.addEventListener('pointerup', (event) => {
      if (from && travelled <= 4) this.#pick(event);
      from = undefined;
    });
    frame.addEventListener('dblclick', () => this.fit());
  }

  #pick(event: PointerEvent): void {
    const { left, top, width, height } = this.#bare.getBoundingClientRect();
    const row = Math.floor(((event.clientY - top) / height) * 16);
    const column = Math.floor(((event.clientX - left) / width) * 16);
    if (row >= 0 && row < 16 && column >= 0 && column < 16) this.onPick(row, column);
  }
}
