"""The energy message of a device: when it is said, and how it and discovery live with a real
broker.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mosquitto import Listener, Mosquitto
from power_mqtt.counters import Counters, read_message
from power_mqtt.discovery import device_message
from power_mqtt.energies import INTERVAL_SECONDS, Energies
from power_mqtt.energy import EnergyReader
from power_mqtt.notices import Arrived, Ticket, Up
from power_mqtt.options import Options
from power_mqtt.parts import Look, Rules, Said
from power_mqtt.publisher import HEAR_SECONDS, Publisher
from power_mqtt.topics import Topics
from world import bridge

from power_manager import PowerManager

START = 1_750_000_000.0
ENERGY = "power/edge/energy"
CONFIG = "homeassistant/device/power__edge/config"


class Device:
    """A device with a battery, whose clock a test sets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = START
        self.pm = PowerManager(path, clock=lambda: self.now, durability="normal")
        self.pm.register_device("edge", "Edge")
        self.battery = self.pm.add_meter("edge", "battery").id

    def log(self, watts: float, seconds: float) -> None:
        """Constant power for some time."""
        for _ in range(2):
            self.pm.log_power(self.battery, 10.0, watts / 10)
            self.now += seconds

    def part(self) -> Energies:
        """A part that publishes it."""
        clock = lambda: self.now  # noqa: E731
        counters = Counters(EnergyReader(clock, clock), clock)
        part = Energies(self.pm, Topics("power", "here"), Rules(), lambda: ["edge"], counters)
        assert part.filters() == [ENERGY]
        return part

    def said(self, part: Energies) -> list[Said]:
        """What a part says now."""
        meters = self.pm.list_meters("edge")
        look = Look(self.pm.get_device("edge"), meters, [], self.now, self.now)
        said = list(part.messages(look))
        if part.work():  # it had hours to read
            while part.work():
                pass
            said = list(part.messages(look))
        return said

    def message(self, part: Energies) -> dict[str, Any]:
        """The message that a part says now."""
        (one,) = self.said(part)
        assert one.message.topic == ENERGY
        assert not one.is_left
        message: dict[str, Any] = json.loads(one.message.payload)
        return message


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device that was not read yet."""
    made = Device(tmp_path / "power.db")
    yield made
    made.pm.close()


# --- The part


def test_nothing_is_published_before_the_broker_has_said_what_it_holds(device: Device) -> None:
    """What it holds stays, and nothing is written to the file."""
    device.log(10.0, 3600.0)
    part = device.part()
    before = device.pm.data_version()

    (one,) = device.said(part)

    assert one.is_left
    assert device.pm.data_version() == before


def test_message_goes_on_from_what_the_broker_holds(device: Device) -> None:
    """A file that knows nothing of it goes on from the retained message."""
    device.log(10.0, 3600.0)
    part = device.part()
    retained = {
        "file_id": "another",
        "counter_revision": 7,
        "consumption_wh": 900.0,
        "meters": {device.battery: {"energy_out_wh": 500.0, "energy_in_wh": 0.0}},
    }
    part.arrived(ENERGY, json.dumps(retained).encode(), True)
    part.arrived("power/other/energy", b"{}", True)
    part.heard()

    message = device.message(part)

    assert message["consumption_wh"] == 900.0
    assert message["meters"][device.battery]["energy_out_wh"] == 500.0
    assert message["counter_revision"] > 7


def test_own_message_that_comes_back_changes_nothing(device: Device) -> None:
    """Only what is retained was there before."""
    device.log(10.0, 3600.0)
    part = device.part()
    part.heard()
    first = device.message(part)
    (one,) = device.said(part)
    part.arrived(ENERGY, one.message.payload.replace(b"10.0", b"99.0"), False)
    device.log(10.0, 3600.0)

    assert device.message(part)["consumption_wh"] < 99.0
    assert first["consumption_wh"] == 10.0


def test_message_is_said_again_when_energy_has_changed(device: Device) -> None:
    """At most every half minute, and the same object while there is no news."""
    device.log(10.0, 60.0)
    part = device.part()
    part.heard()
    (first,) = device.said(part)
    device.log(10.0, 1.0)
    (soon,) = device.said(part)
    device.now += INTERVAL_SECONDS
    (later,) = device.said(part)
    device.now += INTERVAL_SECONDS
    (same,) = device.said(part)

    assert soon is first
    assert later is not first
    assert same is later


def test_readings_without_energy_are_said_now_and_then(device: Device) -> None:
    """Home Assistant lets a value expire of which it hears nothing."""
    device.log(0.0, 1.0)
    part = device.part()
    part.heard()
    said = set()
    for _ in range(40):
        device.log(0.0, 15.0)
        (one,) = device.said(part)
        said.add(one.message.payload)

    assert 3 <= len(said) <= 5  # in twenty minutes, of an expiry of ten


def test_meter_that_was_added_is_said_at_once(device: Device) -> None:
    """Its counters are there as soon as its entities are."""
    device.log(10.0, 60.0)
    part = device.part()
    part.heard()
    device.message(part)
    solar = device.pm.add_meter("edge", "solar").id

    assert solar in device.message(part)["meters"]


def test_device_without_readings_has_no_message(device: Device) -> None:
    """Nothing was measured."""
    part = device.part()
    part.heard()

    assert device.said(part) == []


def test_counters_are_saved_at_the_end(device: Device) -> None:
    """For a broker that forgets."""
    device.log(10.0, 3600.0)
    part = device.part()
    part.heard()
    device.message(part)
    device.log(10.0, 3600.0)
    device.message(part)
    part.end()

    with device.pm.connection() as conn:
        sql = "SELECT value_wh FROM mqtt_counters WHERE field = 'energy_out_wh'"
        assert conn.execute(sql).fetchone() == (30.0,)


def test_years_are_read_a_meter_at_a_time(device: Device) -> None:
    """A look is not held up by what is read once; until it is, the broker keeps what it has."""
    for _ in range(3):
        meter_id = device.pm.add_meter("edge", "solar").id
        device.pm.log_many([(meter_id, 10.0, 1.0, None, START - hour * 3600) for hour in range(99)])
    device.log(10.0, 60.0)
    part = device.part()
    part.heard()
    look = Look(device.pm.get_device("edge"), device.pm.list_meters("edge"), [], device.now, 0.0)

    left = [next(iter(part.messages(look))).is_left]
    while part.work():
        left.append(next(iter(part.messages(look))).is_left)

    assert left == [True, True, True, True, False]


# --- The bridge


class Wire:
    """A publisher without a network: what it sends is kept, and taken over at once."""

    def __init__(self, device: Device, **options: Any) -> None:
        self.device = device
        self.sent: list[tuple[str, bytes]] = []
        self.tickets: list[Ticket] = []
        settings = Options(device.path, "here", **options)
        self.publisher = Publisher(
            device.pm, settings, self._publish, clock=lambda: device.now, wall=lambda: device.now
        )

    def _publish(self, topic: str, payload: bytes, retain: bool) -> Ticket:
        self.sent.append((topic, payload))
        return (1, len(self.sent))

    def tick(self, seconds: float = 1.0) -> None:
        """Let time pass; what takes long is read in the looks after the first."""
        for share in (0.6, 0.2, 0.2):
            self.device.now += seconds * share
            self.publisher.tick()

    def topics(self) -> set[str]:
        """Where something was sent."""
        return {topic for topic, _ in self.sent}


@pytest.mark.parametrize("device_ids", [(), ("edge",)])
def test_counters_and_discovery_wait_for_the_echo(
    device: Device, device_ids: tuple[str, ...]
) -> None:
    """What the broker held has come once it echoes what the bridge says of itself."""
    device.log(10.0, 60.0)
    wire = Wire(device, device_ids=device_ids)
    own = wire.publisher.filters()[0]
    wire.publisher.handle(Up("5"))
    wire.tick()
    assert own in wire.topics()
    assert not {ENERGY, CONFIG} & wire.topics()
    wire.publisher.handle(Arrived(own, b"offline", True))
    wire.tick()
    assert not {ENERGY, CONFIG} & wire.topics()
    wire.publisher.handle(Arrived(own, b"online", False))
    wire.tick(5.0)

    assert {ENERGY, CONFIG} <= wire.topics()


def test_broker_that_lets_nobody_read_is_not_waited_for(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    """After ten seconds the file alone has to do, and that is said once."""
    device.log(10.0, 60.0)
    wire = Wire(device)
    wire.publisher.handle(Up("5"))
    wire.tick(HEAR_SECONDS - 2)
    assert not {ENERGY, CONFIG} & wire.topics()
    wire.tick(3.0)
    wire.tick(5.0)

    assert {ENERGY, CONFIG} <= wire.topics()
    assert caplog.text.count("does not let this user read power/bridge/here/availability") == 1


def test_restored_backup_is_gone_on_from_at_once(device: Device) -> None:
    """Also where the file says the same as before: what is measured from then on counts."""
    device.log(10.0, 3600.0)
    wire = Wire(device)
    wire.publisher.handle(Up("5"))
    wire.publisher.handle(Arrived("power/bridge/here/availability", b"online", False))
    wire.tick()
    device.pm.backup(device.path.with_name("backup.db"))
    device.pm.restore(device.path.with_name("backup.db"))
    wire.tick(5.0)
    wire.tick(5.0)

    with device.pm.connection() as conn:
        sql = "SELECT file_id FROM mqtt_counter_lines ORDER BY revision DESC LIMIT 1"
        assert conn.execute(sql).fetchone() == (device.pm.file_id,)


def energy(payload: bytes) -> float:
    """The battery's energy out."""
    published = read_message("edge", payload)
    assert published is not None
    (value,) = (wh for (name, _), wh in published.values_wh.items() if name == "energy_out_wh")
    return value


