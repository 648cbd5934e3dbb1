/** The hooks in a page, against the real service; the same tests with React 18 and 19. */

import { act, cleanup, configure, render, renderHook, waitFor } from "@testing-library/react";
import { type ReactNode, version } from "react";
import { renderToString } from "react-dom/server";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { WebSocket } from "ws";
import { PowerClient, type PowerMeter } from "../../src";
import {
  type HookState,
  PowerProvider,
  useBudget,
  useDevices,
  useEvents,
  useHistory,
  useLivePower,
  useMeter,
  useReport,
  useStreamStatus,
} from "../../src/react";
import { Service, SOON } from "../service";

configure({ reactStrictMode: true }); // effects begin, end and begin again

const service = new Service();
let token: string;
let requests: string[];
let client: PowerClient;
let battery: PowerMeter;

beforeAll(async () => {
  await service.start();
  token = service.token();
  // The page is one of the service's own.
  (window as unknown as { happyDOM: { setURL: (url: string) => void } }).happyDOM.setURL(
    service.url,
  );
});
afterAll(() => service.remove());

beforeEach(async () => {
  requests = [];
  client = new PowerClient({
    baseUrl: service.url,
    token,
    webSocket: WebSocket,
    fetch: (input, init) => {
      requests.push(`${init?.method} ${new URL(String(input)).pathname}`);
      return fetch(input, init);
    },
  });
  await client.putDevice("edge", { name: "Edge" });
  battery = await client.addMeter("edge", { type: "battery", capacity_wh: 50, name: "Pack" });
  requests = [];
});
afterEach(async () => {
  cleanup();
  await waitFor(() => expect(client.streamStatus.state).toBe("idle"), SOON);
});

function Page({ children }: { children?: ReactNode }) {
  return <PowerProvider client={client}>{children}</PowerProvider>;
}

/** Components that show a meter. */
function Name() {
  return <i>{useMeter(battery.id).data?.name}</i>;
}
function Watts() {
  return <i>{useMeter(battery.id).data?.wattage} </i>;
}

/** A component with every hook. */
function All() {
  const states = [
    useBudget(),
    useReport("edge"),
    useDevices(),
    useMeter("m"),
    useHistory("m"),
    useEvents(),
  ];
  const live = useLivePower();
  const { state } = useStreamStatus();
  return <i>{[...states, live].every(({ isLoading }) => isLoading) && state}</i>;
}

/** Show a hook in a strict page, and wait for what it loads. */
async function shown<T>(hook: () => HookState<T>) {
  const { result } = renderHook(hook, { wrapper: Page });
  expect(result.current).toMatchObject({ data: undefined, error: undefined, isLoading: true });
  await waitFor(() => expect(result.current.isLoading).toBe(false), SOON);
  expect(result.current.error).toBeUndefined();
  return result;
}

async function log(watts: number, charge_pct = 50): Promise<void> {
  await client.logPower({ meter_id: battery.id, voltage: 1, current_draw: watts, charge_pct });
}

test("this is the React that is meant", () => {
  expect(version.split(".")[0]).toBe(process.env.REACT_VERSION);
});

