"""`power-mqtt publish` on a real mosquitto: what it says of a file, and when."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mosquitto import Listener, Mosquitto, number_of, reserved_port
from power_mqtt import __version__
from world import PYTHONPATH, Bridge, bridge, power_mqtt

from power_manager import PowerManager, PowerMeter, not_installed


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A path for a file."""
    return tmp_path / "power.db"


@pytest.fixture
def pm(db: Path) -> Iterator[PowerManager]:
    """A file with one device."""
    with PowerManager(db) as pm:
        pm.register_device("edge-001", "Edge Node")
        yield pm


@pytest.fixture
def battery(pm: PowerManager) -> PowerMeter:
    """Its battery, which has been read once."""
    meter = pm.add_meter("edge-001", "battery", capacity_wh=50.0, name="Pack")
    pm.log_power(meter.id, 12.0, 0.5, 80.0)
    return pm.get_meter(meter.id)


def test_a_device_is_published_while_the_bridge_runs_and_offline_after_it(
    pm: PowerManager, battery: PowerMeter, db: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """State and totals are JSON, events follow, and SIGTERM says goodbye in order."""
    log = tmp_path / "log"
    state = f"power/edge-001/{battery.id}/state"
    with Listener(broker, "power/#") as listener:
        arguments = ("publish", "--db", db, "--broker", broker.url, "--name", "here")
        with bridge(*arguments, log=log) as running:
            listener.wait(lambda: {state, "power/edge-001/totals"} <= listener.latest().keys())
            event = pm.trigger_event("edge-001", "shutdown", note="Bye")
            listener.wait(lambda: listener.of("power/edge-001/event"))
            assert running.end(signal.SIGTERM) == 0, running.log()
            assert "older value" not in running.log()
        offline = ["power/bridge/here/availability", "power/edge-001/availability"]
        listener.wait(lambda: all(listener.latest()[topic] == b"offline" for topic in offline))
    assert json.loads(listener.of(state)[0])["wattage"] == 6.0
    assert json.loads(listener.of("power/edge-001/totals")[0])["runtime_hours"] == 6.67
    assert json.loads(listener.of("power/edge-001/event")[0])["id"] == event.id


@pytest.fixture
def listener(broker: Mosquitto) -> Iterator[Listener]:
    """A client that hears everything."""
    with Listener(broker, "#") as made:
        yield made


def arguments(db: Path, broker: Mosquitto, *more: object) -> tuple[object, ...]:
    """The command line of a bridge called `here`."""
    return ("publish", "--db", db, "--broker", broker.url, "--name", "here", *more)


def shown(listener: Listener, topic: str) -> Any:
    """The latest JSON of a topic."""
    return json.loads(listener.latest()[topic])


HERE_TOPIC = "power/bridge/here/availability"


# --- Silence and change


def test_nothing_is_published_while_nothing_changes(
    pm: PowerManager, battery: PowerMeter, db: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Although the file is written to: the same values again, and an import of old ones."""
    with (
        Listener(broker, "power/#") as listener,
        bridge(*arguments(db, broker, "--interval", "0"), log=tmp_path / "log"),
    ):
        listener.wait(lambda: "power/edge-001/totals" in listener.latest())
        count = len(listener.of(f"power/edge-001/{battery.id}/state"))
        for _ in range(3):
            pm.log_power(battery.id, 12.0, 0.5, 80.0)
            pm.log_power(battery.id, 99.0, 9.0, 80.0, timestamp=time.time() - 86400)
        last = pm.trigger_event("edge-001", "restore")  # what comes after it was seen after it
        listener.wait(lambda: last.id.encode() in b"".join(listener.of("power/edge-001/event")))
        pm.log_power(battery.id, 12.0, 0.6, 80.0)
        listener.wait(
            lambda: shown(listener, f"power/edge-001/{battery.id}/state")["wattage"] == 7.2
        )
        assert len(listener.of(f"power/edge-001/{battery.id}/state")) == count + 1


def test_a_meter_is_published_once_an_interval_and_the_latest_state_at_the_end(
    pm: PowerManager,
    battery: PowerMeter,
    db: Path,
    broker: Mosquitto,
    listener: Listener,
    tmp_path: Path,
) -> None:
    """A long interval is not waited for by SIGTERM: what is retained is what was measured last."""
    state = f"power/edge-001/{battery.id}/state"
    with bridge(*arguments(db, broker, "--interval", "1h"), log=tmp_path / "log") as running:
        listener.wait(lambda: state in listener.latest())
        pm.log_power(battery.id, 12.0, 1.0, 70.0)
        pm.register_device("edge-002", "Seen by a later look")
        listener.wait(lambda: "power/edge-002/availability" in listener.latest())
        assert len(listener.of(state)) == 1
        assert running.end() == 0
    listener.wait(lambda: shown(listener, state)["charge_pct"] == 70.0)


# --- What is gone


def test_what_is_deleted_is_cleared(
    pm: PowerManager,
    battery: PowerMeter,
    db: Path,
    broker: Mosquitto,
    listener: Listener,
    tmp_path: Path,
) -> None:
    """A meter's state with the meter, and all of a device with the device; a newcomer sees
    neither.
    """
    pm.register_device("edge-002", "Other")
    solar = pm.add_meter("edge-002", "solar")
    pm.log_power(solar.id, 20.0, 1.0)
    with bridge(*arguments(db, broker, "--interval", "0"), log=tmp_path / "log"):
        listener.wait(
            lambda: {"power/edge-001/energy", "power/edge-002/energy"} <= listener.latest().keys()
        )
        pm.delete_meter(battery.id)
        listener.wait(lambda: listener.latest()[f"power/edge-001/{battery.id}/state"] == b"")
        assert listener.latest()["power/edge-001/availability"] != b""
        pm.delete_device("edge-002")
        gone = [
            f"power/edge-002/{solar.id}/state",
            "power/edge-002/totals",
            "power/edge-002/energy",
            "power/edge-001/energy",
            "power/edge-002/availability",
        ]
        listener.wait(lambda: all(listener.latest()[topic] == b"" for topic in gone))
        with Listener(broker, "power/#") as newcomer, Listener(broker) as other:
            other.publish("power/end", b"")
            newcomer.wait(lambda: "power/end" in newcomer.latest())
            assert set(newcomer.latest()) == {
                HERE_TOPIC,
                "power/edge-001/availability",
                "power/end",
            }


def test_what_was_deleted_while_no_bridge_ran_is_cleared_by_the_next(
    pm: PowerManager,
    battery: PowerMeter,
    db: Path,
    broker: Mosquitto,
    listener: Listener,
    tmp_path: Path,
) -> None:
    """It knows from the file what the last one had published, also under another prefix."""
    with bridge(*arguments(db, broker, "--prefix", "old"), log=tmp_path / "log") as running:
        listener.wait(lambda: "old/edge-001/totals" in listener.latest())
        running.process.kill()
        running.process.wait()
    pm.delete_device("edge-001")
    with bridge(*arguments(db, broker, "--interval", "0"), log=tmp_path / "log"):
        listener.wait(
            lambda: (
                {
                    payload
                    for topic, payload in listener.latest().items()
                    if topic.startswith("old/")
                }
                == {b""}
            )
        )
        listener.wait(lambda: listener.latest().get(HERE_TOPIC) == b"online")


def test_a_device_that_is_left_out_is_not_published(
    pm: PowerManager,
    battery: PowerMeter,
    db: Path,
    broker: Mosquitto,
    listener: Listener,
    tmp_path: Path,
) -> None:
    """Nor are its events; one that is not there yet is published when it is."""
    pm.register_device("edge-002", "Other")
    options = ("--device", "edge-002", "--device", "edge-003")
    with bridge(
        *arguments(db, broker, "--interval", "0", *options), log=tmp_path / "log"
    ) as running:
        running.wait_for("edge-003: no such device yet")
        pm.trigger_event("edge-001", "restore")
        pm.trigger_event("edge-002", "restore")
        pm.register_device("edge-003", "Late")
        listener.wait(
            lambda: (
                {"power/edge-002/event", "power/edge-003/availability"} <= listener.latest().keys()
            )
        )
    assert not [topic for topic in listener.latest() if topic.startswith("power/edge-001")]


# --- Who is there


@pytest.mark.parametrize(
    ("options", "topic"),
    [((), HERE_TOPIC), (("--device", "edge-001"), "power/edge-001/availability")],
    ids=["all devices", "one device"],
)
def test_a_killed_bridge_is_offline_by_its_last_will(
    pm: PowerManager,
    battery: PowerMeter,
    db: Path,
    broker: Mosquitto,
    listener: Listener,
    tmp_path: Path,
    options: tuple[str, ...],
    topic: str,
) -> None:
    """Of a bridge for one device it is the device's own topic."""
    with bridge(*arguments(db, broker, *options), log=tmp_path / "log") as running:
        listener.wait(lambda: listener.latest().get(topic) == b"online")
        running.process.kill()
        listener.wait(lambda: listener.latest()[topic] == b"offline")


def test_a_last_will_that_comes_late_is_contradicted(
    pm: PowerManager,
    battery: PowerMeter,
    db: Path,
    broker: Mosquitto,
    listener: Listener,
    tmp_path: Path,
) -> None:
    """After a power cut the broker may miss the old connection only when the new one is there."""
    with bridge(*arguments(db, broker), log=tmp_path / "log"):
        listener.wait(lambda: listener.latest().get(HERE_TOPIC) == b"online")
        listener.publish(HERE_TOPIC, b"offline", retain=True)
        listener.wait(lambda: listener.of(HERE_TOPIC)[-2:] == [b"offline", b"online"])


def test_a_silent_device_is_offline_and_not_contradicted(
    pm: PowerManager,
    battery: PowerMeter,
    db: Path,
    broker: Mosquitto,
    listener: Listener,
    tmp_path: Path,
) -> None:
    """After --expire, and online again with its next reading; its own topic has the last will
    here.

    The readings' times are to come, so that they are new whenever the bridge looks.
    """
    topic = "power/edge-001/availability"
    options = ("--device", "edge-001", "--expire", "2s")

    def log(hours: int) -> None:
        at = time.time() + hours * 3600
        pm.log_power(battery.id, 12.0, 0.5, 80.0, timestamp=at, live=True)

    log(1)
    with bridge(*arguments(db, broker, *options), log=tmp_path / "log"):
        listener.wait(lambda: b"online" in listener.of(topic))
        listener.wait(lambda: listener.latest()[topic] == b"offline")
        log(2)
        listener.wait(lambda: listener.latest()[topic] == b"online")
    payloads = listener.of(topic)
    assert payloads[-3:] != [b"offline"] * 3


# --- The broker


def test_a_broker_that_forgot_everything_is_told_everything(
    pm: PowerManager, battery: PowerMeter, db: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Killed without a disk of its own; events of meanwhile come too."""
    with bridge(*arguments(db, broker), log=tmp_path / "log") as running:
        running.wait_for("connected")
        broker.kill()
        running.wait_for("trying again")
        events = [pm.trigger_event("edge-001", "restore", value).id for value in range(250)]
        pm.log_power(battery.id, 12.0, 2.0, 60.0)
        broker.start()
        with Listener(broker, "power/#") as listener:
            listener.wait(lambda: len(listener.of("power/edge-001/event")) >= 250)
            listener.wait(lambda: "power/edge-001/totals" in listener.latest())
            assert [
                json.loads(payload)["id"] for payload in listener.of("power/edge-001/event")
            ] == events
            assert shown(listener, f"power/edge-001/{battery.id}/state")["wattage"] == 24.0
            assert listener.latest()[HERE_TOPIC] == b"online"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_end_is_clean_without_a_broker(
    pm: PowerManager, db: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Nobody listens there; nothing ends it by force, and Ctrl-C has a code of its own."""
    with reserved_port() as port:
        words = ("publish", "--db", db, "--broker", f"mqtt://127.0.0.1:{number_of(port)}")
        with bridge(*words, log=tmp_path / "log") as running:
            running.wait_for("Connection refused")
            assert running.end(number) == (130 if number == signal.SIGINT else 0), running.log()
    assert "Traceback" not in running.log()


def test_the_end_comes_by_force_from_a_locked_file_and_a_frozen_broker(
    pm: PowerManager,
    battery: PowerMeter,
    db: Path,
    broker: Mosquitto,
    listener: Listener,
    tmp_path: Path,
) -> None:
    """Both at once: the cursor cannot be written, and nothing is acknowledged.

    It does not wait until the lock is given up as an error, ten seconds later.
    """
    with bridge(*arguments(db, broker), log=tmp_path / "log", hard_end=True) as running:
        listener.wait(lambda: "power/edge-001/energy" in listener.latest())
        lock = sqlite3.connect(db, isolation_level=None)
        broker.freeze()  # until the file is locked the event is not acknowledged
        pm.trigger_event("edge-001", "restore")
        lock.execute("BEGIN IMMEDIATE")
        broker.thaw()
        listener.wait(lambda: listener.of("power/edge-001/event"))
        broker.wait_for("Sending PUBACK to power", after="'power/edge-001/event'")
        broker.freeze()
        assert running.end() == 0, running.log()
        assert "locked" not in running.log()
        lock.execute("ROLLBACK")
        lock.close()
        broker.thaw()
        listener.wait(lambda: listener.latest()[HERE_TOPIC] == b"offline")  # by the last will
    with bridge(*arguments(db, broker), log=tmp_path / "log"):
        listener.wait(lambda: len(listener.of("power/edge-001/event")) == 2)
    first, second = listener.of("power/edge-001/event")
    assert json.loads(first)["id"] == json.loads(second)["id"]


# --- The file


def test_another_file_in_its_place_ends_the_bridge(
    pm: PowerManager,
    battery: PowerMeter,
    db: Path,
    broker: Mosquitto,
    listener: Listener,
    tmp_path: Path,
) -> None:
    """With a word: a supervisor starts it again on the new one; the broker publishes the last
    will.
    """
    with bridge(*arguments(db, broker), log=tmp_path / "log") as running:
        listener.wait(lambda: listener.latest().get(HERE_TOPIC) == b"online")
        with PowerManager(tmp_path / "other.db"):
            pass
        os.replace(tmp_path / "other.db", db)
        assert running.wait() == 1
    assert running.log().endswith(
        f"power-mqtt: {db} was moved, deleted or replaced: start again on the new file\n"
    )
    listener.wait(lambda: listener.latest()[HERE_TOPIC] == b"offline")


def test_a_restored_backup_is_followed(
    pm: PowerManager,
    battery: PowerMeter,
    db: Path,
    broker: Mosquitto,
    listener: Listener,
    tmp_path: Path,
) -> None:
    """What the backup does not have is cleared, what it has is published, and its events are new
    ones.
    """
    with bridge(*arguments(db, broker, "--interval", "0"), log=tmp_path / "log") as running:
        listener.wait(lambda: "power/edge-001/totals" in listener.latest())
        pm.backup(tmp_path / "backup.db")
        pm.register_device("edge-002", "Other")
        listener.wait(lambda: listener.latest().get("power/edge-002/availability") == b"offline")
        before = pm.trigger_event("edge-001", "restore")
        listener.wait(lambda: len(listener.of("power/edge-001/event")) == 1)
        pm.restore(tmp_path / "backup.db")
        after = pm.trigger_event("edge-001", "restore")
        listener.wait(lambda: len(listener.of("power/edge-001/event")) == 2)
        listener.wait(lambda: listener.latest()["power/edge-002/availability"] == b"")
        events = [json.loads(payload) for payload in listener.of("power/edge-001/event")]
        assert [event["id"] for event in events] == [before.id, after.id]
        assert events[0]["sequence"] == events[1]["sequence"]
        assert events[0]["file_id"] != events[1]["file_id"]
        assert "a backup was restored into it" in running.log()
    assert pm.check() == []


@pytest.mark.slow
def test_a_locked_file_is_a_trouble_that_passes(
    pm: PowerManager,
    battery: PowerMeter,
    db: Path,
    broker: Mosquitto,
    listener: Listener,
    tmp_path: Path,
) -> None:
    """It is said once; what the broker took over meanwhile is not sent twice."""
    lock = sqlite3.connect(db, isolation_level=None)
    with bridge(*arguments(db, broker, "--interval", "0"), log=tmp_path / "log") as running:
        listener.wait(lambda: "power/edge-001/energy" in listener.latest())
        broker.freeze()  # until the file is locked the event is not acknowledged
        pm.trigger_event("edge-001", "restore")
        lock.execute("BEGIN IMMEDIATE")
        broker.thaw()
        listener.wait(lambda: listener.of("power/edge-001/event"))
        running.wait_for("trying again")
        lock.execute("ROLLBACK")
        lock.close()
        pm.log_power(battery.id, 12.0, 3.0, 60.0)
        listener.wait(
            lambda: shown(listener, f"power/edge-001/{battery.id}/state")["wattage"] == 36.0
        )
        pm.trigger_event("edge-001", "restore")
        listener.wait(lambda: len(listener.of("power/edge-001/event")) == 2)
    assert running.log().count("trying again") == 1


# --- Many


@pytest.mark.slow
def test_two_hundred_devices_are_published(db: Path, broker: Mosquitto, tmp_path: Path) -> None:
    """With ids of all kinds, three meters each; then all of them are deleted."""
    odd = ["a/b", "a+b", "#", "Büro 2", "中文", "bridge", "100%", "100%25"]
    device_ids = odd + [f"edge-{number:03}" for number in range(200 - len(odd))]
    with PowerManager(db, durability="normal") as pm:
        with pm.transaction():
            for device_id in device_ids:
                pm.register_device(device_id, device_id)
                for kind in ("battery", "main", "solar"):
                    pm.log_power(pm.add_meter(device_id, kind).id, 12.0, 1.0, 80.0)
        with Listener(broker, "power/#") as listener:
            with bridge(*arguments(db, broker), log=tmp_path / "log") as running:
                listener.wait(lambda: len(listener.latest()) == 1 + 200 * (1 + 3 + 1 + 1))
                with pm.transaction():
                    events = [pm.trigger_event(device_id, "restore").id for device_id in device_ids]
                listener.wait(lambda: len(listener.messages) == 1 + 200 * 7)
                came = [
                    json.loads(payload)
                    for topic, payload in listener.messages
                    if topic.endswith("/event")
                ]
                assert [event["id"] for event in came] == events
                assert running.end() == 0
            listener.wait(lambda: list(listener.latest().values()).count(b"offline") == 201)
            with pm.transaction():
                for device_id in device_ids:
                    pm.delete_device(device_id)
            with bridge(*arguments(db, broker), log=tmp_path / "log") as running:
                left = {HERE_TOPIC: b"online"}
                listener.wait(
                    lambda: (
                        {
                            topic: payload
                            for topic, payload in listener.latest().items()
                            if payload and not topic.endswith("/event")
                        }
                        == left
                    )
                )
                running.end()
            with pm.connection() as connection:
                wait_sql = "SELECT topic FROM mqtt_topics"
                assert connection.execute(wait_sql).fetchall() == [(HERE_TOPIC,)]


# --- The command line


def test_a_dry_run_prints_what_would_be_published_and_stores_nothing(
    pm: PowerManager, battery: PowerMeter, db: Path
) -> None:
    """It needs no broker, and leaves the file as it is."""
    version = pm.data_version()
    ran = power_mqtt("publish", "--db", db, "--dry-run", "--name", "here")
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert lines[:4] == [
        "This bridge",
        "  power/bridge/here/availability online",
        "Edge Node (edge-001)",
        "  power/edge-001/availability online",
    ]
    assert lines[4].startswith(f'  power/edge-001/{battery.id}/state {{"name":"Pack"')
    assert lines[-1] == "6 messages to be retained, 0 events, 0 topics to clear; nothing was sent"
    with pm.connection() as connection:
        sql = "SELECT count(*) FROM sqlite_master WHERE name LIKE 'mqtt%'"
        assert connection.execute(sql).fetchone() == (0,)
    assert pm.data_version() == version


def test_a_dry_run_shows_the_events_that_wait(
    pm: PowerManager, battery: PowerMeter, db: Path, broker: Mosquitto, tmp_path: Path
) -> None:
    """Those after the cursor of this bridge."""
    with bridge(*arguments(db, broker), log=tmp_path / "log") as running:
        running.wait_for("connected")
    event = pm.trigger_event("edge-001", "shutdown", note="two\nlines \x1b[31m")
    ran = power_mqtt("publish", "--db", db, "--dry-run", "--name", "here")
    assert event.id in ran.stdout
    assert "\x1b" not in ran.stdout
    assert ", 1 events, " in ran.stdout


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ((), 2, "usage: "),
        (("publsh",), 2, "unknown command 'publsh'"),
        (("publish", "--db", "none.db", "--broker", "mqtt://b"), 1, "none.db: no such file"),
        (("publish", "--broker", "nats://b"), 2, "expected mqtt://"),
        (("publish", "--prefix", "a/#"), 2, "expected levels of a topic"),
        (("publish", "--min-change", "-1"), 2, "--min-change"),
        (("publish", "--expire", "0"), 2, "--expire"),
        (("publish", "--device", " "), 2, "--device"),
        (("publish", "--brokr", "x"), 2, "--broker"),
        (("--version",), 0, ""),
    ],
)
def test_wrong_usage_is_answered_in_words(
    words: tuple[str, ...], code: int, expected: str, tmp_path: Path
) -> None:
    """With the exit codes of all command lines here."""
    ran = power_mqtt(*words, env={"POWER_MANAGER_DB": str(tmp_path / "none.db")})
    assert ran.returncode == code, ran.stderr
    assert expected in ran.stderr
    assert "Traceback" not in ran.stderr


def test_without_a_broker_it_is_wrong_usage(pm: PowerManager, db: Path) -> None:
    """It names the option and the variable."""
    ran = power_mqtt("publish", "--db", db, env={"POWER_MQTT_BROKER": ""})
    assert ran.returncode == 2
    assert "--broker: name the broker" in ran.stderr
    assert "$POWER_MQTT_BROKER" in ran.stderr


def without_paho(*words: object) -> subprocess.CompletedProcess[str]:
    """The command line where the package is not installed."""
    program = (
        "import sys; sys.modules['paho'] = None; from power_mqtt.cli import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("words", [["publish"], ["subscribe", "--map", "tasmota"], ["sniff", "#"]])
def test_without_paho_it_says_what_to_install(
    pm: PowerManager, db: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name in the registry, and the extra that brings it."""
    monkeypatch.setenv("POWER_MANAGER_DB", str(db))
    ran = without_paho(*words, "--broker", "mqtt://127.0.0.1")
    assert ran.returncode == 1
    assert ran.stderr == f"power-mqtt: {not_installed('paho.mqtt.client', 'mqtt')}\n"


def test_what_needs_no_broker_needs_no_paho(pm: PowerManager, db: Path) -> None:
    """The version, the help, and what would be published."""
    assert without_paho("--version").stdout == f"power-mqtt {__version__}\n"
    assert "--discovery-prefix" in without_paho("help", "publish").stdout
    assert "nothing was sent" in without_paho("publish", "--db", db, "--dry-run").stdout


def test_a_bridge_runs_as_a_class_for_other_tests(db: Path, tmp_path: Path) -> None:
    """It ends by itself where there is no file."""
    running = Bridge("publish", "--db", db, "--broker", "mqtt://b", log=tmp_path / "log")
    assert running.wait() == 1
