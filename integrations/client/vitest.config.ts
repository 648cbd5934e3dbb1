import { join } from "node:path";
import { defineConfig } from "vitest/config";

// Far beyond what a test takes, also on a machine that is busy with other tests.
const limits = { testTimeout: 240_000, hookTimeout: 240_000 };

/** The tests of the hooks, with one version of React. */
function react(version: string, alias: Record<string, string>) {
  const env = { REACT_VERSION: version };
  const include = ["tests/react/*.test.tsx"];
  return {
    resolve: { alias },
    test: { name: `react ${version}`, env, include, environment: "happy-dom", ...limits },
  };
}

const older = join(import.meta.dirname, "tests", "react18", "node_modules");

export default defineConfig({
  test: {
    maxWorkers: 2,
    projects: [
      // Loaded anew by a test, as a browser would load it.
      {
        test: {
          name: "node",
          include: ["tests/*.test.ts"],
          server: { deps: { inline: ["partysocket"] } },
          ...limits,
        },
      },
      react("19", {}),
      react("18", {
        "@testing-library/react": join(older, "@testing-library/react"),
        "react-dom": join(older, "react-dom"),
        react: join(older, "react"),
      }),
    ],
  },
});
