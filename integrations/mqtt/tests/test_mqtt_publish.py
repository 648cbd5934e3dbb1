"""`power-mqtt publish` on a real mosquitto: what it says of a file, and when."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from mosquitto import Listener, Mosquitto
from world import bridge

from power_manager import PowerManager, PowerMeter


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A path for a file."""
    return tmp_path / "power.db"


@pytest.fixture
def pm(db: Path) -> PowerManager:
    """A file with one device."""
    pm = PowerManager(db)
    pm.register_device("edge-001", "Edge Node")
    return pm


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
        offline = ["power/bridge/here/availability", "power/edge-001/availability"]
        listener.wait(lambda: all(listener.latest()[topic] == b"offline" for topic in offline))
    assert json.loads(listener.of(state)[0])["wattage"] == 6.0
    assert json.loads(listener.of("power/edge-001/totals")[0])["runtime_hours"] == 6.67
    assert json.loads(listener.of("power/edge-001/event")[0])["id"] == event.id
