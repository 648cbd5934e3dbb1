/**
 * The token of this page: kept until the tab is closed, or on this device where the user asks for that.
 *
 * It is never written to a cookie or an address, and goes to the service that served the page alone. A browser that
 * keeps nothing for pages is no reason not to work: then the token is in memory, and gone with the page.
 */

const KEY = "power-dashboard.token";

/** What the user signed in with. `token` null: the service asks for none. */
export interface Session {
  readonly token: string | null;
}

/** How long a token is kept: until the tab is closed, or until somebody signs out. */
export type Keeping = "tab" | "device";

/** What `use` returns; null where the browser refuses to keep anything. */
function stored<T>(use: () => T): T | null {
  try {
    return use();
  } catch {
    return null;
  }
}

/** The session that was kept, or null. */
export function keptSession(): Session | null {
  const token = stored(() => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY));
  return token === null ? null : { token };
}

/** Keep the token, there and nowhere else; whether that could be done. */
export function keep(token: string, keeping: Keeping): boolean {
  forget();
  const done = stored(() => {
    (keeping === "tab" ? sessionStorage : localStorage).setItem(KEY, token);
    return true;
  });
  return done === true;
}

/** Forget the token. */
export function forget(): void {
  stored(() => sessionStorage.removeItem(KEY));
  stored(() => localStorage.removeItem(KEY));
}

/** Have a function called when another tab has forgotten the token of this device; returns how to end that. */
export function watchForgotten(onForgotten: () => void): () => void {
  const listener = ({ key, newValue }: StorageEvent) => {
    if (key === KEY && newValue === null && keptSession() === null) onForgotten();
  };
  addEventListener("storage", listener);
  return () => removeEventListener("storage", listener);
}
