/** The settings of a device and its meters; a token with the scope `write` can change them. */

import type { DeviceRecord, NewMeter, PowerMeter } from "@blackroad/power-client";
import { usePowerClient } from "@blackroad/power-client/react";
import { useRef, useState } from "react";
import * as format from "../format";
import { useMay } from "../live/me";
import { Field, FormDialog, numberOf, textOf } from "../ui/FormDialog";
import { DeleteDialog } from "./DeleteDialog";
import { meterName, TYPES } from "./lines";
import { Pair } from "./MeterCards";

// The library's thresholds for a device that has none of its own, in percent of charge.
const LOW_PCT = 20;
const CRITICAL_PCT = 5;

/** The dialog that is open. */
type Open =
  | { dialog: "none" | "device" | "new" | "delete" }
  | { dialog: "meter" | "delete-meter"; meter: PowerMeter };

const NONE: Open = { dialog: "none" };

interface SettingsCardProps {
  readonly device: DeviceRecord;
  readonly meters: readonly PowerMeter[];
  /** Called after a change, so that the page shows it at once. */
  readonly onChanged: () => void;
}

export function SettingsCard({ device, meters, onChanged }: SettingsCardProps) {
  const client = usePowerClient();
  const [mayWrite, mayDelete] = [useMay("write"), useMay("admin")];
  const [open, setOpen] = useState<Open>(NONE);
  const opener = useRef<HTMLElement | null>(null);
  const begin = (what: Open) => {
    opener.current = document.activeElement as HTMLElement | null;
    setOpen(what);
  };
  const common = {
    onChanged,
    onClose: () => {
      setOpen(NONE);
      opener.current?.focus();
    },
  };
  return (
    <section className="card settings" aria-labelledby="settings">
      <div className="section-head">
        <h2 id="settings">Settings</h2>
        {mayWrite && (
          <button type="button" className="button" onClick={() => begin({ dialog: "device" })}>
            Change…
          </button>
        )}
      </div>
      <DeviceSettings device={device} />
      {mayWrite && (
        <ul className="settings-meters" aria-label="Meters to change">
          {meters.map((meter) => (
            <li key={meter.id}>
              <button
                type="button"
                className="button"
                onClick={() => begin({ dialog: "meter", meter })}
              >
                {meterName(meter)}…
              </button>
            </li>
          ))}
          <li>
            <button type="button" className="button" onClick={() => begin({ dialog: "new" })}>
              Add a meter…
            </button>
          </li>
          {mayDelete && (
            <li>
              <button
                type="button"
                className="button button-bad"
                onClick={() => begin({ dialog: "delete" })}
              >
                Delete the device…
              </button>
            </li>
          )}
        </ul>
      )}
      {open.dialog === "device" && <DeviceDialog device={device} {...common} />}
      {open.dialog === "new" && <NewMeterDialog device={device} {...common} />}
      {open.dialog === "meter" && (
        <MeterDialog
          meter={open.meter}
          onDelete={mayDelete ? () => setOpen({ dialog: "delete-meter", meter: open.meter }) : null}
          {...common}
        />
      )}
      {open.dialog === "delete-meter" && (
        <DeleteDialog
          kind="meter"
          name={meterName(open.meter)}
          onDelete={() => client.deleteMeter(open.meter.id).then(onChanged)}
          onClose={common.onClose}
        />
      )}
      {open.dialog === "delete" && (
        <DeleteDialog
          kind="device"
          name={device.name}
          onDelete={() => client.deleteDevice(device.id).then(onChanged)}
          onClose={common.onClose}
        />
      )}
    </section>
  );
}

function DeviceSettings({ device }: { device: DeviceRecord }) {
  const {
    target_wh: target,
    low_battery_threshold: low,
    critical_battery_threshold: critical,
  } = device;
  return (
    <dl className="pairs">
      <Pair name="Daily target">{target === null ? "none" : format.wattHours(target)}</Pair>
      <Pair name="Shutdown threshold">{format.watts(device.shutdown_threshold)}</Pair>
      <Pair name="Low battery at">{format.percent(low ?? LOW_PCT)}</Pair>
      <Pair name="Critical battery at">{format.percent(critical ?? CRITICAL_PCT)}</Pair>
    </dl>
  );
}

interface DialogProps {
  readonly onChanged: () => void;
  readonly onClose: () => void;
}

