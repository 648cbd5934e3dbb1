/** A slow link by the browser's own emulation, and what has gone over it. */

import type { Page } from "playwright-core";

export const LINK = { bytesPerSecond: 200_000, latencyMs: 150 } as const; // 1.6 Mbit/s

/** One request of a page: when it began and ended, in milliseconds since the page did; and its bytes on the link. */
export interface Request {
  readonly url: string;
  readonly start: number;
  readonly end: number;
  readonly bytes: number;
  readonly status: number;
}

/** From now on the page's link is slow. */
export async function slowDown(page: Page): Promise<{ streamBytes: () => number }> {
  const session = await page.context().newCDPSession(page);
  await session.send("Network.enable");
  let bytes = 0;
  session.on("Network.webSocketFrameReceived", ({ response }) => {
    bytes += response.payloadData.length;
  });
  await session.send("Network.emulateNetworkConditions", {
    offline: false,
    latency: LINK.latencyMs,
    downloadThroughput: LINK.bytesPerSecond,
    uploadThroughput: LINK.bytesPerSecond,
  });
  return { streamBytes: () => bytes };
}

/** What the page has loaded until now, itself first. */
export function loaded(page: Page): Promise<Request[]> {
  return page.evaluate(() => {
    const kinds = ["navigation", "resource"].flatMap((kind) => performance.getEntriesByType(kind));
    return (kinds as PerformanceResourceTiming[]).map((entry) => ({
      url: entry.name,
      start: entry.requestStart,
      end: entry.responseEnd,
      bytes: entry.transferSize,
      status: entry.responseStatus,
    }));
  });
}

/** The most requests of which each began when the one before it had ended: so often was something waited for. */
export function turnsOf(requests: readonly Request[]): number {
  let [turns, before] = [0, Number.NEGATIVE_INFINITY];
  for (const { start, end } of [...requests].sort((a, b) => a.end - b.end)) {
    if (start < before) continue;
    turns++;
    before = end;
  }
  return turns;
}

/** How long the link takes for that, at the least: its turns one after the other, and all bytes. */
export function linkSeconds(requests: readonly Request[], streamBytes: number): number {
  const bytes = requests.reduce((sum, request) => sum + request.bytes, streamBytes);
  return (turnsOf(requests) * LINK.latencyMs) / 1000 + bytes / LINK.bytesPerSecond;
}
