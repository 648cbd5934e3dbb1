/** What the device was given: target and thresholds. */

import type { DeviceRecord } from "@blackroad/power-client";
import * as format from "../format";
import { Pair } from "./MeterCards";

const LIBRARYS = "as the library has it";

export function SettingsCard({ device }: { device: DeviceRecord }) {
  const { target_wh: target, low_battery_threshold: low, critical_battery_threshold: critical } = device;
  return (
    <section className="card settings" aria-labelledby="settings">
      <h2 id="settings">Settings</h2>
      <dl className="pairs">
        <Pair name="Target a day">{target === null ? "none" : format.wattHours(target)}</Pair>
        <Pair name="Shutdown below">{format.watts(device.shutdown_threshold)}</Pair>
        <Pair name="Low battery at">{low === null ? LIBRARYS : format.percent(low)}</Pair>
        <Pair name="Critical at">{critical === null ? LIBRARYS : format.percent(critical)}</Pair>
      </dl>
    </section>
  );
}
