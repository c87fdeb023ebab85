/** Finds out whether an app would work on this computer and, if not, what to do. Starts the sidecar once. */

import { accessSync, constants, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import { VisionSidecar } from './index.js';
import { findModel, findProgram, type Wanted } from './locate.js';

const LEAST_NODE = 20;
const LEAST_ELECTRON = 29; // the first with Node.js 20

export interface Finding {
  readonly name:
    | 'node'
    | 'electron'
    | 'program'
    | 'model'
    | 'start'
    | 'kernels'
    | 'speed'
    | 'memory';
  /** `false` where an app would not work. */
  readonly ok: boolean;
  /** One sentence: what was found and, where that is wrong, what to do. */
  readonly detail: string;
}

export interface Report {
  /** Would an app work here? */
  readonly ok: boolean;
  readonly findings: readonly Finding[];
  readonly program?: string | undefined;
  readonly modelDir?: string | undefined;
  /** Seconds that one image takes, by side length in pixels. */
  readonly secondsPerImage?: Readonly<Record<string, number>> | undefined;
}

export interface Circumstances extends Wanted {
  readonly cwd: string;
  readonly node: string;
  readonly here?: string | undefined;
}

/** Never throws: whatever fails becomes a finding. */
export async function doctor(around: Circumstances): Promise<Report> {
  const { cwd, here, command: given } = around;
  const places = { cwd, here, platform: process.platform };
  const program = found(() => (given ? path.resolve(cwd, given) : findProgram(places)));
  const model = found(() => findModel(around.modelDir, places));
  const findings = [node(around.node), electron(cwd)];
  findings.push('error' in program ? wrong('program', program.error) : mayRun(program.value));
  findings.push('error' in model ? wrong('model', model.error) : fine('model', model.value));
  let seconds: Record<string, number> | undefined;
  if ('value' in program && 'value' in model && findings.every((each) => each.ok)) {
    const tried = await tryOut({ ...around, command: program.value, modelDir: model.value });
    findings.push(...tried.findings);
    seconds = tried.seconds;
  }
  findings.push(memory());
  return {
    ok: findings.every((each) => each.ok),
    findings,
    program: 'value' in program ? program.value : undefined,
    modelDir: 'value' in model ? model.value : undefined,
    secondsPerImage: seconds,
  };
}

/** The report for people: a line for each finding, and the verdict. */
export function asText(report: Report): string {
  const lines = report.findings.map(
    ({ name, ok, detail }) => `${ok ? 'ok   ' : 'WRONG'}  ${name.padEnd(8)}  ${detail}`,
  );
  const verdict = report.ok ? 'An app would work here.' : 'An app would not work here: see WRONG.';
  return [...lines, verdict].join('\n');
}

function node(version: string): Finding {
  const ok = Number.parseInt(version, 10) >= LEAST_NODE;
  const remedy = ok ? '' : `, but ${LEAST_NODE} or newer is needed. Install a newer Node.js.`;
  return { name: 'node', ok, detail: `Node.js ${version}${remedy}` };
}

function electron(cwd: string): Finding {
  const file = found(() => createRequire(path.join(cwd, '_')).resolve('electron/package.json'));
  if ('error' in file) {
    return fine('electron', 'not installed in this project');
  }
  const { version } = JSON.parse(readFileSync(file.value, 'utf8')) as { version: string };
  const ok = Number.parseInt(version, 10) >= LEAST_ELECTRON;
  const remedy = ok ? '' : `, but ${LEAST_ELECTRON} or newer is needed. Type: npm install electron`;
  return { name: 'electron', ok, detail: `Electron ${version}${remedy}` };
}

function mayRun(file: string): Finding {
  try {
    accessSync(file, constants.X_OK);
    return fine('program', file);
  } catch {
    const remedy = `chmod +x "${file}"`;
    const detail = `${file} may not be run: its run bit was lost on the way. Type: ${remedy}`;
    return { name: 'program', ok: false, detail };
  }
}

/** Starts the sidecar, which checks every file of the model, and encodes an image at each resolution. */
async function tryOut(wanted: Circumstances & { command: string; modelDir: string }) {
  const findings: Finding[] = [];
  const seconds: Record<string, number> = {};
  let sidecar: VisionSidecar | undefined;
  try {
    const { command, args, modelDir, cwd } = wanted;
    sidecar = await VisionSidecar.start({ command, args: args ?? [], modelDir, cwd });
    const { version, modelId, recipe, resolutions } = sidecar.info;
    const loaded = `sidecar ${version} with ${modelId} (${recipe}): every file is as it was built`;
    findings.push(fine('start', loaded));
    findings.push(kernels(await sidecar.stats()));
    for (const side of [...resolutions].sort((a, b) => a - b)) {
      const rgb = new Uint8Array(3 * side * side).map((_, index) => (index * 31) % 251);
      const options = { resolution: side, outputs: ['pooledEmbedding'] as const };
      const { timing } = await sidecar.encode({ rgb, width: side, height: side }, options);
      seconds[side] = (timing.preprocessMs + timing.inferenceMs) / 1000;
    }
    const each = Object.entries(seconds).map(([side, s]) => `${side}: ${s.toFixed(2)} s`);
    findings.push(fine('speed', `an image at ${each.join(', ')}`));
  } catch (error) {
    findings.push(wrong('start', error));
  } finally {
    await sidecar?.close();
  }
  return { findings, seconds };
}

function kernels(stats: object): Finding {
  const { kernels: told } = stats as { kernels?: { on?: boolean; why?: string } };
  const detail = `${told?.on ? 'on' : 'off'}${told?.why ? `: ${told.why}` : ''}`;
  return fine('kernels', detail);
}

function memory(): Finding {
  const gigabytes = (bytes: number) => `${(bytes / 1e9).toFixed(1)} GB`;
  const detail = `${gigabytes(os.freemem())} free of ${gigabytes(os.totalmem())}, ${os.availableParallelism()} processors`;
  return fine('memory', detail);
}

function fine(name: Finding['name'], detail: string): Finding {
  return { name, ok: true, detail };
}

function wrong(name: Finding['name'], error: unknown): Finding {
  const { code, message } = error as { code?: string; message?: string };
  return { name, ok: false, detail: `${code ? `${code}: ` : ''}${message ?? error}` };
}

function found<T>(look: () => T): { value: T } | { error: unknown } {
  try {
    return { value: look() };
  } catch (error) {
    return { error };
  }
}
