"""What is wrong with devices is noticed once, and is over once, whoever looks and however often."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import random
from datetime import timezone
from typing import Any

import pytest
from fleet_harness import emptied
from pipeline import until
from power_fleet import cli, watch
from power_fleet.commands_alarms import _follow, _line
from power_fleet.engine import Engine, EngineError, Shard
from power_fleet.tables import FRESH, LINES, RETIRED, SEEN
from power_fleet.watch import (
    CALM_US,
    CLONED,
    OVERLAP_US,
    REPLACED,
    RESTORED,
    SHOWN_US,
    SILENT,
    TWO_FILES,
    Alarm,
    Line,
    changes_of,
    list_alarms,
    look,
    problems,
)

from power_manager import HOUR_US, SECOND_US

NOW = 1_790_000_000_000_000
MINUTE_US = 60 * SECOND_US


def line(number: int, opened: int, seen: int, file_id: str = "f", at: int = 0, to: int = 0) -> Line:
    """A line of device "a"; times in microseconds before NOW, at and to: the file's running
    number.
    """
    return Line("a", number, file_id, NOW - opened, at, NOW - seen, max(at, to))


def kinds(lines: list[Line], fresh: int = NOW) -> list[str]:
    """The kinds of what is wrong with lines."""
    return sorted(alarm.kind for alarm in problems(lines, fresh))


# --- What is wrong with the lines of a device


def test_a_device_that_starts_again_is_well() -> None:
    """Each line ends before the next begins, and the file's number grows, or stays where nothing
    was noted.
    """
    lines = [
        line(n, (9 - n) * HOUR_US, (8 - n) * HOUR_US, at=10 * n, to=10 * n + 10) for n in range(9)
    ]
    assert kinds(lines) == []


def test_copies_of_a_file_are_noticed() -> None:
    """The forwarder before is still at work, with the same file; the alarm is dated when the second
    one began.
    """
    lines = [line(1, 5 * HOUR_US, 0), line(7, 2 * HOUR_US, 0)]
    (alarm,) = problems(lines, NOW)
    assert (alarm.device_id, alarm.kind, alarm.at) == ("a", CLONED, NOW - 2 * HOUR_US)


def test_two_files_of_one_device_are_noticed() -> None:
    """The same with another file; that it is another one is said too."""
    lines = [line(1, 5 * HOUR_US, 0), line(7, 2 * HOUR_US, 0, "g")]
    assert kinds(lines) == [REPLACED, TWO_FILES]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([line(1, HOUR_US, MINUTE_US), line(2, 2 * MINUTE_US, 0)], "it ends a minute later"),
        ([line(1, 9 * HOUR_US, 2 * HOUR_US), line(2, 8 * HOUR_US, 0)], "the first one stopped"),
        ([line(1, 9 * HOUR_US, 0), line(2, 8 * HOUR_US, 2 * HOUR_US)], "the second one stopped"),
        ([line(2, HOUR_US, 0)], "there is only one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_that_ends_as_the_next_begins_is_no_copy(lines: list[Line], reason: str) -> None:
    """Nor is what was and has ended an hour ago."""
    assert kinds(lines) == [], reason


def test_an_overlap_counts_from_a_minute_on() -> None:
    """Exactly a minute is none yet."""
    opened = 30 * MINUTE_US
    first = line(1, HOUR_US, opened - OVERLAP_US)
    assert kinds([first, line(2, opened, 0)]) == []
    later = Line(**{**vars(first), "seen": first.seen + 1})
    assert kinds([later, line(2, opened, 0)]) == [CLONED]


def test_a_file_that_went_back_is_noticed() -> None:
    """Its number is lower than what an earlier line reached, be that the one before or any
    other.
    """
    lines = [
        line(1, 9 * HOUR_US, 8 * HOUR_US, at=0, to=120),
        line(2, 8 * HOUR_US, 7 * HOUR_US, "g", at=0, to=3),
        line(3, HOUR_US, 0, at=80, to=90),
    ]
    found = {alarm.kind: alarm for alarm in problems(lines, NOW)}
    assert set(found) == {REPLACED, RESTORED}
    assert found[RESTORED].at == NOW - HOUR_US
    assert "from parcel 120 to 80" in found[RESTORED].note


def test_another_file_is_noticed_and_shown_for_a_week() -> None:
    """After that it is history."""
    lines = [line(1, SHOWN_US + HOUR_US, SHOWN_US), line(2, SHOWN_US, 0, "g")]
    assert kinds(lines) == [REPLACED]
    assert kinds(lines, NOW + 1) == []


# --- What begins and what is over


def test_each_alarm_begins_once_and_is_over_once() -> None:
    """Over any course of what is present, there is one open alarm of a kind at most, and only while
    it is present.
    """
    chance = random.Random(3)
    known: dict[tuple[str, str, int], Alarm] = {}
    for step in range(500):
        fresh = NOW + step * SECOND_US
        present = [
            Alarm(device, kind, NOW + chance.randrange(-3, step + 1) * SECOND_US, "")
            for device in "ab"
            for kind in (SILENT, CLONED, REPLACED)
            if chance.random() < 0.6
        ]
        changes = changes_of(known.values(), present, fresh)
        assert len({change.identity for change in changes}) == len(changes)
        for change in changes:
            before = known.get(change.identity)
            assert before is None or (
                before.cleared == 0 < change.cleared
            )  # ends, never begins again
            known[change.identity] = change
        assert changes_of(known.values(), present, fresh) == []
        lasting = sorted((a.device_id, a.kind) for a in known.values() if not a.cleared)
        assert len(set(lasting)) == len(lasting)
        expected = {(a.device_id, a.kind) for a in present}
        assert set(lasting) <= expected
        assert {pair for pair in expected if pair[1] != REPLACED} <= set(lasting)


def test_what_comes_back_begins_when_it_was_over() -> None:
    """The engine keeps the later word about an alarm: one that is over cannot begin again under its
    old identity.
    """
    over = Alarm("a", SILENT, NOW, "", NOW + 5)
    (again,) = changes_of([over], [Alarm("a", SILENT, NOW, "")], NOW + 9)
    assert again == Alarm("a", SILENT, NOW + 5, "")


def test_an_alarm_that_is_over_at_once_is_over_after_it_began() -> None:
    """Or it would be open for ever."""
    (over,) = changes_of([Alarm("a", SILENT, NOW, "")], [], NOW)
    assert over.cleared > over.at


# --- In an engine


class Tables:
    """An engine's tables, filled by hand; times in microseconds."""

    def __init__(self, urls: list[str]) -> None:
        self.engine = Engine(urls)

    def _insert(self, device_id: str, table: str, columns: dict[str, str], *row: Any) -> None:
        self.shard(device_id).insert(table, columns, [row])

    def shard(self, device_id: str) -> Shard:
        """Where a device's rows are."""
        return self.engine.shards[self.engine.shard_of(device_id)]

    def fresh(self, at: int) -> None:
        """The sinks have stored all until then."""
        for shard in self.engine.shards:
            shard.insert("power_fresh", FRESH, [["stream", at]])

    def opened(self, device_id: str, number: int, at: int, file_id: str = "f", of: int = 0) -> None:
        """A line begins."""
        row = (device_id, number, file_id, at, of, "1", "")
        self._insert(device_id, "power_lines", LINES, *row)
        self.seen(device_id, number, at, file_id, of)

    def seen(self, device_id: str, number: int, at: int, file_id: str = "f", of: int = 0) -> None:
        """Something of a line comes."""
        self._insert(device_id, "power_seen", SEEN, device_id, number, file_id, of, at)

    def retired(self, device_id: str, at: int, flag: int = 1) -> None:
        """An operator retires a device, or takes it back."""
        self._insert(device_id, "power_retired", RETIRED, device_id, "", flag, at, "")

    def look(self) -> list[tuple[str, str, bool]]:
        """Look; device, kind and whether it is over, of each change."""
        return [(a.device_id, a.kind, a.cleared > 0) for a in look(self.engine)]

    def lasting(self) -> list[tuple[str, str]]:
        """Device and kind of what lasts."""
        return [(alarm.device_id, alarm.kind) for alarm in list_alarms(self.engine)]


