// Makes src/types.gen.ts from ../service/openapi.json. `--check` compares instead of writing, and
// fails on a difference. Every number gets its unit here, by its name: one that is not in the table
// stops the generation.

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

// The first match wins: exact names stand before endings.
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
  [
    /^consumption_24h_wh$/,
    "Wh, out less in over all meters, over the last 24 hours; never below 0",
  ],
  [/^consumption_wh$/, "Wh, out less in over all meters; never below 0"],
  [/^(main|solar|ups)_wh$/, "Wh, out less in"],
  [
    /^self_sufficiency_pct$/,
    "% of the consumption that did not come from the mains; null: no consumption",
  ],
  [/^energy_out_wh$/, "Wh out of the source, never below 0"],
  [/^energy_in_wh$/, "Wh into the source, never below 0"],
  [/^energy_wh$/, "Wh, out less in"],
  [/_wh$/, "Wh"],
  [/_hours$/, "Hours; null: not known, or not draining"],
  [/^avg_charge_pct$/, "%, mean of the batteries; null: there is no battery"],
  [/_pct$/, "%"],
  [/^period_days$/, "Days"],
  [/^reading_count$/, "Number of readings"],
  [
    /^unknown_power_count$/,
    "Number of active meters whose watts are not known; the sums leave them out",
  ],
  [/^event_count$/, "Number of events in the period, including those that are not listed"],
  [/_count$/, "Number of meters"],
  [/^value$/, "% of charge for alerts; otherwise the caller's number"],
  [/^(sequence|resumed_from|oldest|latest|next_after)$/, SEQUENCE],
  [/^(received|stored|deleted)$/, "Number of readings"],
  [/^(waiting_messages|dead_letters)$/, "Number of messages of the stream"],
  [/^(expires_in|step_seconds)$/, "Seconds"],
  [/^status$/, "HTTP status"],
];
const NOTES = {
  active: "False: the meter is retired, and no present figure counts it",
  power_known:
    "False: the latest reading lacks volts or amperes. The missing value is 0 here, and the wattage is null",
};
const TIMES = /^(timestamp|updated_at|start|generated_at|fresh_as_of|opened_at|last_seen)$/;

/** Whether a value of the schema can be a number. */
function isNumeric(schema) {
  const types = [schema.type ?? []].flat();
  return (
    types.includes("number") || types.includes("integer") || (schema.anyOf ?? []).some(isNumeric)
  );
}

/** The unit of a number by its name, and the meaning of null if it can be null. */
function unit(name, schema) {
  const found = UNITS.find(([pattern]) => pattern.test(name))?.[1];
  const nullable = (schema.anyOf ?? []).some(({ type }) => type === "null");
  return found && nullable && !found.includes("null:") ? `${found}; null: not known` : found;
}

/** Give a property its unit as its description, if the contract has none. */
function describe(model, name, schema) {
  delete schema.readOnly; // otherwise every type that contains it is generated twice
  delete schema.title; // it repeats the name
  if (TIMES.test(name)) {
    schema.description ??= ISO;
  } else if (isNumeric(schema)) {
    schema.description ??= unit(name, schema);
    if (!schema.description) {
      throw new Error(
        `${model}.${name}: a number without a unit: add it to UNITS in scripts/generate.mjs`,
      );
    }
  } else if (NOTES[name]) {
    schema.description ??= NOTES[name];
  }
}

/** The contract with a unit for each number, without the errors, which all have one type. */
async function contract() {
  const document = JSON.parse(await readFile(CONTRACT, "utf8"));
  for (const [model, schema] of Object.entries(document.components.schemas)) {
    delete schema.title;
    for (const [name, property] of Object.entries(schema.properties ?? {}))
      describe(model, name, property);
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
  console.error(
    "src/types.gen.ts is not what ../service/openapi.json says: run `npm run generate`",
  );
  process.exitCode = 1;
}
