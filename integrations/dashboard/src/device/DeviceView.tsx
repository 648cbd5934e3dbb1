/** One device: how it is now, its meters, its history, its events, its report. */

import { useEffect, useMemo, useRef, useState } from "react";
import { useNow } from "../clock";
import { summarise } from "../fleet/summary";
import type { FleetData } from "../live/fleet";
import { useDatabase, useIsFleet, useMay } from "../live/me";
import { FLEET_HREF } from "../route";
import { Badge } from "../ui/Badge";
import { Empty } from "../ui/states";
import { Ago } from "../ui/Time";
import { pageTitle } from "../ui/title";
import { Charts } from "./Charts";
import { EVENT_NAMES } from "./events";
import { FactsCard } from "./FactsCard";
import { linesOf } from "./lines";
import { MeterCards } from "./MeterCards";
import { NowCards } from "./NowCards";
import { RecordEvent } from "./RecordEvent";
import { ReportCard } from "./ReportCard";
import { SettingsCard } from "./SettingsCard";
import { Timeline } from "./Timeline";

interface DeviceViewProps {
  readonly fleet: FleetData;
  readonly deviceId: string;
  /** Called after the user changed something of the device here. */
  readonly onChanged: () => void;
}

export function DeviceView({ fleet, deviceId, onChanged }: DeviceViewProps) {
  const device = fleet.devices.find(({ id }) => id === deviceId);
  const meters = fleet.meters.get(deviceId) ?? [];
  const budget = fleet.budgets.get(deviceId);
  const now = useNow();
  const database = useDatabase();
  const isFleet = useIsFleet();
  const fact = fleet.facts.devices.get(deviceId);
  const heading = useRef<HTMLHeadingElement>(null);
  const lines = useMemo(() => linesOf(meters), [meters]);
  const summary = device && summarise(device, meters, budget, now, fleet.heard, fact);
  const alerts = summary?.alerts.filter(({ severity }) => severity !== "note").length ?? 0;
  useEffect(() => {
    document.title = pageTitle(device?.name ?? deviceId, alerts);
  }, [deviceId, device?.name, alerts]);
  // The heading is where a screen reader goes on after following the link.
  // biome-ignore lint/correctness/useExhaustiveDependencies: once for each device
  useEffect(() => {
    heading.current?.focus({ preventScroll: true });
    scrollTo(0, 0);
  }, [deviceId]);

  if (!device || !summary) {
    return (
      <main id="main" className="device">
        <Empty title={`No device has the id ${deviceId}`}>
          <p>Its id may be different, or your token does not cover it.</p>
          <a className="button" href={FLEET_HREF}>
            All devices
          </a>
        </Empty>
      </main>
    );
  }
  return (
    <main id="main" className="device">
      <div className="device-head">
        <a className="button" href={FLEET_HREF}>
          ← All devices
        </a>
        <div>
          <h1 ref={heading} tabIndex={-1}>
            {device.name}
          </h1>
          <p className="muted">{device.id}</p>
        </div>
        <Badge state={summary.state} />
        <p className={summary.stale ? "device-seen late" : "device-seen muted"}>
          {summary.lastSeen === null ? (
            "never seen"
          ) : (
            <>seen {<Ago at={summary.lastSeen} now={now} />}</>
          )}
        </p>
        <ul className="device-alerts" aria-label="Alerts">
          {summary.alerts.map((alert) => (
            <li key={alert.text} className={`alert alert-${alert.severity}`}>
              {alert.text}
            </li>
          ))}
        </ul>
      </div>
      {meters.length === 0 ? (
        <div className="card no-meters">
          <Empty title="No meters yet">
            <p>
              {isFleet ? "Add one on the device:" : "Add one on the service’s machine:"}{" "}
              <code className="command">
                power-manager --db {database} add-meter {device.id} battery --capacity-wh 50
              </code>
            </p>
          </Empty>
        </div>
      ) : (
        <>
          <NowCards meters={meters} budget={budget} summary={summary} now={now} />
          <MeterCards meters={meters} lines={lines} now={now} />
        </>
      )}
      <div className={meters.length > 0 ? "device-columns" : undefined}>
        {meters.length > 0 && (
          <Charts
            deviceId={deviceId}
            meters={meters}
            lines={lines}
            lastSeen={summary.lastSeen}
            ahead={summary.ahead}
            now={now}
          />
        )}
        <aside className="side" aria-label="Events, report and settings">
          {fact && <FactsCard fact={fact} now={now} />}
          <Events key={deviceId} device={device} now={now} />
          <ReportCard deviceId={deviceId} />
          <SettingsCard
            key={`settings ${deviceId}`}
            device={device}
            meters={meters}
            onChanged={onChanged}
          />
        </aside>
      </div>
    </main>
  );
}

interface EventsProps {
  readonly device: { readonly id: string; readonly name: string };
  readonly now: number;
}

function Events({ device, now }: EventsProps) {
  const mayWrite = useMay("write");
  const [recording, setRecording] = useState(false);
  const [said, setSaid] = useState("");
  const button = useRef<HTMLButtonElement>(null);
  return (
    <section className="card" aria-labelledby="events">
      <div className="section-head">
        <h2 id="events">Events</h2>
        {mayWrite && (
          <button ref={button} type="button" className="button" onClick={() => setRecording(true)}>
            Record event…
          </button>
        )}
      </div>
      <p className="hidden" role="status">
        {said}
      </p>
      {recording && (
        <RecordEvent
          device={device}
          onRecorded={(event) => setSaid(`Recorded: ${EVENT_NAMES[event.type]}.`)}
          onClose={() => {
            setRecording(false);
            button.current?.focus();
          }}
        />
      )}
      <Timeline deviceId={device.id} now={now} />
    </section>
  );
}
