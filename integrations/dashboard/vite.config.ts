// One page, and no inline script or style in it: the service serves it under a strict content
// security policy.
import { defineConfig } from "vitest/config";

export default defineConfig({
  // The client is linked from the folder beside this one, and must not bring a React of its own.
  resolve: { dedupe: ["react", "react-dom"] },
  build: {
    target: "es2022",
    // 'self' covers no data: URLs.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    // The licences of the packages in the script: each copy of them must bring its own along.
    license: { fileName: "licenses.md" },
  },
  test: {
    include: ["tests/**/*.test.ts", "bench/*.run.ts"],
    // A browser test waits for most of its time: two at a time take little longer than one.
    maxWorkers: 2,
    // Far beyond what a test takes, also on a machine that is busy with other tests.
    testTimeout: 300_000,
    hookTimeout: 300_000,
  },
});
