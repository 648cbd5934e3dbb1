/**
 * Session, connection and route: who is signed in, whether the page is live, and which view it
 * shows.
 */

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
import { type Sparklines, useSparklinesStore } from "./live/sparklines";
import { FLEET_HREF, parseRoute, useRoute } from "./route";
import { Mark, SignIn } from "./SignIn";
import { forget, keep, keptSession, type Session, watchForgotten } from "./session";
import { errorText, Failure, Loading } from "./ui/states";

/** A message to show after signing in. */
interface Notice {
  readonly text: string;
  /** The token of a link, which the user can choose to remember. */
  readonly token: string | null;
}

type Entry =
  | { state: "asking"; reason: string | null } // whether the service wants a token at all
  | { state: "linked"; ticket: string } // it is being exchanged for a token
  | { state: "out"; reason: string | null; command: string | null }
  | { state: "in"; session: Session; notice: Notice | null }
  | { state: "unreachable"; error: unknown };

function firstEntry(): Entry {
  const route = parseRoute(location.hash);
  if (route.view === "sign-in") return { state: "linked", ticket: route.ticket };
  const session = keptSession();
  return session ? { state: "in", session, notice: null } : { state: "asking", reason: null };
}

const withoutToken = () => new PowerClient({ baseUrl: location.origin, fetch: fetchWithTime });

/** Whether the service asks for a token, and the command that makes one. */
async function ask(reason: string | null): Promise<Entry> {
  try {
    const { token_needed, token_command } = await withoutToken().signInNeeds();
    if (token_needed) return { state: "out", reason, command: token_command };
    return { state: "in", session: { token: null }, notice: null };
  } catch (error) {
    return { state: "unreachable", error };
  }
}

/**
 * Exchange the ticket of a link for a token. A refused ticket leaves an existing session as it is.
 */
async function enterByLink(ticket: string): Promise<Entry> {
  try {
    const { token } = await withoutToken().signIn(ticket);
    const text = keep(token, "tab")
      ? "A link signed you in. You stay signed in until you close this tab."
      : "A link signed you in. This browser stores nothing for pages: leaving this one signs you out.";
    return { state: "in", session: { token }, notice: { text, token } };
  } catch (error) {
    const reason = `The link did not sign you in: ${errorText(error)}`;
    const session = keptSession();
    if (session) return { state: "in", session, notice: { text: reason, token: null } };
    return { state: "asking", reason };
  }
}

export function App() {
  const [entry, setEntry] = useState(firstEntry);
  const route = useRoute();
  const ticket = route.view === "sign-in" ? route.ticket : null;
  useEffect(() => {
    if (ticket === null) return;
    location.replace(FLEET_HREF); // it is used up below, and must not be shared or bookmarked
    setEntry((before) =>
      before.state === "linked" && before.ticket === ticket ? before : { state: "linked", ticket },
    );
  }, [ticket]);

  const exchanged = useRef<Entry>(null); // StrictMode runs effects twice; a ticket works once
  useEffect(() => {
    if (entry.state === "asking") void ask(entry.reason).then(setEntry);
    if (entry.state === "linked" && exchanged.current !== entry) {
      exchanged.current = entry;
      void enterByLink(entry.ticket).then(setEntry);
    }
  }, [entry]);

  const signOut = useCallback((reason: string | null) => {
    forget();
    setEntry({ state: "asking", reason });
  }, []);
  const isIn = entry.state === "in";
  useEffect(() => {
    if (isIn) return watchForgotten(() => signOut("You signed out in another tab."));
  }, [isIn, signOut]);

  switch (entry.state) {
    case "asking":
    case "linked":
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
            onRetry={() => setEntry({ state: "asking", reason: null })}
          />
        </main>
      );
    case "out":
      return (
        <SignIn
          reason={entry.reason}
          command={entry.command}
          onSignedIn={(session) => setEntry({ state: "in", session, notice: null })}
        />
      );
    case "in":
      return (
        <SignedIn
          key={entry.session.token}
          session={entry.session}
          notice={entry.notice}
          onNoticed={() => setEntry({ ...entry, notice: null })}
          onSignOut={signOut}
        />
      );
  }
}

