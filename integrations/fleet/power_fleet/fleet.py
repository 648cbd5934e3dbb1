"""The answers: what PowerManager says about one file, said about a fleet, with how fresh it is.

Budgets and reports are made by the library's own functions of the engine's numbers: their keys,
signs and roundings are the library's because they are its code.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, TypeVar

from power_fleet import history, sql
from power_fleet.engine import Engine, Row, Shard, at_once, named_parts
from power_fleet.history import NEVER, meter_sums, open_hour
from power_fleet.keep import Kept, kept
from power_fleet.records import device_of, event_of, meter_of, missing
from power_fleet.usage import MeterEnergy, hour_energies
from power_manager import (
    DAY_US,
    HOUR_US,
    SECOND_US,
    DeviceRecord,
    InvalidValue,
    MeterSums,
    NotFound,
    PowerMeter,
    check_count,
    check_duration,
    check_iterable,
    check_text,
    from_microseconds,
    make_budget,
    make_report,
    rounded,
    to_microseconds,
)

_T = TypeVar("_T")
_Place = tuple[
    Shard, str, dict[str, Any]
]  # where a question is asked, of which devices, and its parameters for that
HOURS_AT_ONCE = 1_000_000  # hours of meters in one question: about 300 MB of the engine's memory
_NAMED = 6  # times that the longest question names its devices


@dataclass(frozen=True)
class Answer(Generic[_T]):
    """An answer, and how fresh it is: all that the stream had taken in by then is in it.

    None: not known.

    `kept_since`: where the question reaches back further than the engine keeps hours, since when it
    does.
    """

    value: _T
    fresh_as_of: str | None
    kept_since: str | None = None


class Fleet:
    """Asks an engine about the devices whose files are forwarded to it.

    Safe to use from many threads.

    `urls` are those of the sink: one text for each shard, its replicas separated by commas. Nothing
    is asked yet. All methods raise EngineError where a shard does not answer, InvalidValue for a
    parameter.
    """

    def __init__(self, urls: Sequence[str], clock: Callable[[], float] = time.time) -> None:
        self._engine, self._clock = Engine(urls), clock

    def budget(self, device_ids: Iterable[str] | None = None) -> Answer[dict[str, dict[str, Any]]]:
        """The power budget of these devices, or of all, as PowerManager.power_budget_check's.

        One that is not known, or retired, has an {"error": ...} in its place; of all, those that
        are retired are not.
        """
        ids, fresh, now = _ids(device_ids), self._fresh(), self._now()
        budgets = at_once(lambda place: _budgets(*place, now), self._places(ids))
        found = {id_: budget for some in budgets for id_, budget in some.items()}
        if ids is None:
            return Answer(dict(sorted(found.items())), fresh)
        others = [id_ for id_ in ids if id_ not in found]
        errors = {id_: {"error": missing("device", id_)} for id_ in others}
        errors |= self._retired(others)
        return Answer({id_: found[id_] if id_ in found else errors[id_] for id_ in ids}, fresh)

    def report(self, device_id: str, days: float = 7) -> Answer[str]:
        """The report of a device over the last days as JSON text, as PowerManager.export_report's.

        Its meters are those at work: what is retired, or of a card that was replaced, is not among
        them. Raises NotFound, and InvalidValue unless days is more than 0.
        """
        id_ = check_text("device_id", device_id)
        span = check_duration("days", days, DAY_US, "days")
        if span == 0:
            raise InvalidValue(f"days: expected a number of more than 0 (days), got {days!r}")
        fresh = self._fresh()
        now = self._now()
        after = max(now - span, -1)
        shard = self._engine.shards[self._engine.shard_of(id_)]
        names = {"devices": (id_,)}
        known = shard.select(sql.devices(sql.THESE), **names)
        if not known:
            raise NotFound(missing("device", id_), "device", id_)
        device = device_of(known[0])
        keeps = kept(shard)
        sums = _sums(shard, sql.THESE, names, after, keeps.readings.first_hour(now)).get(id_, {})
        (counted,) = shard.select(sql.EVENT_COUNT, **names, after=after)
        report = make_report(
            device,
            [meter_of(row, device) for row in shard.select(sql.meters(sql.THESE), **names)],
            sums,
            days=days,
            generated_us=now,
            events=[event_of(row) for row in shard.select(sql.EVENTS, **names, after=after)],
            event_count=counted["events"],
        )
        text = json.dumps(report, indent=2, allow_nan=False)
        return Answer(text, fresh, _kept_since([keeps], after // HOUR_US, now))

    def latest(self, device_ids: Iterable[str] | None = None) -> Answer[list[PowerMeter]]:
        """The present state of every meter, or of these devices' meters, in order of adding.

        What is retired, or of a card that was replaced, is not among them.
        """
        ids, fresh = _ids(device_ids), self._fresh()
        meters = at_once(lambda place: _meters(*place), self._places(ids))
        return Answer(sorted(chain(*meters), key=lambda meter: meter.device_id), fresh)

    def energy(self, days: int = 7) -> Answer[list[dict[str, Any]]]:
        """Energy by UTC day, site and meter type: `days` days up to today, as get_statistics'.

        Each is {"day": "2026-11-23", "site", "type", "energy_out_wh", "energy_in_wh"}; what has no
        energy is left out.
        """
        fresh = self._fresh()
        now = self._now()
        today = now // DAY_US
        first_day = max(today - max(check_count("days", days), 1) + 1, 0)
        sums: dict[tuple[int, str, str], _Energy] = {}
        for row in chain(*at_once(lambda s: _energies(s, first_day, now), self._engine.shards)):
            energy = sums.setdefault((row["day"], row["site"], row["type"]), _Energy())
            energy.out_wh += row["energy_out_wh"]
            energy.in_wh += row["energy_in_wh"]
        rows = (_energy_row(*key, sums[key]) for key in sorted(sums))
        value = [row for row in rows if row["energy_out_wh"] or row["energy_in_wh"]]
        keeps = [kept(shard) for shard in self._engine.shards]
        return Answer(value, fresh, _kept_since(keeps, first_day * 24, now))

    def hour_energies(
        self, device_ids: Iterable[str], since: Any, until: Any = None
    ) -> Answer[dict[str, list[MeterEnergy]]]:
        """The energy of these devices by meter and UTC hour, as get_statistics' by hour.

        Devices unknown are left out.

        since, until: aware datetimes, ISO 8601 text with an offset, or epoch seconds; the hour that
        `since` is in is whole, that of `until` is left out; None (default): to the last there is.
        Meters that are retired or replaced are there too, deleted ones are not.
        """
        ids = _ids(device_ids)
        end = NEVER if until is None else to_microseconds(until, "until") // HOUR_US
        hours = range(to_microseconds(since, "since") // HOUR_US, end)
        fresh, now = self._fresh(), self._now()
        answers = at_once(
            lambda place: hour_energies(place[0], place[2], hours, now), self._places(ids or [])
        )
        value = {id_: meters for some in answers for id_, meters in some.items()}
        keeps = [kept(shard) for shard in self._engine.shards]
        return Answer(value, fresh, _kept_since(keeps, hours.start, now))

    def devices(self, device_ids: Iterable[str] | None = None) -> Answer[list[DeviceRecord]]:
        """These devices, or all, by id, retired ones too; unknown ones are left out."""
        ids, fresh = _ids(device_ids), self._fresh()
        records = at_once(lambda place: list(_records(*place).values()), self._places(ids))
        return Answer(sorted(chain(*records), key=lambda device: device.id), fresh)

    def silent(self, minutes: float) -> Answer[list[dict[str, str]]]:
        """The devices that have sent nothing for that long, longest first, and when they last did.

        By the stream's clock. A device that never sent anything, or is retired, is not among them.
        """
        fresh = self._fresh()
        before = max(self._now() - check_duration("minutes", minutes, 60 * SECOND_US, "min"), 0)
        rows = self._engine.select(sql.SILENT, before=before)
        rows.sort(key=lambda row: (row["last_seen"], row["device_id"]))
        silent = [
            {"device_id": row["device_id"], "last_seen": from_microseconds(row["last_seen"])}
            for row in rows
        ]
        return Answer(silent, fresh)

    def _places(self, device_ids: Sequence[str] | None) -> list[_Place]:
        """Where to ask about these devices, or about all."""
        if device_ids is None:
            return [(shard, sql.EVERY, {}) for shard in self._engine.shards]
        places: list[_Place] = []
        for number, shard in enumerate(self._engine.shards):
            mine = [
                id_ for id_ in dict.fromkeys(device_ids) if self._engine.shard_of(id_) == number
            ]
            named = named_parts(mine, _NAMED)
            places += [(shard, sql.THESE, {"devices": tuple(part)}) for part in named]
        return places

    def _retired(self, device_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What a budget says of those of these devices that are retired, by their ids."""
        found: dict[str, dict[str, Any]] = {}
        if not device_ids:
            return found
        for shard, _, names in self._places(device_ids):
            for row in shard.select(sql.RETIRED, **names):
                found[row["device_id"]] = {"error": _retirement(row)}
        return found

    def _fresh(self) -> str | None:
        """How fresh the least fresh shard is.

        Asked before the answer itself, which can only be fresher.
        """
        rows = self._engine.select(sql.FRESH)
        oldest = min((row["fresh"] for row in rows), default=0)
        return from_microseconds(oldest) if oldest else None

    def _now(self) -> int:
        return to_microseconds(self._clock(), "clock")


