"""What the service's questions to a fleet cost: looks of its stream, and what the page asks first.

    python3 integrations/service/bench/fleet.py

It asks the engine of this machine's hub, which has to run and to have devices: `power-fleet hub`
and `power-fleet demo`. It prints a table of RESULTS.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "integrations/service"), str(ROOT / "integrations/fleet")]

# The lines above make these importable.
from power_service.fleet_source import FleetSource, open_fleet  # noqa: E402
from power_service.fleet_watcher import FleetWatcher  # noqa: E402
from power_service.hours import sparklines  # noqa: E402
from power_service.settings import Settings  # noqa: E402

TIMES = 5  # of which the median is shown
WAIT_S = 60.0  # for the engine to have all that the fleet has sent


def show(name: str, ask: Callable[[], object]) -> None:
    """Print how long a question takes."""
    taken = []
    for _ in range(TIMES):
        begin = time.perf_counter()
        ask()
        taken.append(time.perf_counter() - begin)
    print(f"| {name} | {sorted(taken)[TIMES // 2] * 1000:,.0f} |", flush=True)


def show_looks(source: FleetSource) -> None:
    """Looks at a fleet that has nothing new, and at a whole fleet."""
    now = 0.0
    watcher = FleetWatcher(source, 0.0, lambda: now)
    watcher.look()

    def look(whole: bool) -> None:
        nonlocal now
        now += 60.0 if whole else 0.001
        changes = watcher.look()
        assert changes is not None
        if changes.error is not None:
            raise changes.error

    show("a look of the stream, nothing new", lambda: look(False))
    show("a look at all devices", lambda: look(True))


def wait_for_all(source: FleetSource) -> None:
    """Wait until the engine has every message of the stream."""
    deadline = time.monotonic() + WAIT_S
    while source.fleet_state()["waiting_messages"]:
        if time.monotonic() > deadline:
            raise SystemExit(f"the engine did not take in all messages within {WAIT_S:g} s")
        time.sleep(0.5)


def main() -> int:
    """Ask everything, and print how long it takes."""
    source = open_fleet(Settings(hub=True), time.time)
    wait_for_all(source)
    ids = [device.id for device in source.list_devices()]
    if not ids:
        print("the hub has no devices: power-fleet demo makes some", file=sys.stderr)
        return 1
    meter = source.list_meters(ids[0])[0]
    print(f"| {len(ids):,} devices with {len(source.list_meters()):,} meters | ms |")
    print("| --- | --- |")
    show_looks(source)
    show("devices", source.list_devices)
    show("meters", source.list_meters)
    show("sites, versions, alarms", source.fleet_devices)
    show("sparklines of 20 devices", lambda: sparklines(source, ids[:20], int(time.time() * 1e6)))
    show("budget of 10 devices", lambda: source.power_budget_check(ids[:10]))
    show("report of one, 7 days", lambda: source.export_report(ids[0], 7))
    show("statistics of one meter, 7 days", lambda: source.get_statistics(meter.id))
    show("readings of one meter, a day", lambda: sum(1 for _ in source.iter_history(meter.id)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
