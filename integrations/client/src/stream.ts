/**
 * Live events, readings and meters: any number of listeners over one shared connection.
 *
 * Each listener has a cursor: the sequence of the last event that it received or skipped. A
 * connection asks for the events after the lowest cursor, and an event goes only to listeners whose
 * cursor is below it. This alone delivers each event exactly once, over reconnects, restarts, and
 * listeners that come and go.
 */

import { list, misuse, PowerError } from "./errors";
import { LONGEST_QUERY, queryText, WORTH_A_RETRY } from "./http";
import { Recent } from "./recent";
import { StreamSocket, type WebSocketClass } from "./socket";
import type { StreamStatus } from "./status";
import type {
  DeletedMessage,
  DeviceRecord,
  EventPage,
  HelloMessage,
  PowerEvent,
  PowerMeter,
  PowerReading,
  StreamMessage,
} from "./types.gen";

/** A deletion: of a device, a meter, or a meter's readings from `since` on and before `until`. */
export type Deletion = Omit<DeletedMessage, "type">;

/** Which messages to receive. */
export interface StreamOptions {
  /** The devices; by default, all that the token may see. */
  deviceIds?: readonly string[] | undefined;
  /** Events after this sequence, 0 for all; by default, only new ones. */
  after?: number | undefined;
  /**
   * Called once for each event, in order of sequence. Keep the sequence to continue from there
   * another day.
   */
  onEvent?: ((event: PowerEvent, sequence: number) => void) | undefined;
  /**
   * Called with a meter's latest reading, at most every 250 ms; readings in between are skipped.
   */
  onReading?: ((reading: PowerReading, deviceId: string) => void) | undefined;
  /** Called with the present state of each meter first, then whenever one changes. */
  onState?: ((meter: PowerMeter) => void) | undefined;
  /** Called with a device that was registered or changed. */
  onDevice?: ((device: DeviceRecord) => void) | undefined;
  /** Called for each deletion; for a device, also for each of its meters. */
  onDeleted?: ((deletion: Deletion) => void) | undefined;
  /** Called with the state of the connection now, then whenever it changes. */
  onStatus?: ((status: StreamStatus) => void) | undefined;
  /** Closes the stream, as `close()` does. */
  signal?: AbortSignal | undefined;
}

/** An open stream. */
export interface StreamHandle {
  /** Pass this as `after` to continue another day; undefined until the first connection. */
  readonly sequence: number | undefined;
  /** Stop listening. The connection closes with its last listener. Closing again does nothing. */
  close(): void;
}

/** What the stream needs of the client. */
export interface StreamSource {
  baseUrl: string;
  token: string | undefined;
  webSocket: WebSocketClass | undefined;
  events: (after: number, limit: number, signal: AbortSignal) => Promise<EventPage>;
}

const AGAIN_MS = 1_000; // after the new file's events could not be read

type Devices = ReadonlySet<string> | undefined; // undefined: all

interface Listener {
  readonly options: StreamOptions;
  readonly devices: Devices;
  cursor: number | undefined;
  joined: boolean; // a connection covers it, and so will all later ones
  told: StreamStatus | undefined;
}

/** What the present connection asked for, and how far it has come. */
interface Connection {
  readonly devices: Devices;
  live: boolean; // hello has come
  position: number; // every event up to it has been received
  latest: number; // the last event that is known to exist
}

/** The one stream of a client. */
export class SharedStream {
  readonly #source: StreamSource;
  readonly #listeners = new Set<Listener>();
  readonly #watchers = new Set<() => void>();
  readonly #meters = new Map<string, PowerMeter>();
  readonly #recent = new Recent();
  #socket: StreamSocket | undefined;
  #connection: Connection | undefined;
  #status: StreamStatus = { state: "idle" };
  #file: string | undefined; // the id of the file that is followed
  #begunAnew = false;
  #looking: AbortController | undefined; // while a new file's events are read
  #settling = false;

  constructor(source: StreamSource) {
    this.#source = source;
  }

  /** The state of the connection. */
  get status(): StreamStatus {
    return this.#status;
  }

  /**
   * Call a function when the status changes, without opening anything. Returns a function that
   * stops this.
   */
  watch(onChange: () => void): () => void {
    this.#watchers.add(onChange);
    return () => this.#watchers.delete(onChange);
  }

