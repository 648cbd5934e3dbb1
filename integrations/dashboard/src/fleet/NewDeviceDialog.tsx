/** Register a device. */

import { usePowerClient } from "@blackroad/power-client/react";
import { deviceHref } from "../route";
import { Field, FormDialog, textOf } from "../ui/FormDialog";

interface NewDeviceDialogProps {
  /** The ids there are: registering one of them again would give that device other settings. */
  readonly taken: ReadonlySet<string>;
  readonly onChanged: () => void;
  readonly onClose: () => void;
}

export function NewDeviceDialog({ taken, onChanged, onClose }: NewDeviceDialogProps) {
  const client = usePowerClient();
  async function send(form: FormData): Promise<void> {
    const id = textOf(form, "id");
    if (id === "") throw new Error("Id: expected one such as edge-001.");
    if (taken.has(id)) throw new Error(`There is a device with the id ${id}.`);
    await client.putDevice(id, { name: textOf(form, "name") || id });
    onChanged();
    location.hash = deviceHref(id);
  }
  return (
    <FormDialog
      title="A new device"
      effect="It is there at once, without meters. Its id cannot be changed afterwards."
      send="Register"
      onSend={send}
      onClose={onClose}
    >
      <Field name="id" label="Id" value={null} hint="What programs call it: edge-001." />
      <Field name="name" label="Name" value={null} hint="What people call it; empty: its id." />
    </FormDialog>
  );
}
