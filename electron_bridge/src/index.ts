/** The public API for an app's main process, and nothing else. */

export { type AppLike, closeBeforeQuit, followPower, type PowerMonitorLike } from './electron.js';
export { type ErrorCode, type Fault, SidecarError } from './errors.js';
export {
  type ImageInput,
  type Input,
  type PathInput,
  type PixelInput,
  type RgbInput,
  rgbFromBgra,
  rgbFromRgba,
} from './inputs.js';
export {
  type FrameLike,
  type InvokeEventLike,
  type IpcMainLike,
  type IpcOptions,
  registerVisionIpc,
  type SenderLike,
  type Served,
} from './ipc.js';
export type {
  Encoding,
  EncodingDetails,
  OutputName,
  Quantiles,
  SidecarInfo,
  Stats,
  Tensor,
  Timing,
} from './results.js';
export {
  type DrawOptions,
  type Encoded,
  type EncodeOptions,
  type HeatmapChoice,
  type HeatmapOptions,
  type LegendWords,
  type LogEntry,
  type RequestOptions,
  type SidecarEvents,
  type SidecarState,
  type StartOptions,
  type StateDetail,
  VisionSidecar,
} from './sidecar.js';
export type { Kernels } from './supervisor.js';