  /** Add a listener. */
  open(options: StreamOptions): StreamHandle {
    const { after, deviceIds, signal } = options;
    if (after !== undefined && !(Number.isSafeInteger(after) && after >= 0)) {
      throw misuse(`after: expected a sequence number from 0 on, got ${after}`);
    }
    if (!this.#source.webSocket) {
      throw new PowerError(
        "no_web_socket",
        "no WebSocket in this runtime: npm install ws, and new PowerClient({ webSocket: WebSocket }) with the one of ws",
      );
    }
    const devices = deviceIds && new Set(list("deviceIds", deviceIds));
    const listener: Listener = { options, devices, cursor: after, joined: false, told: undefined };
    const close = () => {
      signal?.removeEventListener("abort", close);
      if (this.#listeners.delete(listener) && this.#listeners.size === 0) this.#settleSoon();
    };
    if (!signal?.aborted) {
      signal?.addEventListener("abort", close);
      this.#listeners.add(listener);
      this.#settleSoon();
    }
    return {
      get sequence() {
        return listener.cursor;
      },
      close,
    };
  }

  // --- The connection

  /**
   * Settle after the present task: a page mounts many listeners at once, and React some of them
   * twice.
   */
  #settleSoon(): void {
    if (this.#settling) return;
    this.#settling = true;
    setTimeout(() => {
      this.#settling = false;
      this.#settle();
    });
  }

  /** Give the listeners the connection that they need. */
  #settle(): void {
    if (this.#listeners.size === 0) {
      this.#forget();
      this.#setStatus({ state: "idle" });
      return;
    }
    if (!this.#socket) {
      this.#setStatus({ state: "connecting" });
      this.#connect();
    } else if (
      this.#connection &&
      ![...this.#listeners].every((listener) => this.#covers(listener))
    ) {
      this.#reconnect();
    } else if (this.#connection?.live) {
      for (const listener of this.#listeners) this.#join(listener);
    }
    for (const listener of this.#listeners) this.#tellStatus(listener);
  }

  #connect(): void {
    this.#socket = new StreamSocket({
      url: () => this.#url(),
      token: this.#source.token,
      webSocket: this.#source.webSocket as WebSocketClass,
      onMessage: (message) => this.#onMessage(message),
      onLost: (code, reason) => {
        this.#connection = undefined;
        this.#setStatus({ state: "reconnecting", code, reason });
      },
      onStopped: (error) => {
        this.#forget();
        this.#setStatus({ state: "stopped", error });
      },
    });
  }

