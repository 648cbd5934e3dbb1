"""A broker that is killed shows again what it had saved before a deletion: it is cleared again, and
nothing that another node publishes is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from mosquitto import PATIENCE, Listener, Mosquitto
from power_mqtt import known as module
from power_mqtt.ghosts import Ghosts
from power_mqtt.known import KnownTopics, Owner
from power_mqtt.topics import Topics
from world import Bridge, bridge

from power_manager import PowerManager

TOPICS = Topics("power", "here")
CONFIG = "homeassistant/device/power__gate/config"
ENERGY = "power/gate/energy"
MARKER = "test/marker"


class Scene:
    """A file with the devices edge and gate, a broker that saves only when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "power.db"
        self.pm = PowerManager(self.path)
        self.pm.register_device("edge", "Edge")
        self.pack = self.pm.add_meter("edge", "battery", name="Pack").id
        self.panel = self.pm.add_meter("edge", "solar", name="Panel").id
        self.pm.register_device("gate", "Gate")
        self.gate = self.pm.add_meter("gate", "main").id
        for meter_id in (self.pack, self.panel, self.gate):
            self.pm.log_power(meter_id, 10.0, 1.0)
        self.panel_topic = TOPICS.state("edge", self.panel)
        self.log = folder / "log"
        settings = (
            "allow_anonymous true",
            "persistence true",
            f"persistence_location {folder}/",
            "autosave_interval 36000",
        )
        self.broker = Mosquitto(folder / "mosquitto", settings=settings)

    def bridge(self) -> AbstractContextManager[Bridge]:
        """A running bridge."""
        return bridge(
            *("publish", "--db", self.path, "--broker", self.broker.url, "--name", "here"),
            log=self.log,
        )

    def retained(self) -> dict[str, bytes]:
        """What the broker retains now, by topic."""
        with Listener(self.broker, "#") as listener:
            listener.publish(MARKER, b"x")  # what is retained comes before
            listener.wait(lambda: listener.of(MARKER))
            return {topic: it for topic, it in listener.latest().items() if topic != MARKER}

    def wait(self, until: Callable[[dict[str, bytes]], bool]) -> None:
        """Return when that is true of what the broker retains."""
        end = time.monotonic() + PATIENCE
        while not until(found := self.retained()):
            assert time.monotonic() < end, sorted(found)
            time.sleep(0.05)

    def is_whole(self, found: dict[str, bytes]) -> bool:
        """Whether everything of both devices is there."""
        return {CONFIG, ENERGY, self.panel_topic, "power/gate/totals"} <= found.keys()

    def is_cleared(self, found: dict[str, bytes]) -> bool:
        """Whether nothing of gate and of edge's panel is there, but edge's own."""
        has_ghosts = any(topic == CONFIG or "/gate/" in topic for topic in found)
        return not has_ghosts and self.panel_topic not in found and "power/edge/energy" in found

    def publish_and_save(self) -> None:
        """Let a bridge publish, and the broker save that."""
        with self.bridge():
            self.wait(self.is_whole)
        self.broker.stop()
        self.broker.start()

    def delete(self) -> None:
        """Delete a device and a meter of the other."""
        self.pm.delete_device("gate")
        self.pm.delete_meter(self.panel)

    def lose_what_was_not_saved(self) -> None:
        """Kill the broker, and start it again."""
        self.broker.kill()
        self.broker.start()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Nothing is published yet."""
    made = Scene(tmp_path)
    with made.broker:
        yield made
    made.pm.close()


def test_what_a_killed_broker_shows_again_is_cleared_by_the_next_bridge(scene: Scene) -> None:
    """A device with all its topics, and a meter's state."""
    scene.publish_and_save()
    scene.delete()
    with scene.bridge():
        scene.wait(scene.is_cleared)
    scene.lose_what_was_not_saved()
    assert scene.is_whole(scene.retained())

    with scene.bridge():
        scene.wait(scene.is_cleared)
    scene.lose_what_was_not_saved()
    assert scene.is_whole(scene.retained())
    with scene.bridge():  # as often as the broker does that
        scene.wait(scene.is_cleared)


def test_what_a_killed_broker_shows_again_is_cleared_by_the_bridge_that_runs(scene: Scene) -> None:
    """When it reconnects it listens to what it has cleared since it came."""
    scene.publish_and_save()
    with scene.bridge() as running:
        scene.wait(scene.is_whole)
        scene.delete()
        scene.wait(scene.is_cleared)
        scene.lose_what_was_not_saved()

        scene.wait(scene.is_cleared)
        assert running.process.poll() is None


def test_device_that_another_node_publishes_under_the_id_is_left_alone(scene: Scene) -> None:
    """Its energy message names another file."""
    scene.publish_and_save()
    scene.delete()
    with scene.bridge():
        scene.wait(scene.is_cleared)
    theirs = {
        ENERGY: json.dumps(
            {"consumption_wh": 5.0, "meters": {}, "file_id": "theirs", "counter_revision": 1}
        ).encode(),
        CONFIG: b'{"device": {"name": "Gate"}}',
        "power/gate/totals": b"{}",
    }
    with Listener(scene.broker, "#") as listener:
        for topic, payload in theirs.items():
            listener.publish(topic, payload, retain=True)
        # What was retained has come before these.
        listener.wait(lambda: theirs.keys() <= listener.latest().keys())
        before = len(listener.of("power/edge/energy"))
        with scene.bridge():
            # It publishes the counters once it has heard everything.
            listener.wait(lambda: len(listener.of("power/edge/energy")) > before)
            scene.pm.log_power(scene.pack, 20.0, 1.0)
            state = TOPICS.state("edge", scene.pack)
            listener.wait(lambda: b'"voltage":20.0' in listener.latest().get(state, b""))
        found = scene.retained()
    assert {topic: found.get(topic) for topic in theirs} == theirs


