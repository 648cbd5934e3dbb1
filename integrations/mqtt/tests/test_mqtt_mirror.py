"""The mirror: what the broker is to hold, against a broker that takes, refuses, forgets and
goes.
"""

from __future__ import annotations

import random

import pytest
from power_mqtt.mirror import CONTRADICT_SECONDS, REFUSED_SECONDS, Mirror, Retained
from power_mqtt.notices import WINDOW, Ticket


class Wire:
    """A connection that keeps what is handed to it until it is delivered."""

    def __init__(self) -> None:
        self.is_up = True
        self.number = 0
        self.on_its_way: dict[Ticket, tuple[str, bytes]] = {}
        self.held: dict[str, bytes] = {}
        self.count = 0
        self.cleared: list[str] = []
        self.mirror = Mirror(self.publish, self.cleared.append)

    def publish(self, topic: str, payload: bytes, retain: bool) -> Ticket | None:
        """As Connection.publish."""
        assert retain
        if not self.is_up:
            return None
        self.number += 1
        self.count += 1
        ticket = (1, self.number)
        self.on_its_way[ticket] = (topic, payload)
        return ticket

    def deliver(self, now: float, refusal: str = "") -> None:
        """Have the broker take over, or refuse, all that is on its way."""
        for ticket, (topic, payload) in list(self.on_its_way.items()):
            del self.on_its_way[ticket]
            if not refusal:
                self.held[topic] = payload
                if not payload:
                    del self.held[topic]
            assert self.mirror.acknowledge(ticket, refusal, now)

    def want(self, topic: str, payload: bytes, interval: float = 0.0) -> None:
        """Have the mirror want something."""
        self.mirror.want(Retained(topic, payload, interval))


@pytest.fixture
def wire() -> Wire:
    """A mirror and its connection."""
    return Wire()


def test_what_the_broker_holds_is_not_sent_again(wire: Wire) -> None:
    """Also if it is wanted again and again."""
    for now in range(5):
        wire.want("a", b"1")
        wire.mirror.send(now)
        wire.deliver(now)
    assert wire.count == 1
    assert wire.mirror.is_done()


def test_only_the_latest_waits_and_not_before_the_interval_is_over(wire: Wire) -> None:
    """What came in between is never sent."""
    for second in range(11):
        wire.want("a", b"%d" % second, interval=5.0)
        wire.mirror.send(second)
        wire.deliver(second)
    assert wire.count == 3  # at 0, 5 and 10
    assert wire.held == {"a": b"10"}


def test_a_topic_has_one_message_on_its_way_at_most(wire: Wire) -> None:
    """A slow connection gets the latest, not everything."""
    for second in range(100):
        wire.want("a", b"%d" % second)
        wire.mirror.send(second)
    assert wire.count == 1
    wire.deliver(100)
    wire.mirror.send(100)
    wire.deliver(100)
    assert wire.held == {"a": b"99"}


def test_no_more_is_on_its_way_than_the_window(wire: Wire) -> None:
    """Of a thousand topics the others wait."""
    for number in range(1000):
        wire.want(f"t{number}", b"x")
    wire.mirror.send(0)
    assert len(wire.on_its_way) == WINDOW
    while not wire.mirror.is_done():
        wire.deliver(0)
        wire.mirror.send(0)
    assert len(wire.held) == wire.count == 1000


def test_a_topic_that_is_to_hold_nothing_is_cleared_and_forgotten(wire: Wire) -> None:
    """The caller hears of it when the broker has said so."""
    wire.want("a", b"1")
    wire.mirror.send(0)
    wire.deliver(0)
    wire.want("a", b"")
    wire.mirror.send(1)
    assert wire.cleared == []
    wire.deliver(1)
    assert wire.cleared == ["a"]
    assert wire.held == {}
    assert wire.mirror.topics() == set()


def test_a_topic_that_is_wanted_again_while_it_is_cleared_is_not_forgotten(wire: Wire) -> None:
    """A device that is deleted and registered again at once is there in the end."""
    wire.want("a", b"1")
    wire.mirror.send(0)
    wire.deliver(0)
    wire.want("a", b"")
    wire.mirror.send(1)
    wire.want("a", b"2")
    wire.deliver(1)
    wire.mirror.send(2)
    wire.deliver(2)
    assert wire.cleared == []
    assert wire.held == {"a": b"2"}


