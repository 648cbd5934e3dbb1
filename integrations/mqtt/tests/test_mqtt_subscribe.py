"""`power-mqtt subscribe` and `sniff` on a real mosquitto: what devices publish is in the file, once
and whole.
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mosquitto import PATIENCE, Listener, Mosquitto
from power_mqtt import subscribe
from power_mqtt.intake import Intake
from power_mqtt.mapping import load_map, parse_map
from power_mqtt.notices import Arrived, Inbox, Notice, Stop
from power_mqtt.sniff import Heard, propose
from power_mqtt.subscribe import Asker, Pace, run_intake
from world import bridge, power_mqtt

from power_manager import PowerManager, PowerReading, to_microseconds

TIMED = """
[[topic]]
filter = "site/{device}/power"
device = "{device}"
meter = "battery"
time = "t"
values = { voltage = "v", current = "a", charge = "soc" }
"""


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A path for a file."""
    return tmp_path / "power.db"


@pytest.fixture
def timed(tmp_path: Path) -> Path:
    """A map whose messages say their time."""
    path = tmp_path / "timed.toml"
    path.write_text(TIMED)
    return path


def arguments(db: Path, broker: Mosquitto, map_: object, *more: object) -> tuple[object, ...]:
    """The command line of a subscriber."""
    return ("subscribe", "--db", db, "--broker", broker.url, "--map", map_, *more)


def persistent(folder: Path) -> Mosquitto:
    """A broker that keeps its sessions when it ends."""
    settings = ("allow_anonymous true", "persistence true", f"persistence_location {folder}/")
    return Mosquitto(folder, settings=settings)


def history(db: Path) -> dict[str, list[PowerReading]]:
    """Every reading of a file, by device and meter's name."""
    with PowerManager(db) as pm:
        return {
            f"{meter.device_id}/{meter.name or meter.type}": list(pm.iter_history(meter.id))
            for meter in pm.list_meters()
        }


