/** The same for `import`: one implementation behind both, so that a class is one class everywhere. */

export * from './index.js';
