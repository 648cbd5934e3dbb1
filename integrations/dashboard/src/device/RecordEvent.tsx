/** Record an event of a device: fill in, check, confirm. */

import type { PowerEvent } from "@blackroad/power-client";
import { usePowerClient } from "@blackroad/power-client/react";
import { type FormEvent, useEffect, useId, useRef, useState } from "react";
import * as format from "../format";
import { Dialog } from "../ui/Dialog";
import { numberIn } from "../ui/number";
import { errorText } from "../ui/states";
import { EVENT_NAMES, eventValue } from "./events";

type Draft = Pick<PowerEvent, "type" | "value" | "note">;

interface RecordEventProps {
  readonly device: { readonly id: string; readonly name: string };
  readonly onRecorded: (event: PowerEvent) => void;
  readonly onClose: () => void;
}

export function RecordEvent({ device, onRecorded, onClose }: RecordEventProps) {
  const client = usePowerClient();
  const dialog = useRef<HTMLDialogElement>(null);
  const [draft, setDraft] = useState<Draft>({ type: "charge_start", value: 0, note: null });
  const [step, setStep] = useState<"fill" | "confirm">("fill");
  const [busy, setBusy] = useState(false);
  async function record(): Promise<PowerEvent> {
    setBusy(true);
    try {
      return await client.triggerEvent(device.id, draft);
    } finally {
      setBusy(false);
    }
  }
  return (
    <Dialog
      ref={dialog}
      title={
        step === "fill" ? `Record an event for ${format.apart(device.name)}` : "Record this event?"
      }
      busy={busy}
      onClose={onClose}
    >
      {step === "fill" ? (
        <Fill
          draft={draft}
          onCancel={() => dialog.current?.close()}
          onDone={(filled) => {
            setDraft(filled);
            setStep("confirm");
          }}
        />
      ) : (
        <Confirm
          draft={draft}
          device={device}
          busy={busy}
          record={record}
          onBack={() => setStep("fill")}
          onRecorded={(event) => {
            onRecorded(event);
            dialog.current?.close();
          }}
        />
      )}
    </Dialog>
  );
}

interface FillProps {
  readonly draft: Draft;
  readonly onDone: (draft: Draft) => void;
  readonly onCancel: () => void;
}

function Fill({ draft, onDone, onCancel }: FillProps) {
  const [problem, setProblem] = useState<string | null>(null);
  const id = useId();
  function done(event: FormEvent<HTMLFormElement>): void {
    event.preventDefault();
    const form = new FormData(event.currentTarget);
    const note = String(form.get("note")).trim();
    try {
      const value = numberIn(String(form.get("value")).trim(), "Value");
      onDone({ type: form.get("type") as Draft["type"], value, note: note || null });
    } catch (error) {
      setProblem((error as Error).message);
    }
  }
  return (
    <form className="fields" onSubmit={done} noValidate>
      <label htmlFor={`${id}-type`}>Type</label>
      <select id={`${id}-type`} name="type" defaultValue={draft.type}>
        {Object.entries(EVENT_NAMES).map(([type, name]) => (
          <option key={type} value={type}>
            {name}
          </option>
        ))}
      </select>
      <label htmlFor={`${id}-value`}>Value</label>
      <input
        id={`${id}-value`}
        name="value"
        inputMode="decimal"
        autoComplete="off"
        defaultValue={String(draft.value)}
        aria-invalid={problem !== null}
        aria-describedby={`${id}-hint ${id}-problem`}
      />
      <p id={`${id}-hint`} className="muted">
        Battery events: % of charge. Other events: any number, 0 for none.
      </p>
      <label htmlFor={`${id}-note`}>Note</label>
      <textarea
        id={`${id}-note`}
        name="note"
        rows={2}
        maxLength={10_000}
        defaultValue={draft.note ?? ""}
      />
      <p id={`${id}-problem`} className={problem ? "problem" : ""} role="alert">
        {problem}
      </p>
      <div className="row row-end">
        <button type="button" className="button" onClick={onCancel}>
          Cancel
        </button>
        <button type="submit" className="button button-main">
          Continue
        </button>
      </div>
    </form>
  );
}

interface ConfirmProps {
  readonly draft: Draft;
  readonly device: { readonly id: string; readonly name: string };
  readonly busy: boolean;
  readonly record: () => Promise<PowerEvent>;
  readonly onBack: () => void;
  readonly onRecorded: (event: PowerEvent) => void;
}

function Confirm({ draft, device, busy, record, onBack, onRecorded }: ConfirmProps) {
  const [problem, setProblem] = useState<string | null>(null);
  const confirm = useRef<HTMLButtonElement>(null);
  useEffect(() => confirm.current?.focus(), []);
  async function go(): Promise<void> {
    setProblem(null);
    try {
      onRecorded(await record());
    } catch (error) {
      setProblem(errorText(error));
    }
  }
  const value = eventValue(draft);
  return (
    <div className="fields">
      <p>
        <strong>{EVENT_NAMES[draft.type]}</strong>
        {value && <> ({value})</>} for <strong>{format.apart(device.name)}</strong>{" "}
        <span className="muted">{device.id}</span>, now.
      </p>
      {draft.note && <blockquote>{draft.note}</blockquote>}
      <p className="muted">
        Everyone who follows this device sees it, and it cannot be undone. It switches nothing on or
        off.
      </p>
      <p className={problem ? "problem" : ""} role="alert">
        {problem}
      </p>
      <div className="row row-end">
        <button type="button" className="button" onClick={onBack} disabled={busy}>
          Back
        </button>
        <button
          ref={confirm}
          type="button"
          className="button button-main"
          onClick={go}
          disabled={busy}
        >
          {busy ? "Recording…" : "Record"}
        </button>
      </div>
    </div>
  );
}
