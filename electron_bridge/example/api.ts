/** What the page is given beside `window.vision`: how the sidecar fares. Types, and channel names. */

import type { SidecarState } from 'electron-vision-sidecar';

export const APP_CHANNELS = {
  status: 'app:status',
  kill: 'app:kill',
  restart: 'app:restart',
} as const;

/** What the panel shows of the sidecar and its model. */
export interface Status {
  readonly state: SidecarState;
  /** Whether the developer's menu is shown. */
  readonly developer: boolean;
  /** Missing until the sidecar was ready once. */
  readonly model?: {
    readonly id: string;
    readonly revision: string;
    readonly recipe: string;
    readonly digest: string;
    readonly resolutions: readonly number[];
    readonly defaultResolution: number;
  };
  readonly kernels?: { readonly on: boolean; readonly why: string };
  /** What an image takes at each resolution ("448x448"), in milliseconds, once some were encoded. */
  readonly expectedMs?: Readonly<Record<string, number>>;
}

export interface AppApi {
  status(): Promise<Status>;
  /** Kills the sidecar, to see what the app does. */
  kill(): Promise<void>;
  /** Starts a sidecar that has failed for good. */
  restart(): Promise<void>;
}