function DeviceDialog({ device, onChanged, onClose }: DialogProps & { device: DeviceRecord }) {
  const client = usePowerClient();
  async function send(form: FormData): Promise<void> {
    const threshold = numberOf(form, "shutdown_threshold", "Shutdown threshold");
    if (threshold === null)
      throw new Error("Shutdown threshold: expected a number of watts, such as 3.");
    await client.updateDevice(device.id, {
      name: textOf(form, "name"),
      shutdown_threshold: threshold,
      target_wh: numberOf(form, "target_wh", "Daily target"),
      low_battery_threshold: numberOf(form, "low", "Low battery"),
      critical_battery_threshold: numberOf(form, "critical", "Critical battery"),
    });
    onChanged();
  }
  return (
    <FormDialog
      title={`Settings of ${format.apart(device.name)}`}
      effect="These apply from the next reading on, for everyone who follows this device. Past readings do not change."
      send="Save"
      onSend={send}
      onClose={onClose}
    >
      <Field name="name" label="Name" value={device.name} hint={`The id stays ${device.id}.`} />
      <Field
        name="target_wh"
        label="Daily target, Wh"
        value={device.target_wh}
        hint="Using more than this in 24 hours is an alert. Leave empty for no target."
        numeric
      />
      <Field
        name="shutdown_threshold"
        label="Shutdown threshold, W"
        value={device.shutdown_threshold}
        hint="Power below this is an alert; below the default of 3 W, only a note. It switches nothing off."
        numeric
      />
      <Field
        name="low"
        label="Low battery at, %"
        value={device.low_battery_threshold}
        hint="A charge at or below this records one event. Leave empty for 20 %."
        numeric
      />
      <Field
        name="critical"
        label="Critical battery at, %"
        value={device.critical_battery_threshold}
        hint="A charge at or below this records one event. Leave empty for 5 %."
        numeric
      />
    </FormDialog>
  );
}

interface MeterDialogProps extends DialogProps {
  readonly meter: PowerMeter;
  /** Opens the dialog that deletes the meter; null if the token must not delete. */
  readonly onDelete: (() => void) | null;
}

function MeterDialog({ meter, onDelete, onChanged, onClose }: MeterDialogProps) {
  const client = usePowerClient();
  async function send(form: FormData): Promise<void> {
    await client.updateMeter(meter.id, {
      name: textOf(form, "name") || null,
      capacity_wh: numberOf(form, "capacity_wh", "Capacity") ?? 0,
      active: form.get("retired") === null,
    });
    onChanged();
  }
  return (
    <FormDialog
      title={`Meter ${format.apart(meterName(meter))}`}
      effect="A retired meter is left out of present figures until its next reading. Its past readings stay."
      send="Save"
      onSend={send}
      onClose={onClose}
    >
      <Field name="name" label="Name" value={meter.name} hint="Leave empty to use its type." />
      <CapacityField value={meter.capacity_wh} />
      <label className="check">
        <input type="checkbox" name="retired" defaultChecked={!meter.active} /> Retired
      </label>
      {onDelete && (
        <div className="row">
          <button type="button" className="button button-bad" onClick={onDelete}>
            Delete the meter…
          </button>
        </div>
      )}
    </FormDialog>
  );
}

function NewMeterDialog({ device, onChanged, onClose }: DialogProps & { device: DeviceRecord }) {
  const client = usePowerClient();
  async function send(form: FormData): Promise<void> {
    await client.addMeter(device.id, {
      type: textOf(form, "type") as NewMeter["type"],
      name: textOf(form, "name") || null,
      capacity_wh: numberOf(form, "capacity_wh", "Capacity") ?? 0,
    });
    onChanged();
  }
  return (
    <FormDialog
      title={`New meter for ${format.apart(device.name)}`}
      effect="The meter appears at once, without readings. Its type cannot be changed later."
      send="Add"
      onSend={send}
      onClose={onClose}
    >
      <label htmlFor="new-meter-type">Type</label>
      <select id="new-meter-type" name="type">
        {Object.entries(TYPES).map(([type, name]) => (
          <option key={type} value={type}>
            {name}
          </option>
        ))}
      </select>
      <Field name="name" label="Name" value={null} hint="Leave empty to use its type." />
      <CapacityField value={0} />
    </FormDialog>
  );
}

function CapacityField({ value }: { value: number }) {
  return (
    <Field
      name="capacity_wh"
      label="Capacity, Wh"
      value={value}
      hint="For a battery, used to estimate its runtime. 0 means not known."
      numeric
    />
  );
}
