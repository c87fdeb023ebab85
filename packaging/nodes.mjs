// Runs the bridge's tests under several versions of Node.js, which npm's packages of its binaries bring.
//
//     node packaging/nodes.mjs [VERSION...]

import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import path from 'node:path';

const root = path.resolve(import.meta.dirname, '..');
const bridge = path.join(root, 'electron_bridge');
const versions = process.argv.length > 2 ? process.argv.slice(2) : ['20', '22', '24', '26'];
const { platform, arch } = process;
const name = `node-${platform === 'win32' ? 'win' : platform}-${arch}`;

execFileSync(process.execPath, ['scripts/test.mjs', 'none'], { cwd: bridge, stdio: 'inherit' }); // compiles them
execFileSync(process.execPath, ['-e', `require('./.test/test/real.js').tinyModel()`], {
  cwd: bridge,
});
const tests = readdirSync(path.join(bridge, '.test', 'test')).filter((file) =>
  file.endsWith('.test.js'),
);
const failed = [];
for (const version of versions) {
  const node = installed(version);
  const said = execFileSync(node, ['--version'], { encoding: 'utf8' }).trim();
  const { status, stdout } = spawnSync(
    node,
    [
      '--test',
      '--test-concurrency=2',
      '--test-reporter=tap',
      ...tests.map((file) => path.join('.test', 'test', file)),
    ],
    { cwd: bridge, encoding: 'utf8', maxBuffer: 2 ** 28 },
  );
  const count = (what) =>
    /\d+/.exec(new RegExp(`^# ${what} \\d+`, 'm').exec(stdout)?.[0] ?? '')?.[0] ?? '?';
  console.log(`${said}: ${count('pass')} pass, ${count('fail')} fail, ${count('skipped')} skipped`);
  if (status === 0) continue;
  failed.push(said);
  console.log(
    stdout
      .split('\n')
      .filter((line) => /^\s*not ok/.test(line))
      .join('\n'),
  );
}
process.exit(failed.length ? 1 : 0);

/** The program of the newest Node.js of that major version. */
function installed(version) {
  const folder = path.join(root, '.work', 'nodes', version);
  const program = path.join(
    folder,
    'node_modules',
    name,
    'bin',
    platform === 'win32' ? 'node.exe' : 'node',
  );
  if (existsSync(program)) return program;
  mkdirSync(folder, { recursive: true });
  const words = [
    'install',
    '--no-audit',
    '--no-fund',
    '--silent',
    '--prefix',
    folder,
    `${name}@${version}`,
  ];
  execFileSync('npm', words, { stdio: 'inherit', shell: platform === 'win32' });
  return program;
}
