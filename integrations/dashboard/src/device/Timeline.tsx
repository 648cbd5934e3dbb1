/** What happened to a device, newest first. */

import type { PowerEvent } from "@blackroad/power-client";
import { useEvents } from "@blackroad/power-client/react";
import { Empty, Failure, Loading } from "../ui/states";
import { Ago, Time } from "../ui/Time";
import { EVENT_NAMES, eventNote, eventValue } from "./events";

const SHOWN = 200;

export function Timeline({ deviceId, now }: { deviceId: string; now: number }) {
  const { data: events, error, refetch } = useEvents(deviceId, { limit: SHOWN });
  if (!events && error)
    return <Failure what="The events could not be loaded" error={error} onRetry={refetch} />;
  if (!events) return <Loading what="events" />;
  if (events.length === 0) {
    return (
      <Empty title="No events yet">
        <p>Alerts and recorded events appear here.</p>
      </Empty>
    );
  }
  return (
    // It scrolls, and without a mouse only by keys: it must take the focus.
    <div className="timeline" role="region" aria-label="Events, newest first" tabIndex={0}>
      <ol aria-live="polite" aria-relevant="additions">
        {events.map((event) => (
          <Item key={event.id} event={event} now={now} />
        ))}
      </ol>
    </div>
  );
}

function Item({ event, now }: { event: PowerEvent; now: number }) {
  const at = Date.parse(event.timestamp);
  const [value, note] = [eventValue(event), eventNote(event)];
  return (
    <li className={`event event-${event.type}`}>
      <p>
        <strong>{EVENT_NAMES[event.type]}</strong>
        {value && <> · {value}</>}
        <span className="event-ago muted">
          <Ago at={at} now={now} />
        </span>
      </p>
      {note && <p className="event-note">{note}</p>}
      <p className="muted">
        <Time at={at} />
      </p>
    </li>
  );
}
