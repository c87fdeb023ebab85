/** The same for `import`. */

export * from './builder.js';
