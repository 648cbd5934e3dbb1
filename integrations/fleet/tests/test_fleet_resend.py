"""What a device has sent it can send again: an engine that has lost it is right afterwards, another
one as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_common import compare, same
from fleet_harness import (
    HOUR,
    NOW,
    SEQUENCES,
    Clock,
    batches_of,
    carry,
    emptied,
    queried,
    random_device,
    same_json,
)
from power_fleet import cli, progress
from power_fleet.codec import Batch
from power_fleet.engine import Engine
from power_fleet.fleet import Fleet
from power_fleet.outbox import DELETIONS, EVENTS, Outbox
from power_fleet.progress import Resent, resend
from power_fleet.sink import rows_of, store

from power_manager import InvalidValue, NotFound, PowerManager

ID = "edge-1"


@pytest.fixture
def clock() -> Clock:
    """The clock of the file and of the fleet."""
    return Clock()


@pytest.fixture
def engine(new_urls: list[str]) -> Engine:
    """An empty engine."""
    return Engine(emptied(new_urls))


@pytest.fixture
def pm(tmp_path: Path, clock: Clock) -> Iterator[PowerManager]:
    """A device that has deleted, corrected and gone on; everything is sent."""
    with random_device(tmp_path / "a.db", 1, ID, clock) as manager:
        yield manager


def corrected(pm: PowerManager) -> None:
    """Delete readings of a meter, and record others in the place of some of them; delete another
    meter.
    """
    first, second, *_ = pm.list_meters()
    wrong = list(pm.iter_history(first.id, since=NOW - 100 * HOUR))
    pm.delete_readings(first.id, since=NOW - 100 * HOUR)
    pm.log_many([(first.id, 5.0, 0.5, 50.0, reading.timestamp) for reading in wrong[::2]])
    pm.delete_meter(second.id)


def stored(engine: Engine, batches: list[Batch]) -> None:
    """Store them."""
    store(engine, rows_of([(batch, int(NOW * 1e6)) for batch in batches], engine))


def assert_equal(pm: PowerManager, engine: Engine, urls: list[str], clock: Clock) -> None:
    """The engine is what the file is."""
    fleet = Fleet(urls, clock=clock)
    compare(pm, ID, [engine.shards[0].clients[0]])
    assert pm.list_meters() == fleet.latest().value
    assert same_json(pm.export_report(ID, 20), fleet.report(ID, 20).value)
    assert same(pm.power_budget_check([ID]), fleet.budget().value)


def test_an_engine_that_lost_everything_gets_it_again(
    pm: PowerManager, engine: Engine, new_urls: list[str], clock: Clock
) -> None:
    """By the forwarder that runs, and the states too."""
    box = Outbox(pm)
    stored(engine, batches_of(box))
    corrected(pm)
    stored(engine, batches_of(box))
    emptied(new_urls)
    count = sum(len(list(pm.iter_history(meter.id))) for meter in pm.list_meters())
    assert resend(pm, 0, ID) == Resent(count, len(pm.get_events(ID, 1000)), 2)
    stored(engine, batches_of(box))
    assert_equal(pm, engine, new_urls, clock)
    assert box.take().batches == []
    assert Outbox(pm).take().batches[0].opening is not None


def test_it_does_no_harm(
    pm: PowerManager, engine: Engine, new_urls: list[str], clock: Clock
) -> None:
    """What was recorded in place of what was deleted stays, also what the file no longer has."""
    carry(pm, engine)
    corrected(pm)
    carry(pm, engine)
    assert_equal(pm, engine, new_urls, clock)
    rows = "SELECT meter_id, at, voltage FROM power_readings FINAL WHERE deleted = 0 ORDER BY ALL"
    before = queried(engine, rows)
    pm.prune(2)
    for _ in range(2):
        resend(pm, NOW - 200 * HOUR)
        carry(pm, engine)
    assert queried(engine, rows) == before


@pytest.mark.parametrize("lost", ["deletions", "readings", "events"])
def test_an_engine_that_lost_a_part_gets_it_again(
    pm: PowerManager, engine: Engine, new_urls: list[str], clock: Clock, lost: str
) -> None:
    """A backup of the engine was put back: it has never heard of some messages."""
    box = Outbox(pm)
    stored(engine, batches_of(box))
    corrected(pm)
    pm.trigger_event(ID, "restore", note="late")
    stored(engine, [batch for batch in batches_of(box) if not getattr(batch, lost)])
    resend(pm, 0)
    stored(engine, batches_of(box))
    assert_equal(pm, engine, new_urls, clock)


def test_only_what_is_later_is_sent_again(pm: PowerManager) -> None:
    """Of one device, if it is named; the states are told in any case."""
    pm.register_device("b", "B")
    other = pm.add_meter("b", "main").id
    pm.log_many([(other, 230.0, 1.0, None, NOW - hour * HOUR) for hour in range(10)])
    box = Outbox(pm)
    batches_of(box)
    assert resend(pm, NOW - 3.5 * HOUR, "b") == Resent(4, 0, 0)
    batches = batches_of(box)
    rows = [row for batch in batches for row in batch.readings]
    assert [row.meter_id for row in rows] == [other] * 4
    assert min(row.at for row in rows) >= (NOW - 3.5 * HOUR) * 1e6
    assert {meter.id for batch in batches for meter in batch.meters} == {
        meter.id for meter in pm.list_meters()
    }


def test_events_are_sent_again_in_order(pm: PowerManager) -> None:
    """From the first one of that time on, in messages that are not too large, and a second call
    begins earlier.
    """
    with pm.transaction():
        for number in range(3 * EVENTS):
            pm.trigger_event(ID, "restore", number, timestamp=NOW + 1 + number)
    box = Outbox(pm)
    batches_of(box)
    assert resend(pm, NOW + 1 + EVENTS).events == 2 * EVENTS
    box.done(box.take(), [next(SEQUENCES)])
    parcel = box.take()
    assert [len(batch.events) for batch in parcel.batches if batch.events] == [EVENTS]
    box.done(parcel, [next(SEQUENCES) for _ in parcel.batches])
    assert resend(pm, NOW + 1 + 2 * EVENTS).events == EVENTS
    values = [row.value for batch in batches_of(box) for row in batch.events]
    assert values == [float(number) for number in range(2 * EVENTS, 3 * EVENTS)]
    assert resend(pm, NOW + 1).events == 3 * EVENTS
    pm.delete_device(ID)
    assert [row for batch in batches_of(box) for row in batch.events] == []


def test_deletions_of_a_device_that_is_gone_are_sent_again(pm: PowerManager) -> None:
    """With the versions that they had."""
    box = Outbox(pm)
    pm.delete_device(ID)
    first = [row for batch in batches_of(box) for row in batch.deletions]
    assert resend(pm, 0, ID) == Resent(0, 0, 1)
    batches = batches_of(Outbox(pm))
    assert [row for batch in batches for row in batch.deletions] == first
    assert batches[-1].line > first[0].line


def test_deletions_of_another_fleet_are_not_sent(pm: PowerManager) -> None:
    """The file comes from a fleet whose stream had come further."""
    box = Outbox(pm)
    pm.delete_readings(pm.list_meters()[0].id)
    opening = box.take()
    box.done(opening, [10**9])
    parcel = box.take()
    box.done(parcel, [10**9 + 1 + number for number in range(len(parcel.batches))])
    assert resend(pm, 0).deletions == 1
    batches = batches_of(Outbox(pm))
    assert [row for batch in batches for row in batch.deletions] == []
    with pm.connection() as conn:
        assert progress.deletions_again(conn, 10) == []


def test_the_newest_deletions_are_kept(pm: PowerManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that deletes all the time does not grow by it."""
    monkeypatch.setattr(progress, "KEPT_DELETIONS", 3)
    meter = pm.list_meters()[0].id
    with pm.transaction():
        for number in range(DELETIONS + 1):
            pm.delete_readings(meter, until=NOW - 1e6 - number)
    batches_of(Outbox(pm))
    assert resend(pm, 0).deletions == 3


