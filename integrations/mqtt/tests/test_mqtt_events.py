"""Events: in order, at least once, and the cursor moves only past what the broker has taken
over.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from power_mqtt.events import BATCH, LOCKED_SECONDS, REFUSED_SECONDS, EventFeed
from power_mqtt.notices import Ticket
from power_mqtt.topics import Topics

import power_manager
from power_manager import EventFollower, PowerManager, StorageError


class Feed:
    """A feed of a file, and a connection that keeps what is handed to it."""

    def __init__(self, path: Path, *device_ids: str) -> None:
        self.path = path
        self.pm = PowerManager(path)
        for device_id in ("a", "b"):
            self.pm.register_device(device_id, device_id)
        self.is_up = True
        self.sent: list[tuple[Ticket, str, dict[str, object]]] = []
        self.feed = self._make(device_ids)

    def _make(self, device_ids: tuple[str, ...]) -> EventFeed:
        return EventFeed(
            self.pm,
            "mqtt",
            Topics("power", "here"),
            self.publish,
            wants=lambda device_id: not device_ids or device_id in device_ids,
            meter_name=lambda meter_id: "Pack",
        )

    def publish(self, topic: str, payload: bytes, retain: bool) -> Ticket | None:
        """As Connection.publish."""
        assert not retain
        if not self.is_up:
            return None
        ticket = (1, len(self.sent))
        self.sent.append((ticket, topic, json.loads(payload)))
        return ticket

    def record(self, count: int, device_id: str = "a") -> list[str]:
        """Record events; their ids."""
        ids = [self.pm.trigger_event(device_id, "restore", value).id for value in range(count)]
        self.feed.wake()
        return ids

    def take(self, refused: int = -1, now: float = 0.0) -> None:
        """Have the broker take over all that was sent, but refuse the one of that index."""
        for index, (ticket, _, _) in enumerate(list(self.sent)):
            self.feed.acknowledge(ticket, "Not authorized" if index == refused else "", now)

    @property
    def ids(self) -> list[object]:
        """What was sent."""
        return [event["id"] for _, _, event in self.sent]

    @property
    def cursor(self) -> int:
        """Where the file's cursor stands."""
        return EventFollower(self.pm, "mqtt").cursor


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[Feed]:
    """A feed of a file with two devices."""
    made = Feed(tmp_path / "power.db")
    yield made
    made.pm.close()


def test_an_event_is_sent_with_its_id_sequence_and_line_of_history(feed: Feed) -> None:
    """The id is the same everywhere; the sequence counts within the file."""
    meter = feed.pm.add_meter("a", "battery", 50.0, "Pack")
    event = feed.pm.trigger_event("a", "shutdown", 3.5, "Gute Nacht", meter_id=meter.id)
    feed.feed.wake()
    feed.feed.send(0)
    assert [(topic, payload) for _, topic, payload in feed.sent] == [
        (
            "power/a/event",
            {
                "id": event.id,
                "sequence": 1,
                "file_id": feed.pm.file_id,
                "device_id": "a",
                "type": "shutdown",
                "value": 3.5,
                "time": event.timestamp,
                "note": "Gute Nacht",
                "meter_id": meter.id,
                "meter_name": "Pack",
            },
        )
    ]


def test_the_cursor_moves_when_the_broker_has_taken_the_last_of_them_over(feed: Feed) -> None:
    """Not when they are sent, and not when some of them are taken."""
    ids = feed.record(3)
    feed.feed.send(0)
    assert feed.ids == ids
    feed.feed.send(1)
    assert feed.ids == ids
    assert feed.cursor == 0
    (first, _, _), *others = feed.sent
    for ticket, _, _ in others:
        feed.feed.acknowledge(ticket, "", 1)
    feed.feed.send(1)
    assert feed.cursor == 0
    feed.feed.acknowledge(first, "", 1)
    feed.feed.send(1)
    assert feed.cursor == 3


def test_what_was_on_its_way_is_sent_again_by_the_next_connection(feed: Feed) -> None:
    """With the same ids; so whoever gets it twice can tell."""
    ids = feed.record(3)
    feed.feed.send(0)
    feed.feed.reset()
    feed.feed.send(1)
    assert feed.ids == ids + ids
    assert feed.feed.acknowledge((9, 9), "", 1) is False


