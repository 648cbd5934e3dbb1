/**
 * The types: what Python has is in them, they are what the contract says, and every public one is
 * documented.
 */

import { execFileSync } from "node:child_process";
import { join } from "node:path";
import ts from "typescript";
import { beforeAll, describe, expect, test } from "vitest";
import { python } from "./service";

const HERE = import.meta.dirname;
const ROOT = join(HERE, "..");
const CONFIG = ts.getParsedCommandLineOfConfigFile(join(ROOT, "tsconfig.json"), {}, {
  ...ts.sys,
  onUnRecoverableConfigFileDiagnostic: () => {},
} as ts.ParseConfigFileHost);
const OPTIONS = { ...(CONFIG?.options ?? {}), noUnusedLocals: false };

interface Python {
  records: Record<string, string>;
  enums: Record<string, string>;
  examples: [string, string][];
}

/** What the compiler says of each of some texts that stand beside this file. */
function complaints(texts: readonly string[]): string[][] {
  const files = new Map(texts.map((text, i) => [join(HERE, `from-python-${i}.ts`), text]));
  const host = ts.createCompilerHost(OPTIONS);
  const { getSourceFile, fileExists, readFile } = host;
  host.getSourceFile = (name, ...rest) => {
    const text = files.get(name);
    return text === undefined
      ? getSourceFile.call(host, name, ...rest)
      : ts.createSourceFile(name, text, ts.ScriptTarget.ES2022);
  };
  host.fileExists = (name) => files.has(name) || fileExists.call(host, name);
  host.readFile = (name) => files.get(name) ?? readFile.call(host, name);
  const program = ts.createProgram([...files.keys()], OPTIONS, host);
  return [...files.keys()].map((name) =>
    ts
      .getPreEmitDiagnostics(program, program.getSourceFile(name))
      .map((one) => ts.flattenDiagnosticMessageText(one.messageText, "\n")),
  );
}

/** A text that compiles where the types are exactly what Python has. */
function claims({ records, enums, examples }: Python): string {
  const lines = [
    'import type * as api from "../src";',
    "type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;",
  ];
  for (const [name, type] of Object.entries({ ...records, ...enums })) {
    lines.push(`export const ${name}: Same<api.${name}, ${type}> = true;`);
  }
  // A literal may have no key that its type does not, and must have all that it does.
  examples.forEach(([type, json], i) => {
    lines.push(`export const example${i}: api.${type} = ${json};`);
  });
  return lines.join("\n");
}

describe("what Python has", () => {
  let there: Python;
  beforeAll(() => {
    there = JSON.parse(python([join(HERE, "python_fields.py")]));
  });

  test("is in the types, name by name and type by type", () => {
    expect(Object.keys({ ...there.records, ...there.enums }).length).toBe(9);
    expect(there.examples.length).toBe(4);
    expect(complaints([claims(there)])).toEqual([[]]);
  });

  test("cannot have a field more, or another type, without this test failing", () => {
    const changes: ((python: Python) => void)[] = [
      ({ records }) => {
        records.PowerReading = records.PowerReading?.replace("{", "{ humidity: number;") ?? "";
      },
      ({ records }) => {
        records.PowerMeter =
          records.PowerMeter?.replace("capacity_wh: number", "capacity_wh: number | null") ?? "";
      },
      ({ records }) => {
        records.PowerStatistics =
          records.PowerStatistics?.replace("avg_wattage: number | null", "avg_wattage: number") ??
          "";
      },
      ({ enums }) => {
        enums.PowerState += ' | "asleep"';
      },
      ({ examples }) => {
        examples[2] = [
          "Report",
          examples[2]?.[1].replace('"meters"', '"carbon_g": 1, "meters"') ?? "",
        ];
      },
      ({ examples }) => {
        examples[3] = ["Budget", examples[3]?.[1].replace('"net_wattage"', '"net_watts"') ?? ""];
      },
    ];
    const planted = changes.map((change) => {
      const python = structuredClone(there);
      change(python);
      return claims(python);
    });
    const found = complaints(planted);
    for (const [i, change] of changes.entries()) {
      expect(found[i]?.length, String(change)).toBeGreaterThan(0);
    }
  });
});

test("the generated types are what the contract says", () => {
  execFileSync(process.execPath, [join(ROOT, "scripts", "generate.mjs"), "--check"], {
    stdio: "pipe",
  });
});

describe("the public types", () => {
  const entries = ["index.ts", "react/index.ts", "stripe.ts"].map((name) =>
    join(ROOT, "src", name),
  );
  const program = ts.createProgram(entries, OPTIONS);
  const checker = program.getTypeChecker();

  /** An export and its members, without the private ones and the type parameters. */
  function withMembers(exported: ts.Symbol): [string, ts.Symbol][] {
    const real =
      exported.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(exported) : exported;
    const members = [...(real.members?.values() ?? [])]
      .filter((one) => !/#|^__/.test(one.name) && !(one.flags & ts.SymbolFlags.TypeParameter))
      .map((one): [string, ts.Symbol] => [`${exported.name}.${one.name}`, one]);
    return [[exported.name, real], ...members];
  }

  test("say what they are, each of them and each of their members", () => {
    const modules = entries.map((entry) =>
      checker.getSymbolAtLocation(program.getSourceFile(entry) as ts.SourceFile),
    );
    const all = modules
      .flatMap((one) => checker.getExportsOfModule(one as ts.Symbol))
      .flatMap(withMembers);
    expect(all.length).toBeGreaterThan(100);
    const bare = all.filter(([, symbol]) => symbol.getDocumentationComment(checker).length === 0);
    const itself = /\.(state|name)$/; // what tells the members of a union, and errors, apart
    expect(bare.map(([name]) => name).filter((name) => !itself.test(name))).toEqual([]);
  });

  test("hold no any", () => {
    const anys: string[] = [];
    const visit = (node: ts.Node): void => {
      if (node.kind === ts.SyntaxKind.AnyKeyword) anys.push(node.getSourceFile().fileName);
      ts.forEachChild(node, visit);
    };
    for (const file of program.getSourceFiles()) {
      if (file.fileName.startsWith(join(ROOT, "src"))) visit(file);
    }
    expect(anys).toEqual([]);
  });
});
