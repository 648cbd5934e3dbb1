"""The publisher without a network: what the connection says, and what is sent because of it, by a
clock of the test.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from pathlib import Path

import pytest
from power_mqtt import publish
from power_mqtt.known import KnownTopics
from power_mqtt.mirror import REFUSED_SECONDS
from power_mqtt.notices import Acknowledged, Arrived, Down, Ticket, Up
from power_mqtt.options import Options
from power_mqtt.publisher import ACKNOWLEDGE_SECONDS, LOOK_SECONDS, Publisher
from power_mqtt.suspicion import SHORT_SECONDS, STRIKES

from power_manager import EventFollower, PowerManager


class Bridge:
    """A publisher of a file with one device, and the messages that it hands over."""

    def __init__(self, path: Path, *device_ids: str) -> None:
        self.now = 1000.0
        self.path = path
        self.pm = PowerManager(path, durability="normal")
        self.pm.register_device("edge", "Edge")
        self.meter_id = self.pm.add_meter("edge", "battery", 50.0, "Pack").id
        self.pm.log_power(self.meter_id, 12.0, 1.0, 80.0)
        self.session = 0
        self.is_up = False
        self.sent: list[tuple[Ticket, str, bytes]] = []
        self.publisher = Publisher(
            self.pm,
            Options(path, "here", device_ids=device_ids),
            self.publish,
            clock=lambda: self.now,
        )

    def publish(self, topic: str, payload: bytes, retain: bool) -> Ticket | None:
        """As Connection.publish."""
        if not self.is_up:
            return None
        ticket = (self.session, len(self.sent))
        self.sent.append((ticket, topic, payload))
        return ticket

    def come_up(self) -> list[str]:
        """Connect; the topics that are sent at once."""
        self.session += 1
        self.is_up = True
        self.sent.clear()
        self.publisher.handle(Up("5"))
        return self.tick()

    def go_down(self) -> None:
        """Lose the connection."""
        self.is_up = False
        self.publisher.handle(Down("the connection was lost"))

    def tick(self) -> list[str]:
        """Let it look and send; the topics that are on their way, but for what was acknowledged."""
        self.publisher.tick()
        return [topic for _, topic, _ in self.sent]

    def take(self, refused: str = "", but: str = "") -> None:
        """Have the broker acknowledge what is on its way, refuse one topic, or ignore one."""
        sent, self.sent = self.sent, []
        for ticket, topic, _ in sent:
            if topic == but:
                continue
            word = "Not authorized" if topic == refused else ""
            self.publisher.handle(Acknowledged(ticket, word))


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Bridge]:
    """A publisher that is not connected yet."""
    made = Bridge(tmp_path / "power.db")
    made.tick()
    yield made
    made.pm.close()


OWN = "power/bridge/here/availability"


def test_a_message_that_ends_the_connection_time_after_time_is_held_back(bridge: Bridge) -> None:
    """The first of those on their way is the suspect; all others get through, and it is tried again
    later.
    """
    for _ in range(STRIKES):
        assert bridge.come_up()[0] == OWN
        bridge.go_down()
    topics = bridge.come_up()
    assert OWN not in topics
    assert "power/edge/totals" in topics
    bridge.take()
    bridge.now += REFUSED_SECONDS
    assert OWN in bridge.tick()


def test_connections_that_end_late_have_no_suspect(bridge: Bridge) -> None:
    """A weak network is not the message's fault."""
    for _ in range(2 * STRIKES):
        assert bridge.come_up()[0] == OWN
        bridge.now += SHORT_SECONDS
        bridge.go_down()


def test_a_refusal_in_words_leaves_no_suspect(bridge: Bridge) -> None:
    """The connection ended for what was refused, and not for what is on its way now."""
    for _ in range(2 * STRIKES):
        bridge.now += REFUSED_SECONDS
        assert OWN in bridge.come_up()
        bridge.take(refused=OWN)
        bridge.tick()
        bridge.pm.trigger_event("edge", "restore")
        bridge.now += LOOK_SECONDS
        assert "power/edge/event" in bridge.tick()
        bridge.go_down()
    assert "power/edge/event" in bridge.come_up()