describe("what is shown is what the service says, and then what happens", () => {
  test("useMeter", async () => {
    const result = await shown(() => useMeter(battery.id, { deviceId: "edge" }));
    expect(result.current.data).toEqual(battery);
    await log(7, 10);
    await waitFor(
      () => expect(result.current.data).toMatchObject({ wattage: 7, state: "low" }),
      SOON,
    );
    expect(requests.filter((one) => one === `GET /v1/meters/${battery.id}`).length).toBe(1);
  });

  test("useEvents, of a device and of all", async () => {
    await client.triggerEvent("edge", { type: "restore", note: "before" });
    const one = await shown(() => useEvents("edge", { limit: 3 }));
    const all = await shown(() => useEvents(undefined, { limit: 2 }));
    expect(one.current.data?.[0]?.note).toBe("before");
    for (const note of ["1", "2", "3", "4"])
      await client.triggerEvent("edge", { type: "restore", note });
    await waitFor(
      () => expect(one.current.data?.map((event) => event.note)).toEqual(["4", "3", "2"]),
      SOON,
    );
    await waitFor(
      () => expect(all.current.data?.map((event) => event.note)).toEqual(["4", "3"]),
      SOON,
    );
    expect(one.current.data).toEqual(await client.events("edge", { limit: 3 }));
  });

  test("useLivePower", async () => {
    const result = await shown(() => useLivePower(["edge"]));
    expect(result.current.data?.get(battery.id)).toEqual(battery);
    await log(9);
    await waitFor(() => expect(result.current.data?.get(battery.id)?.wattage).toBe(9), SOON);
    const [before, elsewhere] = [result.current.data, await shown(() => useLivePower(["nobody"]))];
    expect(elsewhere.current.data?.size).toBe(0);
    await log(10);
    await waitFor(() => expect(result.current.data).not.toBe(before), SOON);
  });

  test("useHistory", async () => {
    await log(1);
    const result = await shown(() => useHistory(battery.id, { hours: 1 }));
    expect(result.current.data?.map((reading) => reading.wattage)).toEqual([1]);
    await log(2);
    await waitFor(() => expect(result.current.data?.at(-1)?.wattage).toBe(2), SOON);
    expect(result.current.data).toEqual(await client.chart(battery.id));
  });

  test("useBudget and useReport are loaded again, and no more often than they should", async () => {
    const budget = await shown(() => useBudget(["edge"], { refreshMs: 300 }));
    const report = await shown(() => useReport("edge", { days: 1, refreshMs: 300 }));
    expect(report.current.data?.period_days).toBe(1);
    const load = () => {
      const entry = budget.current.data?.edge;
      return entry && "load_wattage" in entry ? entry.load_wattage : Number.NaN;
    };
    const [others, begin] = [load(), Date.now()];
    requests = [];
    for (const watts of [1, 2, 3, 4, 5]) await log(watts);
    await waitFor(() => expect(load()).toBe(others + 5), SOON);
    const count = () =>
      report.current.data?.meters.find((meter) => meter.meter_id === battery.id)?.reading_count;
    await waitFor(() => expect(count()).toBe(5), SOON);
    const loads = requests.filter((one) => one === "GET /v1/budget").length;
    // 250 ms apart at the least: what the device's registration still tells is loaded for a little
    // sooner.
    expect(loads).toBeLessThanOrEqual(Math.ceil((Date.now() - begin) / 250) + 1);
  });

  test("useDevices shows a new one", async () => {
    const result = await shown(() => useDevices());
    const id = `new-${Date.now()}`;
    await client.putDevice(id, { name: "New" });
    await client.addMeter(id, { type: "solar" });
    await waitFor(
      () => expect(result.current.data?.some((device) => device.id === id)).toBe(true),
      SOON,
    );
  });

  test("useStreamStatus, which opens nothing by itself", async () => {
    const { result } = renderHook(() => useStreamStatus(), { wrapper: Page });
    expect(result.current).toEqual({ state: "idle" });
    const { unmount } = renderHook(() => useMeter(battery.id), { wrapper: Page });
    await waitFor(() => expect(result.current.state).toBe("open"), SOON);
    unmount();
    await waitFor(() => expect(result.current).toEqual({ state: "idle" }), SOON);
  });
});

