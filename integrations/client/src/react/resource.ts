/**
 * The data of a hook: loaded once for all components that show it, and kept current by the stream
 * while any does.
 */

import type { PowerClient, PowerError, StreamHandle, StreamOptions } from "../index";

/** The result of a hook. */
export interface HookState<T> {
  /** The last loaded data with all changes since; undefined before the first load. */
  readonly data: T | undefined;
  /**
   * The reason why the last load failed; undefined after a success. A failure leaves `data` as it
   * was.
   */
  readonly error: PowerError | undefined;
  /** Whether a load is in progress. */
  readonly isLoading: boolean;
  /** Load again. Never rejects: see `error`. */
  readonly refetch: () => Promise<void>;
}

/** Where a resource's data comes from. */
export interface Source<T> {
  /** Its key, unique within the client. */
  key: string;
  /** Loads the data. `sequence` is the stream's cursor, if it has one. */
  load: (client: PowerClient, sequence: number | undefined) => Promise<T>;
  /** The stream's messages that keep the data current. */
  follow: (resource: Resource<T>) => Omit<StreamOptions, "onStatus">;
}

const LONGEST_MS = 2 ** 31 - 1; // of a timer; a longer one, such as Infinity, would fire at once

/** The state before the first load, and on a server. */
export const NOTHING: HookState<never> = {
  data: undefined,
  error: undefined,
  isLoading: true,
  refetch: async () => {},
};

/** One source's data and the components that show it. */
export class Resource<T> {
  state: HookState<T> = { ...NOTHING, refetch: () => this.load() };
  readonly #client: PowerClient;
  readonly #source: Source<T>;
  readonly #shown = new Set<() => void>();
  #updates: ((data: T) => T)[] = [];
  #loading: Promise<void> | undefined;
  #again = false;
  #loaded = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #stream: StreamHandle;

  /**
   * Loads when the stream opens, so that nothing falls between the load and the stream, and
   * whenever it opens again, because something may have been missed. It also loads if the stream
   * cannot open.
   */
  constructor(client: PowerClient, source: Source<T>) {
    this.#client = client;
    this.#source = source;
    this.#stream = client.stream({
      ...source.follow(this),
      onStatus: ({ state }) => {
        const nothing = this.state.data === undefined && !this.#loading;
        if (state === "open" || (state !== "connecting" && nothing)) void this.load();
      },
    });
  }

  /** Add a component that shows it. Returns a function that removes the component. */
  show(onChange: () => void): () => void {
    this.#shown.add(onChange);
    return () => this.#shown.delete(onChange);
  }

  /** Stop following. A load in progress finishes. */
  close(): void {
    clearTimeout(this.#timer);
    this.#stream.close();
  }

  /** Whether no component shows it. */
  get unused(): boolean {
    return this.#shown.size === 0;
  }

  /**
   * Load, then apply the changes that arrived meanwhile. A call during a load starts one more load
   * after it.
   */
  load(): Promise<void> {
    this.#again = this.#loading !== undefined;
    this.#loading ??= this.#load().finally(() => {
      this.#loading = undefined;
      return this.#again ? this.load() : undefined;
    });
    return this.#loading;
  }

  /** Load soon, at most once every `ms` milliseconds. */
  loadSoon(ms: number): void {
    this.#timer ??= setTimeout(
      () => {
        this.#timer = undefined;
        void this.load();
      },
      Math.min(Math.max(0, this.#loaded + ms - Date.now()), LONGEST_MS),
    );
  }

  /** Apply a change to the data. `update` may see the same change twice. */
  update(update: (data: T) => T): void {
    if (this.#loading) this.#updates.push(update);
    const { data } = this.state;
    if (data === undefined) return;
    const updated = update(data);
    if (updated !== data) this.#set({ data: updated });
  }

  async #load(): Promise<void> {
    this.#updates = [];
    this.#loaded = Date.now();
    this.#set({ isLoading: true });
    try {
      let data: T = await this.#source.load(this.#client, this.#stream.sequence);
      for (const update of this.#updates) data = update(data);
      this.#set({ data, error: undefined, isLoading: false });
    } catch (error) {
      this.#set({ error: error as PowerError, isLoading: false });
    }
  }

  #set(change: Partial<HookState<T>>): void {
    this.state = { ...this.state, ...change };
    for (const onChange of this.#shown) onChange();
  }
}

const resources = new WeakMap<PowerClient, Map<string, Resource<unknown>>>();

/** The state of a source; of one that no component shows, the state before the first load. */
export function stateOf<T>(client: PowerClient, key: string): HookState<T> {
  return (resources.get(client)?.get(key)?.state ?? NOTHING) as HookState<T>;
}

/** Show a source. Returns a function that ends this. */
export function show<T>(client: PowerClient, source: Source<T>, onChange: () => void): () => void {
  const shown = resources.get(client) ?? new Map<string, Resource<unknown>>();
  resources.set(client, shown);
  const resource =
    (shown.get(source.key) as Resource<T> | undefined) ?? new Resource(client, source);
  shown.set(source.key, resource as Resource<unknown>);
  const end = resource.show(onChange);
  return () => {
    end();
    // Not at once: React's StrictMode, and a page that changes, unmount and mount again
    // immediately.
    setTimeout(() => {
      if (!resource.unused || shown.get(source.key) !== resource) return;
      shown.delete(source.key);
      resource.close();
    });
  };
}
