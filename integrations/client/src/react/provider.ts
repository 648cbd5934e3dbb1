/** The client for all hooks below a component. */

import { createContext, createElement, type ReactElement, type ReactNode, useContext } from "react";
import type { PowerClient } from "../index";

const Client = createContext<PowerClient | undefined>(undefined);

/** What a {@link PowerProvider} takes. */
export interface PowerProviderProps {
  /** The client; make it outside of components, or keep it in a state, for a new one begins anew. */
  client: PowerClient;
  /** What may use it. */
  children?: ReactNode;
}

/** Gives a client to the hooks of all components inside it. */
export function PowerProvider({ client, children }: PowerProviderProps): ReactElement {
  return createElement(Client.Provider, { value: client }, children);
}

/** The client of the {@link PowerProvider} around this component. */
export function usePowerClient(): PowerClient {
  const client = useContext(Client);
  if (!client) {
    throw new Error(
      "No PowerProvider is around this component: put <PowerProvider client={new PowerClient({ baseUrl })}> around it, with the client made once.",
    );
  }
  return client;
}
