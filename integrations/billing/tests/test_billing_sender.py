"""What becomes of an event on its way: retries, lost answers, refusals, and what is too old to be
sent blindly.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from power_billing import BillingError, CannotSayNow, Outcome, Receipt, Report, UsageEvent
from power_billing.outbox import queue_value
from power_billing.sender import PAUSES, PROTECTED, Sender
from power_billing.tables import tables
from world import CUSTOMER, HOUR, NOW, World, outbox

from power_manager import StorageError

THIS_HOUR = int(NOW // HOUR)


@pytest.fixture
def used(world: World) -> World:
    """A world with one hour of 10 Wh to be sent."""
    world.link()
    world.use(10.0, 3)
    world.sink()
    return world


def states(world: World) -> list[tuple[int, str]]:
    """Revision and state of every row of the outbox."""
    return sorted((row.event.revision, row.state.value) for row in outbox(world.pm))


def posts(world: World) -> int:
    """How often events were posted."""
    return sum(path.endswith("meter_events") for _, path in world.server.requests)


def fail(world: World, fault: str, times: int = 12) -> Report:
    """A run in which each request fails like that; the SDK makes three of one call."""
    world.server.faults.extend([fault] * times)
    done = world.report()
    world.server.faults.clear()
    return done


@pytest.mark.parametrize(
    "fault", ["lost-before", "lost-after", "500-before", "500-after", "429-before"]
)
def test_one_failure_is_made_good_at_once(used: World, fault: str) -> None:
    """A retry under the same identifier, and the hour is there once."""
    used.server.faults.append(fault)
    assert used.report().complete
    assert (len(used.server.events), used.billed(), states(used)) == (1, 10, [(0, "sent")])


def test_a_duplicate_identifier_counts_as_sent(used: World) -> None:
    """All answers of a run are lost; the next one is told that Stripe has the event."""
    assert not fail(used, "lost-after").complete
    done = used.report()
    assert [row.reason for row in done.sent] == ["the biller had it already"]
    assert (len(used.server.events), used.billed()) == (1, 10)


def test_pauses_grow_and_heed_retry_after(used: World) -> None:
    """429 says 3 seconds: the pauses are no shorter, and the last tries' are longer than that."""
    fail(used, "429-before")
    assert len(used.slept) == len(PAUSES)
    assert [seconds >= 3.0 for seconds in used.slept] == [True] * 3
    used.slept.clear()
    fail(used, "lost-before")
    assert [0.75 * pause <= slept <= 1.25 * pause for pause, slept in zip(PAUSES, used.slept)] == [
        True
    ] * 3


def test_a_date_in_retry_after_does_no_harm(used: World) -> None:
    """HTTP allows one; the usual pauses are kept."""
    used.server.retry_after = "Wed, 21 Oct 2026 07:28:00 GMT"
    used.server.faults.append("429-before")
    assert used.report().complete
    (slept,) = used.slept
    assert 0.75 <= slept <= 1.25


def test_a_run_gives_up_after_three_calls_in_vain(world: World) -> None:
    """A Stripe that is down is not asked for every hour; the hours that were tried least go first
    next time.
    """
    world.link()
    for hours_ago in range(8, 0, -1):
        world.use(10.0, hours_ago)
    done = fail(world, "500-before", 1000)
    assert len(done.open) == 8
    assert len(world.slept) == 3 * len(PAUSES)
    assert sorted(row.attempts for row in outbox(world.pm)) == [0] * 5 + [1] * 3
    assert world.report().complete
    assert world.billed() == 80


def test_a_key_that_is_not_taken_ends_the_run(used: World) -> None:
    """Nothing is refused because of it; the error names the variable, and no part of the key."""
    with pytest.raises(
        BillingError, match=r"STRIPE_API_KEY: Stripe refuses this key \(401\)"
    ) as caught:
        fail(used, "401-before")
    assert "Loopback" not in str(caught.value)
    used.server.faults.clear()
    assert used.report().complete
    assert used.billed() == 10


def test_what_is_refused_stays_and_is_listed_until_asked_for(used: World) -> None:
    """A refusal is not sent again by itself; retry_refused sends it as a new revision."""
    done = fail(used, "400-before", 1)
    assert [(row.state, row.reason) for row in done.open] == [
        ("refused", "InvalidRequestError: as told")
    ]
    before = posts(used)
    assert not used.report().complete
    assert posts(used) == before
    assert used.report(retry_refused=True).complete
    assert states(used) == [(0, "superseded"), (1, "sent")]
    assert used.billed() == 10


def test_a_change_takes_the_place_of_what_was_refused(used: World) -> None:
    """The hour's next revision goes out by itself."""
    fail(used, "400-before", 1)
    used.pm.log_power(used.meters["edge"], 25.0, 1.0, timestamp=(THIS_HOUR - 3) * HOUR + 2400)
    assert used.report().complete
    assert used.billed() == 12


