// Makes src/types.gen.ts from ../service/openapi.json. `--check` compares instead of writing, and fails on a difference.
// Every number gets its unit here, by its name: one that is not in the table stops the generation.

import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { createClient } from "@hey-api/openapi-ts";

const CONTRACT = fileURLToPath(new URL("../../service/openapi.json", import.meta.url));
const TYPES = fileURLToPath(new URL("../src/types.gen.ts", import.meta.url));
const HEADER =
  "// Made by scripts/generate.mjs from ../../service/openapi.json: do not edit, run `npm run generate`.\n";
const ISO = "ISO 8601, UTC";
const SEQUENCE = "Place in the file's order of events, from 1";

// First match wins; the exact names stand before the endings.
const UNITS = [
  [/^voltage$/, "V"],
  [/^current_draw$/, "A out of the source; negative: into it"],
  [/^(load|solar)_wattage$/, "W, never below 0"],
  [/^net_wattage$/, "W, solar less load"],
  [/wattage$/, "W out of the source; negative: into it"],
  [/^shutdown_threshold$/, "W"],
  [/^(low|critical)_battery_threshold$/, "% of charge; null: the library's own"],
  [/^target_wh$/, "Wh a day; null: no budget"],
  [/^energy_24h_wh$/, "Wh out, over the last 24 hours"],
  [/^energy_out_wh$/, "Wh out of the source, never below 0"],
  [/^energy_in_wh$/, "Wh into the source, never below 0"],
  [/^energy_wh$/, "Wh, out less in"],
  [/_wh$/, "Wh"],
  [/_hours$/, "Hours; null: not known, or not draining"],
  [/_pct$/, "%"],
  [/^period_days$/, "Days"],
  [/^reading_count$/, "Number of readings"],
  [/^event_count$/, "Number of events in the period, also those that are not listed"],
  [/_count$/, "Number of meters"],
  [/^value$/, "% of charge for alerts, else what was given"],
  [/^(sequence|resumed_from|oldest|latest|next_after)$/, SEQUENCE],
  [/^(received|stored)$/, "Number of readings"],
  [/^expires_in$/, "Seconds"],
  [/^status$/, "HTTP status"],
];
const TIMES = /^(timestamp|updated_at|start|generated_at)$/;

/** Whether a value of the schema can be a number. */
function isNumeric(schema) {
  const types = [schema.type ?? []].flat();
  return types.includes("number") || types.includes("integer") || (schema.anyOf ?? []).some(isNumeric);
}

/** Give a property its unit as description, where the contract has none. */
function describe(model, name, schema) {
  delete schema.readOnly; // else every type that holds it is made twice
  delete schema.title; // the name again
  if (TIMES.test(name)) {
    schema.description ??= ISO;
  } else if (isNumeric(schema)) {
    schema.description ??= UNITS.find(([pattern]) => pattern.test(name))?.[1];
    if (!schema.description) {
      throw new Error(`${model}.${name}: a number without a unit: add it to UNITS in scripts/generate.mjs`);
    }
  }
}

/** The contract with a unit at each number, and without the errors, which are all of one type. */
async function contract() {
  const document = JSON.parse(await readFile(CONTRACT, "utf8"));
  for (const [model, schema] of Object.entries(document.components.schemas)) {
    delete schema.title;
    for (const [name, property] of Object.entries(schema.properties ?? {})) describe(model, name, property);
  }
  for (const operation of Object.values(document.paths).flatMap(Object.values)) {
    operation.responses = Object.fromEntries(
      Object.entries(operation.responses).filter(([status]) => status.startsWith("2")),
    );
  }
  return document;
}

/** The text of the types. */
async function generate() {
  const directory = await mkdtemp(join(tmpdir(), "power-client-"));
  try {
    await createClient({
      input: await contract(),
      output: { path: directory, entryFile: false },
      plugins: ["@hey-api/typescript"],
      logs: { level: "silent", file: false },
    });
    return HEADER + (await readFile(join(directory, "types.gen.ts"), "utf8"));
  } finally {
    await rm(directory, { recursive: true });
  }
}

const made = await generate();
if (!process.argv.includes("--check")) {
  await writeFile(TYPES, made);
} else if (made !== (await readFile(TYPES, "utf8"))) {
  console.error("src/types.gen.ts is not what ../service/openapi.json says: run `npm run generate`");
  process.exitCode = 1;
}