describe("a page", () => {
  test("loads once what many components show, StrictMode or not, and over one connection", async () => {
    const opened = vi.fn();
    const counted = class extends WebSocket {
      constructor(...args: ConstructorParameters<typeof WebSocket>) {
        super(...args);
        opened();
      }
    };
    client = new PowerClient({
      baseUrl: service.url,
      token,
      webSocket: counted,
      fetch: (input, init) => {
        requests.push(String(input));
        return fetch(input, init);
      },
    });
    const page = render(
      <Page>
        <Name />
        <Name />
        <Name />
      </Page>,
    );
    await waitFor(() => expect(page.container.textContent).toBe("PackPackPack"), SOON);
    expect(requests.length).toBe(1);
    expect(opened).toHaveBeenCalledTimes(1);
  });

  test("goes from one meter to the next", async () => {
    const other = await client.addMeter("edge", { type: "main", name: "Grid" });
    const { result, rerender } = renderHook(({ id }) => useMeter(id), {
      wrapper: Page,
      initialProps: { id: battery.id },
    });
    await waitFor(() => expect(result.current.data?.name).toBe("Pack"), SOON);
    rerender({ id: other.id });
    expect(result.current.data).toBeUndefined();
    await waitFor(() => expect(result.current.data?.name).toBe("Grid"), SOON);
  });

  test("shows the error of what cannot be loaded, keeps what it has, and can load again", async () => {
    const { result } = renderHook(() => useMeter("nothing"), { wrapper: Page });
    await waitFor(() => expect(result.current.error?.status).toBe(404), SOON);
    expect(result.current).toMatchObject({ data: undefined, isLoading: false });
    const meter = await shown(() => useMeter(battery.id));
    vi.spyOn(client, "meter").mockRejectedValueOnce(new Error("away"));
    await act(() => meter.current.refetch());
    expect(meter.current).toMatchObject({ data: battery, error: new Error("away") });
    await act(() => meter.current.refetch());
    expect(meter.current.error).toBeUndefined();
    vi.restoreAllMocks();
  });

  test("fills the gap after the service was away", async () => {
    const history = await shown(() => useHistory(battery.id));
    const events = await shown(() => useEvents("edge"));
    await log(1);
    await service.end("SIGKILL");
    await waitFor(() => expect(client.streamStatus.state).toBe("reconnecting"), SOON);
    await service.start();
    for (const watts of [2, 3, 4]) await log(watts);
    await client.triggerEvent("edge", { type: "restore", note: "back" });
    await waitFor(
      () => expect(history.current.data?.map((reading) => reading.wattage)).toEqual([1, 2, 3, 4]),
      SOON,
    );
    await waitFor(() => expect(events.current.data?.[0]?.note).toBe("back"), SOON);
    expect(events.current.data?.filter((event) => event.note === "back").length).toBe(1);
  });

  test("shows everywhere the same at a time: nothing tears", async () => {
    const page = render(
      <Page>
        <Watts />
        <Watts />
        <Watts />
      </Page>,
    );
    const seen = new Set<string>();
    const observer = new MutationObserver(() => seen.add(page.container.textContent ?? ""));
    observer.observe(page.container, { childList: true, characterData: true, subtree: true });
    await waitFor(() => expect(page.container.textContent).toBe("0 0 0 "), SOON);
    for (const watts of [1, 2, 3]) {
      await log(watts);
      await waitFor(() => expect(page.container.textContent).toBe(`${watts} `.repeat(3)), SOON);
    }
    observer.disconnect();
    expect([...seen]).toEqual(["0 0 0 ", "1 1 1 ", "2 2 2 ", "3 3 3 "]);
  });

  test("is rendered on a server without asking or opening anything", () => {
    expect(
      renderToString(
        <PowerProvider client={client}>
          <All />
        </PowerProvider>,
      ),
    ).toBe("<i>idle</i>");
    expect([requests, client.streamStatus.state]).toEqual([[], "idle"]);
  });

  test("without a provider is told what to put around it", () => {
    const log = vi.spyOn(console, "error").mockImplementation(() => {});
    expect(() => renderHook(() => useDevices())).toThrow(
      /<PowerProvider client=\{new PowerClient\(\{ baseUrl \}\)\}>/,
    );
    log.mockRestore();
  });
});
