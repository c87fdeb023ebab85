/**
 * Every failure the bridge can report. Twin of sidecar/errors.py for the codes of the wire; the
 * bridge's own stand below them. It knows nothing of sockets or processes.
 */

/** Codes that the sidecar sends; `tests/golden/codes.txt` holds the same list. */
export const SIDECAR_CODES = [
  'handshake.malformed',
  'protocol.version',
  'request.malformed',
  'request.unsupported',
  'request.too_large',
  'request.cancelled',
  'request.duplicate_id',
  'image.unreadable',
  'image.too_large',
  'image.too_costly',
  'tensor.shape',
  'tensor.not_finite',
  'model.loading',
  'model.invalid',
  'model.unfaithful',
  'resources.exhausted',
  'collection.not_found',
  'collection.mismatch',
  'collection.unreadable',
  'collection.busy',
  'collection.exists',
  'collection.read_only',
  'collection.disk_full',
  'busy',
  'internal',
] as const;

/** Codes that the bridge itself raises. */
export const BRIDGE_CODES = [
  'sidecar.not_found',
  'sidecar.spawn_failed',
  'sidecar.start_timeout',
  'sidecar.malformed',
  'sidecar.exited',
  'sidecar.failed',
  'sidecar.closed',
  'bridge.transport_missing',
  'model.not_found',
  'model.mismatch',
  'model.download_failed',
  'request.timeout',
  'ipc.forbidden',
] as const;

/**
 * A failure's stable name, `area.problem`: a closed union, so that a `switch` is checked. A sidecar that
 * is newer than this package may send a code that is not listed; it arrives as it is.
 */
export type ErrorCode = (typeof SIDECAR_CODES)[number] | (typeof BRIDGE_CODES)[number];

/** A code as it came from the sidecar. The only place where one that is not listed gets in. */
export function codeFrom(text: string): ErrorCode {
  return text as ErrorCode;
}

const RETRYABLE: ReadonlySet<string> = new Set([
  'busy',
  'collection.busy',
  'model.loading',
  'resources.exhausted',
  'request.timeout',
  'sidecar.exited',
]);

/** What a failure is, as data: it crosses process borders and fits into a state. */
export interface Fault {
  readonly code: ErrorCode;
  readonly message: string;
  /** Would the same request, sent again later, have a chance? */
  readonly retryable?: boolean;
  /** The last lines that the sidecar wrote to stderr, where it died. */
  readonly stderr?: readonly string[];
}

/**
 * Every promise of this package rejects with one of these. `code` is for programs, `message` for
 * people: what was expected, what came, what to do. It never carries pixels, image paths or keys.
 */
export class SidecarError extends Error {
  override readonly name = 'SidecarError';
  readonly code: ErrorCode;
  /** Would the same request, sent again later, have a chance? */
  readonly retryable: boolean;
  /** The last lines that the sidecar wrote to stderr, where it died; else empty. */
  readonly stderr: readonly string[];

  constructor(fault: Fault, options?: ErrorOptions) {
    super(fault.message, options);
    this.code = fault.code;
    this.retryable = fault.retryable ?? RETRYABLE.has(fault.code);
    this.stderr = fault.stderr ?? [];
  }
}
