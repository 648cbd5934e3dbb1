/** How the connection of the stream is doing. */

import type { PowerError } from "./errors";

/** Nobody listens. */
export interface StreamIdle {
  state: "idle";
}

/** The first connection is being made. */
export interface StreamConnecting {
  state: "connecting";
}

/** What happens comes in. */
export interface StreamOpen {
  state: "open";
  /**
   * Whether every event since the place that was asked for follows. False at a first connection that asked for none,
   * and where the service's file has become another one: then fetch again what you show.
   */
  recovered: boolean;
}

/** The connection is gone, and is being made again until somebody closes the stream. */
export interface StreamReconnecting {
  state: "reconnecting";
  /** WebSocket close code: 1012 the service restarts, 1013 this client was too slow; 1000 also where none was given. */
  code: number;
  /** What the service said of it, or nothing. */
  reason: string;
}

/** The service refused, or is none: nothing more comes until the next `client.stream()`. */
export interface StreamStopped {
  state: "stopped";
  /** Why: `status` 401 or 403, for instance, where the token does not do. */
  error: PowerError;
}

/** How the connection of the stream is doing. */
export type StreamStatus = StreamIdle | StreamConnecting | StreamOpen | StreamReconnecting | StreamStopped;
