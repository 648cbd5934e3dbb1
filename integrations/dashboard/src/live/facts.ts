/**
 * The fleet's facts about its devices, and how far its engine is. Empty if the service shows a
 * file.
 */

import type { FleetDevice, FleetState } from "@blackroad/power-client";
import { usePowerClient } from "@blackroad/power-client/react";
import { useEffect, useState } from "react";

const REFRESH_MS = 15_000;

export interface Facts {
  /** By device id. */
  readonly devices: ReadonlyMap<string, FleetDevice>;
  /** Null if not requested: it covers all devices, and this token is for some of them. */
  readonly state: FleetState | null;
  /** Why the last load failed; null after a success. */
  readonly error: unknown;
}

export const NO_FACTS: Facts = { devices: new Map(), state: null, error: null };

/** The facts of a fleet, reloaded regularly. `ofAll`: the token is for all devices. */
export function useFacts(isFleet: boolean, ofAll: boolean): Facts {
  const client = usePowerClient();
  const [facts, setFacts] = useState(NO_FACTS);
  useEffect(() => {
    if (!isFleet) return;
    const control = new AbortController();
    const { signal } = control;
    let timer: ReturnType<typeof setTimeout> | undefined;
    async function load(): Promise<void> {
      try {
        const [devices, state] = await Promise.all([
          client.fleetDevices({ signal }),
          ofAll ? client.fleet({ signal }) : null,
        ]);
        setFacts({
          devices: new Map(devices.map((one) => [one.device_id, one])),
          state,
          error: null,
        });
      } catch (error) {
        if (signal.aborted) return;
        setFacts((before) => ({ ...before, error }));
      }
      if (!signal.aborted) timer = setTimeout(load, REFRESH_MS);
    }
    void load();
    return () => {
      control.abort();
      clearTimeout(timer);
    };
  }, [client, isFleet, ofAll]);
  return facts;
}
