/** The states of the stream's connection. */

import type { PowerError } from "./errors";

/** There are no listeners. */
export interface StreamIdle {
  state: "idle";
}

/** The first connection is being made. */
export interface StreamConnecting {
  state: "connecting";
}

/** Messages arrive. */
export interface StreamOpen {
  state: "open";
  /**
   * Whether every event since the requested sequence follows. False for a first connection without
   * `after`, and when the service's file was replaced: then load again what you show.
   */
  recovered: boolean;
}

/** The connection was lost. The client reconnects until the stream is closed. */
export interface StreamReconnecting {
  state: "reconnecting";
  /**
   * WebSocket close code: 1012 for a restart of the service, 1013 for a client that is too slow;
   * 1000 if none came.
   */
  code: number;
  /** The service's reason, or an empty text. */
  reason: string;
}

/**
 * The service refused, or is not a power-service: nothing more arrives until the next
 * `client.stream()`.
 */
export interface StreamStopped {
  state: "stopped";
  /** The reason: `status` 401 or 403 for a token that is not accepted, for example. */
  error: PowerError;
}

/** The state of the stream's connection. */
export type StreamStatus =
  | StreamIdle
  | StreamConnecting
  | StreamOpen
  | StreamReconnecting
  | StreamStopped;