interface SignedInProps {
  readonly session: Session;
  readonly notice: Notice | null;
  readonly onNoticed: () => void;
  readonly onSignOut: (reason: string | null) => void;
}

/** A client closes its connections with the components that use it; a new one opens new ones. */
function SignedIn({ session, notice, onNoticed, onSignOut }: SignedInProps) {
  const make = () =>
    new PowerClient({
      baseUrl: location.origin,
      token: session.token ?? undefined,
      fetch: fetchWithTime,
    });
  const [client, setClient] = useState(make);
  return (
    <PowerProvider client={client}>
      {notice && <NoticeBar notice={notice} onNoticed={onNoticed} />}
      <Frame
        onSignOut={onSignOut}
        needsToken={session.token !== null}
        onConnectAgain={() => setClient(make())}
      />
    </PowerProvider>
  );
}

function NoticeBar({
  notice: { text, token },
  onNoticed,
}: {
  notice: Notice;
  onNoticed: () => void;
}) {
  return (
    <div className="banner banner-note" role="status">
      <span>{text}</span>
      {token !== null && (
        <button
          type="button"
          className="button"
          onClick={() => {
            keep(token, "device");
            onNoticed();
          }}
        >
          Remember this device
        </button>
      )}
      <button type="button" className="button" onClick={onNoticed}>
        Dismiss
      </button>
    </div>
  );
}

interface FrameProps {
  readonly onSignOut: (reason: string | null) => void;
  readonly needsToken: boolean;
  readonly onConnectAgain: () => void;
}

function Frame({ onSignOut, needsToken, onConnectAgain }: FrameProps) {
  const me = useLoadedMe();
  const fleet = useFleet(me);
  const status = useStreamStatus();
  const [choice, setChoice] = useState<FleetChoice>(() => ({
    ...FIRST_CHOICE,
    grouping: groupingOf(location.search),
  }));
  useGroupingInAddress(choice.grouping);
  const place = useRef(AT_THE_TOP);
  const sparklines = useSparklinesStore();
  const refused = isRefused(fleet.error) || (status.state === "stopped" && isRefused(status.error));
  useEffect(() => {
    if (refused) onSignOut("The service no longer accepts this token. Sign in with another one.");
  }, [refused, onSignOut]);

  const cut = status.state === "reconnecting" || status.state === "stopped";
  return (
    <div className={cut ? "is-cut" : ""}>
      <button type="button" className="skip" onClick={skip}>
        Skip to content
      </button>
      <TopBar status={status} onSignOut={needsToken ? () => onSignOut(null) : null} />
      {cut && <Banner status={status} onConnectAgain={onConnectAgain} />}
      {!cut && fleet.data && fleet.error !== undefined && (
        <div className="banner" role="alert">
          <strong>Some data could not be loaded: figures may be old or missing.</strong>
          <span>{errorText(fleet.error)}</span>
          <button type="button" className="button" onClick={fleet.refetch}>
            Try again
          </button>
        </div>
      )}
      <MeContext value={me}>
        <Content
          fleet={fleet}
          choice={choice}
          onChoice={setChoice}
          place={place}
          sparklines={sparklines}
        />
      </MeContext>
    </div>
  );
}

interface ContentProps {
  readonly fleet: Fleet;
  readonly choice: FleetChoice;
  readonly onChoice: Dispatch<SetStateAction<FleetChoice>>;
  readonly place: RefObject<Place>;
  readonly sparklines: Sparklines;
}

function Content({ fleet, choice, onChoice, place, sparklines }: ContentProps) {
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
        sparklines={sparklines}
        onChanged={fleet.refetch}
      />
    );
  return (
    <main id="main">
      {fleet.error ? (
        <Failure
          what="The devices could not be loaded"
          error={fleet.error}
          onRetry={fleet.refetch}
        />
      ) : (
        <Loading what="devices" />
      )}
    </main>
  );
}

/**
 * Keep the grouping in the address, so that bookmarks, reloads, links to devices and going back
 * keep it.
 */
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

/** Not a link: that would change the part of the address after #, which names the view. */
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
      <span
        className={`connection ${live ? "connection-live" : "connection-waiting"}`}
        role="status"
      >
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

/** Says that the connection is lost, and since when. */
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
        Figures are from {format.localClock(since)} {format.zone(since)}
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