@pytest.fixture
def tables(urls: list[str]) -> Tables:
    """Of an empty engine."""
    return Tables(urls)


def test_a_silent_device_is_said_once_and_its_return_once(tables: Tables) -> None:
    """However often one looks, and with what silence it was."""
    tables.opened("a", 1, NOW)
    tables.opened("b", 2, NOW)
    tables.fresh(NOW + HOUR_US - 1)
    assert tables.look() == []
    tables.seen("b", 2, NOW + 1)
    tables.fresh(NOW + HOUR_US)
    assert tables.look() == [("a", SILENT, False)]
    assert tables.look() == []
    (alarm,) = list_alarms(tables.engine)
    assert alarm.at == NOW + HOUR_US
    assert alarm.note == "nothing has come since 2026-09-21T14:13:20.000000+00:00"
    tables.seen("a", 1, NOW + HOUR_US + 5)
    tables.fresh(NOW + HOUR_US + 6)
    assert tables.look() == [("b", SILENT, False), ("a", SILENT, True)]
    assert tables.look() == []
    assert tables.lasting() == [("b", SILENT)]
    assert len(list_alarms(tables.engine, with_cleared=True)) == 2


def test_while_sinks_stand_still_nobody_is_silent(tables: Tables) -> None:
    """What is in the stream may be from anybody: time goes on for the watch as far as the engine is
    fresh.
    """
    tables.opened("a", 1, NOW)
    assert tables.look() == []  # no sink has run yet
    tables.fresh(NOW + MINUTE_US)
    assert tables.look() == []


