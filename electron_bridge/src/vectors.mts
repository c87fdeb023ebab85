/** vectors.ts for `import`: pages load it through a bundler, a main process as it is. */

export * from './vectors.js';
