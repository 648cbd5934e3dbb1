"""The quota of a device in a sink, and what is said about one that does wrong."""

from __future__ import annotations

import logging
import random

import pytest
from fleet_harness import Clock
from power_fleet.complaints import SAID_EVERY, Complaints
from power_fleet.quota import Quota


def test_a_device_may_send_its_share_and_then_waits() -> None:
    """So many messages at once, then one as soon as it has earned it, and not a moment before."""
    clock = Clock(0.0)
    quota = Quota(messages=60, size=1_000_000, clock=clock)
    assert [quota.wait_for("a", 1) for _ in range(60)] == [0.0] * 60
    assert quota.wait_for("a", 1) == pytest.approx(1.0)
    clock.now = 0.99
    assert quota.wait_for("a", 1) > 0.0
    clock.now = 1.001
    assert quota.wait_for("a", 1) == 0.0
    assert quota.wait_for("a", 1) > 0.0


def test_another_device_does_not_wait() -> None:
    """A share is a device's own."""
    quota = Quota(messages=1, size=10, clock=Clock(0.0))
    assert quota.wait_for("stolen", 10) == 0.0
    assert quota.wait_for("stolen", 10) > 0.0
    assert quota.wait_for("honest", 10) == 0.0


def test_bytes_count_beside_messages() -> None:
    """A few large messages take the share as many small ones do; the wait is that of the scarcer
    one.
    """
    clock = Clock(0.0)
    quota = Quota(messages=1000, size=600, clock=clock)
    assert quota.wait_for("a", 500) == 0.0
    assert quota.wait_for("a", 500) == pytest.approx(40.0)
    clock.now = 40.001
    assert quota.wait_for("a", 500) == 0.0


def test_a_message_larger_than_a_share_comes_through_when_the_share_is_full() -> None:
    """It would wait for ever otherwise; afterwards the device owes what it took."""
    clock = Clock(0.0)
    quota = Quota(messages=1000, size=100, clock=clock)
    assert quota.wait_for("a", 250) == 0.0
    assert quota.wait_for("a", 1) > 60.0
    clock.now = 151.0
    assert quota.wait_for("a", 100) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_no_device_gets_more_than_two_shares_in_a_minute(seed: int) -> None:
    """However it sends; and one that keeps within its share never waits."""
    chance = random.Random(seed)
    clock = Clock(0.0)
    quota = Quota(messages=20, size=10_000, clock=clock)
    taken: list[tuple[float, int]] = []
    while clock.now < 600.0:
        size = chance.randint(1, 2000)
        if quota.wait_for("stolen", size) == 0.0:
            taken.append((clock.now, size))
        if clock.now % 60.0 < 1.0:
            assert quota.wait_for("honest", 100) == 0.0
        clock.now += chance.choice([0.01, 0.5, 1.0])
    for begin, _ in taken:
        window = [size for at, size in taken if begin <= at < begin + 60.0]
        assert len(window) <= 40
        assert sum(window) <= 20_000 + 2000


def test_devices_that_are_quiet_are_forgotten() -> None:
    """A hundred thousand ids that came once do not stay in memory."""
    clock = Clock(0.0)
    quota = Quota(clock=clock)
    for number in range(1000):
        quota.wait_for(str(number), 1)
    clock.now = 61.0
    quota.wait_for("now", 1)
    assert len(quota._shares) == 1


def test_what_costs_more_is_owed() -> None:
    """Beyond its share, up to ten minutes of it; other devices wait for nothing."""
    clock = Clock(0.0)
    quota = Quota(messages=60, size=1_000_000, clock=clock)
    assert quota.wait_for("a", 1) == 0.0
    quota.charge("a", 119)
    assert quota.wait_for("a", 1) == pytest.approx(61.0)
    quota.charge("a", 1e9)
    assert quota.wait_for("a", 1) == pytest.approx(601.0)
    assert quota.wait_for("b", 1) == 0.0
    quota.charge("c", 60)
    assert quota.wait_for("c", 1) == pytest.approx(1.0)


def test_a_debt_is_not_forgotten() -> None:
    """Nor that of bytes, however long the device is quiet, until it is paid."""
    clock = Clock(0.0)
    quota = Quota(messages=60, size=100, clock=clock)
    quota.charge("a", 180)
    assert quota.wait_for("b", 300) == 0.0
    clock.now = 61.0
    assert quota.wait_for("other", 1) == 0.0
    assert quota.wait_for("a", 1) > 0.0
    assert quota.wait_for("b", 1) > 0.0
    clock.now = 400.0
    assert quota.wait_for("other", 1) == 0.0
    assert len(quota._shares) == 1


def test_a_complaint_is_logged_once_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    """The next line says how many there were between; another device has lines of its own."""
    clock = Clock(0.0)
    complaints = Complaints(clock)
    with caplog.at_level(logging.ERROR, "power_fleet"):
        for _ in range(1000):
            complaints.say("a", "garbage")
        complaints.say("b", "noise")
        clock.now = SAID_EVERY
        complaints.say("a", "garbage")
    assert [record.getMessage() for record in caplog.records] == [
        "device 'a': garbage",
        "device 'b': noise",
        "device 'a': garbage (and 999 other messages since the last such line)",
    ]
