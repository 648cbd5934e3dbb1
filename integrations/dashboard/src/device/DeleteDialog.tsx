/** Delete a device or a meter for good: its name is typed once more before. */

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
  device: "Its meters, all that was read of them, its statistics and its events go, and cannot be had back.",
  meter:
    "All that was read of it and its statistics go, and cannot be had back. To keep them, retire it instead.",
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
      <Field name="name" label={`Its name, ${name}`} value={null} />
    </FormDialog>
  );
}
