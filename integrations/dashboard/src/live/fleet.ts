/**
 * Every device with its meters' present states and its budget, from the client's hooks.
 */

import type { DeviceBudget, DeviceRecord, Me, PowerMeter } from "@blackroad/power-client";
import { useBudget, useDevices, useLivePower } from "@blackroad/power-client/react";
import { useMemo, useRef } from "react";
import { present } from "../clock";
import { type Facts, useFacts } from "./facts";

const BUDGET_MS = 15_000; // watts are live; the energy of a day changes slowly

/**
 * When each meter's newest reading reached the page, by the meter's id, in milliseconds since the
 * epoch by the service's clock.
 */
export type Heard = ReadonlyMap<string, number>;

export interface FleetData {
  readonly devices: readonly DeviceRecord[];
  /** By device id; the meters of each in the order in which they were added. */
  readonly meters: ReadonlyMap<string, readonly PowerMeter[]>;
  /** By device id. */
  readonly budgets: ReadonlyMap<string, DeviceBudget>;
  readonly heard: Heard;
  /** What only a fleet knows; empty for a file. */
  readonly facts: Facts;
}

export interface Fleet {
  /** Undefined until devices and meters are loaded; the budgets may come later. */
  readonly data: FleetData | undefined;
  /** Why the last load of one of them failed; undefined if none did. */
  readonly error: unknown;
  readonly refetch: () => void;
}

/** The fleet. One component calls this, and passes the result on. */
export function useFleet(me: Me | undefined): Fleet {
  const devices = useDevices();
  const live = useLivePower();
  const budget = useBudget(undefined, { refreshMs: BUDGET_MS });
  const meters = useMemo(() => byDevice(live.data), [live.data]);
  const heard = useHeard(live.data);
  const facts = useFacts(me?.source === "fleet", me?.devices === null);
  const budgets = useMemo(() => {
    const entries = Object.entries(budget.data ?? {});
    return new Map(
      entries.flatMap(([id, entry]) => ("error" in entry ? [] : [[id, entry] as const])),
    );
  }, [budget.data]);
  const list = devices.data;
  return {
    data: useMemo(
      () => list && meters && { devices: list, meters, budgets, heard, facts },
      [list, meters, budgets, heard, facts],
    ),
    error: devices.error ?? live.error ?? budget.error,
    refetch: () => {
      void devices.refetch();
      void live.refetch();
      void budget.refetch();
    },
  };
}

/** When the newest reading of each meter reached this page. */
function useHeard(meters: ReadonlyMap<string, PowerMeter> | undefined): Heard {
  const read = useRef(new Map<string, string | null>());
  const heard = useRef(new Map<string, number>());
  return useMemo(() => {
    for (const meter of meters?.values() ?? []) {
      if (read.current.get(meter.id) === meter.updated_at) continue;
      read.current.set(meter.id, meter.updated_at);
      heard.current.set(meter.id, present());
    }
    return heard.current;
  }, [meters]);
}

function byDevice(meters: ReadonlyMap<string, PowerMeter> | undefined) {
  if (!meters) return undefined;
  const found = new Map<string, PowerMeter[]>();
  for (const meter of meters.values()) {
    const others = found.get(meter.device_id);
    if (others) others.push(meter);
    else found.set(meter.device_id, [meter]);
  }
  return found;
}
