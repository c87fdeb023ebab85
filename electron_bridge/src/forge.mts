/** The same for `import`. */

export * from './forge.js';