def test_an_event_that_ends_the_connection_is_held_back_too(bridge: Bridge) -> None:
    """The states of all devices are worth more than its place in the order."""
    bridge.come_up()
    bridge.take()
    bridge.pm.trigger_event("edge", "restore")
    bridge.now += LOOK_SECONDS
    for _ in range(STRIKES):
        assert "power/edge/event" in bridge.tick()
        bridge.take(but="power/edge/event")
        bridge.go_down()
        bridge.come_up()
    assert "power/edge/event" not in bridge.tick()
    assert EventFollower(bridge.pm, "mqtt").cursor == 0


def test_a_new_connection_begins_with_what_the_file_says_now(bridge: Bridge) -> None:
    """Not with what it said at the last look."""
    bridge.pm.log_power(bridge.meter_id, 12.0, 2.0, 70.0)
    bridge.come_up()
    (payload,) = [payload for _, topic, payload in bridge.sent if topic.endswith("/state")]
    assert b'"charge_pct":70.0' in payload


def test_a_broker_that_takes_nothing_over_is_left(bridge: Bridge) -> None:
    """Pings alone are not enough; one that has nothing to take over is not blamed."""
    bridge.come_up()
    bridge.now += ACKNOWLEDGE_SECONDS - 1
    assert not bridge.publisher.is_stuck()
    bridge.now += 1
    assert bridge.publisher.is_stuck()
    bridge.take()
    assert not bridge.publisher.is_stuck()
    bridge.now += 10 * ACKNOWLEDGE_SECONDS
    assert not bridge.publisher.is_stuck()


def test_nothing_grows_while_the_broker_is_away(bridge: Bridge) -> None:
    """A thousand looks, readings and events later there is one state a topic, and the events are in
    the file.
    """
    count = len(bridge.publisher._mirror._entries)
    for number in range(1000):
        bridge.pm.log_power(bridge.meter_id, 12.0, number / 1000, 80.0)
        bridge.pm.trigger_event("edge", "restore")
        bridge.now += LOOK_SECONDS
        bridge.tick()
    assert len(bridge.publisher._mirror._entries) == count
    assert bridge.publisher._events._batch == []
    topics = bridge.come_up()
    assert topics.count(f"power/edge/{bridge.meter_id}/state") == 1
    assert topics.count("power/edge/event") == 100


def test_our_own_word_that_comes_back_changes_nothing(bridge: Bridge) -> None:
    """Another's is put right."""
    bridge.come_up()
    bridge.take()
    bridge.publisher.handle(Arrived(OWN, b"online", False))
    bridge.now += 10
    assert OWN not in bridge.tick()
    bridge.publisher.handle(Arrived(OWN, b"offline", True))
    bridge.now += 10
    assert OWN in bridge.tick()


def test_a_device_that_was_deleted_is_not_offline_at_the_end(tmp_path: Path) -> None:
    """Its topics are empty and stay so, also of a bridge for this device alone."""
    bridge = Bridge(tmp_path / "power.db", "edge")
    bridge.come_up()
    bridge.publisher.handle(Arrived("power/edge/availability", b"online", False))
    bridge.take()
    bridge.pm.delete_device("edge")
    bridge.now += 10 * LOOK_SECONDS
    bridge.tick()
    assert {payload for _, _, payload in bridge.sent} == {b""}
    bridge.take()
    bridge.publisher.say_offline()
    bridge.publisher.send()
    assert bridge.sent == []
    assert bridge.publisher.is_offline()
    bridge.pm.close()


def test_the_last_words_are_offline_for_every_device_and_the_bridge(bridge: Bridge) -> None:
    """Before whatever else waits; when the broker has them, the program may go."""
    bridge.come_up()
    bridge.take()
    bridge.publisher.say_offline()
    bridge.publisher.send()
    words = {topic: payload for _, topic, payload in bridge.sent}
    assert words[OWN] == words["power/edge/availability"] == b"offline"
    assert not bridge.publisher.is_offline()
    bridge.take()
    assert bridge.publisher.is_offline()
    assert bridge.publisher.is_done()


def test_what_the_broker_has_cleared_at_the_end_is_noted(bridge: Bridge) -> None:
    """The next start does not clear it again."""
    publish_all(bridge)
    bridge.pm.delete_device("edge")
    bridge.now += LOOK_SECONDS
    bridge.tick()
    bridge.take()
    bridge.publisher.end()
    assert set(KnownTopics(bridge.pm, "mqtt").owners) == {OWN}


# --- Devices that another node publishes too


def energy_of(file_id: str) -> bytes:
    """An energy message that is from that file."""
    return json.dumps({"file_id": file_id, "counter_revision": 1}).encode()


