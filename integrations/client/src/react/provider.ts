/** The client for all hooks below a component. */

import { createContext, createElement, type ReactElement, type ReactNode, useContext } from "react";
import type { PowerClient } from "../index";

const Client = createContext<PowerClient | undefined>(undefined);

/** The properties of {@link PowerProvider}. */
export interface PowerProviderProps {
  /**
   * The client. Make it outside components or keep it in a state: a new client loads everything
   * again.
   */
  client: PowerClient;
  /** The components that use it. */
  children?: ReactNode;
}

/** Provides a client to the hooks of all components inside it. */
export function PowerProvider({ client, children }: PowerProviderProps): ReactElement {
  return createElement(Client.Provider, { value: client }, children);
}

/** The client of the {@link PowerProvider} around this component. */
export function usePowerClient(): PowerClient {
  const client = useContext(Client);
  if (!client) {
    throw new Error(
      "this component is not inside a PowerProvider: put <PowerProvider client={new PowerClient({ baseUrl })}> around it, " +
        "with a client that is made once",
    );
  }
  return client;
}