def file_id(payloads: list[bytes]) -> str:
    """The line of history that the last message was counted on."""
    published = read_message("edge", payloads[-1]) if payloads else None
    return published.file_id if published is not None else ""


def test_no_counter_falls_over_restarts_of_bridge_and_broker(
    device: Device, broker: Mosquitto, tmp_path: Path
) -> None:
    """A real broker that forgets, and a bridge that is killed: every value is at least the one
    before.
    """
    device.now = time.time() - 7200
    device.log(10.0, 1800.0)
    arguments = ("publish", "--db", device.path, "--broker", broker.url, "--name", "here")
    values: list[float] = []
    with bridge(*arguments, log=tmp_path / "log"), Listener(broker, ENERGY) as listener:
        listener.wait(lambda: listener.of(ENERGY))
        values += map(energy, listener.of(ENERGY))
    device.pm.backup(tmp_path / "backup.db")
    device.log(10.0, 1800.0)
    with bridge(*arguments, log=tmp_path / "log"), Listener(broker, ENERGY) as listener:
        listener.wait(lambda: max(map(energy, listener.of(ENERGY)), default=0.0) > values[-1])
        values += map(energy, listener.of(ENERGY))
    device.pm.restore(tmp_path / "backup.db")
    with bridge(*arguments, log=tmp_path / "log"), Listener(broker, ENERGY) as listener:
        listener.wait(lambda: file_id(listener.of(ENERGY)) == device.pm.file_id)
        values += map(energy, listener.of(ENERGY))
    broker.kill()
    broker.start()
    with bridge(*arguments, log=tmp_path / "log"), Listener(broker, ENERGY) as listener:
        listener.wait(lambda: listener.of(ENERGY))
        values += map(energy, listener.of(ENERGY))

    assert values == sorted(values)
    assert values[-1] == pytest.approx(15.0)