def wait_until(is_true: Callable[[], object]) -> None:
    """Return when it is; the file has no bell."""
    end = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_a_device_publishes_is_in_the_file(
    db: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Device and meter are registered on the way; SIGTERM stores what waits and ends with 0."""
    log = tmp_path / "log"
    with (
        bridge(*arguments(db, broker, "tasmota", "--map", "opendtu"), log=log) as running,
        Listener(broker) as device,
    ):
        running.wait_for("listening")
        device.publish(
            "tele/fridge/SENSOR", b'{"ENERGY": {"Power": 46, "Voltage": 230, "Current": 0.4}}'
        )
        for word, value in (("voltage", b"230"), ("current", b"1.2"), ("power", b"230")):
            device.publish(f"solar/1141/0/{word}", value)
        device.publish("tele/door/SENSOR", b'{"Switch1": "ON"}')
        device.publish("tele/odd/SENSOR", b"not JSON")
        device.publish("tele/odd/SENSOR", b"not JSON")
        running.wait_for("not understood")
        assert running.end(signal.SIGTERM) == 0, running.log()
    found = history(db)
    assert {name: len(rows) for name, rows in found.items()} == {"fridge/main": 1, "1141/AC": 1}
    assert found["fridge/main"][0].wattage == 46.0
    assert found["1141/AC"][0].wattage == 230.0
    text = log.read_text()
    assert text.count("not understood: tele/odd/SENSOR: it is not JSON") == 1
    assert "2 stored" in text
    assert "2 not understood" in text


def test_what_waits_for_its_window_is_stored_at_the_end(
    db: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Volts whose amperes have not come yet are a reading too."""
    path = tmp_path / "slow.toml"
    path.write_text(
        "".join(
            f'[[topic]]\nfilter = "{word}"\ndevice = "d"\nmeter = "main"\njoin = "1h"\n'
            f'values = {{ {word} = "" }}\n'
            for word in ("voltage", "current")
        )
    )
    with bridge(*arguments(db, broker, path), log=tmp_path / "log") as running:
        wait_until(lambda: running.log().count("listening") == 2)
        with Listener(broker) as device:
            device.publish("voltage", b"12")
            device.publish("current", b"what?")
        running.wait_for("not understood")
        assert running.end() == 0, running.log()
    assert [reading.voltage for reading in history(db)["d/main"]] == [12.0]


def test_retained_messages_are_old_news(
    db: Path, broker: Mosquitto, tmp_path: Path, timed: Path
) -> None:
    """Without a time of their own they are not stored; with one they are, at that time."""
    with Listener(broker) as device:
        device.publish("tele/fridge/SENSOR", b'{"ENERGY": {"Power": 46}}', retain=True)
        device.publish(
            "site/buoy/power", b'{"t": 1700000000, "v": 4, "a": 1, "soc": 50}', retain=True
        )
        with bridge(
            *arguments(db, broker, "tasmota", "--map", timed), log=tmp_path / "log"
        ) as running:
            running.wait_for("listening")
            device.publish("tele/lamp/SENSOR", b'{"ENERGY": {"Power": 23}}')
            device.publish("tele/odd/SENSOR", b"end")
            running.wait_for("not understood")
            assert running.end() == 0
    found = history(db)
    assert set(found) == {"lamp/main", "buoy/battery"}
    assert found["buoy/battery"][0].timestamp == "2023-11-14T22:13:20.000000+00:00"
    assert "1 retained" in (tmp_path / "log").read_text()


def test_a_low_charge_is_stored_at_once(
    db: Path, broker: Mosquitto, tmp_path: Path, timed: Path
) -> None:
    """With an hour between two commits."""
    words = arguments(db, broker, timed, "--commit-every", "1h")
    with bridge(*words, log=tmp_path / "log") as running, Listener(broker) as device:
        running.wait_for("listening")
        now = time.time()
        device.publish(
            "site/buoy/power", json.dumps({"t": now, "v": 4, "a": 1, "soc": 50}).encode()
        )
        device.publish(
            "site/buoy/power", json.dumps({"t": now + 1, "v": 3, "a": 1, "soc": 4}).encode()
        )
        wait_until(lambda: history(db).get("buoy/battery"))
        with PowerManager(db) as pm:
            wait_until(lambda: pm.events_since(0))
            (event,) = [event for _, event in pm.events_since(0)]
        assert event.type == "low_battery"
        assert [reading.charge_pct for reading in history(db)["buoy/battery"]] == [50.0, 4.0]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("seed", range(2))
def test_kills_lose_nothing_that_the_broker_held(
    db: Path, tmp_path: Path, timed: Path, seed: int, protocol: str
) -> None:
    """A ledger of all messages, over kills of the subscriber at random and while it is away."""
    chance = random.Random(seed)
    words = ("--commit-every", "0.05s", "--protocol", protocol)
    with (
        persistent(tmp_path / "mosquitto") as broker,
        Listener(broker) as device,
    ):
        log = tmp_path / "log"
        with bridge(*arguments(db, broker, timed, *words), log=log) as running:
            running.wait_for("listening")  # from here on the broker keeps a session
        sent = 0
        for _ in range(6):
            log = tmp_path / f"log{sent}"
            with bridge(*arguments(db, broker, timed, *words), log=log) as running:
                for _ in range(chance.randrange(10, 60)):
                    payload = {"t": 1_700_000_000 + sent, "v": 12, "a": 1, "soc": 80}
                    device.publish("site/buoy/power", json.dumps(payload).encode())
                    sent += 1
                if chance.random() < 0.7:
                    running.wait_for("listening")
                time.sleep(chance.random() * 0.2)  # the moment of the kill is what is tried out
                running.process.kill()
                running.process.wait()
        with bridge(*arguments(db, broker, timed, *words), log=tmp_path / "last") as running:
            running.wait_for("listening")
            wait_until(lambda: len(history(db).get("buoy/battery", [])) == sent)
            assert running.end() == 0, running.log()
    times = [reading.timestamp for reading in history(db)["buoy/battery"]]
    assert len(set(times)) == sent
    with PowerManager(db) as pm:
        assert pm.check() == []


def test_more_messages_than_a_broker_sends_ahead_all_come(
    db: Path, broker: Mosquitto, tmp_path: Path, timed: Path
) -> None:
    """With an hour between two commits: by 3.1.1 mosquitto stops after twenty without an
    acknowledgement.
    """
    words = arguments(db, broker, timed, "--commit-every", "1h", "--protocol", "3.1.1")
    with bridge(*words, log=tmp_path / "log") as running, Listener(broker) as device:
        running.wait_for("listening")
        for number in range(100):
            payload = {"t": 1_700_000_000 + number, "v": 12, "a": 1, "soc": 80}
            device.publish("site/buoy/power", json.dumps(payload).encode())
        # What is left is less than makes a commit.
        wait_until(lambda: len(history(db).get("buoy/battery", [])) > 100 - 16)
        assert running.end() == 0, running.log()
    # What had not come by then waits at the broker: the next one has it, and commits it at once.
    words = arguments(db, broker, timed, "--commit-every", "0.2s", "--protocol", "3.1.1")
    with bridge(*words, log=tmp_path / "again"):
        wait_until(lambda: len(history(db)["buoy/battery"]) == 100)


def test_another_file_in_its_place_ends_the_subscriber(
    db: Path, broker: Mosquitto, tmp_path: Path, timed: Path
) -> None:
    """A supervisor starts it again on the new one, which then has what the old one cannot take."""
    words = arguments(db, broker, timed, "--commit-every", "0.05s")
    payload = {"t": 1_700_000_000, "v": 12, "a": 1, "soc": 80}
    with Listener(broker) as device:
        with bridge(*words, log=tmp_path / "log") as running:
            running.wait_for("listening")
            with PowerManager(tmp_path / "other.db"):
                pass
            os.replace(tmp_path / "other.db", db)
            device.publish("site/buoy/power", json.dumps(payload).encode())
            assert running.wait() == 1
        assert running.log().endswith(
            f"power-mqtt: {db} was moved, deleted or replaced: start again on the new file\n"
        )
        with bridge(*words, log=tmp_path / "again"):
            wait_until(lambda: history(db).get("buoy/battery"))


def test_a_gx_device_is_asked_to_go_on(db: Path, broker: Mosquitto, tmp_path: Path) -> None:
    """At once where its portal is named, else once one of its topics has come."""
    words = arguments(db, broker, "victron", "--set", "portal=c0ffee")
    with (
        Listener(broker, "R/#") as gx,
        bridge(*words, log=tmp_path / "log") as running,
    ):
        gx.wait(lambda: gx.of("R/c0ffee/keepalive"))
        gx.publish("N/decaf/battery/512/Soc", b'{"value": 80}')
        gx.wait(lambda: gx.of("R/decaf/keepalive"))
        assert running.end() == 0


def test_a_dry_run_prints_and_stores_nothing(db: Path, broker: Mosquitto, tmp_path: Path) -> None:
    """Until Ctrl-C."""
    words = arguments(db, broker, "tasmota", "--dry-run")
    with bridge(*words, log=tmp_path / "log") as running, Listener(broker) as device:
        running.wait_for("listening")
        device.publish("tele/fridge/SENSOR", b'{"ENERGY": {"Power": 46, "Voltage": 230}}')
        running.wait_for("fridge  main  230 V  0.20 A  - %")
        assert running.end(signal.SIGINT) == 130
    assert not db.exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["subscribe", "--broker", "mqtt://127.0.0.1"], 2, "--map"),
        (
            ["subscribe", "--broker", "mqtt://127.0.0.1", "--map", "tasmotta"],
            1,
            "did you mean tasmota?",
        ),
        (["subscribe", "--map", "tasmota"], 2, "--broker: name the broker"),
        (
            ["subscribe", "--map", "tasmota", "--set", "portal"],
            2,
            "expected PART=VALUE, got 'portal'",
        ),
        (["sniff", "--broker", "mqtt://127.0.0.1", "a+/b"], 2, "expected a topic such as"),
    ],
)
def test_wrong_usage_says_what_would_do(words: list[str], code: int, message: str) -> None:
    """In one line after the usage, or alone."""
    ended = power_mqtt(*words)
    assert ended.returncode == code
    assert message in ended.stderr


