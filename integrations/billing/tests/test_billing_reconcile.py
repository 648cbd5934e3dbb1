"""The ledger beside what Stripe has, and what is done about a difference."""

from __future__ import annotations

from pathlib import Path

import pytest
from power_billing import BillingError, CannotSayNow, CsvSink
from power_billing.decisions import keep_theirs, undecided
from power_billing.hours import oldest_billable
from power_billing.outbox import State, revise
from power_billing.reconcile import Reconciliation, reconcile, repair
from power_billing.tables import tables
from world import CUSTOMER, HOUR, NOW, World, outbox

THIS_HOUR = int(NOW // HOUR)


@pytest.fixture
def used(world: World) -> World:
    """Two hours that were sent two hours ago."""
    world.link()
    world.use(10.0, 30)
    world.use(20.0, 3)
    world.report()
    world.now = world.true_now = NOW + 2 * HOUR
    return world


def compare(world: World, hours: range | None = None) -> Reconciliation:
    """What reconcile finds now."""
    present = int(world.now // HOUR)
    hours = hours or range(oldest_billable(world.now), present)
    return reconcile(world.pm, world.sink(), hours, world.now)


def lose(world: World, hours_ago: int) -> None:
    """Stripe drops an event that it had accepted."""
    world.server.events = [
        event
        for event in world.server.events
        if event["timestamp"] // 3600 != THIS_HOUR - hours_ago
    ]


def test_what_agrees_is_clean(used: World) -> None:
    """Every hour of a month, in pages as long as Stripe's."""
    before = len(used.server.requests)
    assert compare(used).is_clean
    assert sum("summaries" in path for _, path in used.server.requests[before:]) == 9


def test_an_event_that_stripe_has_dropped_is_found_and_repaired(used: World) -> None:
    """By customer and hour, with its rows; the repair is a revision."""
    lose(used, 30)
    found = compare(used)
    assert [
        (one.customer, one.hours.start, one.ours_wh, one.theirs_wh) for one in found.differences
    ] == [(CUSTOMER, THIS_HOUR - 30, 10, 0)]
    assert [entry.event.revision for entry in found.differences[0].entries] == [0]
    assert repair(used.pm, found.differences, oldest_billable(used.now)) == 1
    assert used.report().complete
    assert used.billed() == 30
    used.now = used.true_now = used.now + 2 * HOUR
    assert compare(used).is_clean


def test_what_stripe_has_from_elsewhere_is_found(used: World) -> None:
    """Another value in an hour of ours is repaired; an hour that was never sent from here is a
    conflict.
    """
    for hour, value in ((THIS_HOUR - 3, 99), (THIS_HOUR - 7, 5)):
        event = {
            "name": "power_watt_hours",
            "identifier": f"x{hour}",
            "timestamp": hour * 3600 + 5,
            "customer": CUSTOMER,
            "value": value,
        }
        used.server.events.append(event)
    found = compare(used)
    assert [(one.ours_wh, one.theirs_wh, one.is_foreign) for one in found.differences] == [
        (0, 5, True),
        (20, 99, False),
    ]
    assert repair(used.pm, found.differences, oldest_billable(used.now)) == 1
    assert not used.report().complete
    assert used.billed() == 10 + 20 + 5
    used.server.newest_by = "timestamp"
    assert used.billed() == 10 + 20 + 5
    (conflict,) = undecided(used.pm, oldest_billable(used.now)).conflicts
    assert (conflict.event.watt_hours, conflict.theirs_wh) == (0, 5)


def test_what_was_sent_just_now_is_not_compared(world: World) -> None:
    """Stripe's summaries follow its events."""
    world.link()
    world.use(20.0, 3)
    world.report()
    world.server.events.clear()
    found = compare(world)
    assert (found.is_clean, found.settling_count) == (True, 1)


def test_what_is_too_old_is_found_and_not_repaired(used: World) -> None:
    """Stripe would not take it."""
    lose(used, 30)
    used.now = used.true_now = NOW + 40 * 24 * HOUR
    found = compare(used, range(THIS_HOUR - 40, THIS_HOUR))
    assert len(found.differences) == 1
    assert repair(used.pm, found.differences, oldest_billable(used.now)) == 0


def test_another_biller_is_not_compared(used: World, tmp_path: Path) -> None:
    """It has nothing of this ledger's, and a repair would bill everything twice."""
    sink = CsvSink(tmp_path / "usage.csv")
    with pytest.raises(BillingError, match="its usage goes to stripe:mtr_test_1"):
        reconcile(used.pm, sink, range(THIS_HOUR - 40, THIS_HOUR), used.now)


def test_a_biller_that_does_not_say_is_not_clean(used: World) -> None:
    """Unknown is not equal."""
    used.server.summaries_work = False
    found = compare(used)
    assert not found.is_clean
    assert "does not say what it has for cus_" in found.unsaid[CUSTOMER]


def test_report_compares_once_a_day(used: World) -> None:
    """And in every run as long as something differs, which makes the run incomplete."""
    lose(used, 30)
    for _ in range(2):
        done = used.usage.report(used.sink(), compare=None)
        assert done.reconciliation is not None
        assert not done.complete
    repair(used.pm, compare(used).differences, oldest_billable(used.now))
    assert used.usage.report(used.sink(), compare=None).complete
    done = used.usage.report(used.sink(), compare=None)
    assert (done.reconciliation, done.complete) == (None, True)
    used.now = used.true_now = used.now + 24 * HOUR
    assert used.usage.report(used.sink(), compare=None).reconciliation is not None


def test_a_csv_file_that_is_written_again_agrees(world: World, tmp_path: Path) -> None:
    """The repair of a deleted file writes every hour anew."""
    sink = CsvSink(tmp_path / "usage.csv")
    world.link()
    world.use(10.0, 30)
    world.use(20.0, 3)
    world.usage.report(sink)
    sink.path.unlink()
    hours = range(oldest_billable(NOW), THIS_HOUR)
    found = reconcile(world.pm, sink, hours, NOW)
    assert repair(world.pm, found.differences, oldest_billable(NOW)) == 2
    assert world.usage.report(sink, compare=True).complete
    assert sink.recorded(CUSTOMER, hours) == {THIS_HOUR - 30: 10, THIS_HOUR - 3: 20}


def test_a_csv_file_that_cannot_be_read_says_nothing_now(tmp_path: Path) -> None:
    """It has what it has: that is not 0 Wh."""

    class Unreadable(CsvSink):
        def _rows(self) -> list[dict[str, str]]:
            raise PermissionError(13, "Permission denied")

    with pytest.raises(CannotSayNow, match=r"usage\.csv: Permission denied"):
        Unreadable(tmp_path / "usage.csv").recorded(CUSTOMER, range(THIS_HOUR))


def test_an_hour_that_was_left_to_the_biller_is_compared_with_what_was_kept(used: World) -> None:
    """What changes there after a person's decision is a difference; the repair asks the person
    again.
    """
    hour = THIS_HOUR - 3
    with tables(used.pm) as conn:
        revise(conn, CUSTOMER, hour, 25, State.CONFLICT, "the biller has 20 Wh from elsewhere", 20)
    keep_theirs(used.pm, undecided(used.pm, oldest_billable(used.now)))
    assert compare(used).is_clean
    for event in used.server.events:
        if event["timestamp"] // 3600 == hour:
            event["value"] = 21
    found = compare(used)
    assert [(one.ours_wh, one.theirs_wh) for one in found.differences] == [(20, 21)]
    assert repair(used.pm, found.differences, oldest_billable(used.now)) == 0
    *_, newest = (row for row in outbox(used.pm) if row.event.hour == hour)
    assert (newest.state, newest.event.watt_hours, newest.theirs_wh) == (State.CONFLICT, 25, 21)
    assert len(used.server.events) == 2, "nothing is replaced"