def test_bridge_that_ends_saves_its_counters(
    device: Device, broker: Mosquitto, tmp_path: Path
) -> None:
    """What it published last is in the file, for a broker that forgets."""
    device.now = time.time() - 7200
    device.log(10.0, 1800.0)
    arguments = ("publish", "--db", device.path, "--broker", broker.url, "--name", "here")
    with (
        Listener(broker, ENERGY) as listener,
        bridge(*arguments, log=tmp_path / "log") as running,
    ):
        listener.wait(lambda: listener.of(ENERGY))
        assert running.end() == 0

    with device.pm.connection() as conn:
        (revision,) = conn.execute("SELECT revision FROM mqtt_counter_lines").fetchone()
    published = read_message("edge", listener.of(ENERGY)[0])
    assert published is not None
    assert revision == published.revision + 1


def test_meter_and_device_that_go_while_no_bridge_runs_are_removed(
    device: Device, broker: Mosquitto, tmp_path: Path
) -> None:
    """The next bridge removes the meter's components, and clears what was told of the device."""
    solar = device.pm.add_meter("edge", "solar").id
    for meter_id in (device.battery, solar):
        device.pm.log_power(meter_id, 10.0, 1.0)
    device.pm.register_device("gate", "Gate")
    device.pm.log_power(device.pm.add_meter("gate", "main").id, 10.0, 1.0)
    gate = "homeassistant/device/power__gate/config"
    arguments = ("publish", "--db", device.path, "--broker", broker.url, "--name", "here")
    with Listener(broker, "homeassistant/#") as listener:
        with bridge(*arguments, log=tmp_path / "log"):
            listener.wait(lambda: {CONFIG, gate} <= listener.latest().keys())
        device.pm.delete_meter(solar)
        device.pm.delete_device("gate")
        with bridge(*arguments, log=tmp_path / "log"):
            listener.wait(lambda: len(listener.of(CONFIG)) > 1 and listener.latest()[gate] == b"")
        stubs = {
            key
            for key, component in json.loads(listener.latest()[CONFIG])["components"].items()
            if len(component) == 1
        }
    assert stubs
    assert all(key.startswith(f"{solar}__") for key in stubs)


