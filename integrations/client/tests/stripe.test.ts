/**
 * Meter events: whole watt-hours, none lost, the same however often they are made, and what
 * Stripe's own types want.
 */

import { createServer, type Server } from "node:http";
import Stripe from "stripe";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { MeterReport, PowerStatistics, Report, ReportTotals } from "../src";
import { consumedWh, type MeterEvent, statisticsToMeterEvents, toMeterEvents } from "../src/stripe";

const BILLING = { customerId: "cus_NffrFeUfNV2Hib", eventName: "power_watt_hours" };
const HOUR = "2026-11-23T12:00:00Z";

function meter(type: MeterReport["type"], energy_out_wh?: number, energy_in_wh = 0): MeterReport {
  const head = {
    meter_id: "m",
    name: null,
    type,
    reading_count: energy_out_wh === undefined ? 0 : 2,
  };
  if (energy_out_wh === undefined) return head;
  return { ...head, energy_out_wh, energy_in_wh, energy_wh: energy_out_wh - energy_in_wh };
}

const TOTALS: ReportTotals = {
  consumption_wh: 0,
  main_wh: 0,
  solar_wh: 0,
  battery_out_wh: 0,
  battery_in_wh: 0,
  ups_wh: 0,
  self_sufficiency_pct: null,
};

function report(...meters: MeterReport[]): Report {
  const times = { period_days: 1 / 24, generated_at: "2026-11-23T13:00:00.000000+00:00" };
  return {
    device_id: "edge",
    device_name: "Edge",
    ...times,
    meters,
    totals: TOTALS,
    event_count: 0,
    events: [],
  };
}

function row(start: string, energy_out_wh: number, energy_in_wh = 0): PowerStatistics {
  const watts = { avg_wattage: 1, min_wattage: 1, max_wattage: 1 };
  const charge = { min_charge_pct: 1, max_charge_pct: 1 };
  return {
    meter_id: "m",
    start,
    reading_count: 1,
    ...watts,
    ...charge,
    energy_out_wh,
    energy_in_wh,
  };
}

function total(events: MeterEvent[]): number {
  return events.reduce((sum, event) => sum + Number(event.payload.value), 0);
}