def test_a_change_before_sending_needs_no_revision(used: World) -> None:
    """What nobody has seen is changed in place; what may have been seen is not."""
    with tables(used.pm) as conn:
        queue_value(conn, CUSTOMER, THIS_HOUR - 3, 5)
        queue_value(conn, CUSTOMER, THIS_HOUR - 3, 10)
    used.report()
    assert states(used) == [(0, "sent")]
    assert used.billed() == 10


def test_a_change_after_a_lost_answer_is_a_revision(used: World) -> None:
    """Else Stripe would take the new value for the old event again."""
    fail(used, "lost-after")
    used.pm.log_power(used.meters["edge"], 25.0, 1.0, timestamp=(THIS_HOUR - 3) * HOUR + 2400)
    assert used.report().complete
    assert states(used) == [(0, "superseded"), (1, "sent")]
    assert used.billed() == 12


# --- After 24 hours


def later(world: World, seconds: float = PROTECTED + 1) -> None:
    """Let time pass."""
    world.now = world.true_now = world.now + seconds


def test_within_24_hours_the_identifier_protects(used: World) -> None:
    """The event is sent again as it was, and what Stripe has is looked at."""
    fail(used, "lost-after")
    later(used, PROTECTED - 60)
    used.server.requests.clear()
    before = posts(used)
    assert used.report().complete
    assert posts(used) == before + 1
    assert sum("summaries" in path for _, path in used.server.requests) == 2, (
        "before, and of the refusal"
    )
    assert (states(used), used.billed()) == ([(0, "sent")], 10)


def test_after_24_hours_an_event_that_arrived_is_found(used: World) -> None:
    """Stripe has forgotten the identifier: the summary says that the event is there, and it is not
    sent again.
    """
    fail(used, "lost-after")
    later(used, 48 * HOUR)
    before = posts(used)
    done = used.report()
    assert [row.reason for row in done.sent] == ["found at the biller"]
    assert (posts(used), used.billed()) == (before, 10)


def test_after_24_hours_an_event_that_did_not_arrive_is_sent_as_a_new_revision(used: World) -> None:
    """Should the first one still turn up, the hour has the newest of the two."""
    fail(used, "lost-before")
    later(used)
    assert used.report().complete
    assert states(used) == [(0, "superseded"), (1, "sent")]
    assert (len(used.server.events), used.billed()) == (1, 10)


def test_after_24_hours_nothing_is_sent_while_stripe_cannot_say(used: World) -> None:
    """It stays open, with the reason, until the summary can be had."""
    fail(used, "lost-after")
    later(used, 48 * HOUR)
    used.server.summaries_work = False
    before, done = posts(used), used.report()
    assert posts(used) == before
    assert [row.reason for row in done.open] == ["unresolved: the biller cannot say what it has"]
    used.server.summaries_work = True
    assert used.report().complete
    assert (len(used.server.events), used.billed()) == (1, 10)


def test_a_stripe_that_is_down_is_not_asked_for_every_hour(world: World) -> None:
    """Three summaries in vain, and the rest waits; three more runs have tried the events before."""
    world.link()
    for hours_ago in range(8, 0, -1):
        world.use(10.0, hours_ago)
    for _ in range(3):
        fail(world, "lost-before", 1000)
    later(world)
    world.server.summaries_work = False
    world.server.requests.clear()
    world.report()
    assert (
        sum("summaries" in path for _, path in world.server.requests) == 3 * 3
    )  # the SDK's tries of three
    world.server.summaries_work = True
    assert world.report().complete
    assert world.billed() == 80


def test_a_customer_whose_summaries_fail_holds_up_nobody_else(world: World) -> None:
    """One that was deleted at Stripe, say: its hours are asked for in turn with the others'."""
    world.add_device("twin")
    world.link()
    world.link("twin", "cus_Next")
    for hours_ago in (9, 8, 7, 6, 5):
        world.use(10.0, hours_ago)
    world.use(10.0, 2, "twin")
    fail(world, "lost-before", 1000)
    fail(world, "lost-before", 1000)
    later(world)
    sink = world.sink()
    works = sink.recorded

    def fails_for_one(customer: str, hours: range) -> dict[int, int]:
        if customer == CUSTOMER:
            raise CannotSayNow("deleted")
        return works(customer, hours)

    sink.recorded = fails_for_one  # type: ignore[method-assign]
    for _ in range(3):
        world.usage.report(sink)
    assert world.billed("cus_Next") == 10


