// What the package adds to a page: each entry as an application's bundler would minify it, gzipped,
// without partysocket and React. Fails above the limits. `--write` also writes RESULTS.md.

import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "tsdown";

const LIMITS = { index: 7 * 1024, react: 3 * 1024, stripe: 1024 }; // bytes
const RESULTS = fileURLToPath(new URL("../RESULTS.md", import.meta.url));

/** The bytes of each entry. */
async function measure() {
  const outDir = await mkdtemp(join(tmpdir(), "power-client-"));
  try {
    await build({ format: "esm", dts: false, minify: true, outDir, logLevel: "error" });
    const sizes = {};
    for (const entry of Object.keys(LIMITS)) {
      const text = await readFile(join(outDir, `${entry}.js`));
      if (/from"\.\/|import"\.\//.test(text)) {
        throw new Error(`${entry} shares a file with another entry: count that too`);
      }
      sizes[entry] = gzipSync(text, { level: 9 }).length;
    }
    return sizes;
  } finally {
    await rm(outDir, { recursive: true });
  }
}

/** RESULTS.md with these sizes. */
function results(sizes) {
  const number = (bytes) => bytes.toLocaleString("en");
  const rows = Object.entries(sizes).map(([entry, size]) => {
    const name = entry === "index" ? "" : `/${entry}`;
    return `| \`@blackroad/power-client${name}\` | ${number(size)} | ${number(LIMITS[entry])} |`;
  });
  return `# Results

Made by \`npm run results\` with Node ${process.versions.node}.

## Size

Each entry as one file, minified, gzip -9, without partysocket and React. \`npm run size\` checks the limits in the gate.

| entry | bytes | limit |
| --- | --- | --- |
${rows.join("\n")}
`;
}

const sizes = await measure();
for (const [entry, size] of Object.entries(sizes)) {
  console.log(`${entry}: ${size} bytes of ${LIMITS[entry]}`);
  if (size > LIMITS[entry]) process.exitCode = 1;
}
if (process.argv.includes("--write")) await writeFile(RESULTS, results(sizes));
