"use client"; // hooks and a context: a page that renders on a server sends them to the browser

/** React hooks over a PowerClient: what the service says now, and then what happens. */

import { useCallback, useSyncExternalStore } from "react";
import type { Budget, DeviceRecord, PowerEvent, PowerMeter, PowerReading, Report, StreamStatus } from "../index";
import { usePowerClient } from "./provider";
import { type HookState, NOTHING, type Source, show, stateOf } from "./resource";
import {
  budgetSource,
  devicesSource,
  eventsSource,
  historySource,
  livePowerSource,
  meterSource,
  reportSource,
} from "./sources";

export { PowerProvider, type PowerProviderProps, usePowerClient } from "./provider";
export type { HookState } from "./resource";

const IDLE: StreamStatus = { state: "idle" };

function useSource<T>(source: Source<T>): HookState<T> {
  const client = usePowerClient();
  const { key } = source;
  // biome-ignore lint/correctness/useExhaustiveDependencies: sources of the same key do the same
  const subscribe = useCallback((onChange: () => void) => show(client, source, onChange), [client, key]);
  return useSyncExternalStore(
    subscribe,
    () => stateOf<T>(client, key),
    () => NOTHING,
  );
}

/**
 * The power budget of these devices by id, of all if left out. Loaded again at most each `refreshMs` (milliseconds,
 * 5,000 by default) while they send readings or events.
 */
export function useBudget(
  deviceIds?: readonly string[],
  { refreshMs = 5_000 }: { refreshMs?: number } = {},
): HookState<Budget> {
  return useSource(budgetSource(deviceIds, refreshMs));
}

/**
 * A device's report over the last `days` (7 by default). Loaded again at most each `refreshMs` (milliseconds, 60,000 by
 * default) while it sends readings or events.
 */
export function useReport(
  deviceId: string,
  { days = 7, refreshMs = 60_000 }: { days?: number; refreshMs?: number } = {},
): HookState<Report> {
  return useSource(reportSource(deviceId, days, refreshMs));
}

/** The devices, in order of registration, as they come, change and go. */
export function useDevices(): HookState<DeviceRecord[]> {
  return useSource(devicesSource());
}

/** A meter in its present state, as it changes. Where its `deviceId` is known, the stream need not be for all. */
export function useMeter(meterId: string, { deviceId }: { deviceId?: string } = {}): HookState<PowerMeter> {
  return useSource(meterSource(meterId, deviceId));
}

/**
 * A meter's readings of the last `hours` (24 by default), oldest first, and each that comes: loaded as at most
 * `maxPoints` (8 to 10,000; 1,000 by default), thinned out so that the peaks stay. Gaps are filled after a reconnect.
 */
export function useHistory(
  meterId: string,
  { hours = 24, maxPoints = 1_000, deviceId }: { hours?: number; maxPoints?: number; deviceId?: string } = {},
): HookState<PowerReading[]> {
  return useSource(historySource(meterId, hours, maxPoints, deviceId));
}

/** The newest events of a device, of all if left out, newest first: at most `limit` (1 to 10,000; 50 by default). */
export function useEvents(deviceId?: string, { limit = 50 }: { limit?: number } = {}): HookState<PowerEvent[]> {
  return useSource(eventsSource(deviceId, limit));
}

/** The present state of every meter of these devices, of all if left out, by meter id; anew at most each 100 ms. */
export function useLivePower(deviceIds?: readonly string[]): HookState<ReadonlyMap<string, PowerMeter>> {
  return useSource(livePowerSource(deviceIds));
}

/** How the stream's connection is doing. By itself it opens none. */
export function useStreamStatus(): StreamStatus {
  const client = usePowerClient();
  const watch = useCallback((onChange: () => void) => client.watchStreamStatus(onChange), [client]);
  return useSyncExternalStore(
    watch,
    () => client.streamStatus,
    () => IDLE,
  );
}
