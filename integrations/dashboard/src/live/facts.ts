/** What a fleet knows of its devices beside their records, and how far it is; nothing where the service shows a file. */

import type { FleetDevice, FleetState } from "@blackroad/power-client";
import { usePowerClient } from "@blackroad/power-client/react";
import { useEffect, useState } from "react";

const REFRESH_MS = 15_000;

export interface Facts {
  /** By device id. */
  readonly devices: ReadonlyMap<string, FleetDevice>;
  /** Null where it was not asked for: it is of everybody's devices, and this token is for some. */
  readonly state: FleetState | null;
  /** Why the last load failed; null after one that did not. */
  readonly error: unknown;
}

export const NO_FACTS: Facts = { devices: new Map(), state: null, error: null };

/** The facts of a fleet, loaded now and then; `ofAll`: the token is bound to no devices. */
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
        setFacts({ devices: new Map(devices.map((one) => [one.device_id, one])), state, error: null });
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
