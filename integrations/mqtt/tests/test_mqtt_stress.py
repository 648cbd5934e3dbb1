"""What Home Assistant is shown is the file, however often broker and bridge are killed meanwhile.

A device writes all the time. At random moments the broker, the bridge or both are killed or ended,
and meters and devices are added and deleted. In the end every retained topic is compared with the
file. (That no event is lost is in test_mqtt_ledger.py.)
"""

from __future__ import annotations

import json
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from mosquitto import PATIENCE, Listener, Mosquitto
from power_mqtt.discovery import Site, device_message
from power_mqtt.energy import EnergyReader
from power_mqtt.payloads import state_payload, totals_payload
from power_mqtt.topics import Topics
from world import Bridge

from power_manager import NotFound, PowerManager

ROUNDS = 6
SETTINGS = {  # of mosquitto, by what it saves
    "nothing": (),
    "all": ("autosave_on_changes true", "autosave_interval 1"),
    "an-older-state": ("autosave_interval 2",),
}
TOPICS = Topics("power", "here")
SITE = Site(TOPICS, TOPICS.bridge(), 600.0)


class Device(threading.Thread):
    """Writes a reading of every meter of the file, again and again; a context manager."""

    def __init__(self, db: Path, seed: int) -> None:
        super().__init__(name="device")
        self._db = db
        self._random = random.Random(seed)
        self._ending = threading.Event()
        self._news = threading.Condition()
        self._count = 0

    def run(self) -> None:
        """Write until the end."""
        with PowerManager(self._db, durability="normal") as pm:
            while not self._ending.wait(0.02):
                try:
                    pm.log_many([self._reading(meter.id) for meter in pm.list_meters()])
                except NotFound:
                    continue  # a meter was deleted since the list was made
                with self._news:
                    self._count += 1
                    self._news.notify_all()

    def _reading(self, meter_id: str) -> tuple[str, float, float, float]:
        chance = self._random
        return meter_id, chance.uniform(11, 13), chance.uniform(-20, 80), chance.uniform(30, 90)

    def wait_for(self, count: int) -> None:
        """Return when it has written so many times more."""
        with self._news:
            end = self._count + count
            assert self._news.wait_for(lambda: self._count >= end, PATIENCE)

    def __enter__(self) -> Device:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending.set()
        self.join()


class House:
    """A broker and a bridge that are ended and started again."""

    def __init__(self, folder: Path, db: Path, saves: str) -> None:
        settings = ["allow_anonymous true", *SETTINGS[saves]]
        if settings[1:]:
            settings += ["persistence true", f"persistence_location {folder}/mosquitto/"]
        self.broker = Mosquitto(folder / "mosquitto", settings=settings)
        self._db = db
        self._log = folder / "log"
        self._bridge: Bridge | None = None

    def start_bridge(self) -> None:
        """Start it, on the file as it is."""
        words = ("publish", "--db", self._db, "--broker", self.broker.url, "--name", "here")
        self._bridge = Bridge(*words, "--interval", "0", log=self._log)

    def end_bridge(self, number: int) -> None:
        """End it by that signal, which may come before Python has set a handler."""
        assert self._bridge is not None
        assert self._bridge.end(number) in (0, -number), self._bridge.log()

    def close(self) -> None:
        """Kill both."""
        if self._bridge is not None and self._bridge.process.poll() is None:
            self._bridge.process.kill()
            self._bridge.process.wait()
        self.broker.close()


@contextmanager
def house(folder: Path, db: Path, saves: str) -> Iterator[House]:
    """A house whose broker and bridge have just been started."""
    made = House(folder, db, saves)
    try:
        made.broker.start()
        made.start_bridge()
        yield made
    finally:
        made.close()


@pytest.mark.slow
def test_what_is_shown_is_the_file_whatever_is_killed(tmp_path: Path) -> None:
    """By a broker that saves nothing of what it retains, all of it, or an older state of it.

    Three runs at the same time: most of it is waiting.
    """
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(run, tmp_path / saves, saves) for saves in SETTINGS]
    for one in runs:
        one.result()


def run(folder: Path, saves: str, seed: int = 7) -> None:
    """Kill and start again, many times; then compare."""
    chance = random.Random(seed)
    folder.mkdir()
    db = folder / "power.db"
    with PowerManager(db, durability="normal") as pm:
        for device_id in ("edge", "gate/7", "shed"):
            pm.register_device(device_id, device_id.upper())
            pm.add_meter(device_id, "battery", 1000.0, "Pack")
            pm.add_meter(device_id, "solar", name="Roof")
        with house(folder, db, saves) as running:
            with Device(db, seed) as device:
                for number in range(ROUNDS):
                    device.wait_for(chance.randrange(1, 80))
                    kill_something(running, chance)
                    if saves != "an-older-state":  # which would show deleted meters again
                        change_meters(pm, number)
                device.wait_for(1)
            compare(running.broker, pm, with_energy=False)
            running.end_bridge(signal.SIGTERM)
            running.start_bridge()  # it does not wait half a minute for its next energy message
            compare(running.broker, pm, with_energy=True)
        assert pm.check() == []


