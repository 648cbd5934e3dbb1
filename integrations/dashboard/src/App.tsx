/** Session, connection and route: who is signed in, whether the page is live, and which view it shows. */

import { PowerClient, PowerError, type StreamStatus } from "@blackroad/power-client";
import { PowerProvider, useStreamStatus } from "@blackroad/power-client/react";
import {
  type Dispatch,
  type RefObject,
  type SetStateAction,
  useCallback,
  useEffect,
  useRef,
  useState,
} from "react";
import { fetchWithTime, present, useNow } from "./clock";
import { DeviceView } from "./device/DeviceView";
import { AT_THE_TOP, type Place } from "./fleet/FleetTable";
import { FIRST_CHOICE, type FleetChoice, FleetView } from "./fleet/FleetView";
import { type Grouping, groupingOf, queryWith } from "./fleet/groups";
import * as format from "./format";
import { type Fleet, useFleet } from "./live/fleet";
import { MeContext, useLoadedMe } from "./live/me";
import { FLEET_HREF, useRoute } from "./route";
import { Mark, SignIn } from "./SignIn";
import { forget, keptSession, type Session } from "./session";
import { errorText, Failure, Loading } from "./ui/states";

type Entry =
  | { state: "asking" } // whether the service wants a token at all
  | { state: "out"; reason: string | null }
  | { state: "in"; session: Session }
  | { state: "unreachable"; error: unknown };

export function App() {
  const [entry, setEntry] = useState<Entry>(() => {
    const session = keptSession();
    return session ? { state: "in", session } : { state: "asking" };
  });
  const ask = useCallback(async () => {
    try {
      await new PowerClient({ baseUrl: location.origin, fetch: fetchWithTime }).devices();
      setEntry({ state: "in", session: { token: null } });
    } catch (error) {
      const wantsToken = error instanceof PowerError && error.status === 401;
      setEntry(wantsToken ? { state: "out", reason: null } : { state: "unreachable", error });
    }
  }, []);
  const signOut = useCallback((reason: string | null) => {
    forget();
    setEntry({ state: "out", reason });
  }, []);
  const asking = entry.state === "asking";
  useEffect(() => {
    if (asking) void ask();
  }, [asking, ask]);

  switch (entry.state) {
    case "asking":
      return (
        <main>
          <Loading what="the page" />
        </main>
      );
    case "unreachable":
      return (
        <main>
          <Failure
            what="The service does not answer"
            error={entry.error}
            onRetry={() => setEntry({ state: "asking" })}
          />
        </main>
      );
    case "out":
      return <SignIn reason={entry.reason} onSignedIn={(session) => setEntry({ state: "in", session })} />;
    case "in":
      return <SignedIn session={entry.session} onSignOut={signOut} />;
  }
}

interface SignedInProps {
  readonly session: Session;
  readonly onSignOut: (reason: string | null) => void;
}

/** A client closes what it has open with the components that use it; a new one begins anew. */
function SignedIn({ session, onSignOut }: SignedInProps) {
  const make = () =>
    new PowerClient({
      baseUrl: location.origin,
      token: session.token ?? undefined,
      fetch: fetchWithTime,
    });
  const [client, setClient] = useState(make);
  return (
    <PowerProvider client={client}>
      <Frame
        onSignOut={onSignOut}
        needsToken={session.token !== null}
        onConnectAgain={() => setClient(make())}
      />
    </PowerProvider>
  );
}

interface FrameProps {
  readonly onSignOut: (reason: string | null) => void;
  readonly needsToken: boolean;
  readonly onConnectAgain: () => void;
}

function Frame({ onSignOut, needsToken, onConnectAgain }: FrameProps) {
  const fleet = useFleet();
  const status = useStreamStatus();
  const me = useLoadedMe();
  const [choice, setChoice] = useState<FleetChoice>(() => ({
    ...FIRST_CHOICE,
    grouping: groupingOf(location.search),
  }));
  useGroupingInAddress(choice.grouping);
  const place = useRef(AT_THE_TOP);
  const refused = isRefused(fleet.error) || (status.state === "stopped" && isRefused(status.error));
  useEffect(() => {
    if (refused) onSignOut("The service no longer knows this token. Sign in with another one.");
  }, [refused, onSignOut]);

  const cut = status.state === "reconnecting" || status.state === "stopped";
  return (
    <div className={cut ? "is-cut" : ""}>
      <button type="button" className="skip" onClick={skip}>
        Skip to the content
      </button>
      <TopBar status={status} onSignOut={needsToken ? () => onSignOut(null) : null} />
      {cut && <Banner status={status} onConnectAgain={onConnectAgain} />}
      {!cut && fleet.data && fleet.error !== undefined && (
        <div className="banner" role="alert">
          <strong>Not all could be loaded: figures may be old or missing.</strong>
          <span>{errorText(fleet.error)}</span>
          <button type="button" className="button" onClick={fleet.refetch}>
            Try again
          </button>
        </div>
      )}
      <MeContext value={me}>
        <Content fleet={fleet} choice={choice} onChoice={setChoice} place={place} />
      </MeContext>
    </div>
  );
}