# --- The intake by itself


def take(intake: Intake, topic: str, payload: bytes, receipt: int = 1) -> None:
    """One message that came now."""
    intake.take(Arrived(topic, payload, False, (1, receipt)), 0.0, 1_700_000_000_000_000)


def test_messages_are_acknowledged_in_order_and_after_the_commit() -> None:
    """One that waits for its window holds back those after it."""
    acknowledged: list[tuple[int, int]] = []
    with PowerManager(":memory:") as pm:
        intake = Intake(
            pm, [load_map("opendtu"), load_map("tasmota")], acknowledge=acknowledged.append
        )
        take(intake, "solar/1/0/voltage", b"230", 1)
        take(intake, "tele/fridge/SENSOR", b'{"ENERGY": {"Power": 46}}', 2)
        take(intake, "tele/fridge/SENSOR", b"what?", 3)
        assert acknowledged == []
        intake.commit()
        assert acknowledged == []
        intake.look(2.0)
        assert acknowledged == []
        intake.commit()
        assert acknowledged == [(1, 1), (1, 2), (1, 3)]
        assert intake.unacknowledged_count == 0


def test_what_a_broker_sends_again_after_a_lost_connection_is_stored_once() -> None:
    """What came by the old one is kept and committed; its repetition is acknowledged and left
    out.
    """
    acknowledged: list[tuple[int, int]] = []
    topic, payload = "tele/fridge/SENSOR", b'{"ENERGY": {"Power": 46}}'
    with PowerManager(":memory:") as pm:
        intake = Intake(pm, [load_map("tasmota")], acknowledge=acknowledged.append)
        intake.take(Arrived(topic, payload, False, (1, 1)), 0.0, 1_700_000_000_000_000)
        intake.cut_off()
        intake.commit()
        assert acknowledged == []
        intake.take(Arrived(topic, payload, False, (2, 1), True), 9.0, 1_700_000_009_000_000)
        intake.take(Arrived(topic, payload, False, (2, 2), False), 9.0, 1_700_000_009_000_001)
        intake.commit()
        assert acknowledged == [(2, 1), (2, 2)]
        (meter,) = pm.list_meters()
        assert len(list(pm.iter_history(meter.id))) == 2
    assert intake.counts["repeated"] == 1


