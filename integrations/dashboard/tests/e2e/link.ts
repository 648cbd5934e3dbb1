/** A slow link by the browser's own emulation, and what has gone over it. */

import { deflateRawSync } from "node:zlib";
import type { Page } from "playwright-core";

export const LINK = { bytesPerSecond: 200_000, latencyMs: 150 } as const; // 1.6 Mbit/s

/**
 * So far away that the machine's own delays are short beside each turn: which requests wait for
 * others can be seen on a busy machine, too. It takes any number of bytes at once.
 */
export const FAR_LINK = { bytesPerSecond: -1, latencyMs: 2_000 } as const;

/**
 * One request of a page: when it began and ended, in milliseconds since the page did; and its bytes
 * on the link.
 */
export interface Request {
  readonly url: string;
  readonly start: number;
  readonly end: number;
  readonly bytes: number;
  readonly status: number;
}

// Of a WebSocket's message on the link, beside what its text is compressed to.
const FRAME_BYTES = 8;

/**
 * From now on the page's link is slow. The browser says what the stream's messages are, not what
 * they were on the link: where both sides have agreed to compress them, that is made of them once
 * more, with the window that the service has.
 */
export async function slowDown(
  page: Page,
  { bytesPerSecond, latencyMs }: typeof LINK | typeof FAR_LINK = LINK,
): Promise<{ streamBytes: () => number }> {
  const session = await page.context().newCDPSession(page);
  await session.send("Network.enable");
  const texts: Buffer[] = [];
  let isCompressed = false;
  session.on("Network.webSocketHandshakeResponseReceived", ({ response }) => {
    const agreed = Object.entries(response.headers).find(([name]) =>
      /^sec-websocket-extensions$/i.test(name),
    );
    isCompressed = agreed?.[1].includes("permessage-deflate") ?? false;
  });
  session.on("Network.webSocketFrameReceived", ({ response }) => {
    texts.push(Buffer.from(response.payloadData));
  });
  await session.send("Network.emulateNetworkConditions", {
    offline: false,
    latency: latencyMs,
    downloadThroughput: bytesPerSecond,
    uploadThroughput: bytesPerSecond,
  });
  return {
    streamBytes: () => {
      const all = Buffer.concat(texts);
      const content = isCompressed ? deflateRawSync(all, { windowBits: 12 }) : all;
      return content.length + FRAME_BYTES * texts.length;
    },
  };
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

/**
 * The most requests of which each began when the one before it had ended: so often was something
 * waited for.
 */
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