def test_device_that_has_moved_to_another_node_is_left_there(scene: Scene) -> None:
    """When it is deleted here, while both publish; only the state of its own meter goes."""
    theirs = {
        ENERGY: json.dumps(
            {"consumption_wh": 5.0, "meters": {}, "file_id": "theirs", "counter_revision": 1}
        ).encode(),
        CONFIG: b'{"device": {"name": "Gate"}}',
    }
    state = TOPICS.state("gate", scene.gate)
    with scene.bridge() as running, Listener(scene.broker, "#") as listener:
        scene.wait(scene.is_whole)
        for topic, payload in theirs.items():
            listener.publish(topic, payload, retain=True)
        scene.pm.delete_device("gate")
        scene.wait(lambda found: state not in found)
        running.wait_for("another node publishes this device too")
        running.end()
    found = scene.retained()
    assert {topic: found.get(topic) for topic in theirs} == theirs


# --- What is cleared again


class Cleared:
    """A file of which everything that is deleted was cleared."""

    def __init__(self, scene: Scene) -> None:
        self.known = KnownTopics(scene.pm, "mqtt")
        owners = {
            ENERGY: Owner("gate"),
            CONFIG: Owner("gate"),
            TOPICS.state("gate", scene.gate): Owner("gate", scene.gate),
            "power/edge/energy": Owner("edge"),
            scene.panel_topic: Owner("edge", scene.panel),
        }
        self.known.add(owners)
        self.known.remove(owners)
        self.ghosts = Ghosts(scene.pm, TOPICS, self.known)
        self.own = json.dumps({"file_id": scene.pm.file_id, "counter_revision": 1}).encode()

    def again(self, topic: str, payload: bytes, *, is_retained: bool = True) -> set[str]:
        """The topics that are cleared again after that message."""
        self.ghosts.arrived(topic, payload, is_retained)
        self.ghosts.clear()
        return set(self.known.owners)


def test_topics_of_what_is_deleted_are_listened_to(scene: Scene) -> None:
    """And no others: what is there is the parts' own."""
    ghosts = Cleared(scene).ghosts
    assert ghosts.filters() == [TOPICS.state("gate", scene.gate), scene.panel_topic]
    scene.pm.delete_device("gate")
    assert ghosts.filters() == [ENERGY, scene.panel_topic]


def test_device_of_the_same_file_is_cleared_as_a_whole(scene: Scene) -> None:
    """By its energy message, once it is deleted."""
    cleared = Cleared(scene)
    state = TOPICS.state("gate", scene.gate)
    assert cleared.again(ENERGY, cleared.own) == set()  # another bridge of this file publishes it
    scene.pm.delete_device("gate")
    assert cleared.again(ENERGY, cleared.own, is_retained=False) == set()
    assert cleared.again(ENERGY, b"") == set()
    assert cleared.again(ENERGY, cleared.own.replace(b'"counter', b'"x')) == set()
    assert cleared.again(CONFIG, cleared.own) == {ENERGY, CONFIG, state}


def test_meter_of_a_device_is_cleared_only_where_it_is_deleted_and_the_device_is_not(
    scene: Scene,
) -> None:
    """Of a device that is not in the file the energy message has the word."""
    cleared = Cleared(scene)
    assert cleared.again(scene.panel_topic, b"{}") == set()
    scene.pm.delete_device("gate")
    assert cleared.again(TOPICS.state("gate", scene.gate), b"{}") == set()
    scene.pm.delete_meter(scene.panel)
    assert cleared.again(scene.panel_topic, b"{}") == {scene.panel_topic}


def test_what_is_published_again_is_no_ghost(scene: Scene) -> None:
    """A device that is registered again has its topics back."""
    cleared = Cleared(scene)
    cleared.known.add({ENERGY: Owner("gate")})
    scene.pm.delete_device("gate")

    assert not cleared.ghosts.arrived(ENERGY, cleared.own, True)
    assert ENERGY not in KnownTopics(scene.pm, "mqtt").cleared


def test_last_topics_are_remembered(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """By this bridge alone, in the order of clearing, from one start to the next."""
    monkeypatch.setattr(module, "_MOST_CLEARED", 3)
    known = KnownTopics(scene.pm, "mqtt")
    for name in ("a", "b", "c", "d", "b"):
        known.add({name: Owner("gate")})
        known.remove([name])

    assert list(known.cleared) == ["c", "d", "b"]
    assert KnownTopics(scene.pm, "mqtt").cleared == known.cleared
    assert list(KnownTopics(scene.pm, "mqtt").cleared) == ["c", "d", "b"]
    assert KnownTopics(scene.pm, "other").cleared == {}
