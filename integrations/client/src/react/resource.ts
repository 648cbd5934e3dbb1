/** What a hook shows: loaded once for all components that show it, and kept up by the stream while any does. */

import type { PowerClient, PowerError, StreamHandle, StreamOptions } from "../index";

/** What a hook returns. */
export interface HookState<T> {
  /** What was loaded last, with what came since; undefined before that. */
  readonly data: T | undefined;
  /** Why the last load failed; undefined after one that did not. `data` stays as it was. */
  readonly error: PowerError | undefined;
  /** Whether it is being loaded now. */
  readonly isLoading: boolean;
  /** Load it again. Never rejects: see `error`. */
  readonly refetch: () => Promise<void>;
}

/** Where a resource's data come from. */
export interface Source<T> {
  /** What it is, among all of the client's. */
  key: string;
  /** `sequence` is where the stream is, if it is anywhere. */
  load: (client: PowerClient, sequence: number | undefined) => Promise<T>;
  /** What to follow, so that it stays true. */
  follow: (resource: Resource<T>) => Omit<StreamOptions, "onStatus">;
}

const LONGEST_MS = 2 ** 31 - 1; // of a timer; a longer one, Infinity say, would end at once

/** What is shown before anything is there, on a server too. */
export const NOTHING: HookState<never> = {
  data: undefined,
  error: undefined,
  isLoading: true,
  refetch: async () => {},
};

/** One source's data and those who show them. */
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
   * It is loaded when the stream is open, so that nothing falls between the two; and again whenever that opens again,
   * for then something may have been missed. While it cannot be opened, it is loaded all the same.
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

  /** Begin to show it; returns how to end that. */
  show(onChange: () => void): () => void {
    this.#shown.add(onChange);
    return () => this.#shown.delete(onChange);
  }

  /** Follow nothing any more. A load that is under way comes to its end. */
  close(): void {
    clearTimeout(this.#timer);
    this.#stream.close();
  }

  /** Whether nobody shows it. */
  get unused(): boolean {
    return this.#shown.size === 0;
  }

  /** Load, then apply what came in meanwhile; a call during a load has it done once more after that. */
  load(): Promise<void> {
    this.#again = this.#loading !== undefined;
    this.#loading ??= this.#load().finally(() => {
      this.#loading = undefined;
      return this.#again ? this.load() : undefined;
    });
    return this.#loading;
  }

  /** Load soon: at most once in so many milliseconds. */
  loadSoon(ms: number): void {
    this.#timer ??= setTimeout(
      () => {
        this.#timer = undefined;
        void this.load();
      },
      Math.min(Math.max(0, this.#loaded + ms - Date.now()), LONGEST_MS),
    );
  }

  /** Change what is there by what has happened; `update` must not mind what it has seen before. */
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

/** The state of a source, if anybody shows it. */
export function stateOf<T>(client: PowerClient, key: string): HookState<T> {
  return (resources.get(client)?.get(key)?.state ?? NOTHING) as HookState<T>;
}

/** Show a source; returns how to end that. */
export function show<T>(client: PowerClient, source: Source<T>, onChange: () => void): () => void {
  const shown = resources.get(client) ?? new Map<string, Resource<unknown>>();
  resources.set(client, shown);
  const resource = (shown.get(source.key) as Resource<T> | undefined) ?? new Resource(client, source);
  shown.set(source.key, resource as Resource<unknown>);
  const end = resource.show(onChange);
  return () => {
    end();
    // React's StrictMode ends and begins again at once, and so does a page that changes.
    setTimeout(() => {
      if (!resource.unused || shown.get(source.key) !== resource) return;
      shown.delete(source.key);
      resource.close();
    });
  };
}
