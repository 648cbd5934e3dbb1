/**
 * The page's live sums are those of the service's budget: one rule, held in two places by this
 * test.
 */

import type { DeviceBudget, PowerMeter, PowerStatistics, Report } from "@blackroad/power-client";
import { expect, test } from "vitest";
import { type Energy, energyPeriods, selfSufficiency } from "../../src/device/energy";
import { counted, wattsOf } from "../../src/fleet/watts";
import { chance } from "../unit/random";
import { Service, Writer } from "./harness";

test("watts, charge and runtime of any device equal the service's", async () => {
  const service = await Service.start([], "--no-auth");
  const writer = new Writer(service.db);
  const random = chance(7);
  const pick = <T>(values: readonly T[]): T => values[Math.floor(random() * values.length)] as T;
  for (let device = 0; device < 40; device++) {
    const id = `d${device}`;
    await writer.call("register_device", id, id);
    for (let count = Math.floor(random() * 5); count > 0; count--) {
      const type = pick(["main", "battery", "battery", "solar", "ups"]);
      const meter = await writer.call<{ id: string }>("add_meter", id, type, pick([0, 12.5, 50]));
      if (random() < 0.9) {
        const amperes = random() < 0.2 ? null : random() * 8 - 4;
        await writer.call(
          "log_power",
          meter.id,
          random() * 30,
          amperes,
          pick([0, 4.2, 50, 100, null]),
        );
      }
      if (random() < 0.2) await writer.call("update_meter", meter.id, { active: false });
    }
  }
  const get = async <T>(path: string) =>
    (await (await fetch(`${service.url}/v1/${path}`)).json()) as T;
  const budgets = Object.entries(await get<Record<string, DeviceBudget>>("budget"));
  expect(budgets.length).toBe(40);
  const meters = await get<PowerMeter[]>("meters");
  const seen = { known: 0, unknown: 0 };
  for (const [id, budget] of budgets) {
    const active = meters.filter((meter) => meter.device_id === id && meter.active);
    const sums = wattsOf(active);
    for (const [mine, its] of [
      [sums.total, budget.total_wattage],
      [sums.solar, budget.solar_wattage],
    ] as const) {
      // The service adds up what is known, and says of how many meters it is not: the page then
      // shows no sum.
      if (mine === null) expect(budget.unknown_power_count).toBeGreaterThan(0);
      else expect(mine).toBeCloseTo(its, 3);
    }
    expect(sums.total === null).toBe(budget.unknown_power_count > 0);
    seen[sums.total === null ? "unknown" : "known"]++;
    // What is used is the sum of all meters, but for a UPS in line with the mains.
    if (sums.consumption) {
      const inLine = active.filter((meter) => !counted(active).includes(meter));
      const twice = inLine.reduce((sum, meter) => sum + (meter.wattage ?? 0), 0);
      expect(sums.consumption).toBeCloseTo(budget.total_wattage - twice, 3);
    }
    for (const [mine, its] of [
      [budget.battery_count > 0 ? sums.charge : null, budget.avg_charge_pct],
      [sums.runtime, budget.estimated_runtime_hours],
    ] as const) {
      if (its === null) expect(mine).toBeNull();
      else expect(Math.abs((mine as number) - its)).toBeLessThanOrEqual(0.005 + 1e-9);
    }
  }
  expect(Math.min(seen.known, seen.unknown)).toBeGreaterThan(3);
});

test("energy and self-sufficiency of any device equal the report's", async () => {
  const service = await Service.start([], "--no-auth");
  const writer = new Writer(service.db);
  const random = chance(9);
  const get = async <T>(path: string) =>
    (await (await fetch(`${service.url}/v1/${path}`)).json()) as T;
  for (let device = 0; device < 12; device++) {
    const id = `d${device}`;
    await writer.call("register_device", id, id);
    const types = ["main", "battery", "battery", "solar", "ups"].filter(() => random() < 0.6);
    const meters = [];
    for (const type of types) {
      const meter = await writer.call<{ id: string }>("add_meter", id, type);
      meters.push({ id: meter.id, type: type as PowerMeter["type"] });
      const readings = Array.from({ length: 40 }, (_, place) => {
        const watts = type === "solar" ? 60 * random() : 80 * random() - 30;
        return [
          meter.id,
          10,
          watts / 10,
          50,
          new Date(Date.now() - place * 3_000_000).toISOString(),
        ];
      });
      await writer.call("log_many", readings);
    }
    const { totals } = await get<Report>(`devices/${id}/report?days=4`);
    const hours = new Map<string, PowerStatistics[]>();
    for (const meter of meters)
      hours.set(meter.id, await get<PowerStatistics[]>(`meters/${meter.id}/statistics?days=4`));
    const [period] = energyPeriods(meters, hours, [0, Date.now() + 3_600_000]);
    const energy = period?.energy as Energy;
    const isOnUps = !types.includes("main");
    const own = selfSufficiency(energy);
    for (const [mine, its] of [
      [energy.consumption, totals.consumption_wh],
      [energy.solar, totals.solar_wh],
      [energy.gridIn - energy.gridOut, isOnUps ? totals.ups_wh : totals.main_wh],
      [energy.batteryOut, totals.battery_out_wh],
      [energy.batteryIn, totals.battery_in_wh],
    ] as const)
      expect(Math.abs(mine - its)).toBeLessThan(0.01);
    if (totals.self_sufficiency_pct === null) expect(own).toBeNull();
    else expect(Math.abs(Number(own) - totals.self_sufficiency_pct)).toBeLessThan(0.05);
  }
});