def test_a_retired_device_is_not_silent(tables: Tables) -> None:
    """Its alarm is over when it is retired; taken back it has time to speak before it is silent
    anew.
    """
    tables.opened("a", 1, NOW)
    tables.fresh(NOW + HOUR_US)
    assert tables.look() == [("a", SILENT, False)]
    tables.retired("a", NOW + HOUR_US)
    assert tables.look() == [("a", SILENT, True)]
    assert tables.look() == []
    tables.retired("a", NOW + 2 * HOUR_US, 0)
    tables.fresh(NOW + 2 * HOUR_US + 1)
    assert tables.look() == []
    tables.fresh(NOW + 3 * HOUR_US + 1)
    assert tables.look() == [("a", SILENT, False)]
    assert tables.lasting() == [("a", SILENT)]


def test_a_shorter_or_longer_silence_is_no_second_alarm(tables: Tables) -> None:
    """The option may change at any time; what lasts is one alarm, and each change is said once."""
    tables.opened("a", 1, NOW)
    tables.fresh(NOW + 2 * HOUR_US)
    assert len(look(tables.engine, HOUR_US)) == 1
    assert look(tables.engine, MINUTE_US) == []
    assert [alarm.cleared > 0 for alarm in look(tables.engine, 3 * HOUR_US)] == [True]
    assert [alarm.cleared > 0 for alarm in look(tables.engine, HOUR_US)] == [False]
    assert look(tables.engine, HOUR_US) == []
    assert tables.lasting() == [("a", SILENT)]


