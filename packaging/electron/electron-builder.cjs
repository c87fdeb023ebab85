// Copy this into your app: the two packages electron-vision-sidecar and electron-vision-sidecar-demo-model, or a folder
// vision-model/ from `python -m build`, are all that it needs.
'use strict';

const { withVisionSidecar } = require('electron-vision-sidecar/builder');

module.exports = withVisionSidecar({
  appId: 'org.example.vision',
  electronVersion: '45.4.1',
  // electron-builder's default is `build`, which is a folder of sources in many projects.
  directories: { output: 'release', buildResources: 'resources' },
  linux: { target: ['deb', 'AppImage'], category: 'Science', executableName: 'vision-example' },
  win: { target: 'nsis' },
  mac: {
    target: 'dmg',
    category: 'public.app-category.medical',
    // Every program and library under Contents/ is signed, the sidecar's among them, innermost first.
    hardenedRuntime: true,
    entitlements: 'resources/entitlements.mac.plist',
    entitlementsInherit: 'resources/entitlements.mac.plist',
    notarize: true,
  },
});