def test_what_comes_again_before_the_commit_is_acknowledged_by_the_new_connection() -> None:
    """In the order in which messages came."""
    acknowledged: list[tuple[int, int]] = []
    topic, payload = "tele/fridge/SENSOR", b'{"ENERGY": {"Power": 46}}'
    with PowerManager(":memory:") as pm:
        intake = Intake(pm, [load_map("tasmota")], acknowledge=acknowledged.append)
        for number in (1, 2):
            take(intake, topic, payload, number)
        intake.cut_off()
        for number in (1, 2):
            again = Arrived(topic, payload, False, (2, number), True)
            intake.take(again, 9.0, 1_700_000_009_000_000)
        take(intake, topic, payload, 3)
        intake.commit()
        assert acknowledged == [(2, 1), (2, 2), (1, 3)]
        assert intake.counts["stored"] == 3


def test_a_lost_connection_neither_loses_nor_doubles(db: Path, tmp_path: Path) -> None:
    """The broker ends and comes back with its sessions; nothing is committed meanwhile."""
    with persistent(tmp_path / "mosquitto") as broker:
        words = arguments(db, broker, "tasmota", "--commit-every", "1h")
        with bridge(*words, log=tmp_path / "log") as running:
            running.wait_for("listening")
            with Listener(broker) as device:
                for watts in range(5):
                    device.publish("tele/fridge/SENSOR", b'{"ENERGY": {"Power": %d}}' % watts)
                device.publish("tele/odd/SENSOR", b"end")
                running.wait_for("not understood")
            broker.stop()
            running.wait_for("trying again")
            broker.start()
            wait_until(lambda: running.log().count("listening") == 2)
            with Listener(broker) as device:
                device.publish("tele/fridge/SENSOR", b'{"ENERGY": {"Power": 5}}')
                device.publish("tele/odd2/SENSOR", b"end")
                running.wait_for("not understood: tele/odd2")
            assert running.end() == 0, running.log()
    stored = [reading.wattage for reading in history(db)["fridge/main"]]
    assert stored == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert "6 repeated" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("charge_pct", [-1, 110.5, 255])
def test_a_charge_that_cannot_be_is_left_out(
    charge_pct: float, caplog: pytest.LogCaptureFixture
) -> None:
    """So gauges say that they do not know it: the last one stays, and nobody is alarmed."""
    with PowerManager(":memory:") as pm:
        intake = Intake(pm, [parse_map(TIMED, "m")], acknowledge=lambda _: None)
        for number, soc in enumerate((50, charge_pct, charge_pct, 105)):
            payload = {"t": 1_700_000_000 + number, "v": 12, "a": 1, "soc": soc}
            take(intake, "site/buoy/power", json.dumps(payload).encode())
        intake.commit()
        (meter,) = pm.list_meters()
        charges = [reading.charge_pct for reading in pm.iter_history(meter.id)]
        assert charges == [50.0, 50.0, 50.0, 100.0]
        assert pm.events_since(0) == []
    assert intake.counts["not plausible"] == 2
    said = f"not plausible: site/buoy/power: charge: expected 0 to 110 %, got {charge_pct:g}"
    assert caplog.text.count(said) == 1


