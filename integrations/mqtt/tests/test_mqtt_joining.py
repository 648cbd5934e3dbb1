"""Messages that say one thing each become readings, and none of them is forgotten before its
reading is stored.
"""

from __future__ import annotations

import random

import pytest
from power_mqtt.joining import Joiner, Message, Reading
from power_mqtt.mapping import load_map, parse_map
from power_mqtt.subscribe import Pace

ONE = parse_map(
    "".join(
        f'[[topic]]\nfilter = "{{d}}/{word}"\ndevice = "{{d}}"\nmeter = "battery"\n'
        f'values = {{ {word} = "" }}\njoin = "2s"\nmax_age = "60s"\n'
        for word in ("voltage", "current", "charge")
    ),
    "here",
)


class Bench:
    """A joiner, and what it was told by which message."""

    def __init__(self) -> None:
        self.joiner = Joiner([ONE])
        self.messages: list[Message] = []
        self.made: list[Reading] = []

    def tell(self, word: str, value: str, now_s: float, device: str = "d") -> Message:
        """One message."""
        message = Message((1, len(self.messages)))
        self.messages.append(message)
        topic = f"{device}/{word}"
        (entry,) = [entry for entry in ONE.entries if entry.parts(topic) is not None]
        measured = entry.measure(topic, value.encode())
        assert measured is not None
        self.made += self.joiner.add(measured, message, now_s, round(now_s * 1e6))
        return message

    def values(self) -> list[tuple[float | None, float | None, float | None]]:
        """Of the readings so far."""
        return [(one.voltage, one.current_draw, one.charge_pct) for one in self.made]


@pytest.fixture
def bench() -> Bench:
    """A new one."""
    return Bench()


def test_what_comes_together_is_one_reading_at_once(bench: Bench) -> None:
    """As soon as every topic of the meter has told."""
    bench.tell("voltage", "12", 0.0)
    bench.tell("charge", "80", 0.5)
    assert bench.made == []
    bench.tell("current", "1", 1.0)
    assert bench.values() == [(12.0, 1.0, 80.0)]
    assert bench.made[0].at_us == 1_000_000


def test_what_does_not_come_is_not_waited_for_longer_than_the_window(bench: Bench) -> None:
    """Then what was told before stands in, while it is not too old."""
    for word, value in (("voltage", "12"), ("current", "1"), ("charge", "80")):
        bench.tell(word, value, 0.0)
    bench.tell("voltage", "11", 10.0)
    assert list(bench.joiner.due(11.9)) == []
    assert bench.joiner.next_due_s() == 12.0
    bench.made += bench.joiner.due(12.0)
    bench.tell("voltage", "10", 63.0)
    bench.made += bench.joiner.due(65.0)
    assert bench.values() == [(12.0, 1.0, 80.0), (11.0, 1.0, 80.0), (10.0, None, None)]


def test_a_value_that_is_said_to_be_unknown_is_unknown(bench: Bench) -> None:
    """The one before does not stand in."""
    for word, value in (("voltage", "12"), ("current", "1"), ("charge", "80")):
        bench.tell(word, value, 0.0)
    bench.tell("current", "unavailable", 5.0)
    bench.made += bench.joiner.due(7.0)
    assert bench.values()[1] == (12.0, None, 80.0)


def test_devices_are_kept_apart(bench: Bench) -> None:
    """The volts of one and the amperes of another are no reading."""
    bench.tell("voltage", "12", 0.0, "a")
    bench.tell("current", "1", 0.0, "b")
    bench.made += bench.joiner.due(2.0)
    assert bench.values() == [(12.0, None, None), (None, 1.0, None)]


def test_a_message_is_open_until_its_reading_is_made_and_stored(bench: Bench) -> None:
    """A reading names the messages that it was made of; one that says nothing opens none."""
    first = bench.tell("voltage", "12", 0.0)
    assert not first.is_done
    bench.made += bench.joiner.due(2.0)
    assert bench.made[0].messages == [first]
    nothing = bench.tell("voltage", "unknown", 100.0)
    (empty,) = bench.joiner.due(102.0)
    assert empty.is_empty
    assert empty.messages == [nothing]


