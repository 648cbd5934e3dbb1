/** What the token of this page may do. */

import type { Me } from "@blackroad/power-client";
import { usePowerClient } from "@blackroad/power-client/react";
import { createContext, useContext, useEffect, useState } from "react";

/** Undefined until the service has answered, and if it cannot be reached. */
export const MeContext = createContext<Me | undefined>(undefined);

/** Who is asking, loaded once for a client. */
export function useLoadedMe(): Me | undefined {
  const client = usePowerClient();
  const [me, setMe] = useState<Me>();
  useEffect(() => {
    const control = new AbortController();
    // If this fails, the service itself refuses what is not allowed.
    client.me({ signal: control.signal }).then(setMe, () => undefined);
    return () => control.abort();
  }, [client]);
  return me;
}

/** Whether the token has a scope; assumed until the service has answered. */
export function useMay(scope: Me["scopes"][number]): boolean {
  return useContext(MeContext)?.scopes.includes(scope) ?? true;
}

/**
 * Whether the service shows a fleet rather than a file; false until the service has answered.
 */
export const useIsFleet = (): boolean => useContext(MeContext)?.source === "fleet";

/** The file that the service uses, as a command on its machine names it. */
export const useDatabase = (): string => useContext(MeContext)?.database ?? "FILE";
