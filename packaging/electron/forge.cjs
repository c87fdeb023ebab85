// The same for Electron Forge: its forge.config.cjs. `osxSign` and `osxNotarize` are for macOS only.
'use strict';

const { withVisionSidecar } = require('electron-vision-sidecar/forge');

module.exports = withVisionSidecar({
  packagerConfig: {
    osxSign: {
      optionsForFile: () => ({
        hardenedRuntime: true,
        entitlements: 'resources/entitlements.mac.plist',
      }),
    },
    osxNotarize: {
      appleId: process.env.APPLE_ID,
      appleIdPassword: process.env.APPLE_PASSWORD,
      teamId: process.env.APPLE_TEAM_ID,
    },
  },
});
