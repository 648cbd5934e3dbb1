/**
 * A dialog with fields. If the service refuses, the dialog shows the reason and keeps the input.
 */

import { type FormEvent, type ReactNode, useId, useRef, useState } from "react";
import { Dialog } from "./Dialog";
import { numberIn } from "./number";
import { errorText } from "./states";

interface FormDialogProps {
  readonly title: string;
  /** Says what happens on sending, above the buttons. */
  readonly effect: ReactNode;
  readonly send: string;
  /** Reads the fields and acts on them; throws an Error with the problem. */
  readonly onSend: (form: FormData) => Promise<void>;
  readonly onClose: () => void;
  readonly children: ReactNode;
}

export function FormDialog({ title, effect, send, onSend, onClose, children }: FormDialogProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [problem, setProblem] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);

  async function submit(event: FormEvent<HTMLFormElement>): Promise<void> {
    event.preventDefault();
    setProblem(null);
    setBusy(true);
    try {
      await onSend(new FormData(event.currentTarget));
      dialog.current?.close();
    } catch (error) {
      setProblem(errorText(error));
      setBusy(false);
    }
  }

  return (
    <Dialog ref={dialog} title={title} busy={busy} onClose={onClose}>
      <form className="fields" onSubmit={submit} noValidate>
        {children}
        <p className="muted">{effect}</p>
        <p className={problem ? "problem" : ""} role="alert">
          {problem}
        </p>
        <div className="row row-end">
          <button
            type="button"
            className="button"
            disabled={busy}
            onClick={() => dialog.current?.close()}
          >
            Cancel
          </button>
          <button type="submit" className="button button-main" disabled={busy}>
            {busy ? "Saving…" : send}
          </button>
        </div>
      </form>
    </Dialog>
  );
}

interface FieldProps {
  readonly name: string;
  readonly label: string;
  readonly value: string | number | null;
  readonly hint?: string;
  readonly numeric?: boolean;
}

/** A field with its label and hint. */
export function Field({ name, label, value, hint, numeric = false }: FieldProps) {
  const id = useId();
  return (
    <>
      <label htmlFor={id}>{label}</label>
      <input
        id={id}
        name={name}
        defaultValue={value ?? ""}
        autoComplete="off"
        inputMode={numeric ? "decimal" : undefined}
        aria-describedby={hint ? `${id}-hint` : undefined}
      />
      {hint && (
        <p id={`${id}-hint`} className="muted">
          {hint}
        </p>
      )}
    </>
  );
}

/** A field's text without the spaces around it. */
export const textOf = (form: FormData, name: string): string => String(form.get(name) ?? "").trim();

/** A field's number, null if it is empty; throws an Error if it is not a number, or below 0. */
export function numberOf(form: FormData, name: string, label: string): number | null {
  const text = textOf(form, name);
  if (text === "") return null;
  const value = numberIn(text, label);
  if (value < 0) throw new Error(`${label}: expected 0 or more, got “${text}”.`);
  return value;
}
