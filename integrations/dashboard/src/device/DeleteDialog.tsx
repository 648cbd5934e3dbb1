/** Delete a device or a meter for good, after the user has typed its name. */

import { FLEET_HREF } from "../route";
import { Field, FormDialog, textOf } from "../ui/FormDialog";

interface DeleteDialogProps {
  /** What is deleted: a device, or a meter. */
  readonly kind: "device" | "meter";
  readonly name: string;
  readonly onDelete: () => Promise<void>;
  readonly onClose: () => void;
}

const EFFECTS = {
  device:
    "This deletes the device, its meters with all their readings and statistics, and its " +
    "events, for good.",
  meter:
    "This deletes the meter with all its readings and statistics, for good. To keep them, " +
    "retire it instead.",
} as const;

export function DeleteDialog({ kind, name, onDelete, onClose }: DeleteDialogProps) {
  async function send(form: FormData): Promise<void> {
    if (textOf(form, "name") !== name.trim()) throw new Error(`Type ${name} to delete it.`);
    await onDelete();
    if (kind === "device") location.hash = FLEET_HREF;
  }
  return (
    <FormDialog
      title={`Delete this ${kind}?`}
      effect={EFFECTS[kind]}
      send="Delete"
      onSend={send}
      onClose={onClose}
    >
      <Field name="name" label={`Type its name, ${name}`} value={null} />
    </FormDialog>
  );
}
