/** The public API for an app's main process, and nothing else. */

export type { Allow, FrameLike } from './allow.js';
export type {
  AddOptions,
  CaseOptions,
  Collection,
  CollectionOptions,
  EmbeddingsInput,
  FindOptions,
  Json,
  Metadata,
  SearchOptions,
  SearchResult,
} from './collection.js';
export { type FetchModelOptions, fetchModel } from './download.js';
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
  type InvokeEventLike,
  type IpcMainLike,
  type IpcOptions,
  type PageCollection,
  registerVisionIpc,
  type SenderLike,
  type Served,
} from './ipc.js';
export type { LogEntry } from './log.js';
export type {
  DrawOptions,
  Encoded,
  EncodeEachOptions,
  EncodeOptions,
  HeatmapChoice,
  HeatmapOptions,
  LegendWords,
  Priority,
  Progress,
  RequestOptions,
  SidecarEvents,
  SidecarState,
  StartOptions,
  StateDetail,
} from './options.js';
export type {
  Box,
  CollectionInfo,
  Encoding,
  EncodingDetails,
  Match,
  OutputName,
  Quantiles,
  SidecarInfo,
  Stats,
  Tensor,
  Timing,
} from './results.js';
export { VisionSidecar } from './sidecar.js';
export type { Kernels } from './supervisor.js';
