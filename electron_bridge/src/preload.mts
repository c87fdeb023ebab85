/** preload.ts for `import`, for bundlers that build an app's preload script. */

export * from './preload.js';
