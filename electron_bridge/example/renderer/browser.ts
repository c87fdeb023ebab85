/** `window.vision` and `window.app` in a browser, over serve.ts; in Electron the preload script gives them. */

import { exposeVision, type VisionApi } from 'electron-vision-sidecar/preload';
import { APP_CHANNELS, type AppApi } from '../api.js';
import { pack, unpack } from '../codec.js';

export function connect(token: string): { vision: VisionApi; app: AppApi } {
  const page = crypto.randomUUID();
  const heard = new EventTarget();
  const events = new EventSource(`/events?token=${token}&page=${page}`);
  events.onmessage = ({ data }) => {
    const [channel, detail] = JSON.parse(data);
    heard.dispatchEvent(new CustomEvent(channel, { detail }));
  };
  const invoke = async (channel: string, ...args: unknown[]): Promise<unknown> => {
    const response = await fetch('/ipc', {
      method: 'POST',
      headers: { 'x-vision-token': token, 'x-vision-page': page },
      body: pack([channel, ...args]),
    });
    if (!response.ok) throw new Error(`the page's server answered ${response.status}`);
    return unpack(new Uint8Array(await response.arrayBuffer()));
  };
  const listeners = new Map<unknown, (event: Event) => void>();
  let vision: VisionApi | undefined;
  exposeVision(
    {
      exposeInMainWorld: (_, api) => {
        vision = api;
      },
    },
    {
      invoke,
      on: (channel, listener) => {
        const relay = (event: Event) => listener(event, (event as CustomEvent).detail);
        listeners.set(listener, relay);
        heard.addEventListener(channel, relay);
      },
      off: (channel, listener) => {
        const relay = listeners.get(listener);
        if (relay) heard.removeEventListener(channel, relay);
      },
    },
  );
  return {
    vision: vision as unknown as VisionApi,
    app: {
      status: () => invoke(APP_CHANNELS.status) as ReturnType<AppApi['status']>,
      kill: () => invoke(APP_CHANNELS.kill) as Promise<void>,
      restart: () => invoke(APP_CHANNELS.restart) as Promise<void>,
    },
  };
}