describe("toMeterEvents", () => {
  test("makes one event of what the device consumed", () => {
    const event = {
      identifier: "cus_NffrFeUfNV2Hib:power_watt_hours:2026-11-23T12Z:12",
      timestamp: 1795435200,
    };
    const payload = { stripe_customer_id: "cus_NffrFeUfNV2Hib", value: "12" };
    const made = toMeterEvents(
      report(meter("battery", 5.5, 3.5), meter("main", 7), meter("solar", 3), meter("ups")),
      {
        ...BILLING,
        hour: HOUR,
      },
    );
    expect(made).toEqual([{ event_name: "power_watt_hours", payload, ...event }]);
  });

  test("a changed hour has another identifier, so that Stripe accepts it", () => {
    const identifiers = [1, 6, 1].map(
      (wh) => toMeterEvents(report(meter("main", wh)), { ...BILLING, hour: HOUR })[0]?.identifier,
    );
    expect(identifiers[0]).not.toBe(identifiers[1]);
    expect(identifiers[0]).toBe(identifiers[2]);
  });

  test.each([2 / 24, 1, 7, Number.NaN, 1 / 24 + 1e-5])(
    "a report of %d days is not billed as one hour",
    (period_days) => {
      const days = { ...report(meter("main", 700)), period_days };
      const make = () =>
        toMeterEvents([report(meter("main", 1)), days], { ...BILLING, hour: HOUR });
      expect(make).toThrow(RangeError);
      expect(make).toThrow(
        `report of edge: expected a period of at most an hour (days: 1 / 24), got ${period_days} days`,
      );
    },
  );

  test.each([1 / 24, 0.041667, 1 / 48])("a report of %d days is", (period_days) => {
    const one = { ...report(meter("main", 7)), period_days };
    expect(total(toMeterEvents(one, { ...BILLING, hour: HOUR }))).toBe(7);
  });

  test.each([
    ["an in-line ups passes on what main supplies", [meter("main", 120), meter("ups", 120)], 120],
    ["a ups alone is all there is", [meter("ups", 120)], 120],
    ["what charged the battery is taken back", [meter("main", 100), meter("battery", 0, 60)], 40],
    ["a panel's energy counts", [meter("solar", 10), meter("battery", 5, 8)], 7],
    ["a battery that only charges", [meter("battery", 0, 60)], -60],
  ])("%s", (_, meters, wh) => {
    expect(consumedWh(report(...meters))).toBe(wh);
    expect(total(toMeterEvents(report(...meters), { ...BILLING, hour: HOUR }))).toBe(wh);
  });

  test("a main meter of one device does not exclude a ups of another", () => {
    expect(consumedWh([report(meter("main", 1)), report(meter("ups", 2))])).toBe(3);
  });

  test("fits Stripe's types, checked at compile time", () => {
    const params: Stripe.Billing.MeterEventCreateParams[] = toMeterEvents(report(), {
      ...BILLING,
      hour: HOUR,
    });
    expect(params).toEqual([]);
  });

  test.each([HOUR, "2026-11-23T12:59:59.999Z", "2026-11-23T13:30:00+01:00", new Date(HOUR)])(
    "hour %s",
    (hour) => {
      const made = toMeterEvents(report(meter("main", 1)), { ...BILLING, hour });
      expect(made.map(({ identifier, timestamp }) => [identifier.slice(-16), timestamp])).toEqual([
        ["2026-11-23T12Z:1", 1795435200],
      ]);
    },
  );

  test("sums the devices of a customer, because Stripe would count one event of an hour only", () => {
    const reports = [report(meter("main", 0.5)), report(meter("battery", 0.6))];
    expect(total(toMeterEvents(reports, { ...BILLING, hour: HOUR }))).toBe(1);
    expect(consumedWh(reports)).toBe(1.1);
    expect(consumedWh(reports, ["battery"])).toBe(0.6);
    expect(consumedWh([])).toBe(0);
  });

  test("over any hours, the events add up to the whole watt-hours", () => {
    let state = 1;
    const random = () => {
      state = (state * 16_807) % 2_147_483_647;
      return state / 2_147_483_647;
    };
    for (let run = 0; run < 200; run++) {
      const scale = 10 ** Math.floor(random() * 7 - 3);
      const events: MeterEvent[] = [];
      let totalWh = random() * scale;
      const begin = Math.floor(totalWh);
      for (let hour = 0; hour < 100; hour++) {
        const one = report(meter("main", random() * scale), meter("battery", random() * scale));
        events.push(
          ...toMeterEvents(one, { ...BILLING, hour: new Date(hour * 3_600_000), totalWh }),
        );
        totalWh += consumedWh(one);
      }
      expect(total(events)).toBe(Math.floor(totalWh) - begin);
      expect(new Set(events.map(({ identifier }) => identifier)).size).toBe(events.length);
      expect(events.every(({ payload }) => /^[1-9]\d*$/.test(payload.value))).toBe(true);
    }
  });

  test.each([0.1, 0.7, 0.3, 1.1, 0.000000001, 0.123456789])(
    "%d Wh again and again: never one short at any hour",
    (wh) => {
      const [one, nano] = [
        report(meter("main", wh / 2), meter("battery", wh / 2)),
        BigInt(Math.round(wh * 1e9)),
      ];
      let [totalWh, sent] = [0, 0];
      for (let hour = 1; hour <= 2_000; hour++) {
        sent += total(
          toMeterEvents(one, { ...BILLING, hour: new Date(hour * 3_600_000), totalWh }),
        );
        totalWh += consumedWh(one);
        expect(sent).toBe(Number((BigInt(hour) * nano) / 10n ** 9n));
      }
    },
  );

  test("less than a watt-hour waits for the next hour", () => {
    const half = report(meter("main", 0.5));
    expect(toMeterEvents(half, { ...BILLING, hour: HOUR })).toEqual([]);
    expect(total(toMeterEvents(half, { ...BILLING, hour: HOUR, totalWh: 0.5 }))).toBe(1);
  });

  test.each([
    [{ hour: "noon" }, "hour: expected a Date or ISO 8601 text, got noon"],
    [
      { totalWh: -1e15 },
      "expected watt-hours of at most 999999999999999, got -1000000000000000 and 1",
    ],
    [{ totalWh: Number.NaN }, "got NaN and 1"],
    [{ totalWh: 1e15 }, "got 1000000000000000 and 1"],
    [{ eventName: "x".repeat(70) }, "too long for an identifier of 100"],
  ])("%j is refused", (change, message) => {
    const make = () =>
      toMeterEvents(report(meter("main", 1)), { ...BILLING, hour: HOUR, ...change });
    expect(make).toThrow(RangeError);
    expect(make).toThrow(message);
  });
});

