/**
 * Light or dark, as the system is set. Only the canvas of a chart needs this; the rest is CSS.
 */

import { useSyncExternalStore } from "react";

const dark = matchMedia("screen and (prefers-color-scheme: dark)");

function subscribe(listener: () => void): () => void {
  dark.addEventListener("change", listener);
  return () => dark.removeEventListener("change", listener);
}

/** The present colour scheme. */
export const useTheme = (): "dark" | "light" =>
  useSyncExternalStore(subscribe, () => (dark.matches ? "dark" : "light"));
