"""Which message is held back when a broker ends the connection time after time."""

from __future__ import annotations

from power_mqtt.suspicion import SHORT_SECONDS, STRIKES, Suspicion


def test_the_same_suspect_is_held_back_after_some_ends() -> None:
    """Not at the first: a broker may be restarting."""
    suspicion = Suspicion()
    assert [suspicion.ended("a", 0.1) for _ in range(STRIKES)] == [False, False, True]


def test_once_one_was_found_the_next_is_held_back_at_once() -> None:
    """A device that is not allowed has several topics."""
    suspicion = Suspicion()
    for _ in range(STRIKES):
        suspicion.ended("a", 0.1)
    assert suspicion.ended("b", 0.1)


def test_other_suspects_and_long_connections_clear_it() -> None:
    """A weak network breaks off at any message."""
    suspicion = Suspicion()
    for number in range(20):
        assert not suspicion.ended(f"topic {number % 2}", 0.1)
    for seconds in (0.1, 0.1, SHORT_SECONDS, 0.1, 0.1):
        assert not suspicion.ended("a", seconds)


def test_an_end_with_nothing_on_its_way_has_no_suspect() -> None:
    """And clears what was suspected."""
    suspicion = Suspicion()
    for topic in ("a", "a", None, "a", "a"):
        assert not suspicion.ended(topic, 0.1)


def test_a_connection_that_lasted_begins_anew() -> None:
    """What was found an hour ago says nothing of today's network."""
    suspicion = Suspicion()
    for _ in range(STRIKES):
        suspicion.ended("a", 0.1)
    assert not suspicion.ended("b", 3600)
    assert not suspicion.ended("b", 0.1)
