import { defineConfig } from "tsdown";

export default defineConfig({
  entry: { index: "src/index.ts", react: "src/react/index.ts", stripe: "src/stripe.ts" },
  format: ["esm", "cjs"],
  platform: "neutral",
  target: "es2022",
  dts: true,
  sourcemap: false,
  // Else the bundler's own helpers, which both entries want, would be exports of the first one.
  outputOptions: {
    codeSplitting: { groups: [{ name: "runtime", test: /rolldown\/runtime/ }] },
  },
});