interface ContentProps {
  readonly fleet: Fleet;
  readonly choice: FleetChoice;
  readonly onChoice: Dispatch<SetStateAction<FleetChoice>>;
  readonly place: RefObject<Place>;
}

function Content({ fleet, choice, onChoice, place }: ContentProps) {
  const route = useRoute();
  if (fleet.data && route.view === "device")
    return <DeviceView fleet={fleet.data} deviceId={route.deviceId} onChanged={fleet.refetch} />;
  if (fleet.data)
    return (
      <FleetView
        fleet={fleet.data}
        choice={choice}
        onChoice={onChoice}
        place={place}
        onChanged={fleet.refetch}
      />
    );
  return (
    <main id="main">
      {fleet.error ? (
        <Failure what="The devices could not be loaded" error={fleet.error} onRetry={fleet.refetch} />
      ) : (
        <Loading what="devices" />
      )}
    </main>
  );
}

/** A bookmark, a reload and a link to a device keep the groups; so do the views that were visited before. */
function useGroupingInAddress(grouping: Grouping | null): void {
  const route = useRoute();
  // biome-ignore lint/correctness/useExhaustiveDependencies: going back brings an address of before
  useEffect(() => {
    const query = queryWith(location.search, grouping);
    if (query !== location.search)
      history.replaceState(null, "", `${location.pathname}${query}${location.hash}`);
  }, [grouping, route]);
}

const isRefused = (error: unknown): boolean => error instanceof PowerError && error.status === 401;

/** A link would change the address after #, which names the view. */
function skip(): void {
  document.querySelector<HTMLElement>("#main a, #main button, #main input")?.focus();
}

const CONNECTION: Record<StreamStatus["state"], { text: string; live: boolean }> = {
  idle: { text: "Connecting…", live: false },
  connecting: { text: "Connecting…", live: false },
  open: { text: "Live", live: true },
  reconnecting: { text: "Reconnecting…", live: false },
  stopped: { text: "Not live", live: false },
};

function TopBar({ status, onSignOut }: { status: StreamStatus; onSignOut: (() => void) | null }) {
  const { text, live } = CONNECTION[status.state];
  const now = useNow();
  return (
    <header className="top">
      <a className="brand" href={FLEET_HREF}>
        <Mark />
        <span className="brand-name">Power</span>
      </a>
      <time className="clock" dateTime={new Date(now).toISOString()} title={format.utcTime(now)}>
        {format.localClock(now)}
        <span className="muted">
          {format.zone(now)}
          <span className="clock-place"> {format.place(now)}</span>
        </span>
      </time>
      <span className={`connection ${live ? "connection-live" : "connection-waiting"}`} role="status">
        {text}
      </span>
      {onSignOut && (
        <button type="button" className="button" onClick={onSignOut}>
          Sign out
        </button>
      )}
    </header>
  );
}

/** Says since when the figures have not changed. */
function Banner({ status, onConnectAgain }: { status: StreamStatus; onConnectAgain: () => void }) {
  const [since] = useState(present);
  const now = useNow();
  return (
    <div className="banner" role="alert">
      <strong>
        {status.state === "stopped"
          ? "The live connection has ended."
          : "The connection to the service is lost."}
      </strong>
      <span>
        Figures are those of {format.localClock(since)} {format.zone(since)}
        <span aria-hidden="true"> ({format.age(now - since)})</span>.{" "}
        {status.state === "stopped" ? errorText(status.error) : "Trying again…"}
      </span>
      {status.state === "stopped" && (
        <button type="button" className="button" onClick={onConnectAgain}>
          Connect again
        </button>
      )}
    </div>
  );
}