def test_a_battery_whose_charge_nobody_says_has_none(tmp_path: Path) -> None:
    """Not the 100 % of a meter that somebody registers."""
    text = TIMED.replace(', charge = "soc"', "").replace("values", "capacity_wh = 1280\nvalues")
    with PowerManager(tmp_path / "power.db") as pm:
        intake = Intake(pm, [parse_map(text, "m")], acknowledge=lambda _: None)
        take(intake, "site/buoy/power", b'{"t": 1700000000, "v": 12, "a": 1}')
        intake.commit()
        (meter,) = pm.list_meters()
        assert (meter.type, meter.charge_pct, meter.capacity_wh) == ("battery", None, 1280.0)
        assert [reading.charge_pct for reading in pm.iter_history(meter.id)] == [None]
        assert pm.estimate_runtime("buoy") is None


NOW = 1_800_000_000  # of a machine whose clock is right, in epoch seconds


@pytest.mark.parametrize("at", [0, 946_684_799, NOW + 302, 4_000_000_000])
def test_a_time_of_a_clock_that_is_wrong_is_that_of_arrival(
    at: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A reading of the future would be the present state for years; it is said once."""
    with PowerManager(":memory:", clock=lambda: NOW + 10.0) as pm:
        intake = Intake(pm, [parse_map(TIMED, "m")], acknowledge=lambda _: None)
        for number, (t, soc) in enumerate(((at, 90), (at, 80), (NOW + 2, 3))):
            payload = json.dumps({"t": t, "v": 12, "a": 1, "soc": soc}).encode()
            arrived = Arrived("site/buoy/power", payload, False, (1, number))
            intake.take(arrived, 0.0, (NOW + number) * 1_000_000)
        intake.commit()
        (meter,) = pm.list_meters()
        times = [to_microseconds(one.timestamp) for one in pm.iter_history(meter.id)]
        assert times == [(NOW + second) * 1_000_000 for second in range(3)]
        assert meter.charge_pct == 3.0
        assert [event.type for _, event in pm.events_since(0)] == ["low_battery"]
    assert intake.counts["not plausible"] == 2
    assert caplog.text.count("not plausible: site/buoy/power: time: ") == 1


@pytest.mark.parametrize(("at", "now"), [(946_684_800, NOW), (NOW + 300, NOW), (NOW, 60)])
def test_any_other_time_is_taken(at: int, now: int) -> None:
    """A little ahead, old, or of a machine whose own clock has not been set yet."""
    (entry,) = parse_map(TIMED, "m").entries
    payload = json.dumps({"t": at, "v": 12, "a": 1, "soc": 50}).encode()
    measured = entry.measure("site/buoy/power", payload, now * 1_000_000)
    assert measured is not None
    assert (measured.at_us, measured.left_out) == (at * 1_000_000, [])


def test_a_retained_message_of_a_clock_that_is_wrong_is_of_unknown_age() -> None:
    """It is not stored: when it came to the broker nobody knows."""
    with PowerManager(":memory:") as pm:
        intake = Intake(pm, [parse_map(TIMED, "m")], acknowledge=lambda _: None)
        payload = b'{"t": 4000000000, "v": 12, "a": 1, "soc": 50}'
        intake.take(Arrived("site/buoy/power", payload, True), 0.0, NOW * 1_000_000)
        intake.commit()
        assert pm.list_meters() == []
    assert intake.counts["retained"] == 1


def test_readings_of_one_time_are_counted_where_only_one_is_stored() -> None:
    """A payload with whole seconds, twice in a second: the other one is not new."""
    with PowerManager(":memory:") as pm:
        intake = Intake(pm, [parse_map(TIMED, "m")], acknowledge=lambda _: None)
        for volts in (12, 13, 14):
            payload = {"t": 1_700_000_000, "v": volts, "a": 1, "soc": 80}
            take(intake, "site/buoy/power", json.dumps(payload).encode())
        intake.commit()
    assert intake.summary() == "3 messages, 1 stored, 2 of a time that is there"


class Away:
    """A connection to a broker that is away; what happens when it is asked the nth time."""

    def __init__(self, happens: dict[int, Callable[[], object]]) -> None:
        self._happens = happens
        self._count = 0

    def is_up(self) -> bool:
        """Never, and once a turn of the program's loop."""
        self._count += 1
        self._happens.get(self._count, lambda: None)()
        return False


def test_a_file_that_cannot_be_written_is_said_once_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tries every few seconds for a week would fill the rest of the disk.

    A table that is gone stands for a disk without room.
    """
    monkeypatch.setattr(subscribe, "_RETRY_S", 0.0)
    inbox: Inbox[Notice] = queue.SimpleQueue()
    with PowerManager(tmp_path / "power.db") as pm:
        maps = [load_map("tasmota")]
        intake = Intake(pm, maps, acknowledge=lambda _: None)

        def fill(name: str) -> None:
            inbox.put(Arrived(f"tele/{name}/SENSOR", b'{"ENERGY": {"Power": 1}}', False))
            with pm.connection() as conn:
                conn.execute("ALTER TABLE mqtt_sources RENAME TO elsewhere")

        def empty() -> None:
            with pm.connection() as conn:
                conn.execute("ALTER TABLE elsewhere RENAME TO mqtt_sources")

        fill("one")
        happens = {5: empty, 6: lambda: fill("two"), 10: empty, 11: lambda: inbox.put(Stop(0))}
        pace, asker = Pace(0.0, 0.0), Asker(maps, {}, lambda *_: None)
        assert run_intake(intake, Away(happens), inbox, pace, asker) == 0  # type: ignore[arg-type]
        assert {meter.device_id for meter in pm.list_meters()} == {"one", "two"}
    assert caplog.text.count("not stored yet, trying again") == 2


def test_a_value_out_of_bounds_costs_that_reading_only(caplog: pytest.LogCaptureFixture) -> None:
    """It is counted and said once, with the bounds."""
    with PowerManager(":memory:") as pm:
        intake = Intake(pm, [parse_map(TIMED, "m")], acknowledge=lambda _: None)
        for number, volts in enumerate((12, 1e9, 1e9, 11)):
            payload = {"t": 1_700_000_000 + number, "v": volts, "a": 1, "soc": 80}
            take(intake, "site/buoy/power", json.dumps(payload).encode())
        intake.commit()
        (meter,) = pm.list_meters()
        assert [reading.voltage for reading in pm.iter_history(meter.id)] == [12.0, 11.0]
    assert intake.counts["refused"] == 2
    assert caplog.text.count("refused: buoy/battery: ") == 1


def test_a_topic_that_anybody_invents_cannot_fill_the_file(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Beyond a number of meters no more are registered."""
    with PowerManager(":memory:") as pm:
        intake = Intake(pm, [load_map("tasmota")], acknowledge=lambda _: None, most_meters=10)
        for number in range(50):
            take(intake, f"tele/made-up-{number}/SENSOR", b'{"ENERGY": {"Power": 1}}')
        intake.commit()
        assert len(pm.list_meters()) == 10
    assert intake.counts["refused"] == 40
    assert "more than 10 meters" in caplog.text


def test_a_renamed_meter_is_found_again(tmp_path: Path) -> None:
    """And one that was deleted is registered again."""
    with PowerManager(tmp_path / "power.db") as pm:
        for name in ("Compressor", None):
            intake = Intake(pm, [load_map("tasmota")], acknowledge=lambda _: None)
            take(intake, "tele/fridge/SENSOR", b'{"ENERGY": {"Power": 1}}')
            intake.commit()
            (meter,) = pm.list_meters()
            if name:
                pm.update_meter(meter.id, name=name)
        assert meter.name == "Compressor"
        pm.delete_meter(meter.id)
        take(intake, "tele/fridge/SENSOR", b'{"ENERGY": {"Power": 1}}')
        intake.commit()
        (again,) = pm.list_meters()
        assert again.id != meter.id
        assert len(pm.get_history(again.id, hours=1e6)) == 1


def test_a_device_that_is_there_keeps_its_name() -> None:
    """Registration on the way changes nothing that somebody has set."""
    with PowerManager(":memory:") as pm:
        pm.register_device("fridge", "The big fridge", target_wh=900.0)
        intake = Intake(pm, [load_map("tasmota")], acknowledge=lambda _: None)
        take(intake, "tele/fridge/SENSOR", b'{"ENERGY": {"Power": 1}}')
        intake.commit()
        assert pm.get_device("fridge").name == "The big fridge"


# --- Sniff

TRAFFIC = [
    ("plugs/attic/power", b"46.5"),
    ("plugs/attic/voltage", b"230.1"),
    ("plugs/attic/online", b"true"),
    ("bms/1", b'{"pack": {"voltage": 51.2, "current": -3.5, "soc": 81, "cycles": 12}}'),
    ('odd "topic"/\\/x.y', b'{"a.b": {"watts": 5}, "v": 230}'),
    ("tele/fridge/SENSOR", b'{"ENERGY": {"Power": 46, "Voltage": 230, "ApparentPower": 90}}'),
    ("garage/sensor/battery_voltage/state", b"12.7"),
    ("weather/temperature", b"21.5"),
]


def test_a_proposed_map_works_on_what_it_was_made_of(
    db: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """What sniff prints, subscribe takes, and the values are in the file."""
    with Listener(broker) as device:
        with bridge(
            "sniff", "--broker", broker.url, "#", "--for", "1h", log=tmp_path / "sniffed"
        ) as sniffing:
            sniffing.wait_for("listening")
            for topic, payload in TRAFFIC:
                device.publish(topic, payload)
            sniffing.wait_for("weather/temperature")
            assert sniffing.end(signal.SIGINT) == 0, sniffing.log()
        text = sniffing.log()
        assert "# --map tasmota understands 1 of these 8 topics." in text
        mine = tmp_path / "mine.toml"
        mine.write_text(text[text.index("# --map") :])
        with bridge(*arguments(db, broker, mine), log=tmp_path / "log") as running:
            running.wait_for("listening")
            for topic, payload in TRAFFIC:
                device.publish(topic, payload)
            device.publish("plugs/attic/power", b"end")
            running.wait_for("not understood")
            assert running.end() == 0, running.log()
    found = {
        name: (rows[-1].voltage, rows[-1].wattage, rows[-1].charge_pct)
        for name, rows in history(db).items()
    }
    assert found == {
        "plugs/attic/main": (230.1, 46.5, 100.0),
        "bms/1/battery": (51.2, -179.2, 81.0),
        'odd "topic"/\\/x.y/main': (230.0, 5.0, 100.0),
        "tele/fridge/SENSOR/main": (230.0, 46.0, 100.0),
        "garage/sensor/main": (12.7, None, 100.0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("voltage", "voltage"),
        ("Voltage_A", "voltage"),
        ("GridVoltage", "voltage"),
        ("battery.voltage", "voltage"),
        ("Current", "current"),
        ("total_current", None),
        ("amps", "current"),
        ("output-power", "power"),
        ("apower", "power"),
        ("act_power", "power"),
        ("ApparentPower", None),
        ("PowerFactor", None),
        ("soc", "charge"),
        ("battery", "charge"),
        ("battery.charge", "charge"),
        ("energy_today", None),
        ("temperature", None),
        ("state", None),
        ("MaxCurrent", None),
    ],
)
def test_words_that_makers_use_are_understood(word: str, kind: str | None) -> None:
    """And what is no present value is left out."""
    heard = Heard(f"device/{word}")
    heard.take(b"12")
    assert list(heard.found) == ([] if kind is None else [kind])


def test_nothing_to_hear_is_1(broker: Mosquitto) -> None:
    """Said on standard error."""
    ended = power_mqtt("sniff", "--broker", broker.url, "no/such/topic", "--for", "0.5")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "nothing came" in ended.stderr


def test_any_topic_and_any_key_make_a_map_that_can_be_read() -> None:
    """Quotes, backslashes, dots, letters of any script, control characters."""
    strange = ['a"b', "a\\b", "a.b", "東京", "a\x7fb", "a\tb", "{x}", "a'b"]
    for word in strange:
        heard = Heard(f"top/{word}/x")
        heard.take(json.dumps({word: {"voltage": 12.0}}).encode())
        one = parse_map(propose([heard]), "proposed")
        (entry,) = one.entries
        measured = entry.measure(f"top/{word}/x", json.dumps({word: {"voltage": 12.0}}).encode())
        assert measured is not None, word
        assert measured.values == {"voltage": 12.0}
