/**
 * A service's stream without network: a WebSocket class whose other end follows the rules of
 * /v1/stream.
 */

import type { PowerEvent, SequencedEvent } from "../src";

class Closed extends Event {
  constructor(
    readonly code: number,
    readonly reason: string,
  ) {
    super("close");
  }
}

/** An event of a device. */
export function event(sequence: number, device: string, id = `${sequence}`): SequencedEvent {
  const timestamp = "2026-11-23T12:00:00.000000+00:00";
  const made: PowerEvent = {
    id,
    device_id: device,
    type: "restore",
    value: 0,
    timestamp,
    note: null,
    meter_id: null,
  };
  return { sequence, event: made };
}

/** One end of a connection. */
export class FakeSocket extends EventTarget {
  readyState = 0;
  binaryType = "blob";
  readonly after: number | undefined;
  readonly devices: string[];
  #place: number | undefined; // undefined until hello is sent

  constructor(
    readonly service: FakeService,
    readonly url: string,
    readonly protocols: string[],
  ) {
    super();
    const { searchParams } = new URL(url);
    this.after = searchParams.has("after") ? Number(searchParams.get("after")) : undefined;
    this.devices = searchParams.getAll("device_id");
  }

  /** Take the connection, or refuse it. */
  answer(): void {
    if (this.readyState !== 0) return;
    if (!this.service.up) {
      this.readyState = 3;
      this.dispatchEvent(new Event("error"));
      return;
    }
    this.readyState = 1;
    this.dispatchEvent(new Event("open"));
    if (this.service.refuseWith) this.drop(this.service.refuseWith, "unauthorized");
  }

  /** Send the next frame there is, as the service would; returns whether there was one. */
  step(): boolean {
    if (this.readyState !== 1 || this.service.silent) return false;
    const { events } = this.service;
    const [oldest, latest] = [events[0]?.sequence ?? 0, events.at(-1)?.sequence ?? 0];
    if (this.#place === undefined) {
      const { after } = this;
      this.#place = after === undefined ? latest : Math.min(Math.max(after, oldest - 1, 0), latest);
      this.send({
        type: "hello",
        resumed_from: this.#place,
        oldest,
        latest,
        recovered: this.#place === after,
        file_id: this.service.fileId,
      });
      return true;
    }
    const place = this.#place;
    const next = events.find(
      (one) =>
        one.sequence > place &&
        (!this.devices.length || this.devices.includes(one.event.device_id)),
    );
    this.#place = next?.sequence ?? latest;
    if (next) this.send({ type: "event", ...next });
    return next !== undefined;
  }

  send(message: unknown): void {
    const data = typeof message === "string" ? message : JSON.stringify(message);
    this.dispatchEvent(new MessageEvent("message", { data }));
  }

  /** Break it from the service's side. */
  drop(code = 1006, reason = ""): void {
    if (this.readyState === 3) return;
    this.readyState = 3;
    this.dispatchEvent(new Closed(code, reason));
  }

  close(): void {
    this.readyState = 3;
  }
}

/** What is at the other end. */
export class FakeService {
  events: SequencedEvent[] = [];
  fileId = "first";
  sockets: FakeSocket[] = [];
  up = true;
  silent = false;
  refuseWith = 0;

  /** The class to give to a client. */
  readonly webSocket: new (
    url: string,
    protocols?: string | string[],
  ) => object;

  constructor() {
    const service = this;
    this.webSocket = class extends FakeSocket {
      constructor(url: string, protocols: string | string[] = []) {
        super(service, url, [protocols].flat());
        service.sockets.push(this);
        setTimeout(() => this.answer(), 1);
      }
    };
  }

  /** The present connection. */
  get socket(): FakeSocket {
    return this.sockets.at(-1) as FakeSocket;
  }

  /** GET /v1/events, for `fetch`. */
  readonly fetch = async (input: string | URL | Request): Promise<Response> => {
    const { searchParams } = new URL(String(input));
    const after = Number(searchParams.get("after"));
    const events = this.events
      .filter((one) => one.sequence > after)
      .slice(0, Number(searchParams.get("limit")));
    return Response.json({ events, next_after: events.at(-1)?.sequence ?? after });
  };

  /** Record an event. */
  add(device: string, id?: string): SequencedEvent {
    const made = event((this.events.at(-1)?.sequence ?? 0) + 1, device, id);
    this.events.push(made);
    return made;
  }

  /** Send whatever there is. */
  flush(): void {
    for (const socket of this.sockets) while (socket.step());
  }
}