def _ids(device_ids: Iterable[str] | None) -> list[str] | None:
    if device_ids is None:
        return None
    return [check_text("device_id", id_) for id_ in check_iterable("device_ids", device_ids)]


def _retirement(row: Row) -> str:
    """What is said of a device of a row of sql.RETIRED."""
    replaced = f", replaced by {row['replaced_by']!r}" if row["replaced_by"] else ""
    since = from_microseconds(row["at"])
    return f"device_id: {row['device_id']!r} is retired since {since}{replaced}"


def _meters(shard: Shard, of: str, names: dict[str, Any]) -> list[PowerMeter]:
    of = f"{of} AND {sql.AT_WORK}"
    records = _records(shard, of, names)
    return [
        meter_of(
            row, records.get(row["device_id"], DeviceRecord(row["device_id"], row["device_id"]))
        )
        for row in shard.select(sql.meters(of), **names)
    ]


def _records(shard: Shard, of: str, names: dict[str, Any]) -> dict[str, DeviceRecord]:
    """The devices by their ids."""
    return {row["device_id"]: device_of(row) for row in shard.select(sql.devices(of), **names)}


def _sums(
    shard: Shard, of: str, names: dict[str, Any], after: int, first_open: int
) -> dict[str, dict[str, MeterSums]]:
    """By device and meter, the sums of the readings later than `after`.

    The hours before `first_open` are those that are kept: their readings may be gone. The one in
    which `after` lies then counts whole.
    """
    first = after // HOUR_US + 1
    if 0 < first <= first_open:
        first -= 1
        after = first * HOUR_US - 1
    oldest = history.oldest_to_make(shard, of, names, max(first, first_open))
    question = shard.dialect.tallies(of, oldest < NEVER)
    rows = shard.select(question, after=after, first=first, oldest=oldest, end=NEVER, **names)
    found: dict[str, dict[str, MeterSums]] = {}
    for row in rows:
        found.setdefault(row["device_id"], {})[row["meter_id"]] = meter_sums(row)
    return found


