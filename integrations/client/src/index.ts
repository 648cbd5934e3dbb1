/** @blackroad/power-client: the TypeScript client of power-service. */

export {
  type Budget,
  type Moment,
  PowerClient,
  type PowerClientOptions,
  type StatisticsWindow,
  type Window,
} from "./client";
export { type ClientCode, PowerError, type PowerErrorCode, type PowerErrorDetails } from "./errors";
export type { CallOptions } from "./http";
export type { FailedBatch, FlushResult } from "./queue";
export type { WebSocketClass } from "./socket";
export type {
  StreamConnecting,
  StreamIdle,
  StreamOpen,
  StreamReconnecting,
  StreamStatus,
  StreamStopped,
} from "./status";
export type { Deletion, StreamHandle, StreamOptions } from "./stream";
export type {
  AlertLevel,
  Code,
  DeviceBudget,
  DeviceChanges,
  DeviceRecord,
  DeviceSettings,
  EventPage,
  FleetAlarm,
  FleetDevice,
  FleetState,
  Health,
  IngestResult,
  Me,
  MeterChanges,
  MeterReport,
  MeterType,
  NewEvent,
  NewMeter,
  NewReading,
  PowerEvent,
  PowerEventType,
  PowerMeter,
  PowerReading,
  PowerState,
  PowerStatistics,
  ProblemDetails,
  Report,
  ReportTotals,
  SequencedEvent,
  Series,
  SignedIn,
  SignInNeeds,
  SilentDevice,
  SiteEnergy,
  Sparklines,
  StreamTicket,
  UnknownDevice,
} from "./types.gen";
