/** What the page shows in place of data: loading, nothing there, or an error and a way to retry. */

import { PowerError } from "@blackroad/power-client";
import type { ReactNode } from "react";

export function Loading({ what }: { what: string }) {
  return (
    <p className="state" role="status">
      <span className="spinner" aria-hidden="true" />
      Loading {what}…
    </p>
  );
}

export function Empty({ title, children }: { title: string; children?: ReactNode }) {
  return (
    <div className="state">
      <p className="state-title">{title}</p>
      {children}
    </div>
  );
}

/** An error as a sentence for people. */
export function errorText(error: unknown): string {
  if (!(error instanceof PowerError)) return error instanceof Error ? error.message : String(error);
  if (error.isTimeout) return "The service did not answer in time.";
  if (error.code === "forbidden_scope")
    return "This token does not have the scope that this needs.";
  if (error.code === "network") return "The service cannot be reached.";
  return error.problem?.detail ?? error.message;
}

interface FailureProps {
  readonly what: string;
  readonly error: unknown;
  readonly onRetry?: () => void;
}

export function Failure({ what, error, onRetry }: FailureProps) {
  return (
    <div className="state state-bad" role="alert">
      <p className="state-title">{what}</p>
      <p>{errorText(error)}</p>
      {onRetry && (
        <button type="button" className="button" onClick={onRetry}>
          Try again
        </button>
      )}
    </div>
  );
}