ENERGY = "power/edge/energy"
THEIRS = energy_of("theirs")


def cleared(bridge: Bridge) -> set[str]:
    """The topics that are cleared from now on, once the broker has sent all that it retains."""
    bridge.publisher.handle(Arrived(OWN, b"online", False))
    topics: set[str] = set()
    for _ in range(10):
        bridge.now += LOOK_SECONDS
        bridge.tick()
        topics |= {topic for _, topic, payload in bridge.sent if not payload}
        bridge.take()
    return topics


def publish_all(bridge: Bridge) -> set[str]:
    """Publish everything of the device; return its topics."""
    bridge.come_up()
    bridge.publisher.handle(Arrived(OWN, b"online", False))
    for _ in range(10):
        bridge.now += LOOK_SECONDS
        bridge.tick()
        bridge.take()
    topics = {topic for topic in bridge.publisher._mirror.topics() if topic != OWN}
    assert ENERGY in topics
    assert any(topic.startswith("homeassistant/") for topic in topics)
    return topics


def test_a_device_that_another_node_publishes_too_stays_when_it_is_deleted_here(
    bridge: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    """But for the states of its meters, whose ids are no other's; ours in between do not count."""
    publish_all(bridge)
    bridge.publisher.handle(Arrived(ENERGY, THEIRS, False))
    bridge.publisher.handle(Arrived(ENERGY, energy_of(bridge.pm.file_id), False))
    bridge.pm.delete_device("edge")
    assert cleared(bridge) == {f"power/edge/{bridge.meter_id}/state"}
    assert caplog.text.count("edge: another node publishes this device too") == 1
    assert bridge.come_up() == [OWN]


def test_a_device_whose_old_message_is_another_files_is_cleared(bridge: Bridge) -> None:
    """A new file of the same node: nobody else publishes meanwhile."""
    topics = publish_all(bridge)
    bridge.publisher.handle(Arrived(ENERGY, THEIRS, True))
    bridge.publisher.handle(Arrived(ENERGY, energy_of(bridge.pm.file_id), False))
    bridge.pm.delete_device("edge")
    assert cleared(bridge) == topics


def test_a_device_is_cleared_whose_message_is_from_before_a_restore(
    bridge: Bridge, tmp_path: Path
) -> None:
    """What this file was called before is no other node's."""
    bridge.pm.backup(tmp_path / "backup.db")
    topics = publish_all(bridge)
    before = energy_of(bridge.pm.file_id)
    bridge.pm.restore(tmp_path / "backup.db")
    bridge.now += LOOK_SECONDS
    bridge.tick()
    bridge.take()
    bridge.publisher.handle(Arrived(ENERGY, before, False))
    bridge.pm.delete_device("edge")
    assert cleared(bridge) >= topics


@pytest.mark.parametrize("is_theirs", [True, False])
def test_a_device_that_went_while_no_bridge_ran_is_cleared_unless_another_node_has_it(
    bridge: Bridge, is_theirs: bool
) -> None:
    """The next bridge first hears whose it is."""
    topics = publish_all(bridge)
    bridge.publisher.end()
    bridge.pm.delete_device("edge")
    bridge.publisher = Publisher(
        bridge.pm, Options(bridge.path, "here"), bridge.publish, clock=lambda: bridge.now
    )
    assert bridge.publisher.filters().count(ENERGY) == 1
    assert bridge.come_up() == [OWN]
    message = THEIRS if is_theirs else energy_of(bridge.pm.file_id)
    bridge.publisher.handle(Arrived(ENERGY, message, True))
    state = f"power/edge/{bridge.meter_id}/state"
    assert cleared(bridge) == ({state} if is_theirs else topics)


# --- The end


class Silent:
    """A connection to a broker that acknowledges nothing."""

    def is_up(self) -> bool:
        """It is not known to have ended."""
        return True


def test_what_the_broker_has_not_taken_at_the_end_is_said(
    bridge: Bridge, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In topics: until the next start the broker shows what it had."""
    monkeypatch.setattr(publish, "END_SECONDS", 0.0)
    sent = bridge.come_up()
    publish._say_goodbye(bridge.publisher, Silent(), queue.SimpleQueue())  # type: ignore[arg-type]
    count = len(set(sent))
    (said,) = caplog.messages
    assert said.startswith(f"{count} topics may show an older value until the next start: ")