def test_a_cloned_device_is_said_until_one_has_stopped(tables: Tables) -> None:
    """And not again when the two start anew in turn."""
    tables.opened("a", 1, NOW)
    tables.opened("a", 2, NOW + MINUTE_US)
    tables.seen("a", 1, NOW + 3 * MINUTE_US)
    tables.fresh(NOW + 3 * MINUTE_US)
    assert tables.look() == [("a", CLONED, False)]
    for number in range(3, 9):
        at = NOW + number * 10 * MINUTE_US
        tables.opened("a", number, at)
        tables.seen("a", number - 1, at + 5 * MINUTE_US)
        tables.fresh(at + 5 * MINUTE_US)
        assert tables.look() == []
    end = NOW + 80 * MINUTE_US + 5 * MINUTE_US + CALM_US
    tables.seen("a", 8, end)
    tables.fresh(end + 1)
    assert tables.look() == [("a", CLONED, True)]
    assert tables.lasting() == []


def test_restored_and_replaced_files_are_said_once(tables: Tables) -> None:
    """Each for itself, beside what else there is."""
    tables.opened("a", 1, NOW)
    tables.seen("a", 1, NOW + 1, of=50)
    tables.opened("b", 2, NOW)
    tables.opened("a", 3, NOW + 2, of=20)
    tables.opened("b", 4, NOW + 2, "g")
    tables.fresh(NOW + 3)
    assert sorted(tables.look()) == [("a", RESTORED, False), ("b", REPLACED, False)]
    assert tables.look() == []
    tables.seen("a", 3, NOW + 2 + SHOWN_US)
    tables.seen("b", 4, NOW + 2 + SHOWN_US)
    tables.fresh(NOW + 3 + SHOWN_US)
    assert sorted(tables.look()) == [("a", RESTORED, True), ("b", REPLACED, True)]
    assert tables.look() == []


def test_a_device_that_begins_without_end_holds_up_nobody(tables: Tables) -> None:
    """Of its lines the last ones are looked at, and those of the others as well."""
    shard = tables.shard("a")
    many = 5 * watch.LINES
    lines = [["a", n, "f", NOW + n, n, "1", ""] for n in range(1, many + 1)]
    shard.insert("power_lines", LINES, lines)
    shard.insert("power_seen", SEEN, [["a", n, "f", n, NOW + n] for n in range(1, many + 1)])
    shard.insert("power_lines", LINES, [["b", 9, "f", NOW, 0, "1", ""]])
    found = watch._lines(shard, ["b", "a"])
    assert [one.line for one in found] == [*range(many - watch.LINES + 1, many + 1), 9]
    assert {one.seen - one.opened for one in found} == {0}
    tables.opened("a", many + 1, NOW + many + 1, of=3)
    tables.fresh(NOW + many + 2)
    assert tables.look() == [("a", RESTORED, False)]