def test_a_new_connection_gets_everything_anew(wire: Wire) -> None:
    """The broker may have lost what it held, and what was on its way may not have come."""
    for topic in "abc":
        wire.want(topic, b"1", interval=60.0)
    wire.mirror.send(0)
    wire.deliver(0)
    wire.on_its_way.clear()
    wire.held.clear()
    wire.mirror.reset()
    wire.mirror.send(1)
    wire.deliver(1)
    assert wire.held == dict.fromkeys("abc", b"1")


def test_an_acknowledgement_of_an_earlier_connection_is_nothing_of_ours(wire: Wire) -> None:
    """It says nothing of what the broker holds now."""
    wire.want("a", b"1")
    wire.mirror.send(0)
    (ticket,) = wire.on_its_way
    wire.mirror.reset()
    assert not wire.mirror.acknowledge(ticket, "", 0)


def test_what_the_broker_refuses_is_said_once_and_tried_again(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    """Hundreds of topics of another's device would fill the log."""
    for topic in "abc":
        wire.want(topic, b"1")
    wire.mirror.send(0)
    wire.deliver(0, "Not authorized")
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "the broker refuses a: Not authorized"
    ]
    wire.mirror.send(REFUSED_SECONDS - 1)
    assert wire.count == 3
    wire.mirror.send(REFUSED_SECONDS)
    wire.deliver(REFUSED_SECONDS)
    assert wire.held == dict.fromkeys("abc", b"1")


def test_what_another_says_on_our_topic_is_put_right_after_a_second(wire: Wire) -> None:
    """Not at once: two that contradict each other would not end."""
    wire.want("a", b"online")
    wire.mirror.send(0)
    wire.deliver(0)
    wire.mirror.contradict("a", b"online", 1)
    wire.mirror.send(100)
    assert wire.count == 1
    wire.mirror.contradict("a", b"offline", 100)
    wire.mirror.send(100 + CONTRADICT_SECONDS - 0.1)
    assert wire.count == 1
    wire.mirror.send(100 + CONTRADICT_SECONDS)
    assert wire.count == 2
    wire.mirror.contradict("other", b"offline", 100)


def test_the_last_words_come_first_and_nothing_waits_for_its_interval(wire: Wire) -> None:
    """At the end the broker gets the latest states too."""
    wire.want("state", b"1", interval=60.0)
    wire.want("there", b"online")
    wire.mirror.send(0)
    wire.deliver(0)
    wire.want("state", b"2", interval=60.0)
    last = [Retained("there", b"offline")]
    wire.mirror.hurry(last)
    wire.mirror.send(1)
    assert [topic for topic, _ in wire.on_its_way.values()] == ["there", "state"]
    assert not wire.mirror.holds(last)
    wire.deliver(1)
    assert wire.mirror.holds(last)
    assert wire.mirror.is_done()
    assert wire.held == {"there": b"offline", "state": b"2"}


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_the_broker_holds_what_is_wanted_in_the_end(seed: int) -> None:
    """Any order of wanting, sending, taking over, refusing and losing the connection."""
    rng = random.Random(seed)
    wire = Wire()
    wanted: dict[str, bytes] = {}
    now = 0.0
    for _ in range(400):
        now += rng.choice([0.0, 0.2, 1.0, 30.0])
        match rng.randrange(6):
            case 0 | 1:
                topic = rng.choice("abcdef")
                wanted[topic] = rng.choice([b"", b"1", b"2", b"3"])
                wire.want(topic, wanted[topic], rng.choice([0.0, 5.0]))
            case 2 | 3:
                wire.mirror.send(now)
            case 4:
                wire.deliver(now, rng.choice(["", "", "", "Quota exceeded"]))
            case 5:
                wire.is_up = rng.random() < 0.8
                wire.on_its_way.clear()
                if rng.random() < 0.5:
                    wire.held.clear()
                wire.mirror.reset()
    wire.is_up = True
    wire.on_its_way.clear()
    wire.mirror.reset()
    for _ in range(10):
        now += 100
        wire.mirror.send(now)
        wire.deliver(now)
    assert wire.mirror.is_done()
    assert wire.held == {topic: payload for topic, payload in wanted.items() if payload}
