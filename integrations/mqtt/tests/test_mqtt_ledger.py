"""No event is lost: bridge and broker are killed at random moments, and a ledger has every
event.
"""

from __future__ import annotations

import json
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mosquitto import Listener, Mosquitto
from world import Bridge

from power_manager import EventFollower, PowerManager

SEEDS = (1, 2, 3)
ROUNDS = 10


class Ledger:
    """What was recorded, and what has come."""

    def __init__(self, pm: PowerManager, listener: Listener) -> None:
        self._pm = pm
        self._listener = listener
        self.recorded: list[str] = []

    def record(self, count: int, rng: random.Random) -> None:
        """Record some events."""
        for _ in range(count):
            device_id = rng.choice(["a/1", "b 2", "中"])
            self.recorded.append(self._pm.trigger_event(device_id, "restore", rng.random()).id)

    def came(self) -> list[dict[str, Any]]:
        """The events that have come, in their order, also those that came twice."""
        return [
            json.loads(payload)
            for topic, payload in self._listener.messages
            if topic.endswith("/event")
        ]

    def came_count(self) -> int:
        """How many different ones."""
        return len({event["id"] for event in self.came()})


@pytest.mark.slow
def test_every_event_arrives_whoever_is_killed(tmp_path: Path) -> None:
    """In order, at least once, and told apart by its id; the states at the end are the latest.

    Three runs at the same time: most of it is waiting.
    """
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(run, tmp_path / str(seed), seed) for seed in SEEDS]
    for one in runs:
        one.result()


def run(folder: Path, seed: int) -> None:
    """Kill and start again, many times; no event may be missing."""
    rng = random.Random(seed)
    db, log = folder / "power.db", folder / "log"
    broker = Mosquitto(folder / "mosquitto")
    with PowerManager(db, durability="normal") as pm, broker:
        for device_id in ("a/1", "b 2", "中"):
            pm.register_device(device_id, device_id)
        meter = pm.add_meter("a/1", "battery", 50.0)
        # The broker writes a message to who listens at QoS 0 before it acknowledges it: what it had
        # acknowledged when it was killed is in the listener's socket.
        with Listener(broker, "power/#", qos=0) as listener:
            words = (
                "publish",
                "--db",
                db,
                "--broker",
                broker.url,
                "--name",
                "here",
                "--interval",
                "0",
            )
            running = Bridge(*words, log=log)
            try:
                running.wait_for(
                    "connected"
                )  # its cursor is set: a new bridge begins with what comes
                ledger = Ledger(pm, listener)
                for number in range(ROUNDS):
                    before = len(ledger.recorded)
                    ledger.record(rng.randrange(1, 300), rng)
                    pm.log_power(meter.id, 12.0, number, 90.0 - number)
                    enough = rng.randrange(before, len(ledger.recorded))
                    listener.wait(lambda enough=enough: ledger.came_count() >= enough)  # type: ignore[misc]
                    kills = rng.choice(["bridge", "broker", "both"])
                    if kills != "broker":
                        running.process.kill()
                        running.process.wait()
                    if kills != "bridge":
                        restart(broker, running, listener)
                    if kills != "broker":
                        running = Bridge(*words, log=log)
                ledger.record(1, rng)  # the last bridge, too, has begun
                listener.wait(lambda: ledger.came_count() >= len(ledger.recorded))
                state = f"power/a%2F1/{meter.id}/state"
                listener.wait(
                    lambda: json.loads(listener.latest()[state])["current_draw"] == ROUNDS - 1
                )
                listener.wait(
                    lambda: listener.latest()["power/bridge/here/availability"] == b"online"
                )
                assert running.end() == 0, running.log()
            finally:
                running.process.kill()
                running.process.wait()
        check(ledger, pm)


def restart(broker: Mosquitto, running: Bridge, listener: Listener) -> None:
    """Kill the broker and start it anew; what the bridge sends must not come before anybody
    listens.
    """
    subscriptions = listener.subscriptions
    broker.kill()
    is_running = running.process.poll() is None
    if is_running:
        running.process.send_signal(signal.SIGSTOP)
    broker.start()
    listener.wait(lambda: listener.subscriptions > subscriptions)
    if is_running:
        running.process.send_signal(signal.SIGCONT)


def check(ledger: Ledger, pm: PowerManager) -> None:
    """Every event has come, each first after the one before it, and those that came twice say the
    same.
    """
    first: dict[str, dict[str, Any]] = {}
    for event in ledger.came():
        assert first.setdefault(event["id"], event) == event
    assert list(first) == ledger.recorded
    sequences = [event["sequence"] for event in first.values()]
    assert sequences == sorted(sequences)
    assert EventFollower(pm, "mqtt here").cursor == pm.last_sequence()
    assert pm.check() == []