def test_one_that_is_killed_while_it_stores_doubles_nothing(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that look at once, too: both store the same, and it is there once."""
    tables.opened("a", 1, NOW)
    tables.fresh(NOW + HOUR_US)
    insert = Shard.insert

    def then_die(shard: Shard, *arguments: Any) -> None:
        insert(shard, *arguments)
        raise EngineError("killed")

    with monkeypatch.context() as dying:
        dying.setattr(Shard, "insert", then_die)
        with pytest.raises(EngineError):
            look(tables.engine)
    assert tables.look() == []
    assert tables.lasting() == [("a", SILENT)]
    with monkeypatch.context() as racing:  # another one has looked just before it was stored
        racing.setattr(watch, "_known", lambda shard, present: [])
        assert tables.look() == [("a", SILENT, False)]
    assert tables.lasting() == [("a", SILENT)]


# --- For people


@pytest.fixture
def there(old_urls: list[str], new_urls: list[str], monkeypatch: pytest.MonkeyPatch) -> Tables:
    """An engine with a silent device, which the command line finds."""
    emptied(new_urls)
    monkeypatch.setenv("POWER_FLEET_CLICKHOUSE", " ".join(new_urls))
    tables = Tables(new_urls)
    tables.opened("edge-1", 1, NOW)
    tables.fresh(NOW + HOUR_US)
    return tables


def test_alarms_are_shown(there: Tables, capsys: pytest.CaptureFixture[str]) -> None:
    """As a table and as JSON; those that are over on request."""
    assert cli.main(["alarms"]) == 0
    assert capsys.readouterr().out == "no alarms\n"
    there.look()
    assert cli.main(["alarms", "--utc"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["device", "alarm", "since", "what"]
    assert row.split()[:4] == ["edge-1", "silent", "2026-09-21", "15:13:20"]
    there.seen("edge-1", 1, NOW + HOUR_US)
    there.fresh(NOW + HOUR_US + 9 * SECOND_US)
    there.look()
    assert cli.main(["alarms", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert cli.main(["alarms", "--json", "--all"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "device_id": "edge-1",
            "kind": "silent",
            "since": "2026-09-21T15:13:20.000000+00:00",
            "cleared_at": "2026-09-21T15:13:29.000000+00:00",
            "note": "nothing has come since 2026-09-21T14:13:20.000000+00:00",
        }
    ]
    assert cli.main(["alarms", "--all", "--utc"]) == 0
    assert "2026-09-21 15:13:29" in capsys.readouterr().out


def test_alarms_are_followed(tables: Tables, capsys: pytest.CaptureFixture[str]) -> None:
    """What lasts first, then what begins and what is over, each once."""
    tables.opened("edge-0", 3, NOW - HOUR_US)
    tables.opened("edge-1", 1, NOW)
    tables.opened("edge-2", 2, NOW + 1)
    tables.fresh(NOW)
    tables.look()
    tables.seen("edge-0", 3, NOW + HOUR_US // 2)
    tables.fresh(NOW + HOUR_US)
    tables.look()
    options = argparse.Namespace(json=True, all=False, interval=0.01)
    said: list[dict[str, Any]] = []

    def has_said(count: int) -> bool:
        said.extend(map(json.loads, capsys.readouterr().out.splitlines()))
        return len(said) >= count

    async def run() -> None:
        following = asyncio.ensure_future(_follow(tables.engine, options, None))
        await until(lambda: has_said(1))
        tables.seen("edge-1", 1, NOW + HOUR_US)
        tables.fresh(NOW + HOUR_US + 1)
        tables.look()
        await until(lambda: has_said(3))
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following

    asyncio.run(run())
    assert [(alarm["device_id"], alarm["cleared_at"] is None) for alarm in said] == [
        ("edge-1", True),
        ("edge-1", False),
        ("edge-2", True),
    ]


@pytest.mark.parametrize(
    ("alarm", "line"),
    [
        (Alarm("a", SILENT, NOW, "why"), "2026-09-21 14:13:20  a: silent: why"),
        (
            Alarm("a\n", SILENT, NOW, "why", NOW + SECOND_US),
            "2026-09-21 14:13:21  a\\n: no longer silent",
        ),
    ],
    ids=["begins", "is over"],
)
def test_a_change_is_a_line(alarm: Alarm, line: str) -> None:
    """With the time of what it says, and a name that cannot steer a terminal."""
    assert _line(alarm, timezone.utc, is_json=False) == line


def test_close_looks_after_the_devices(
    there: Tables, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """After the silence that it is told, and it says what it has noticed."""
    assert cli.main(["close", "--once", "--silent-after", "2h"]) == 0
    assert there.lasting() == []
    with caplog.at_level(logging.WARNING, "power_fleet"):
        assert cli.main(["close", "--once"]) == 0
    assert there.lasting() == [("edge-1", SILENT)]
    assert caplog.messages == [
        "device 'edge-1': silent: nothing has come since 2026-09-21T14:13:20.000000+00:00"
    ]
    with pytest.raises(SystemExit, match="2"):
        cli.main(["close", "--once", "--silent-after", "0"])
    assert "--silent-after" in capsys.readouterr().err
