/** A moment in local time with its zone, and in UTC on hover. */

import * as format from "../format";

interface TimeProps {
  /** Milliseconds since the epoch. */
  readonly at: number;
  /** Show the UTC time beside it, too. */
  readonly withUtc?: boolean;
}

export function Time({ at, withUtc = false }: TimeProps) {
  return (
    <time dateTime={new Date(at).toISOString()} title={format.utcTime(at)}>
      {format.localTime(at)}
      {withUtc && <span className="muted"> · {format.utcTime(at)}</span>}
    </time>
  );
}

/** How long ago, with both times on hover. */
export function Ago({ at, now }: { at: number; now: number }) {
  return (
    <time
      dateTime={new Date(at).toISOString()}
      title={`${format.localTime(at)}\n${format.utcTime(at)}`}
    >
      {format.age(now - at)}
    </time>
  );
}
