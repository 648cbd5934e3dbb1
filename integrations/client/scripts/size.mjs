// What the package adds to a page: each entry as an application's bundler would minify it, gzipped, without partysocket
// and React. Fails above the limits.

import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { build } from "tsdown";

const LIMITS = { index: 7 * 1024, react: 3 * 1024, stripe: 1024 }; // bytes

const outDir = await mkdtemp(join(tmpdir(), "power-client-"));
try {
  await build({ format: "esm", dts: false, minify: true, outDir, logLevel: "error" });
  for (const [entry, limit] of Object.entries(LIMITS)) {
    const text = await readFile(join(outDir, `${entry}.js`));
    const size = gzipSync(text, { level: 9 }).length;
    console.log(`${entry}: ${size} bytes of ${limit}`);
    if (/from"\.\/|import"\.\//.test(text))
      throw new Error(`${entry} shares a file with another entry: count that too`);
    if (size > limit) process.exitCode = 1;
  }
} finally {
  await rm(outDir, { recursive: true });
}
