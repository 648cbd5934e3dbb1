/**
 * Which view is shown: the part of the address after #. So a reload keeps the view, and the service
 * needs to serve only one page.
 */

import { useSyncExternalStore } from "react";

export type Route =
  | { view: "fleet" }
  | { view: "device"; deviceId: string }
  /**
   * From a one-time link. The page removes its ticket from the address, and gets a token for it.
   */
  | { view: "sign-in"; ticket: string };

/** The address of a device's view. */
export const deviceHref = (deviceId: string): string => `#/device/${encodeURIComponent(deviceId)}`;

export const FLEET_HREF = "#/";

/** The view that an address names; the fleet if it names none. */
export function parseRoute(hash: string): Route {
  const [, ticket] = /^#\/sign-in\/([^/]+)$/.exec(hash) ?? [];
  if (ticket) return { view: "sign-in", ticket };
  const found = /^#\/device\/([^/]+)$/.exec(hash);
  if (!found?.[1]) return { view: "fleet" };
  try {
    return { view: "device", deviceId: decodeURIComponent(found[1]) };
  } catch {
    return { view: "fleet" };
  }
}

// Going back to an address with a different query fires no hashchange.
const CHANGES = ["hashchange", "popstate"] as const;

function subscribe(listener: () => void): () => void {
  for (const change of CHANGES) addEventListener(change, listener);
  return () => {
    for (const change of CHANGES) removeEventListener(change, listener);
  };
}

/** The present view. */
export function useRoute(): Route {
  return parseRoute(useSyncExternalStore(subscribe, () => location.hash));
}