def test_what_is_wrong_is_refused(pm: PowerManager) -> None:
    """And then nothing waits."""
    batches_of(Outbox(pm))
    with pytest.raises(NotFound, match="no device has the id 'edge-9'"):
        resend(pm, 0, "edge-9")
    with pytest.raises(InvalidValue, match="since"):
        resend(pm, "yesterdy")
    assert pm.pending_readings() == []


def test_the_command_says_how_much_waits(
    pm: PowerManager, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what sends it; a file or a device that is not there is an error."""
    pm.delete_readings(pm.list_meters()[0].id, until=NOW - 200 * HOUR)
    batches_of(Outbox(pm))
    file = ["--db", str(pm.db_path)]
    count = sum(len(list(pm.iter_history(meter.id))) for meter in pm.list_meters())
    events = len(pm.get_events(ID, 1000))
    assert cli.main(["resend", "--since", "0", *file]) == 0
    assert capsys.readouterr().out == (
        f"to be sent again: {count} readings, {events} events, 1 deletion, and every state; "
        "`power-fleet forward` sends them\n"
    )
    assert len(pm.pending_readings(10**6)) == count
    assert cli.main(["resend", "edge-9", "--since", "0", *file]) == 1
    assert capsys.readouterr().err == "power-fleet: no device has the id 'edge-9'\n"
    assert cli.main(["resend", "--since", "0", "--db", str(pm.db_path) + ".none"]) == 1
    assert "no such file" in capsys.readouterr().err
    assert not Path(str(pm.db_path) + ".none").exists()
    with pytest.raises(SystemExit) as ended:
        cli.main(["resend", *file])
    assert ended.value.code == 2
