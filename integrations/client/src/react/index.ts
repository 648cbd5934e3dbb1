"use client"; // hooks and a context: a page that renders on a server sends them to the browser

/** React hooks over a PowerClient: the service's present data, updated live. */

import { useCallback, useSyncExternalStore } from "react";
import type {
  Budget,
  DeviceRecord,
  PowerEvent,
  PowerMeter,
  PowerReading,
  Report,
  StreamStatus,
} from "../index";
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
  // biome-ignore lint/correctness/useExhaustiveDependencies: sources with the same key are equal
  const subscribe = useCallback(
    (onChange: () => void) => show(client, source, onChange),
    [client, key],
  );
  return useSyncExternalStore(
    subscribe,
    () => stateOf<T>(client, key),
    () => NOTHING,
  );
}

/**
 * The power budgets of these devices by id, of all by default. Reloaded at most every `refreshMs`
 * (milliseconds, 5,000 by default) while they send readings or events.
 */
export function useBudget(
  deviceIds?: readonly string[],
  { refreshMs = 5_000 }: { refreshMs?: number } = {},
): HookState<Budget> {
  return useSource(budgetSource(deviceIds, refreshMs));
}

/**
 * A device's report over the last `days` (7 by default). Reloaded at most every `refreshMs`
 * (milliseconds, 60,000 by default) while it sends readings or events.
 */
export function useReport(
  deviceId: string,
  { days = 7, refreshMs = 60_000 }: { days?: number; refreshMs?: number } = {},
): HookState<Report> {
  return useSource(reportSource(deviceId, days, refreshMs));
}

/** The devices, in order of registration, updated live. */
export function useDevices(): HookState<DeviceRecord[]> {
  return useSource(devicesSource());
}

/**
 * A meter's present state, updated live. With its `deviceId`, the stream is for that device alone.
 */
export function useMeter(
  meterId: string,
  { deviceId }: { deviceId?: string } = {},
): HookState<PowerMeter> {
  return useSource(meterSource(meterId, deviceId));
}

/**
 * A meter's readings of the last `hours` (24 by default), oldest first, and each new one. At most
 * `maxPoints` are loaded (8 to 10,000; 1,000 by default), thinned out so that every peak stays. A
 * reconnect fills the gap.
 */
export function useHistory(
  meterId: string,
  {
    hours = 24,
    maxPoints = 1_000,
    deviceId,
  }: { hours?: number; maxPoints?: number; deviceId?: string } = {},
): HookState<PowerReading[]> {
  return useSource(historySource(meterId, hours, maxPoints, deviceId));
}

/**
 * The newest events of a device, of all by default, newest first: at most `limit` (1 to 10,000; 50
 * by default).
 */
export function useEvents(
  deviceId?: string,
  { limit = 50 }: { limit?: number } = {},
): HookState<PowerEvent[]> {
  return useSource(eventsSource(deviceId, limit));
}

/**
 * The present state of every meter of these devices, of all by default, by meter id; a new Map at
 * most every 100 ms.
 */
export function useLivePower(
  deviceIds?: readonly string[],
): HookState<ReadonlyMap<string, PowerMeter>> {
  return useSource(livePowerSource(deviceIds));
}

/** The state of the stream's connection. This hook alone does not open one. */
export function useStreamStatus(): StreamStatus {
  const client = usePowerClient();
  const watch = useCallback((onChange: () => void) => client.watchStreamStatus(onChange), [client]);
  return useSyncExternalStore(
    watch,
    () => client.streamStatus,
    () => IDLE,
  );
}
