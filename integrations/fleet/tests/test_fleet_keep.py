"""What is kept for how long: months go, hours that are closed for good stay as they are, and
answers say since when.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from fleet_harness import HOUR, Clock, carry, emptied
from pipeline import quick
from power_fleet import cli, sql, tables
from power_fleet import keep as keep_module
from power_fleet.engine import Engine
from power_fleet.fleet import Fleet
from power_fleet.history import hour_rows
from power_fleet.hours import close_hours, keep_closing, late_hours
from power_fleet.keep import Keep, keep, kept

from power_manager import InvalidValue, PowerManager

DAY = 24 * HOUR
FUTURE = 3_800_001_600.0  # noon of a day in 2090: by its own clock the engine drops nothing of then
HOUR_US = 3_600_000_000


@pytest.fixture
def engine(new_urls: list[str]) -> Engine:
    """An engine with empty tables that keeps all for ever, before and afterwards."""
    found = Engine(emptied(new_urls))
    for table in ("power_readings", "power_touched", "power_hourly"):
        if "TTL" in definition(found, table):
            found.shards[0].do(f"ALTER TABLE {table} REMOVE TTL")
    return found


def definition(engine: Engine, table: str) -> str:
    """How the engine has made a table."""
    sql = """SELECT engine_full FROM system.tables
        WHERE name = %(table)s AND database = currentDatabase()"""
    (row,) = engine.shards[0].select(sql, table=table)
    return str(row["engine_full"])


def readings(engine: Engine) -> int:
    """How many readings the engine has."""
    (row,) = engine.shards[0].select(
        "SELECT toInt64(count()) AS readings FROM power_readings FINAL"
    )
    return int(row["readings"])


@pytest.fixture
def clock() -> Clock:
    """In 2090."""
    return Clock(FUTURE)


@pytest.fixture
def device(tmp_path: Path, clock: Clock) -> Any:
    """A file with four readings an hour of 12 W at 40 days ago, at 20 and now."""
    with PowerManager(tmp_path / "a.db", clock=clock) as pm:
        pm.register_device("edge-1", "Edge")
        meter = pm.add_meter("edge-1", "main", name="Main").id
        for days in (40, 20, 0):
            begin = FUTURE - days * DAY - 6 * HOUR
            pm.log_many([(meter, 12.0, 1.0, None, begin + 900 * step) for step in range(24)])
        yield pm


def drop_months_before(engine: Engine, days: float) -> None:
    """What the engine does by its own clock, done now: of readings alone."""
    hour = int((FUTURE - days * DAY) // HOUR)
    engine.shards[0].do(
        f"ALTER TABLE power_readings DELETE WHERE hour < {hour} SETTINGS mutations_sync = 2"
    )


def test_what_is_older_goes_and_what_is_not_stays(engine: Engine) -> None:
    """By the engine's own clock: readings of 2001 go, those of 2090 stay; for ever, and nothing
    goes any more.
    """
    shard = engine.shards[0]
    old, new = 1_000_000_000_000_000, int(FUTURE * 1e6)
    rows = [["a", "m", at, 1.0, 1.0, 1.0, 0, 1, 0] for at in (old, new)]
    shard.insert("power_readings", tables.READINGS, rows)
    keep(engine, readings_days=7, clock=Clock(FUTURE))
    shard.do("OPTIMIZE TABLE power_readings FINAL")
    assert readings(engine) == 1
    assert "toIntervalDay(8)" in definition(engine, "power_readings")
    assert "TTL" not in definition(engine, "power_hourly")
    keep(engine, readings_days=0, clock=Clock(FUTURE))
    shard.insert("power_readings", tables.READINGS, rows)
    shard.do("OPTIMIZE TABLE power_readings FINAL")
    assert readings(engine) == 2


def tally(fleet: Fleet, days: float) -> dict[str, Any]:
    """The figures of the only meter."""
    (part,) = json.loads(fleet.report("edge-1", days).value)["meters"]
    return dict(part)


def test_an_hour_without_its_readings_stays_as_it_was(
    engine: Engine, device: PowerManager, clock: Clock
) -> None:
    """A late reading of one changes nothing, also when more is kept afterwards, and is counted;
    other hours go on.
    """
    fleet = Fleet(["chdb://memory"], clock=clock)
    carry(device, engine)
    now_us = int(FUTURE * 1e6)
    close_hours(engine, now_us)
    before = tally(fleet, 60)
    assert (before["reading_count"], before["max_wattage"]) == (72, 12.0)
    keep(engine, readings_days=30, clock=clock)
    assert late_hours(engine, now_us) == 0
    drop_months_before(engine, 30)
    meter = device.list_meters()[0].id
    device.log_many([(meter, 500.0, 1.0, None, FUTURE - 40 * DAY - 1000.0)])
    carry(device, engine)
    hours = range(int(FUTURE // HOUR))
    for days in (30, 60, 0):
        keep(engine, readings_days=days, clock=clock)
        assert tally(fleet, 60) == before
        rows = hour_rows(
            engine.shards[0], sql.THESE, {"devices": ("edge-1",)}, hours, 5_400_000_000, now_us
        )
        assert [row["reading_count"] for row in rows] == [4] * 18
        assert max(row["max_wattage"] for row in rows) == 12.0
        assert close_hours(engine, now_us) == 0
        assert late_hours(engine, now_us) == 1
    device.log_many([(meter, 20.0, 1.0, None, FUTURE - 20 * DAY - 1000.0)])
    carry(device, engine)
    for closed in (1, 0):
        after = tally(fleet, 60)
        assert (after["reading_count"], after["max_wattage"]) == (73, 20.0)
        assert close_hours(engine, now_us) == closed


def test_what_came_too_late_is_said_once(
    engine: Engine, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """By whoever closes hours; not again until there is more."""
    keep(engine, readings_days=30, clock=clock)
    hour = int((FUTURE - 40 * DAY) // HOUR)
    engine.shards[0].insert("power_touched", tables.TOUCHED, [["edge-1", hour, 1]])
    with caplog.at_level(logging.WARNING, "power_fleet"):
        asyncio.run(keep_closing(engine, 0.01, quick(), clock, once=True))
    (record,) = caplog.records
    assert record.getMessage().startswith("1 hours of devices have readings that came when others")


def test_the_hour_in_which_a_report_begins_counts_whole(
    engine: Engine, device: PowerManager, clock: Clock
) -> None:
    """Where its readings may be gone: half of it cannot be told from the other half."""
    fleet = Fleet(["chdb://memory"], clock=clock)
    carry(device, engine)
    close_hours(engine, int(FUTURE * 1e6))
    days = 40 + 2.6 / 24  # in the hour of which two readings of four are later
    assert tally(fleet, days)["reading_count"] == 2 * 4 + 2 + 48
    keep(engine, readings_days=30, clock=clock)
    drop_months_before(engine, 30)
    assert tally(fleet, days)["reading_count"] == 3 * 4 + 48


def test_an_answer_says_since_when_hours_are_kept(
    engine: Engine, device: PowerManager, clock: Clock
) -> None:
    """Only where the question reaches back further."""
    fleet = Fleet(["chdb://memory"], clock=clock)
    carry(device, engine)
    assert fleet.report("edge-1", 60).kept_since is None
    keep(engine, 10, 30, clock)
    since = "2090-05-02T12:00:00.000000+00:00"
    assert fleet.report("edge-1", 60).kept_since == fleet.energy(60).kept_since == since
    assert fleet.report("edge-1", 7).kept_since is None
    assert fleet.energy(7).kept_since is None


@pytest.mark.parametrize(
    ("readings_days", "hours_days", "said"),
    [
        (6, None, "--keep-readings: expected 7 to 36500 days, or 0 for ever, got 6"),
        (-1, None, "--keep-readings: expected 7 to 36500 days"),
        (None, 40_000, "--keep-hours: expected 7 to 36500 days"),
        (None, 30, "at least as long as readings are kept, which is for ever, got 30"),
        (60, 30, "at least as long as readings are kept, which is 60 days, got 30"),
    ],
)
def test_days_that_cannot_be_are_refused(
    engine: Engine, readings_days: int | None, hours_days: int | None, said: str
) -> None:
    """Nothing is changed then."""
    with pytest.raises(InvalidValue, match=said):
        keep(engine, readings_days, hours_days, Clock(FUTURE))
    assert kept(engine.shards[0]) == keep_module.Kept()


def test_readings_for_ever_beside_hours_that_go_are_refused(engine: Engine) -> None:
    """Hours without their statistics would be computed again for every question."""
    keep(engine, 30, 90, Clock(FUTURE))
    with pytest.raises(InvalidValue, match="--keep-hours"):
        keep(engine, 0, None, Clock(FUTURE))
    assert kept(engine.shards[0]).readings.days == 30


def test_what_has_gone_by_a_shorter_setting_is_remembered() -> None:
    """The first hour that is all there never goes back."""
    now_us = 1000 * 24 * HOUR_US
    assert Keep(0, 0).first_hour(now_us) == 0
    assert Keep(30, 0).first_hour(now_us) == 970 * 24
    assert Keep(60, 970 * 24).first_hour(now_us) == 970 * 24
    assert Keep(60, 970 * 24).first_hour(now_us + 100 * 24 * HOUR_US) == 1040 * 24
    assert Keep(0, 970 * 24).first_hour(now_us) == 970 * 24


def test_one_device_that_bridges_years_is_asked_about_by_itself(
    engine: Engine, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others' energy of a week is not looked for in all history; its own is right all the
    same.
    """
    fleet = Fleet(["chdb://memory"], clock=clock)
    for number, max_gap in ((1, 5400.0), (2, 90 * DAY)):
        path = tmp_path / f"{number}.db"
        with PowerManager(path, clock=clock, max_gap=max_gap) as pm:
            pm.register_device(f"edge-{number}", "Edge")
            meter = pm.add_meter(f"edge-{number}", "main").id
            pm.log_many([(meter, 10.0, number, None, FUTURE - days * DAY) for days in (80, 1)])
            carry(pm, engine)
    asked: list[dict[str, Any]] = []
    shard = fleet._engine.shards[0]
    select = shard.select

    def spy(sql: str, **parameters: Any) -> Any:
        asked.append(parameters)
        return select(sql, **parameters)

    monkeypatch.setattr(shard, "select", spy)
    for _ in range(2):
        asked.clear()
        (row,) = fleet.energy(7).value
        assert row["energy_out_wh"] == pytest.approx(20.0 * 79 * 24)
        wanted = (int(FUTURE // DAY) - 1) * 24  # no other day of the week has readings
        firsts = {parameters["first"] for parameters in asked if "first" in parameters}
        assert firsts == {wanted - 2, wanted - 90 * 24}
        close_hours(engine, int(FUTURE * 1e6))


def test_the_command_says_how_long_to_keep(
    engine: Engine, device: PowerManager, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both options, what is refused, for ever, and neither: then it stays as it is."""
    here = ["--clickhouse", "chdb://memory"]
    shard = engine.shards[0]
    assert cli.main(["schema", "--keep-readings", "90", "--keep-hours", "730", *here]) == 0
    assert (kept(shard).readings.days, kept(shard).hours.days) == (90, 730)
    assert cli.main(["schema", *here]) == 0
    assert cli.main(["schema", "--keep-readings", "3", *here]) == 1
    assert "--keep-readings: expected 7 to 36500 days, or 0" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["schema", "--keep-readings", "soon", *here])
    assert (kept(shard).readings.days, kept(shard).hours.days) == (90, 730)
    carry(device, engine)
    assert cli.main(["report", "edge-1", "--days", "100000", *here]) == 0
    assert "without what was before" in capsys.readouterr().err
    assert cli.main(["schema", "--keep-readings", "none", "--keep-hours", "0", *here]) == 0
    assert (kept(shard).readings.days, kept(shard).hours.days) == (0, 0)
