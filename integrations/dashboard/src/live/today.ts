/**
 * The hours of a device's meters since yesterday, loaded again each minute, and after readings were
 * deleted.
 */

import type { PowerStatistics } from "@blackroad/power-client";
import { usePowerClient, useStreamStatus } from "@blackroad/power-client/react";
import { useEffect, useState } from "react";

const REFRESH_MS = 60_000;
const DAYS = 3; // in every time zone, yesterday begins within them

export interface Today {
  /** By meter id; undefined until they are loaded. */
  readonly hours: ReadonlyMap<string, readonly PowerStatistics[]> | undefined;
  /** Why the last load failed; null after a success. */
  readonly error: unknown;
}

export function useToday(deviceId: string, meterIds: readonly string[]): Today {
  const client = usePowerClient();
  const { state } = useStreamStatus();
  const [today, setToday] = useState<Today>({ hours: undefined, error: null });
  const ids = JSON.stringify(meterIds); // by value: each render makes a new array
  // biome-ignore lint/correctness/useExhaustiveDependencies: a new stream loads anew
  useEffect(() => {
    const control = new AbortController();
    const { signal } = control;
    const hoursOf = async (id: string) =>
      [id, await client.statistics(id, { days: DAYS, bucket: "hour", signal })] as const;
    const load = async () => {
      try {
        const hours = new Map(await Promise.all((JSON.parse(ids) as string[]).map(hoursOf)));
        setToday({ hours, error: null });
      } catch (error) {
        if (!signal.aborted) setToday((before) => ({ ...before, error }));
      }
    };
    void load();
    const stream = client.stream({
      deviceIds: [deviceId],
      onDeleted: ({ kind }) => {
        if (kind === "readings") void load();
      },
    });
    const timer = setInterval(load, REFRESH_MS);
    return () => {
      control.abort();
      stream.close();
      clearInterval(timer);
    };
  }, [client, deviceId, ids, state === "open"]);
  return today;
}