  #reconnect(): void {
    this.#connection = undefined;
    this.#socket?.reconnect();
  }

  #forget(): void {
    this.#looking?.abort(); // it would keep a program running after it closed its streams
    this.#socket?.close();
    this.#socket = undefined;
    this.#meters.clear();
    this.#connection = undefined;
    this.#file = undefined;
  }

  /**
   * The URL for the devices of all listeners, after the lowest of their cursors. If the ids do not
   * fit into a URL, it is for all devices, and messages that no listener wants are dropped here.
   */
  #url(): string {
    const listeners = [...this.#listeners];
    const ids = new Set(listeners.flatMap((listener) => [...(listener.devices ?? [])]));
    const cursors = listeners.flatMap((listener) => listener.cursor ?? []);
    const after = cursors.length ? Math.min(...cursors) : undefined;
    const some = queryText({ device_id: [...ids], after });
    const all = some.length > LONGEST_QUERY || listeners.some((listener) => !listener.devices);
    this.#connection = {
      devices: all ? undefined : ids,
      live: false,
      position: after ?? 0,
      latest: 0,
    };
    return `${this.#source.baseUrl.replace(/^http/, "ws")}/v1/stream${all ? queryText({ after }) : some}`;
  }

  /** Whether the present connection brings everything that the listener still needs. */
  #covers({ joined, devices: ids, cursor }: Listener): boolean {
    const { devices, live, position, latest } = this.#connection as Connection;
    const sees = !devices || (ids !== undefined && [...ids].every((id) => devices.has(id)));
    // A listener ahead of the file's last event has a cursor from another file: the next hello
    // shows that.
    const follows = cursor === undefined || (cursor >= position && !(live && cursor > latest));
    return joined || (sees && follows);
  }

  #join(listener: Listener): void {
    if (listener.joined) return;
    listener.joined = true;
    listener.cursor ??= (this.#connection as Connection).latest;
    this.#tellStatus(listener);
    for (const meter of this.#meters.values()) {
      if (sees(listener, meter.device_id)) this.#call(listener.options.onState, meter);
    }
  }

  // --- Messages

  #onMessage(message: StreamMessage): void {
    const connection = this.#connection;
    if (!connection) return;
    if (message.type === "hello") {
      this.#onHello(connection, message);
    } else if (!connection.live) {
      return; // from a file whose events are still being compared
    } else if (message.type === "event") {
      this.#onEvent(connection, message.sequence, message.event);
    } else if (message.type === "heartbeat") {
      this.#advance(connection, message.latest);
    } else if (message.type === "meter") {
      this.#meters.set(message.meter.id, message.meter);
      this.#tell(message.meter.device_id, (options) => this.#call(options.onState, message.meter));
    } else if (message.type === "reading") {
      const { reading, device_id } = message;
      this.#tell(device_id, (options) => this.#call(options.onReading, reading, device_id));
    } else if (message.type === "device") {
      this.#tell(message.device.id, (options) => this.#call(options.onDevice, message.device));
    } else if (message.type === "deleted") {
      const { type, ...deletion } = message;
      if (deletion.kind === "meter" && deletion.meter_id) this.#meters.delete(deletion.meter_id);
      this.#tell(deletion.device_id, (options) => this.#call(options.onDeleted, deletion));
    }
  }

  #onHello(connection: Connection, hello: HelloMessage): void {
    const isOther = this.#file !== undefined && this.#file !== hello.file_id;
    if (
      isOther ||
      [...this.#listeners].some(({ cursor }) => cursor !== undefined && cursor > hello.latest)
    ) {
      void this.#beginAnew(connection, hello, isOther);
      return;
    }
    this.#file = hello.file_id;
    connection.live = true;
    connection.position = hello.resumed_from;
    connection.latest = hello.latest;
    for (const listener of this.#listeners) {
      // Events older than the oldest are gone: no listener can still wait for them.
      if (listener.cursor !== undefined)
        listener.cursor = Math.max(listener.cursor, hello.oldest - 1);
    }
    this.#meters.clear(); // the present ones follow
    const recovered = hello.recovered && !this.#begunAnew;
    this.#begunAnew = false;
    // A reconnect for the sake of another listener is not reported to listeners that were open.
    if (this.#status.state !== "open" || !recovered) this.#setStatus({ state: "open", recovered });
    this.#settle();
  }

  /** The file was replaced or restored: it has another id, or ends before a listener's cursor. */
  async #beginAnew(connection: Connection, hello: HelloMessage, isOther: boolean): Promise<void> {
    this.#looking = new AbortController();
    const { signal } = this.#looking;
    try {
      const common = await this.#recent.common((after, limit) =>
        this.#source.events(after, limit, signal),
      );
      if (this.#connection !== connection) return;
      this.#moveBack(common, hello.latest, isOther);
      this.#file = hello.file_id;
      this.#begunAnew = true;
    } catch (caught) {
      if (this.#connection !== connection) return;
      const error = caught as PowerError;
      if (error.status >= 400 && error.status < 500 && !WORTH_A_RETRY.has(error.status)) {
        this.#forget();
        this.#setStatus({ state: "stopped", error });
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
      if (this.#connection !== connection) return;
    }
    this.#reconnect(); // the service sends what was missed, or the same hello again
  }

  /**
   * Set the cursors of listeners back to where this file and the one before were still the same. If
   * they have nothing in common, a listener with `after` gets every event of this file, and one
   * without it gets new events only.
   */
  #moveBack(common: number | undefined, latest: number, isOther: boolean): void {
    const isAhead = ({ cursor }: Listener) => cursor !== undefined && cursor > latest;
    const all =
      isOther || [...this.#listeners].some((listener) => listener.joined && isAhead(listener));
    for (const listener of this.#listeners) {
      if (listener.cursor === undefined || !(all || isAhead(listener))) continue;
      // The common part is known only for listeners that were connected; a new one's cursor is from
      // elsewhere.
      const same = listener.joined ? common : undefined;
      const begin = same ?? (listener.options.after === undefined ? latest : 0);
      listener.cursor = Math.min(listener.cursor, begin);
    }
  }

  #onEvent(connection: Connection, sequence: number, event: PowerEvent): void {
    this.#recent.add(sequence, event.id);
    connection.position = sequence;
    connection.latest = Math.max(connection.latest, sequence);
    for (const listener of this.#listeners) {
      if (!listener.joined || sequence <= (listener.cursor as number)) continue;
      listener.cursor = sequence; // before the call: a listener that throws has had the event
      if (sees(listener, event.device_id)) this.#call(listener.options.onEvent, event, sequence);
    }
  }

  /** Note that every event up to `latest` that concerns this connection has arrived. */
  #advance(connection: Connection, latest: number): void {
    connection.position = Math.max(connection.position, latest);
    connection.latest = Math.max(connection.latest, latest);
    for (const listener of this.#listeners) {
      if (listener.joined) listener.cursor = Math.max(listener.cursor as number, latest);
    }
  }

  // --- Listeners

  #setStatus(status: StreamStatus): void {
    if (status.state === "idle" && this.#status.state === "idle") return;
    this.#status = status;
    for (const listener of this.#listeners) this.#tellStatus(listener);
    for (const watcher of this.#watchers) this.#call(watcher);
  }

  #tellStatus(listener: Listener): void {
    const status = this.#status;
    if (listener.told === status || (status.state === "open" && !listener.joined)) return;
    listener.told = status;
    this.#call(listener.options.onStatus, status);
  }

  #tell(deviceId: string, tell: (options: StreamOptions) => void): void {
    for (const listener of this.#listeners) {
      if (listener.joined && sees(listener, deviceId)) tell(listener.options);
    }
  }

  /**
   * Call a listener. An error it throws is reported as uncaught, and stops neither the stream nor
   * other listeners.
   */
  #call<A extends unknown[]>(listener: ((...values: A) => void) | undefined, ...values: A): void {
    try {
      listener?.(...values);
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }
}

/** Whether a device's messages are for the listener. */
function sees(listener: Listener, deviceId: string): boolean {
  return !listener.devices || listener.devices.has(deviceId);
}