def test_a_long_queue_goes_batch_by_batch_and_waits_in_the_file(feed: Feed) -> None:
    """Memory holds one batch, whatever the broker missed."""
    ids = feed.record(2 * BATCH + 10)
    for expected in (BATCH, 2 * BATCH, 2 * BATCH + 10):
        feed.feed.send(0)
        assert len(feed.sent) == expected
        feed.take()
    feed.feed.send(0)
    assert feed.ids == ids
    assert feed.cursor == 2 * BATCH + 10
    assert feed.feed.is_quiet()


def test_a_connection_that_goes_half_way_loses_nothing(feed: Feed) -> None:
    """The batch begins anew."""
    ids = feed.record(3)
    feed.is_up = False
    feed.feed.send(0)
    assert feed.sent == []
    feed.is_up = True
    feed.feed.reset()
    feed.feed.send(1)
    assert feed.ids == ids


def test_events_of_other_devices_are_passed_over(tmp_path: Path) -> None:
    """The cursor moves past them, also where there are no others."""
    feed = Feed(tmp_path / "power.db", "b")
    feed.record(BATCH * 3)
    feed.feed.send(0)
    assert feed.sent == []
    assert feed.cursor == BATCH * 3
    ids = feed.record(1, "b")
    feed.record(1, "a")
    feed.feed.send(0)
    assert feed.ids == ids
    feed.pm.close()


def test_a_refused_event_holds_the_cursor_and_is_tried_again(
    feed: Feed, caplog: pytest.LogCaptureFixture
) -> None:
    """What came before it is done; what came after it comes twice; it is said once."""
    ids = feed.record(3)
    feed.feed.send(0)
    feed.take(refused=1)
    feed.feed.send(1)
    assert feed.cursor == 1
    assert feed.ids == ids
    assert "the broker refuses an event on power/a/event: Not authorized" in caplog.text
    feed.sent.clear()
    feed.feed.send(REFUSED_SECONDS)
    assert feed.ids == ids[1:]
    feed.take(refused=0, now=REFUSED_SECONDS)
    assert caplog.text.count("refuses") == 1
    feed.sent.clear()
    feed.feed.send(2 * REFUSED_SECONDS)
    feed.take()
    feed.feed.send(2 * REFUSED_SECONDS)
    assert feed.cursor == 3


def test_nothing_more_is_sent_while_the_cursor_cannot_move(
    feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A locked file must not make the same events come again and again."""
    monkeypatch.setattr(power_manager, "BUSY_TIMEOUT", 0.05)
    feed.pm.close()
    feed = Feed(feed.path)
    ids = feed.record(3)
    feed.feed.send(0)
    feed.take()
    lock = sqlite3.connect(feed.path, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    for attempt in range(3):
        feed.feed.wake()
        with pytest.raises(StorageError):
            feed.feed.send(attempt * LOCKED_SECONDS)
        feed.feed.send(attempt * LOCKED_SECONDS + 1)  # does not even try
    lock.execute("ROLLBACK")
    lock.close()
    feed.feed.send(3 * LOCKED_SECONDS)
    assert feed.ids == ids
    assert feed.cursor == 3
    feed.pm.close()


def test_a_backup_that_is_restored_under_way_keeps_its_own_cursor(
    feed: Feed, tmp_path: Path
) -> None:
    """An acknowledgement of what the other line of history had says nothing of this one's
    events.
    """
    feed.pm.backup(tmp_path / "backup.db")
    feed.record(5)
    feed.feed.send(0)
    feed.take()
    feed.pm.restore(tmp_path / "backup.db")
    others = feed.record(3)
    feed.sent.clear()
    feed.feed.send(1)
    assert feed.ids == others
    assert feed.cursor == 0
    feed.take()
    feed.feed.send(2)
    assert feed.cursor == 3


def test_a_new_bridge_begins_with_what_comes(tmp_path: Path) -> None:
    """The events of years before are no news."""
    with PowerManager(tmp_path / "power.db") as pm:
        pm.register_device("a", "a")
        pm.trigger_event("a", "restore")
    feed = Feed(tmp_path / "power.db")
    feed.feed.send(0)
    assert feed.sent == []
    ids = feed.record(1)
    feed.feed.send(0)
    assert feed.ids == ids
    feed.pm.close()