def test_two_times_are_two_readings() -> None:
    """Messages of one meter that say another time are not joined."""
    one = parse_map(
        "".join(
            f'[[topic]]\nfilter = "{word}"\ndevice = "d"\nmeter = "main"\ntime = "t"\n'
            f'values = {{ {word} = "v" }}\n'
            for word in ("voltage", "current")
        ),
        "here",
    )
    joiner = Joiner([one])
    made: list[Reading] = []
    for entry, word, time in (
        (one.entries[0], "voltage", 100),
        (one.entries[0], "voltage", 200),
        (one.entries[1], "current", 200),
    ):
        measured = entry.measure(word, f'{{"v": 1, "t": {time}}}'.encode())
        assert measured is not None
        made += joiner.add(measured, Message(None), 0.0, 0)
    assert [(r.at_us // 1_000_000, r.voltage, r.current_draw) for r in made] == [
        (100, 1.0, None),
        (200, 1.0, 1.0),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_every_message_is_in_exactly_one_reading(bench: Bench, seed: int) -> None:
    """Whatever comes when: none is left open, none is in two."""
    chance = random.Random(seed)
    now_s = 0.0
    for _ in range(300):
        now_s += chance.random()
        bench.tell(
            chance.choice(["voltage", "current", "charge"]), "12", now_s, chance.choice("abc")
        )
        bench.made += bench.joiner.due(now_s)
    bench.made += bench.joiner.due(now_s, is_end=True)
    numbers = [message.receipt for reading in bench.made for message in reading.messages]
    assert sorted(numbers, key=str) == sorted((m.receipt for m in bench.messages), key=str)
    assert all(message.open_count == 1 for message in bench.messages)


def test_watts_are_right_where_they_are_measured() -> None:
    """Volts times amperes of alternating current would be more."""
    one = load_map("tasmota")
    entry = one.entries[0]
    payload = b'{"ENERGY": {"Power": 46, "Voltage": 230, "Current": 0.4}}'
    measured = entry.measure("tele/d/SENSOR", payload)
    assert measured is not None
    (reading,) = Joiner([one]).add(measured, Message(None), 0.0, 0)
    assert reading.voltage is not None
    assert reading.current_draw is not None
    assert reading.voltage * reading.current_draw == pytest.approx(46.0)


def test_watts_without_volts_are_said_to_be_that() -> None:
    """They cannot be stored, and must not be lost without a word."""
    one = parse_map(
        '[[topic]]\nfilter = "p"\ndevice = "d"\nmeter = "main"\nvalues = { power = "" }\n', "m"
    )
    measured = one.entries[0].measure("p", b"5")
    assert measured is not None
    (reading,) = Joiner([one]).add(measured, Message(None), 0.0, 0)
    assert reading.has_watts_alone
    assert reading.is_empty


# --- When it is committed


def test_a_commit_is_due_after_its_time_and_at_once_for_a_low_charge() -> None:
    """And never for nothing."""
    pace = Pace(60.0, 0.0)
    assert not pace.is_due(1000.0, 0, 0, False)
    pace.arrived(0.0)
    assert not pace.is_due(59.0, 1, 1, False)
    assert pace.is_due(60.0, 1, 1, False)
    assert pace.is_due(1.0, 1, 1, True)


@pytest.mark.parametrize(("protocol", "most"), [("5", 400), ("3.1.1", 16)])
def test_a_commit_is_due_before_the_broker_stops(protocol: str, most: int) -> None:
    """It sends a number of messages ahead of our acknowledgements."""
    pace = Pace(60.0, 0.0)
    pace.connected(protocol)
    pace.arrived(1.0)
    assert not pace.is_due(1.0, most - 1, 1, False)
    assert pace.is_due(1.0, most, 1, False)


def test_a_broker_that_holds_back_behind_fewer_messages_is_noticed() -> None:
    """After a second of silence; the next time the commit comes before that."""
    pace = Pace(60.0, 0.0)
    pace.connected("5")
    pace.arrived(1.0)
    assert not pace.is_due(1.9, 32, 1, False)
    assert pace.is_due(2.0, 32, 1, False)
    pace.committed(2.0, 32)
    pace.arrived(2.1)
    assert not pace.is_due(2.2, 31, 1, False)
    assert pace.is_due(2.2, 32, 1, False)


def test_a_pause_of_the_devices_is_not_taken_for_that_twice() -> None:
    """Where nothing comes after the acknowledgement, the broker was not waiting for it."""
    pace = Pace(60.0, 0.0)
    pace.connected("5")
    pace.arrived(1.0)
    assert pace.is_due(2.0, 32, 1, False)
    pace.committed(2.0, 32)
    pace.arrived(10.0)
    assert not pace.is_due(20.0, 32, 1, False)
