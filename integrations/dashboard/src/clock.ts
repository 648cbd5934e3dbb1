/**
 * The present time as React sees it: one timer for all that shows an age.
 *
 * This is the service's time, taken from its answers, because its clock stamps the live readings.
 * With a browser clock that is ten minutes off, live devices would look stale, or stale ones live.
 */

import { useSyncExternalStore } from "react";

// Answers take a while, and their times are whole seconds: a smaller difference counts as none.
const NEAR_MS = 5_000;

const listeners = new Set<() => void>();
let timer: ReturnType<typeof setInterval> | undefined;
let ahead = 0; // milliseconds that the service's clock is ahead of this one
let now = Date.now();

/** Milliseconds since the epoch by the service's clock. */
export const present = (): number => Date.now() + ahead;

/** Like `fetch`; also learns the service's time from the answer. */
export async function fetchWithTime(...request: Parameters<typeof fetch>): Promise<Response> {
  const answer = await fetch(...request);
  const difference = Date.parse(answer.headers.get("date") ?? "") - Date.now();
  if (!Number.isNaN(difference)) ahead = Math.abs(difference) < NEAR_MS ? 0 : difference;
  return answer;
}

function tick(): void {
  now = present();
  for (const listener of listeners) listener();
}

function subscribe(listener: () => void): () => void {
  if (listeners.size === 0) {
    now = present();
    timer = setInterval(tick, 1000);
  }
  listeners.add(listener);
  return () => {
    listeners.delete(listener);
    if (listeners.size === 0) clearInterval(timer);
  };
}

/** Milliseconds since the epoch, a second old at most. */
export function useNow(): number {
  return useSyncExternalStore(subscribe, () => now);
}
