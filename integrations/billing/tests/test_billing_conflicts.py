"""What was sent from elsewhere: two files of a customer, a restored backup, a deleted CSV file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from power_billing import CsvSink, State
from power_billing.decisions import keep_theirs, send_ours
from world import CUSTOMER, HOUR, NOW, World, outbox, pass_time, to_decide

from power_manager import restore_database

THIS_HOUR = int(NOW // HOUR)


def late(world: World, hours_ago: int, watts: float = 25.0) -> None:
    """One more reading 6 minutes after the last in an hour of 10 Wh; by 25 W it has 12 Wh."""
    at = (THIS_HOUR - hours_ago) * HOUR + 2400
    world.pm.log_power(world.meters["edge"], watts, 1.0, timestamp=at)


@pytest.fixture
def used(world: World) -> World:
    """A world with 10 Wh in each of three hours, of which nothing is sent."""
    world.link()
    for hours_ago in (4, 3, 2):
        world.use(10.0, hours_ago)
    world.sink()
    return world


def restore(world: World, backup: Path) -> None:
    """Put a backup in place of the world's file, as `power-manager restore` does."""
    path = world.pm.db_path
    world.pm.close()
    restore_database(path, backup)
    world.open(path)


# --- Two files of one customer


@pytest.fixture
def other(used: World, tmp_path: Path) -> Iterator[World]:
    """Another file of the same customer, whose ledger is a copy: it has used nothing yet."""
    made = World(tmp_path / "other.db")
    made.server = used.server
    made.link()
    made.copy_from(used)
    yield made
    made.pm.close()


@pytest.mark.parametrize("hours_later", [0, 49])
def test_two_files_of_one_customer_are_a_conflict(
    used: World, other: World, hours_later: float
) -> None:
    """The second one's hours are neither swallowed nor put in place of the first one's, however
    late it comes.
    """
    other.use(30.0, 3)
    other.use(10.0, 2)
    assert used.report().complete
    pass_time([used, other], hours_later)
    done = other.report()
    assert not done.complete
    assert used.billed() == 30, "as the first file has it"
    assert [(row.event.watt_hours, row.state, row.theirs_wh) for row in done.open] == [
        (30, State.CONFLICT, 10)
    ]
    assert "10 Wh from elsewhere" in str(done.open[0].reason)
    assert [row.event.watt_hours for row in done.sent] == [10], "what agrees is sent"


def test_a_conflict_stays_open_until_somebody_decides(used: World, other: World) -> None:
    """Every run asks again, and sends nothing; when the biller has the value after all, it is
    settled.
    """
    other.use(12.0, 3)
    used.report()
    for _ in range(2):
        assert not other.report().complete
    assert len(used.server.events) == 3
    late(used, 3)
    used.report()  # now it says 12 Wh too
    done = other.report()
    assert (done.complete, [row.reason for row in done.sent]) == (True, ["found at the biller"])


def test_ours_is_sent_as_a_revision_where_somebody_says_so(used: World, other: World) -> None:
    """It replaces the other's whether the biller goes by receipt or by timestamp."""
    other.use(30.0, 3)
    used.report()
    late(used, 3)
    used.report()  # theirs is revision 1 by now
    other.report()
    send_ours(other.pm, to_decide(other).conflicts)
    assert other.report().complete
    assert used.billed() == 20 + 30
    used.server.newest_by = "timestamp"
    assert used.billed() == 20 + 30
    late(used, 3, 40.0)
    assert used.report().complete, "a reading at an instant that is there changes nothing"
    used.pm.log_power(used.meters["edge"], 25.0, 1.0, timestamp=(THIS_HOUR - 3) * HOUR + 2600)
    assert not used.report().complete, "now it is the first file's to ask a person"


def test_theirs_is_kept_where_somebody_says_so(used: World, other: World) -> None:
    """The hour is closed with the biller's value; if it changes again, a person decides again."""
    other.use(10.0, 3)
    other.use(10.0, 9)
    late(other, 3)
    used.report()
    other.report()
    keep_theirs(other.pm, to_decide(other))
    assert other.report().complete
    assert used.server.hours(CUSTOMER)[THIS_HOUR - 3] == 10
    states = [row.state for row in outbox(other.pm) if row.event.hour == THIS_HOUR - 3]
    assert states == [State.SUPERSEDED, State.KEPT]
    late(other, 9)
    assert other.report().complete, "another hour's change is no reason to ask again"
    other.pm.log_power(other.meters["edge"], 25.0, 1.0, timestamp=(THIS_HOUR - 3) * HOUR + 2600)
    done = other.report()
    assert [(row.state, row.theirs_wh) for row in done.open] == [(State.CONFLICT, 10)]
    assert used.server.hours(CUSTOMER)[THIS_HOUR - 3] == 10


def test_an_identifier_that_others_have_used_longer_ago_protects_nobody(
    used: World, other: World
) -> None:
    """The first try came to nothing while Stripe still knew it; the second comes when it has
    forgotten the other's.
    """
    other.use(30.0, 3)
    used.report()
    used.server.clock = lambda: used.true_now
    pass_time([used, other], 14)
    used.server.faults.extend(["500-before"] * 24)
    used.server.summaries_work = False
    assert not other.report().complete
    used.server.faults.clear()
    used.server.summaries_work = True
    pass_time([used, other], 12)
    assert [row.state for row in other.report().open] == [State.CONFLICT]
    assert used.billed() == 30


def test_what_is_unresolved_takes_nobodys_place(used: World, other: World) -> None:
    """A try of yesterday, and the hour is somebody else's: no new revision goes out."""
    other.use(30.0, 3)
    used.server.clock = lambda: used.true_now
    used.server.faults.extend(["lost-before"] * 24)
    assert not other.report().complete
    used.server.faults.clear()
    used.report()
    pass_time([used, other], 30)
    assert [row.state for row in other.report().open] == [State.CONFLICT]
    assert used.billed() == 30


