/** A dialog over the page, as a card with a title. */

import { type ReactNode, type RefObject, useEffect, useId } from "react";

interface DialogProps {
  /** For its `close()`. */
  readonly ref: RefObject<HTMLDialogElement | null>;
  readonly title: string;
  /** While true, Escape does not close the dialog: the user would not learn of a failure. */
  readonly busy: boolean;
  readonly onClose: () => void;
  readonly children: ReactNode;
}

/** Open from the start; the browser gives the focus back when it closes. */
export function Dialog({ ref, title, busy, onClose, children }: DialogProps) {
  const id = useId();
  useEffect(() => ref.current?.showModal(), [ref]);
  return (
    <dialog
      ref={ref}
      className="card"
      aria-labelledby={id}
      onClose={onClose}
      closedby={busy ? "none" : "closerequest"}
    >
      <h2 id={id}>{title}</h2>
      {children}
    </dialog>
  );
}
