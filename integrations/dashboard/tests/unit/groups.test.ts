/** Groups by a part of the ids. */

import { describe, expect, test } from "vitest";
import { entriesOf, entryKey } from "../../src/fleet/entries";
import {
  BY_SITE,
  type Grouping,
  groupingOf,
  groupName,
  groupSum,
  inGroups,
  keyOf,
  offers,
  type PartOfId,
  queryWith,
} from "../../src/fleet/groups";
import type { Summary } from "../../src/fleet/summary";
import { chance } from "./random";

const by = (separator: string, first: number, last = first): PartOfId => ({
  separator,
  first,
  last,
});

const row = (id: string, changes: Partial<Summary> = {}): Summary =>
  ({ id, name: id, state: "normal", stale: false, consumption: 1, ...changes }) as Summary;

describe("the name of an id's group", () => {
  test.each<[string, PartOfId, string | null]>([
    ["site-a/gate-1", by("/", 1), "site-a"],
    ["site-a-gate-1", by("-", 2), "a"],
    ["site-a-gate-1", by("-", 1, 2), "site-a"],
    ["site-a", by("/", 1), "site-a"],
    ["gate", by("-", 2), null],
    ["-x", by("-", 1), ""],
    ["東京/門", by("/", 1), "東京"],
  ])("of %s", (id, grouping, name) => {
    expect(groupName(id, grouping)).toBe(name);
  });
});

describe("groups", () => {
  const rows = [
    row("b-1", { state: "low", consumption: 3 }),
    row("lonely"),
    row("a-1", { consumption: null }),
    row("b-2", { state: "critical", stale: true, consumption: 100 }),
    row("a-2", { consumption: 2 }),
  ];
  const groups = inGroups(rows, by("-", 2));

  test("come in the order of their first rows, devices without such a part last", () => {
    const named = inGroups(rows, by("-", 1)).map(({ name }) => name);
    expect(named).toEqual(["b", "lonely", "a"]);
    expect(groups.map(({ name }) => name)).toEqual(["1", "2", null]);
  });

  test("show their worst state, and the known watts of their live devices", () => {
    const [b, , a] = inGroups(rows, by("-", 1));
    expect([b?.state, a?.state]).toEqual(["critical", "normal"]);
    expect(groupSum(b as never, "consumption")).toEqual({ sum: 3, unknown: 0 });
    expect(groupSum(a as never, "consumption")).toEqual({ sum: 2, unknown: 1 });
  });

  test("hold each row once, in order, for any ids; a closed group is its head only", () => {
    const random = chance(3);
    const word = () => ["a", "b", "-", "/", ""][Math.floor(random() * 5)] as string;
    for (let run = 0; run < 50; run++) {
      const some = Array.from({ length: 30 }, (_, place) =>
        row(`${word()}${word()}${word()}${place}`),
      );
      const grouping = by(random() < 0.5 ? "-" : "/", 1 + Math.floor(random() * 2), 2);
      const all = entriesOf(some, grouping, new Set());
      const devices = all.flatMap((entry) => (entry.kind === "device" ? [entry.row] : []));
      expect(new Set(devices)).toEqual(new Set(some));
      expect(devices.length).toBe(some.length);
      expect(new Set(all.map(entryKey)).size).toBe(all.length);
      for (const { rows: its } of inGroups(some, grouping))
        expect(its).toEqual(some.filter((one) => its.includes(one)));
      const names = inGroups(some, grouping).map(({ name }) => name);
      expect(entriesOf(some, grouping, new Set(names)).map(({ kind }) => kind)).toEqual(
        names.map(() => "group"),
      );
    }
    expect(entriesOf(rows, null, new Set()).length).toBe(rows.length);
  });
});

test("devices of a fleet are grouped by site, those without one last", () => {
  const rows = [row("a", { site: "north" }), row("b", { site: null }), row("c", { site: "south" })];
  const groups = inGroups([...rows, row("d", { site: "north" })], BY_SITE);
  expect(groups.map(({ name, rows: its }) => [name, its.map(({ id }) => id).join()])).toEqual([
    ["north", "a,d"],
    ["south", "c"],
    [null, "b"],
  ]);
});

describe("what is offered", () => {
  const keys = (...ids: string[]) => offers(ids).map(({ grouping }) => keyOf(grouping));

  test("are the parts that make groups, with their longest names", () => {
    expect(keys("site-a/gate-1", "site-a/gate-2", "site-b/gate-1")).toEqual(["/1", "/2"]);
    expect(keys("site-a-gate-1", "site-a-gate-2", "site-b-gate-1")).toEqual(["-1-2", "-4"]);
    const [sites] = offers(["site-a-gate-1", "site-a-gate-2", "site-b-gate-1"]);
    expect(sites?.names).toEqual(["site-a", "site-b"]);
  });

  test("are none if each device would be alone, or all in one group", () => {
    expect(keys("node-1", "node-2", "node-3")).toEqual([]);
    expect(keys("north", "south")).toEqual([]);
    expect(keys()).toEqual([]);
  });
});

describe("a grouping in an address", () => {
  test.each([BY_SITE, by("/", 1), by("-", 1, 2), by("&", 3), by(" ", 2, 9)] as Grouping[])(
    "is found again: %o",
    (grouping) => {
      const query = queryWith("?kiosk=1", grouping);
      expect(groupingOf(query)).toEqual(grouping);
      expect(queryWith(query, null)).toBe("?kiosk=1");
      expect(queryWith(query, by("+", 1))).toBe("?kiosk=1&split=%2B&part=1");
    },
  );

  test.each([
    "",
    "?split=-",
    "?part=1",
    "?split=&part=1",
    "?split=-&part=0",
    "?split=-&part=2-1",
    "?split=-&part=x",
  ])("that is invalid is ignored: %s", (query) => {
    expect(groupingOf(query)).toBeNull();
  });
});