def kill_something(running: House, chance: random.Random) -> None:
    """End the broker, the bridge or both, in one way or another, and start what was ended."""
    which = chance.choice(["bridge", "broker", "both"])
    if which != "broker":
        running.end_bridge(chance.choice([signal.SIGKILL, signal.SIGTERM]))
    if which != "bridge":
        chance.choice([running.broker.kill, running.broker.stop])()
    starts = [running.start_bridge] if which == "bridge" else [running.broker.start]
    if which == "both":
        starts.append(running.start_bridge)
        chance.shuffle(starts)
    for start in starts:
        start()


def change_meters(pm: PowerManager, number: int) -> None:
    """Add a meter, delete the one of before, and delete a device."""
    for meter in pm.list_meters("gate/7"):
        if meter.type == "main":
            pm.delete_meter(meter.id)
    pm.add_meter("gate/7", "main", name=f"Grid {number}")
    if any(device.id == "shed" for device in pm.list_devices()):
        pm.delete_device("shed")


def compare(broker: Mosquitto, pm: PowerManager, *, with_energy: bool) -> None:
    """Wait until what a new subscriber is sent is what the file says."""
    wanted = expected(pm, with_energy=with_energy)

    def differences(latest: dict[str, bytes]) -> list[str]:
        shown = {topic: read(payload) for topic, payload in latest.items() if payload}
        if not with_energy:
            shown = {topic: it for topic, it in shown.items() if not topic.endswith("/energy")}
        keys = sorted(wanted.keys() | shown.keys())
        pairs = [(key, wanted.get(key), shown.get(key)) for key in keys]
        return [f"{key}: {b}, not {a}" for key, a, b in pairs if not is_same(a, b)]

    with Listener(broker, "power/#", "homeassistant/#") as home_assistant:
        try:
            home_assistant.wait(lambda: not differences(home_assistant.latest()))
        except AssertionError:
            raise AssertionError("\n".join(differences(home_assistant.latest()))) from None


def read(payload: bytes) -> Any:
    """A payload's JSON, without the components that a discovery message removes; else its text."""
    try:
        value = json.loads(payload)
    except ValueError:
        return payload.decode()
    components = value.get("components")
    if components is not None:
        value["components"] = {key: it for key, it in components.items() if len(it) > 1}
    return value


def is_same(wanted: Any, shown: Any) -> bool:
    """Whether two values are the same; of numbers, within the rounding of a counter."""
    if isinstance(wanted, dict) and isinstance(shown, dict):
        keys = wanted.keys()
        return all(key in shown and is_same(wanted[key], shown[key]) for key in keys)
    if isinstance(wanted, float) and isinstance(shown, float):
        return abs(wanted - shown) < 0.0011
    return bool(wanted == shown)


def expected(pm: PowerManager, *, with_energy: bool) -> dict[str, Any]:
    """What the topics have to hold, by the file."""
    wanted: dict[str, Any] = {TOPICS.bridge(): "online"}
    for device in pm.list_devices():
        meters = pm.list_meters(device.id)
        budget = pm.power_budget_check([device.id])[device.id]
        wanted[TOPICS.availability(device.id)] = "online"
        wanted[TOPICS.totals(device.id)] = totals_payload(budget)
        for meter in meters:
            if meter.updated_at is not None:
                wanted[TOPICS.state(device.id, meter.id)] = state_payload(meter)
        config = device_message(SITE, device, meters)
        wanted[f"homeassistant/device/{config['device']['identifiers'][0]}/config"] = config
        if with_energy:
            wanted[TOPICS.energy(device.id)] = energy(pm, device.id)
    return wanted


def energy(pm: PowerManager, device_id: str) -> dict[str, Any]:
    """A device's counters, by the file; consumption only if its meters have always been the
    same.
    """
    meters = pm.list_meters(device_id)
    by_meter = {}
    for meter in meters:
        total = pm.energy_totals(meter.id)
        by_meter[meter.id] = {
            "energy_out_wh": total.energy_out_wh,
            "energy_in_wh": total.energy_in_wh,
        }
    counters: dict[str, Any] = {"meters": by_meter}
    if device_id == "edge":
        counters["consumption_wh"] = EnergyReader().read(pm, device_id, meters).used_wh
    return counters
