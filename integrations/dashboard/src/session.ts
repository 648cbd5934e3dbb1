/**
 * The token of this page: in memory, or for as long as the tab is open where the user asks for that.
 *
 * It is never written to local storage, a cookie or an address, and goes to the service that served the page alone.
 */

const KEY = "power-dashboard.token";

/** What the user signed in with. `token` null: the service asks for none. */
export interface Session {
  readonly token: string | null;
}

/** The session kept for this tab, or null. */
export function keptSession(): Session | null {
  const token = sessionStorage.getItem(KEY);
  return token === null ? null : { token };
}

/** Keep the token until the tab is closed. */
export function keep(token: string): void {
  sessionStorage.setItem(KEY, token);
}

/** Forget the token. */
export function forget(): void {
  sessionStorage.removeItem(KEY);
}
