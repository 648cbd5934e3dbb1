"""A day with a real Home Assistant.

    python3 proof/homeassistant/run.py --hass PATH > proof/homeassistant/RESULTS.md

It starts a mosquitto that forgets everything when it ends, a Home Assistant, and power-mqtt; time
runs faster there. Two devices are read every minute of a day, while each of the three programs is
ended and started again, the bridge is killed, a backup is restored, old readings are pruned, and at
last a meter and a device are deleted. At each of these times every entity is compared with the
file: its value, unit, class, precision and category. At the end Home Assistant's long-term
statistics of every counter are compared with what meters on the wall would have counted, to the
watt-hour.

It prints the results in Markdown, and ends with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

from api import Api  # noqa: E402 - the path above comes first
from browser import browser  # noqa: E402
from house import Bridge, Broker, FastClock, HomeAssistant, free_port  # noqa: E402
from world import EDGE, GATE, STEP_SECONDS, UNIQUE, World, differences  # noqa: E402

DAY = datetime(2026, 6, 21, tzinfo=timezone.utc)
_PREPARING = 3000.0  # seconds of the house before the day begins
_SETTLE_SECONDS = 40.0  # real ones, within which Home Assistant has to say what is so


class Proof:
    """The run, and what it found."""

    def __init__(self, folder: Path, hass: str, speed: float, pictures: Path | None) -> None:
        self.folder = folder
        start = datetime.fromtimestamp(DAY.timestamp() - _PREPARING, timezone.utc)
        self.clock = FastClock(start, speed)
        self.pictures = pictures
        self.broker = Broker(folder)
        self.home = HomeAssistant(folder, hass, self.broker, self.clock)
        self.api = Api(self.home.url)
        self.rows: list[tuple[str, str, int, str]] = []
        self.failures: list[str] = []

    def run(self) -> None:
        """The whole day."""
        self.broker.start()
        self.home.start()
        self.api.wait(120)
        self.api.onboard()
        self.version = self.api.ask("get_config")["version"]
        self.clock.wait_until(DAY.timestamp())
        self.world = World(self.folder / "power.db", self.clock)
        self.bridge = Bridge(self.folder, self.folder / "power.db", self.broker, self.clock)
        self.world.step()
        self.bridge.start()
        # Home Assistant counts from the first value that it sees, which is to be 0
        self._wait_for_counters()
        self.until(0.8)
        self.check("discovered")
        self._set_up_energy()
        self.until(6)
        self._restart_home()
        self.until(9)
        self._restart_broker()
        self.until(11)
        self._kill_bridge()
        self.until(13)
        self._restore()
        self.until(15)
        self.world.pm.prune(0.2)
        self.check("readings older than five hours pruned")
        self.until(20.5)
        self._take_pictures()
        self.until(21.5)
        # What was measured is published, and what goes is seen to go, before more is measured.
        time.sleep(1.5)
        self.world.pm.delete_meter(self.world.shed)
        time.sleep(1.5)
        self.world.step()
        self.check("a meter deleted")
        self.until(22)
        self.world.pm.delete_device(GATE)
        self.check("a device deleted")
        self.until(23)
        self.world.step()
        self.check("at the end of the day")
        self.clock.wait_until(DAY.timestamp() + 24.2 * 3600)
        self._check_statistics()

    def until(self, hour: float) -> None:
        """Read every meter every minute until that hour."""
        self._read_until(DAY.timestamp() + hour * 3600)

    def _read_until(self, instant: float) -> None:
        while (now := self.clock()) < instant:
            self.world.step()
            self.clock.wait_until(now + STEP_SECONDS)

    def check(self, what: str) -> None:
        """Compare every entity with the file, when Home Assistant has had time to follow."""
        at = self.clock.shown()
        end = time.monotonic() + _SETTLE_SECONDS
        while True:
            expected = self.world.expected()
            found = differences(expected, self.api.entities(), self.api.states())
            found += self._devices()
            if not found or time.monotonic() > end:
                break
            time.sleep(0.5)
        self.rows.append(
            (at, what, len(expected), "all as expected" if not found else "**differ**")
        )
        self.failures += [f"{at} {what}: {line}" for line in found]
        print(at, what, len(expected), *found, sep="\n  ", file=sys.stderr)

    def _wait_for_counters(self) -> None:
        end = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < end:
            states, entities = self.api.states(), self.api.entities()
            shown = [
                states.get(entities[unique_id]["entity_id"], {}).get("state")
                for unique_id in self.world.wall
                if unique_id in entities
            ]
            if len(shown) == len(self.world.wall) and all(state == "0.0" for state in shown):
                return
            time.sleep(0.2)
        raise SystemExit("Home Assistant does not show the counters, at 0")

    def _devices(self) -> list[str]:
        present = {UNIQUE[device.id]: device.name for device in self.world.pm.list_devices()}
        shown = {id_: device["name"] for id_, device in self.api.devices().items()}
        return [] if present == shown else [f"devices: {shown}, not {present}"]

    # --- What happens

    def _restart_home(self) -> None:
        self.home.end()
        self.home.start()
        self.api.wait(120)
        self.world.step()
        self.check("Home Assistant restarted")

    def _restart_broker(self) -> None:
        self.broker.end()
        self.world.step()
        self.broker.start()
        self.world.step()
        self.check("broker restarted, all it retained is gone")

    def _kill_bridge(self) -> None:
        self.bridge.end(signal.SIGKILL)
        for _ in range(10):
            self.world.step()
            self.clock.wait_until(self.clock() + STEP_SECONDS)
        self.bridge.start()
        self.world.step()
        self.check("bridge killed and started again ten minutes later")

    def _restore(self) -> None:
        backup = self.folder / "backup.db"
        self.world.pm.backup(backup)
        self.until(13.75)
        self.world.step()
        self.check("before a backup is restored")
        self.world.restore(backup)
        time.sleep(2)
        self.world.step_after_restore()
        self.check("the backup of 13:00 restored")

    # --- Statistics

    def _check_statistics(self) -> None:
        entities = self.api.entities()
        ids = {
            entities[unique_id]["entity_id"]: energy_wh
            for unique_id, energy_wh in self.world.wall.items()
            if unique_id in entities
        }
        hours = self.api.hourly(
            list(ids), datetime.fromtimestamp(self.clock.start, timezone.utc).isoformat()
        )
        self.statistics: list[tuple[str, float, float, int]] = []
        for entity_id, energy_wh in sorted(ids.items()):
            rows = hours.get(entity_id, [])
            sum_wh = rows[-1]["sum"] if rows else float("nan")
            self.statistics.append((entity_id, energy_wh, sum_wh, len(rows)))
            if not abs(sum_wh - energy_wh) < 1.0:
                self.failures.append(f"{entity_id}: {sum_wh} Wh in the statistics, not {energy_wh}")
            falls = [row for row in rows if row["change"] is not None and row["change"] < 0]
            self.failures += [f"{entity_id}: fell in {row}" for row in falls]

    # --- Pages

    def _set_up_energy(self) -> None:
        of = {unique_id: entity["entity_id"] for unique_id, entity in self.api.entities().items()}
        edge = UNIQUE[EDGE]
        world = self.world

        def counter(meter_id: str, key: str) -> str:
            return str(of[f"{edge}__{meter_id}__{key}"])

        grid: dict[str, Any] = {
            "type": "grid",
            "flow_from": [_flow(counter(world.grid, "energy_out"), "from")],
            "flow_to": [_flow(counter(world.grid, "energy_in"), "to")],
            "cost_adjustment_day": 0.0,
        }
        roofs = [
            {
                "type": "solar",
                "stat_energy_from": counter(id_, "energy_out"),
                "config_entry_solar_forecast": None,
            }
            for id_ in (world.roof, world.shed)
        ]
        battery = {
            "type": "battery",
            "stat_energy_from": counter(world.pack, "energy_out"),
            "stat_energy_to": counter(world.pack, "energy_in"),
        }
        consumers = [
            {"stat_consumption": of[f"{UNIQUE[id_]}__consumption"]} for id_ in (EDGE, GATE)
        ]
        self.api.ask(
            "energy/save_prefs",
            energy_sources=[grid, *roofs, battery],
            device_consumption=consumers,
        )

    def _take_pictures(self) -> None:
        if self.pictures is None:
            return
        device_id = self.api.devices()[UNIQUE[EDGE]]["id"]
        pages = [
            ("device.png", f"/config/devices/device/{device_id}", "Pack energy out"),
            ("energy.png", "/energy", "Edge Node Pack energy in"),
        ]

        def read_on(seconds: float) -> None:
            self._read_until(self.clock() + seconds * self.clock.speed)

        with browser(free_port()) as page:
            page.sign_in(self.home.url, self.api.token, self.clock())
            for name, path, expected in pages:
                target = self.pictures / name
                if not page.picture(self.home.url + path, target, (1280, 1350), expected, read_on):
                    self.failures.append(f"{name}: the page {path} does not show {expected!r}")

    # --- What is said of it

    def end(self) -> None:
        """End whatever runs."""
        for program in (getattr(self, "bridge", None), self.home, self.broker):
            if program is not None:
                program.end()

    def report(self) -> str:
        """What was found, in Markdown."""
        programs = f"Home Assistant {self.version}, {_said('mosquitto', '-h')}"
        programs += f", Python {platform.python_version()}"
        machine = f"Machine: {platform.system()} {platform.release()} {platform.machine()}"
        machine += f", {os.cpu_count()} processors"
        lines = [
            "# Results of a day with a real Home Assistant",
            "",
            f"Command: `python3 proof/homeassistant/run.py {' '.join(sys.argv[1:])}`  ",
            f"Date: {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC  ",
            f"{programs}  ",
            machine,
            "",
            f"{self.world.readings} readings of a day, {self.clock.speed:g} times as fast.",
            "",
            (
                "| time | what happened before | entities "
                "| values, units, classes, precision, category |"
            ),
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {at} | {what} | {count} | {verdict} |" for at, what, count, verdict in self.rows
        ]
        lines += [
            "",
            "Long-term statistics at the end, against what meters on the wall would have counted:",
            "",
            "| counter | counted, Wh | sum in the statistics, Wh | difference, Wh | hours |",
            "| --- | --- | --- | --- | --- |",
        ]
        for entity_id, energy_wh, sum_wh, count in self.statistics:
            difference = sum_wh - energy_wh
            lines.append(
                f"| {entity_id} | {energy_wh:.3f} | {sum_wh:.3f} | {difference:+.3f} | {count} |"
            )
        lines.append("")
        lines += self.failures or ["Nothing differs."]
        return "\n".join(lines)


def _said(*command: str) -> str:
    """The first line that a program prints."""
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return ran.stdout.partition("\n")[0]


def _flow(entity_id: str, direction: str) -> dict[str, Any]:
    price = {"entity_energy_price": None, "number_energy_price": None}
    if direction == "from":
        return {"stat_energy_from": entity_id, "stat_cost": None, **price}
    return {"stat_energy_to": entity_id, "stat_compensation": None, **price}


def main() -> int:
    """Run the proof."""
    about, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=f"{about}\n{more}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--hass", default="hass", metavar="PATH", help="Home Assistant's program (default: hass)")
    add(
        "--speed",
        type=float,
        default=60.0,
        help="seconds of the day in a real second (default: 60)",
    )
    add("--work", type=Path, metavar="FOLDER", help="keep logs and files here")
    add("--pictures", type=Path, metavar="FOLDER", help="take pictures of the pages, with Chromium")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        proof = Proof(folder, args.hass, args.speed, args.pictures)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left running
        try:
            proof.run()
        finally:
            proof.end()
    print(proof.report())
    return 1 if proof.failures else 0


if __name__ == "__main__":
    sys.exit(main())