def test_home_assistant_that_starts_is_told_again(
    device: Device, broker: Mosquitto, tmp_path: Path
) -> None:
    """Its birth message has everything sent once more; without discovery it is told nothing, and
    unlearns it.
    """
    device.pm.log_power(device.battery, 10.0, 1.0)
    arguments = ("publish", "--db", device.path, "--broker", broker.url, "--name", "here")
    with Listener(broker, "homeassistant/device/#") as listener:
        with bridge(*arguments, log=tmp_path / "log"):
            listener.wait(lambda: listener.of(CONFIG))
            listener.publish("homeassistant/status", b"online")
            listener.wait(lambda: len(listener.of(CONFIG)) == 2)
        assert len(set(listener.of(CONFIG))) == 1
        with bridge(*arguments, "--no-discovery", log=tmp_path / "log"):
            listener.wait(lambda: listener.of(CONFIG)[-1] == b"")


def test_another_discovery_prefix(device: Device, broker: Mosquitto, tmp_path: Path) -> None:
    """Home Assistant's own setting can be another."""
    device.pm.log_power(device.battery, 10.0, 1.0)
    arguments = ("--db", device.path, "--broker", broker.url, "--discovery-prefix", "ha/")
    with (
        Listener(broker, "ha/#") as listener,
        bridge("publish", *arguments, log=tmp_path / "log"),
    ):
        listener.wait(lambda: listener.of("ha/device/power__edge/config"))
        message = json.loads(listener.of("ha/device/power__edge/config")[0])
    assert message["components"].keys() >= {"consumption", "event"}


def test_whole_message_is_what_discovery_makes(device: Device) -> None:
    """The bridge sends what device_message() makes, whole."""
    device.log(10.0, 60.0)
    wire = Wire(device)
    wire.publisher.handle(Up("5"))
    wire.publisher.handle(Arrived("power/bridge/here/availability", b"online", False))
    wire.tick()
    (payload,) = (payload for topic, payload in wire.sent if topic == CONFIG)
    site = wire.publisher.parts[-1]._site  # type: ignore[attr-defined]

    expected = device_message(site, device.pm.get_device("edge"), device.pm.list_meters("edge"))

    assert json.loads(payload) == expected
