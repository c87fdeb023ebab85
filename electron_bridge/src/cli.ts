#!/usr/bin/env node
/** `npx electron-vision-sidecar COMMAND`: `doctor`, and the program's own commands with the program and the model that are installed. */

import { spawnSync } from 'node:child_process';
import { parseArgs } from 'node:util';
import { asText, doctor } from './doctor.js';
import { findModel, findProgram } from './locate.js';

const USAGE = `usage: npx electron-vision-sidecar COMMAND

  doctor [--json]              would an app work on this computer? The exit code is 0 only if so
  encode IMAGE... --out DIR    encode image files: arrays (.npz) and heatmaps (.png)
  verify                       check the model directory, load the model, run it once
  index SOURCE... --collection FILE    add images, or folders of them, to a collection
  search IMAGE --collection FILE       the cases of a collection that look most like an image

Each takes --model DIR; without it the model is the one that an app would find. doctor takes --program FILE too.
What else a command takes: npx electron-vision-sidecar COMMAND --help`;

async function main(argv: string[]): Promise<number> {
  const [command, ...rest] = argv;
  if (command === undefined || command === '--help' || command === '-h') {
    console.log(USAGE);
    return command === undefined ? 2 : 0;
  }
  if (command === 'doctor') return examine(rest);
  return passOn(command, rest);
}

async function examine(argv: string[]): Promise<number> {
  const options = {
    json: { type: 'boolean' },
    model: { type: 'string' },
    program: { type: 'string' },
  } as const;
  const { values } = parseArgs({ args: argv, options });
  const report = await doctor({
    cwd: process.cwd(),
    node: process.versions.node,
    command: values.program,
    modelDir: values.model,
  });
  console.log(values.json ? JSON.stringify(report, undefined, 2) : asText(report));
  return report.ok ? 0 : 1;
}

/** Runs the program, which knows its own commands and says what is wrong with them. */
function passOn(command: string, rest: string[]): number {
  const around = { cwd: process.cwd(), platform: process.platform };
  const program = findProgram(around);
  const given =
    rest.some((word) => /^--(model\b|help$)|^-h$/.test(word)) || command.startsWith('-');
  const model = given ? [] : ['--model', findModel(undefined, around)];
  const { status, error } = spawnSync(program, [command, ...rest, ...model], { stdio: 'inherit' });
  if (error) throw error;
  return status ?? 1;
}

main(process.argv.slice(2)).then(
  (code) => {
    process.exitCode = code;
  },
  (error: { code?: string; message?: string }) => {
    console.error(`${error.code ? `${error.code}: ` : ''}${error.message}`);
    process.exitCode = 2;
  },
);
