/**
 * Above the table of a fleet: up to when it is complete, and the versions that its devices run.
 */

import * as format from "../format";
import type { Facts } from "../live/facts";
import { errorText } from "../ui/states";

const MOST_VERSIONS = 3;
const LATE_MS = 60_000; // even an idle sink reports its progress every ten seconds

export function FleetStrip({ facts, now }: { facts: Facts; now: number }) {
  const { state, devices, error } = facts;
  if (error !== null)
    return (
      <p className="problem" role="status">
        Sites, versions and alarms could not be loaded: {errorText(error)}
      </p>
    );
  if (devices.size === 0 && !state) return null;
  return (
    <dl className="fleet-strip" aria-label="The fleet">
      {state && <AsOf moment={state.fresh_as_of} now={now} />}
      {state?.waiting_messages != null && (
        <Fact
          name="Waiting"
          hint="Messages on their way to the fleet’s data"
          value={messages(state.waiting_messages)}
        />
      )}
      {state?.dead_letters != null && (
        <Fact
          name="Dead letters"
          hint="Messages that could not be stored and were set aside"
          value={String(state.dead_letters)}
          bad={state.dead_letters > 0}
        />
      )}
      <Fact
        name="Versions"
        hint="The versions of power-fleet on the devices"
        value={versionsText(facts)}
      />
      <AlarmCount facts={facts} />
    </dl>
  );
}

interface FactProps {
  readonly name: string;
  readonly value: string;
  readonly hint?: string;
  readonly bad?: boolean;
}

function Fact({ name, value, hint, bad = false }: FactProps) {
  return (
    <div title={hint}>
      <dt>{name}</dt>
      <dd className={bad ? "late" : undefined}>{value}</dd>
    </div>
  );
}

function AsOf({ moment, now }: { moment: string | null; now: number }) {
  if (moment === null) return <Fact name="Complete up to" value={format.UNKNOWN} />;
  const at = Date.parse(moment);
  const age = Math.max(now - at, 0);
  const value = age < LATE_MS ? "now" : `${format.localClock(at)} (${format.age(age)})`;
  return <Fact name="Complete up to" value={value} bad={age >= LATE_MS} />;
}

const messages = (count: number): string => `${count} ${count === 1 ? "message" : "messages"}`;

function AlarmCount({ facts }: { facts: Facts }) {
  const count = [...facts.devices.values()].filter(({ alarms }) => alarms.length > 0).length;
  return <Fact name="With alarms" value={String(count)} bad={count > 0} />;
}

/** The versions of the forwarders, the most frequent first: 1.0.0 (998), 0.9.1 (2). */
export function versionsText({ devices }: Pick<Facts, "devices">): string {
  const counts = new Map<string, number>();
  for (const { version } of devices.values()) {
    const name = version ?? "not known";
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  const sorted = [...counts].sort(([a, some], [b, others]) => others - some || a.localeCompare(b));
  if (sorted.length === 1) return sorted[0]?.[0] ?? format.UNKNOWN;
  const some = sorted.slice(0, MOST_VERSIONS).map(([name, count]) => `${name} (${count})`);
  const more = sorted.length - some.length;
  return some.join(", ") + (more > 0 ? ` and ${more} more` : "");
}
