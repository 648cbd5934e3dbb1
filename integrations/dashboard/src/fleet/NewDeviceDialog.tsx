/** Register a device. */

import { usePowerClient } from "@blackroad/power-client/react";
import { deviceHref } from "../route";
import { Field, FormDialog, textOf } from "../ui/FormDialog";

interface NewDeviceDialogProps {
  /** The existing ids: registering one of them again would change the settings of that device. */
  readonly taken: ReadonlySet<string>;
  readonly onChanged: () => void;
  readonly onClose: () => void;
}

export function NewDeviceDialog({ taken, onChanged, onClose }: NewDeviceDialogProps) {
  const client = usePowerClient();
  async function send(form: FormData): Promise<void> {
    const id = textOf(form, "id");
    if (id === "") throw new Error("Id: expected a name such as edge-001.");
    if (taken.has(id)) throw new Error(`There is already a device with the id ${id}.`);
    await client.putDevice(id, { name: textOf(form, "name") || id });
    onChanged();
    location.hash = deviceHref(id);
  }
  return (
    <FormDialog
      title="New device"
      effect="The device appears at once, without meters. Its id cannot be changed later."
      send="Register"
      onSend={send}
      onClose={onClose}
    >
      <Field
        name="id"
        label="Id"
        value={null}
        hint="The name that programs use, such as edge-001."
      />
      <Field
        name="name"
        label="Name"
        value={null}
        hint="The name that people see. Leave empty to use the id."
      />
    </FormDialog>
  );
}
