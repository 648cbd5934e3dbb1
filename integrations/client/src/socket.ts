/**
 * The reconnecting WebSocket to /v1/stream. It knows which closes are final, and when a connection
 * is dead.
 */

import ReconnectingWebSocket from "partysocket/ws";
import { PowerError } from "./errors";
import type { ProblemDetails, StreamMessage } from "./types.gen";

/** A WebSocket class: the runtime's own, or that of `ws`. */
export type WebSocketClass = new (url: string, protocols?: string | string[]) => object;

/** The socket's settings and listeners. */
export interface SocketOptions {
  url: () => string;
  token: string | undefined;
  webSocket: WebSocketClass;
  onMessage: (message: StreamMessage) => void;
  onLost: (code: number, reason: string) => void;
  onStopped: (error: PowerError) => void;
}

const LOOK_MS = 15_000;
const SILENT_MS = 45_000; // three heartbeats of the service
const LONGEST_PAUSE_MS = 10_000; // between two tries
const AGAIN = new Set([4408, 4429]); // refused for now

/**
 * The error of a close code after which another try is pointless; undefined for all other codes.
 */
function refusal(code: number, reason: string): PowerError | undefined {
  if (code !== 1008 && (code < 4400 || code > 4499 || AGAIN.has(code))) return undefined;
  const problem = (reason || "invalid_response") as ProblemDetails["code"];
  const status = code === 1008 ? 0 : code - 4000;
  return new PowerError(problem, `the stream was refused: ${code} ${reason}`, { status });
}

/** One connection after another, until it is closed. */
export class StreamSocket {
  readonly #options: SocketOptions;
  readonly #socket: ReconnectingWebSocket;
  readonly #watch: ReturnType<typeof setInterval>;
  #looked = Date.now();
  #heard = Date.now();
  readonly #firstPauseMs = 250 + Math.random() * 500; // clients should not all return at once
  #quiet = false; // whether a close is intended
  #endPause = () => {};

  constructor(options: SocketOptions) {
    this.#options = options;
    // A browser cannot send headers with a WebSocket. As a subprotocol, the token stays out of URLs
    // and logs.
    const protocols = [
      "power.v1",
      ...(options.token === undefined ? [] : [`token.${options.token}`]),
    ];
    // The pauses are made here: partysocket's own would keep a program running after it closed its
    // streams.
    const url = async () => {
      await this.#pause();
      return this.#quiet ? "" : options.url(); // closed meanwhile: there will be no connection
    };
    this.#socket = new ReconnectingWebSocket(url, protocols, {
      WebSocket: options.webSocket,
      maxEnqueuedMessages: 0,
      connectionTimeout: 10_000, // the default of 4 s is short for a slow network
      minReconnectionDelay: 0,
      maxReconnectionDelay: 0,
      shouldReconnectOnClose: (event) => refusal(event.code, event.reason) === undefined,
    });
    this.#socket.addEventListener("message", (event) => this.#onMessage(event.data));
    // As a property, not a listener: a listener gets a copy without the code in browsers, and with
    // a made-up reason in Node.
    this.#socket.onclose = ({ code, reason }) => {
      if (this.#quiet) return;
      const error = refusal(code, reason);
      if (error) this.#stop(error);
      else options.onLost(code, reason);
    };
    this.#socket.onerror = ({ message }) => {
      // The connection could not even start: an https page may not connect to ws, for example. All
      // else ends in a close.
      if (!this.#socket.url) options.onLost(1006, message);
    };
    this.#watch = setInterval(() => this.#look(), LOOK_MS);
  }

  /** Reconnect to the present `url`, without calling a listener. */
  reconnect(): void {
    this.#heard = Date.now();
    this.#quiet = true;
    this.#socket.reconnect();
    this.#quiet = false;
  }

  /** Close the connection for good, without calling a listener. */
  close(): void {
    clearInterval(this.#watch);
    this.#quiet = true;
    this.#socket.close();
    this.#endPause();
  }

  /** Wait before each try after the first, longer each time, until the socket is closed. */
  async #pause(): Promise<void> {
    const { retryCount } = this.#socket;
    if (retryCount === 0) return;
    const ms = Math.min(this.#firstPauseMs * 1.5 ** (retryCount - 1), LONGEST_PAUSE_MS);
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#endPause = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #stop(error: PowerError): void {
    this.close();
    this.#options.onStopped(error);
  }

  #onMessage(text: unknown): void {
    this.#heard = Date.now();
    try {
      const message: Partial<StreamMessage> | null = JSON.parse(text as string);
      if (typeof message?.type !== "string") throw new TypeError("no message");
      this.#options.onMessage(message as StreamMessage);
    } catch (cause) {
      this.#stop(
        new PowerError(
          "invalid_response",
          "the stream sent something that is not a power-service's message",
          { cause },
        ),
      );
    }
  }

  /** Reconnect after a long silence: a network can fail without a close. */
  #look(): void {
    const now = Date.now();
    // Timers are late in a hidden tab and after the machine's sleep: messages may still be waiting,
    // and if there are none, the next heartbeat is on its way until after the next look.
    if (now - this.#looked > 2 * LOOK_MS) this.#heard = Math.max(this.#heard, now - LOOK_MS);
    this.#looked = now;
    const open = this.#socket.readyState === this.#socket.OPEN;
    if (!open || now - this.#heard <= SILENT_MS) return;
    this.reconnect();
    this.#options.onLost(1006, "the service was silent for too long");
  }
}
