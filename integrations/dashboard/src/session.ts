/**
 * The token of this page: kept until the tab is closed, or on this device if the user asks for
 * that.
 *
 * It is never written to a cookie or an address, and is sent only to the service that served the
 * page. In a browser that stores nothing for pages, it is in memory only, and gone with the page.
 */

const KEY = "power-dashboard.token";

/** The user's session. `token` is null if the service asks for none. */
export interface Session {
  readonly token: string | null;
}

/** How long a token is kept: until the tab is closed, or until someone signs out. */
export type Keeping = "tab" | "device";

/** The result of `use`; null if the browser refuses to store anything. */
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

/** Keep the token in that one place. Returns whether that succeeded. */
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

/**
 * Call a function when another tab forgets the token of this device. Returns a function that stops
 * this.
 */
export function watchForgotten(onForgotten: () => void): () => void {
  const listener = ({ key, newValue }: StorageEvent) => {
    if (key === KEY && newValue === null && keptSession() === null) onForgotten();
  };
  addEventListener("storage", listener);
  return () => removeEventListener("storage", listener);
}