def test_a_first_event_that_was_refused_elsewhere_protects_nobody(
    used: World, other: World
) -> None:
    """The other file's value is in a revision, whose identifier this file's first event has not."""
    other.use(30.0, 3)
    used.server.faults.extend(["400-before"] * 3)
    used.report()
    assert used.report(retry_refused=True).complete
    assert [row.state for row in other.report().open] == [State.CONFLICT]
    assert used.billed() == 30


# --- A restored backup


@pytest.mark.parametrize("newest_by", ["receipt", "timestamp"])
@pytest.mark.parametrize("hours_later", [0, 30, 49])
def test_a_restored_backup_and_a_late_reading_lose_nothing_in_silence(
    used: World, tmp_path: Path, hours_later: float, newest_by: str
) -> None:
    """What was sent after the backup agrees, or is a conflict; nothing is replaced without being
    asked for.
    """
    used.server.newest_by = newest_by
    backup = tmp_path / "backup.db"
    used.pm.backup(backup)
    late(used, 2)
    used.report()
    used.pm.log_power(used.meters["edge"], 25.0, 1.0, timestamp=(THIS_HOUR - 2) * HOUR + 2600)
    used.report()
    assert used.billed() == 33
    restore(used, backup)
    late(used, 3)
    pass_time([used], hours_later)
    done = used.report()
    assert not done.complete
    conflicts = {(row.event.watt_hours, row.theirs_wh) for row in done.open}
    assert conflicts == {(12, 10), (10, 13)}
    assert used.billed() == 33
    send_ours(used.pm, to_decide(used).conflicts)
    assert used.report().complete
    assert used.billed() == 32, "what the file says now"


def test_a_restored_backup_of_before_a_revision_is_a_conflict(used: World, tmp_path: Path) -> None:
    """Both files have sent the first event; the second is of the one that is gone."""
    backup = tmp_path / "backup.db"
    used.report()
    used.pm.backup(backup)
    late(used, 3)
    used.report()
    restore(used, backup)
    used.pm.log_power(used.meters["edge"], 25.0, 1.0, timestamp=(THIS_HOUR - 3) * HOUR + 2600)
    done = used.report()
    assert [(row.event.revision, row.theirs_wh) for row in done.open] == [(1, 12)]
    assert used.billed() == 32


def test_a_restored_backup_without_changes_needs_nobody(used: World, tmp_path: Path) -> None:
    """Every event is there already with its value: found, and not sent again."""
    backup = tmp_path / "backup.db"
    used.pm.backup(backup)
    used.report()
    restore(used, backup)
    assert used.report().complete
    pass_time([used], 49)
    restore(used, backup)
    before = len(used.server.events)
    done = used.report()
    assert (done.complete, len(done.sent), len(used.server.events)) == (True, 3, before)


def test_a_lost_answer_of_somebody_elses_event_is_no_success(used: World, other: World) -> None:
    """Stripe's refusal of the identifier is lost; the second is not taken for the own event's."""
    other.use(30.0, 3)
    used.report()
    used.server.faults.append("lost-after")
    assert [row.state for row in other.report().open] == [State.CONFLICT]


def test_summaries_that_follow_late_make_no_conflict(used: World) -> None:
    """The event of a lost answer is there, its summary is not yet: it waits for the next run."""
    sink = used.sink()
    used.server.faults.extend(["lost-after"] * 3)  # the SDK's tries of the first call
    works = sink.recorded
    sink.recorded = lambda customer, hours: {}  # type: ignore[method-assign]
    done = used.usage.report(sink)
    assert [row.state for row in done.open] == [State.QUEUED]
    assert "its summary says 0 Wh so far" in str(done.open[0].reason)
    sink.recorded = works  # type: ignore[method-assign]
    assert used.usage.report(sink).complete
    assert (used.billed(), len(used.server.events)) == (30, 3)


def test_old_hours_wait_while_stripe_does_not_say_what_it_has(used: World) -> None:
    """An hour of three days ago may be somebody else's; an hour of today cannot be without its
    identifier known.
    """
    used.use(10.0, 72)
    used.server.summaries_work = False
    done = used.report()
    assert [row.event.hour for row in done.open] == [THIS_HOUR - 72]
    assert "does not say what it has" in str(done.open[0].reason)
    used.server.summaries_work = True
    assert used.report().complete
    assert used.billed() == 40


def test_an_answer_that_names_no_event_is_no_success(
    used: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 with nothing in it, as from something between: the event is sent again, and is there
    once.
    """
    whole = used.server._take
    answers: list[dict[str, object]] = [{}, {}]

    def emptied(values: dict[str, str], timestamp: int, key: str) -> dict[str, object]:
        answer = whole(values, timestamp, key)
        return answers.pop() if answers else answer

    monkeypatch.setattr(used.server, "_take", emptied)
    assert used.report().complete
    assert (used.billed(), len(used.server.events)) == (30, 3)


# --- CSV


def test_a_deleted_csv_file_is_no_success(used: World, tmp_path: Path) -> None:
    """Its rows are missing: every report says so until they are written again."""
    sink = CsvSink(tmp_path / "usage.csv")
    assert used.usage.report(sink, compare=True).complete
    sink.path.unlink()
    done = used.usage.report(sink, compare=True)
    assert not done.complete
    assert done.reconciliation is not None
    found = [(one.ours_wh, one.theirs_wh) for one in done.reconciliation.differences]
    assert found == [(10, 0)] * 3
