/** Lines of the log: what an app's `log` listener is told. Reads them, and writes none. */

/** A line of the sidecar's log, or of the bridge's own. Never holds pixels, image paths or keys. */
export interface LogEntry {
  readonly source: 'sidecar' | 'bridge';
  readonly level: 'debug' | 'info' | 'warning' | 'error';
  readonly message: string;
  /** What else the sidecar's line told: `request`, `op`, `code`, times. */
  readonly fields?: Readonly<Record<string, unknown>>;
}

/** A line of the sidecar's stderr. One that is not of its log was written by a library, or by Python's end. */
export function readLogLine(line: string): LogEntry {
  try {
    const { level, message, time, ...fields } = JSON.parse(line);
    if (typeof message === 'string')
      return { source: 'sidecar', level: levelOf(level), message, fields };
  } catch {
    // not a line of the log
  }
  return { source: 'sidecar', level: 'info', message: line };
}

/** Whether the entry may explain a death: warnings and errors, and whatever is not of the log. */
export function isTelling({ level, fields }: LogEntry): boolean {
  return fields === undefined || level === 'warning' || level === 'error';
}

function levelOf(level: unknown): LogEntry['level'] {
  return level === 'debug' || level === 'warning' || level === 'error' ? level : 'info';
}