def _budgets(shard: Shard, of: str, names: dict[str, Any], now: int) -> dict[str, dict[str, Any]]:
    of = f"{of} AND {sql.AT_WORK}"
    records = _records(shard, of, names)
    last_day = _sums(shard, of, names, max(now - DAY_US, -1), open_hour(shard, now))
    meters: dict[str, list[PowerMeter]] = {id_: [] for id_ in records}
    for row in shard.select(sql.meters(of), **names):
        device_id = row["device_id"]
        if device_id in records:  # else its device's record is still on its way
            meters[device_id].append(meter_of(row, records[device_id]))
    return {
        id_: make_budget(device, meters[id_], last_day.get(id_, {}))
        for id_, device in records.items()
    }


def _energies(shard: Shard, first_day: int, now: int) -> list[Row]:
    """The energy by day, site and type from a day on.

    It is asked for some days at a time, so that memory does not grow with them.
    """
    days = [row["day"] for row in shard.select(sql.TOUCHED_DAYS, first_day=first_day)]
    (counted,) = shard.select(sql.METER_COUNT)
    (gaps,) = shard.select(sql.GAPS)
    first_open = open_hour(shard, now)
    at_a_time = max(HOURS_AT_ONCE // (24 * max(counted["meters"], 1)), 1)
    rows: list[Row] = []
    for number in range(0, len(days), at_a_time):
        some = days[number : number + at_a_time]
        # Those that bridge long gaps are asked about by themselves.
        rows += _energies_of(shard, sql.NEAR, gaps["near"], some, first_open)
        if gaps["far"]:
            rows += _energies_of(shard, sql.FAR, gaps["far"], some, first_open)
    return rows


def _energies_of(
    shard: Shard, of: str, max_gap_us: int, days: Sequence[int], first_open: int
) -> list[Row]:
    wanted = days[0] * 24
    end = (days[-1] + 1) * 24
    # A day's first energy may begin that long before it.
    first = max(wanted + -max_gap_us // HOUR_US, 0)
    oldest = history.oldest_to_make(shard, of, {}, max(first, first_open), end)
    question = shard.dialect.days(of, oldest < end)
    return shard.select(question, wanted=wanted, first=first, oldest=oldest, end=end)


def _kept_since(keeps: Sequence[Kept], first_hour: int, now: int) -> str | None:
    """Since when all hours are kept, if that is later than the first hour asked about."""
    since = max(keep.hours.first_hour(now) for keep in keeps)
    return from_microseconds(since * HOUR_US) if since > first_hour else None


@dataclass
class _Energy:
    out_wh: float = 0.0
    in_wh: float = 0.0


def _energy_row(day: int, site: str, kind: str, energy: _Energy) -> dict[str, Any]:
    return {
        "day": from_microseconds(day * DAY_US)[:10],
        "site": site,
        "type": kind,
        "energy_out_wh": rounded(energy.out_wh),
        "energy_in_wh": rounded(energy.in_wh),
    }


def shown(meter: PowerMeter) -> dict[str, Any]:
    """A meter as JSON has it: its fields, then its wattage and state."""
    return {**dataclasses.asdict(meter), "wattage": meter.wattage, "state": meter.state.value}
