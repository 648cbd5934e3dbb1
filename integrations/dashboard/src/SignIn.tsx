/** Asks for a token, tries it, and hands it over. */

import { PowerClient, PowerError } from "@blackroad/power-client";
import { type FormEvent, useEffect, useId, useState } from "react";
import { keep, type Session } from "./session";
import { errorText } from "./ui/states";
import { pageTitle } from "./ui/title";

interface SignInProps {
  /** Why the page asks again after a session; null at the first time. */
  readonly reason: string | null;
  /** The command that makes a token on the service's machine; null if the service does not say. */
  readonly command: string | null;
  readonly onSignedIn: (session: Session) => void;
}

function refusal(error: unknown): string {
  if (error instanceof PowerError && error.status === 401)
    return "The service does not accept this token.";
  if (error instanceof PowerError && error.code === "invalid_argument") {
    return "That is not a token. Paste the whole line that power-service token new printed.";
  }
  if (error instanceof PowerError && error.code === "forbidden_scope") {
    return "This token lacks the scope read, which this page needs.";
  }
  return errorText(error);
}

export function SignIn({ reason, command, onSignedIn }: SignInProps) {
  const [problem, setProblem] = useState<string | null>(reason);
  const [busy, setBusy] = useState(false);
  const id = useId();
  useEffect(() => {
    document.title = pageTitle("Sign in");
  }, []);

  async function signIn(event: FormEvent<HTMLFormElement>): Promise<void> {
    event.preventDefault();
    const form = new FormData(event.currentTarget);
    const token = String(form.get("token")).trim();
    if (!token) {
      setProblem("Enter a token.");
      return;
    }
    setBusy(true);
    try {
      await new PowerClient({ baseUrl: location.origin, token }).devices();
      keep(token, form.get("remember") ? "device" : "tab");
      onSignedIn({ token });
    } catch (error) {
      setProblem(refusal(error));
      setBusy(false);
    }
  }

  return (
    <main className="sign-in">
      <form className="card" onSubmit={signIn} noValidate aria-labelledby={`${id}-title`}>
        <Mark />
        <h1 id={`${id}-title`}>Sign in to Power</h1>
        <label htmlFor={`${id}-token`}>Token</label>
        <input
          id={`${id}-token`}
          name="token"
          type="password"
          autoComplete="off"
          spellCheck={false}
          required
          aria-invalid={problem !== null}
          aria-describedby={`${id}-problem ${id}-help`}
        />
        <p id={`${id}-problem`} className="problem" role="alert">
          {problem}
        </p>
        <label className="check">
          <input name="remember" type="checkbox" aria-describedby={`${id}-remember`} /> Remember
          this device
        </label>
        <p id={`${id}-remember`} className="muted">
          Everyone who uses this browser stays signed in until someone signs out. Otherwise, closing
          this tab signs you out.
        </p>
        <button type="submit" className="button button-main" disabled={busy}>
          {busy ? "Signing in…" : "Sign in"}
        </button>
        <p id={`${id}-help`} className="muted">
          To make a token, run this on the service’s machine:{" "}
          <code className="command">
            {command ?? "power-service token new NAME --scope read --db FILE"}
          </code>{" "}
          Add <code>--scope write</code> to record events and change settings here.
        </p>
      </form>
    </main>
  );
}

export function Mark() {
  return (
    <svg className="mark" viewBox="0 0 32 32" aria-hidden="true">
      <rect width="32" height="32" rx="8" />
      <path d="M18 4 8 18h7l-1 10 10-14h-7z" />
    </svg>
  );
}