def test_an_identifier_that_is_forgotten_during_a_run_is_not_used(world: World) -> None:
    """The run's first event takes three hours; the second one's first try is then 25 hours ago."""
    world.link()
    world.use(10.0, 4)
    world.use(10.0, 3)
    fail(world, "lost-after", 1000)
    later(world, 22 * HOUR)
    inner = world.sink()

    class Slow:
        account, batch, recorded = inner.account, inner.batch, inner.recorded

        def send(self, events: Sequence[UsageEvent]) -> list[Receipt]:
            receipts = inner.send(events)
            later(world, 3 * HOUR)
            return receipts

    assert len(world.usage.report(Slow()).open) == 1
    assert world.report().complete
    assert [event["identifier"][-1] for event in world.server.events] == ["0", "0"]


def test_a_clock_that_was_set_back_counts_as_24_hours(used: World) -> None:
    """An attempt that lies in the future says nothing about how long ago it was."""
    fail(used, "lost-after")
    used.now -= 60.0
    used.report()
    assert any("summaries" in path for _, path in used.server.requests)
    assert (len(used.server.events), used.billed()) == (1, 10)


def test_a_clock_that_differs_from_stripes_is_named(used: World) -> None:
    """An hour that has not come at Stripe is kept for later, not given up."""
    used.true_now = NOW - 10 * HOUR
    done = used.report()
    assert "this machine's clock and Stripe's differ" in str(done.open[0].reason)
    used.true_now = NOW
    assert used.report().complete


def test_a_key_that_is_withdrawn_meanwhile_ends_the_run(used: World) -> None:
    """Also where only summaries are asked for."""
    fail(used, "lost-after")
    later(used, 48 * HOUR)
    sink = used.sink()
    used.server.key = "another"
    with pytest.raises(BillingError, match="Stripe refuses this key"):
        used.usage.report(sink)


def test_an_old_attempt_that_did_not_arrive_is_listed_when_it_is_too_late(used: World) -> None:
    """After 35 days there is nothing to be sent, whatever the summary says."""
    fail(used, "lost-before")
    later(used, 36 * 24 * HOUR)
    assert [entry.event.watt_hours for entry in used.report().too_old] == [10]
    assert (states(used), used.server.events) == ([(0, "queued")], [])


def test_what_is_too_old_is_asked_for_once(used: World) -> None:
    """Not by every run for ever; a clock that is right again counts as news."""
    fail(used, "lost-before")
    used.server.requests.clear()
    used.now += 36 * 24 * HOUR
    for _ in range(3):
        used.report()
    assert sum("summaries" in path for _, path in used.server.requests) == 1
    assert [row.reason for row in outbox(used.pm)] == ["too late: the biller has 0 Wh"]
    used.now = used.true_now = NOW + 25 * HOUR
    assert used.report().complete
    assert used.billed() == 10


def test_what_is_too_old_is_not_even_tried(world: World) -> None:
    """Of eight hours five were never sent; after 35 days nobody asks Stripe to take them."""
    world.link()
    for hours_ago in range(8, 0, -1):
        world.use(10.0, hours_ago)
    fail(world, "lost-before", 1000)
    later(world, 36 * 24 * HOUR)
    before = posts(world)
    assert len(world.report().too_old) == 8
    assert posts(world) == before


# --- Crashes


class Killed(BaseException):
    """As if the process had ended."""


@pytest.mark.parametrize("arrived", [True, False])
def test_a_crash_between_sending_and_noting_it_bills_once(used: World, arrived: bool) -> None:
    """The file knows that the event may be there, and sends it under the same identifier."""
    inner = used.sink()

    class Dies:
        account, batch, recorded = inner.account, inner.batch, inner.recorded

        def send(self, events: Sequence[UsageEvent]) -> list[Receipt]:
            if arrived:
                inner.send(events)
            raise Killed

    with pytest.raises(Killed):
        used.usage.report(Dies())
    assert used.report().complete
    assert (len(used.server.events), used.billed(), states(used)) == (1, 10, [(0, "sent")])


def test_a_full_disk_after_sending_bills_once(used: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came of it could not be noted; the next run finds out."""

    def full(*_: object) -> None:
        raise StorageError("power.db", "SQLITE_FULL")

    with monkeypatch.context() as patch:
        patch.setattr(Sender, "_record", full)
        with pytest.raises(StorageError):
            used.report()
    assert used.report().complete
    assert (len(used.server.events), used.billed()) == (1, 10)


def test_a_sink_of_ones_own_is_all_it_takes(used: World) -> None:
    """Any object with UsageSink's four members will do; LATER is tried again."""
    calls: list[list[str]] = []

    class Mine:
        account, batch = "mine", 7

        def send(self, events: Sequence[UsageEvent]) -> list[Receipt]:
            calls.append([event.identifier for event in events])
            return [Receipt(Outcome.LATER if len(calls) == 1 else Outcome.SENT)] * len(events)

        def recorded(self, customer: str, hours: range) -> None:
            """It never can say."""

    assert used.usage.report(Mine()).complete
    first, second = calls
    assert first == second