describe("statisticsToMeterEvents", () => {
  test("makes an event for each closed hour, of all meters together, in order", () => {
    const rows = [
      row("2026-11-23T13:00:00.000000+00:00", 1.2),
      row("2026-11-23T11:00:00.000000+00:00", 0.6),
      row("2026-11-23T12:00:00.000000+00:00", 0.3),
      row("2026-11-23T11:00:00.000000+00:00", 0.7),
      row("2026-11-23T14:00:00.000000+00:00", 9),
    ];
    const { events, totalWh } = statisticsToMeterEvents(rows, {
      ...BILLING,
      until: "2026-11-23T14:30:00Z",
    });
    expect(events.map(({ timestamp, payload }) => [timestamp, payload.value])).toEqual([
      [1795431600, "1"],
      [1795438800, "1"],
    ]);
    expect(totalWh).toBeCloseTo(2.8);
    expect(statisticsToMeterEvents([], { ...BILLING, until: HOUR, totalWh })).toEqual({
      events: [],
      totalWh,
    });
  });

  test("late readings give an hour another value and another identifier, and leave the others alone", () => {
    const bill = (wh: number) => {
      const rows = [row("2026-11-23T09:00:00Z", wh), row("2026-11-23T10:00:00Z", 4)];
      return statisticsToMeterEvents(rows, { ...BILLING, until: HOUR }).events;
    };
    const [before, after] = [bill(1), bill(6)];
    expect(after.map(({ payload }) => payload.value)).toEqual(["6", "4"]);
    expect(after[0]?.identifier).not.toBe(before[0]?.identifier);
    expect(after[1]).toEqual(before[1]);
  });

  test("what charged a battery is taken from what it gave", () => {
    const rows = [row("2026-11-23T09:00:00Z", 0, 30), row("2026-11-23T09:00:00Z", 100)];
    expect(total(statisticsToMeterEvents(rows, { ...BILLING, until: HOUR }).events)).toBe(70);
  });

  test("ten hours of 0.1 Wh are a watt-hour", () => {
    const rows = Array.from({ length: 10 }, (_, i) =>
      row(new Date(i * 3_600_000).toISOString(), 0.1),
    );
    const { events, totalWh } = statisticsToMeterEvents(rows, { ...BILLING, until: HOUR });
    expect([total(events), totalWh]).toEqual([1, 1]);
  });

  test("continues where it stopped, in whatever order hours are closed", () => {
    const rows = Array.from({ length: 48 }, (_, i) =>
      row(new Date(i * 3_600_000).toISOString(), (i * 0.37) % 1),
    );
    const all = statisticsToMeterEvents(rows, { ...BILLING, until: "1980-01-01T00:00:00Z" });
    for (let cut = 0; cut <= rows.length; cut++) {
      const first = statisticsToMeterEvents(rows, { ...BILLING, until: new Date(cut * 3_600_000) });
      const rest = { ...BILLING, until: "1980-01-01T00:00:00Z", totalWh: first.totalWh };
      const second = statisticsToMeterEvents(rows.slice(cut), rest);
      expect([...first.events, ...second.events]).toEqual(all.events);
    }
  });
});

describe("Stripe's own client", () => {
  let server: Server;
  const bodies: URLSearchParams[] = [];
  beforeAll(async () => {
    server = createServer((request, response) => {
      let body = "";
      request.on("data", (chunk) => {
        body += chunk;
      });
      request.on("end", () => {
        bodies.push(new URLSearchParams(body));
        response
          .setHeader("Content-Type", "application/json")
          .end(JSON.stringify({ object: "billing.meter_event" }));
      });
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  });
  afterAll(() => server.close());

  test("sends it as it is", async () => {
    const { port } = server.address() as { port: number };
    const stripe = new Stripe("sk_test_x", {
      host: "127.0.0.1",
      port,
      protocol: "http",
      telemetry: false,
    });
    for (const one of toMeterEvents(report(meter("main", 3)), { ...BILLING, hour: HOUR })) {
      await stripe.billing.meterEvents.create(one);
    }
    expect(bodies.map((body) => Object.fromEntries(body))).toEqual([
      {
        event_name: "power_watt_hours",
        identifier: "cus_NffrFeUfNV2Hib:power_watt_hours:2026-11-23T12Z:3",
        "payload[stripe_customer_id]": "cus_NffrFeUfNV2Hib",
        "payload[value]": "3",
        timestamp: "1795435200",
      },
    ]);
  });
});
