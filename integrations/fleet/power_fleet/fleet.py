"""The answers: what PowerManager says about one file, said about a fleet, with how fresh it is.

Budgets and reports are made by the library's own functions of the engine's numbers: their keys, signs and roundings are
the library's because they are its code.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Generic, TypeVar

import power_manager as library
from power_fleet import sql
from power_fleet.engine import Engine, Shard
from power_manager import DeviceRecord, MeterType, NotFound, PowerEvent, PowerEventType, PowerMeter

_T = TypeVar("_T")
_DAY = 24 * sql.HOUR
_CHUNK = 1000  # ids in one question
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Answer(Generic[_T]):
    """An answer, and how fresh it is: all that the stream had taken in by then is in it. None: nobody knows."""

    value: _T
    fresh_as_of: str | None


class Fleet:
    """Asks an engine about the devices whose files are forwarded to it. Safe to use from many threads.

    `urls` are those of the sink: one text for each shard, its replicas separated by commas. Nothing is asked yet. All
    methods raise EngineError where a shard does not answer, InvalidValue for a parameter.
    """

    def __init__(self, urls: Sequence[str], clock: Callable[[], float] = time.time) -> None:
        self._engine, self._clock = Engine(urls), clock

    def budget(self, device_ids: Iterable[str] | None = None) -> Answer[dict[str, dict[str, Any]]]:
        """The power budget of these devices, or of all, as PowerManager.power_budget_check's."""
        fresh, now = self._fresh(), self._now()
        after = max(now - _DAY, -1)
        if device_ids is None:
            found: dict[str, dict[str, Any]] = {}
            for shard in self._engine.shards:
                found |= _budgets(shard, sql.EVERY, after, {})
            return Answer(dict(sorted(found.items())), fresh)
        ids = [library._text("device_id", id_) for id_ in library._iterable("device_ids", device_ids)]
        known: dict[str, dict[str, Any]] = {}
        for number, shard in enumerate(self._engine.shards):
            mine = [id_ for id_ in dict.fromkeys(ids) if self._engine.shard_of(id_) == number]
            for start in range(0, len(mine), _CHUNK):
                known |= _budgets(shard, sql.THESE, after, {"devices": tuple(mine[start : start + _CHUNK])})
        missing = {id_: {"error": _missing(id_)} for id_ in ids if id_ not in known}
        return Answer({id_: (known | missing)[id_] for id_ in ids}, fresh)

    def report(self, device_id: str, days: float = 7) -> Answer[str]:
        """The report of a device over the last days as JSON text, as PowerManager.export_report's. Raises NotFound."""
        fresh, now = self._fresh(), self._now()
        span = library._span("days", days, _DAY, "days")
        days = days if isinstance(days, int) else float(days)
        id_ = library._text("device_id", device_id)
        shard = self._engine.shards[self._engine.shard_of(id_)]
        names = {"devices": (id_,)}
        known = shard.query(sql.devices(sql.THESE), **names)
        if not known:
            raise NotFound(_missing(id_))
        after = max(now - span, -1)
        tallies = _tallies(shard, sql.THESE, after, names)
        record = DeviceRecord(*known[0][:6])
        meters = [_meter(row, record) for row in shard.query(sql.meters(sql.THESE), **names)]
        ((count,),) = shard.query(sql.EVENT_COUNT, **names, after=after)
        events = [_event(row) for row in shard.query(sql.EVENTS, **names, after=after)]
        head = {"device_id": id_, "device_name": record.name, "period_days": days, "generated_at": library._iso(now)}
        parts = [library._meter_report(meter, tallies.get((id_, meter.id))) for meter in meters]
        report = head | {"meters": parts, "event_count": count, "events": events}
        return Answer(json.dumps(report, indent=2, allow_nan=False), fresh)

    def latest(self, device_ids: Iterable[str] | None = None) -> Answer[list[PowerMeter]]:
        """The present state of every meter, or of those of these devices, device by device in order of adding."""
        fresh = self._fresh()
        of, names = (sql.EVERY, {}) if device_ids is None else (sql.THESE, {"devices": tuple(device_ids) or ("",)})
        records = {row[0]: DeviceRecord(*row[:6]) for row in self._engine.ask(sql.devices(of), **names)}
        rows = self._engine.ask(sql.meters(of), **names)
        meters = [_meter(row, records.get(row[0], DeviceRecord(row[0], row[0]))) for row in rows]
        return Answer(sorted(meters, key=lambda meter: meter.device_id), fresh)

    def energy(self, days: int = 7) -> Answer[list[dict[str, Any]]]:
        """Energy by UTC day, site and meter type, today and the days before it, `days` in all, as get_statistics'.

        Each is {"day": "2026-11-23", "site", "type", "energy_out_wh", "energy_in_wh"}; what has no energy is left out.
        """
        fresh, today = self._fresh(), self._now() // _DAY
        first_day = max(today - max(library._whole("days", days), 1) + 1, 0)
        sums: dict[tuple[int, str, str], tuple[float, float]] = {}
        for shard in self._engine.shards:
            for day, site, kind, out, into in _energies(shard, first_day):
                before = sums.get((day, site, kind), (0.0, 0.0))
                sums[day, site, kind] = before[0] + out, before[1] + into
        return Answer([_energy_row(*key, *sums[key]) for key in sorted(sums) if any(sums[key])], fresh)

    def silent(self, minutes: float) -> Answer[list[dict[str, str]]]:
        """The devices the stream has had nothing from for that long, longest first, with when it last had.

        By the stream's clock. A device that was never heard of is not among them.
        """
        fresh = self._fresh()
        before = max(self._now() - library._span("minutes", minutes, 60_000_000, "min"), 0)
        rows = sorted(self._engine.ask(sql.SILENT, before=before), key=lambda row: (row[1], row[0]))
        return Answer([{"device_id": id_, "last_seen": library._iso(seen)} for id_, seen in rows], fresh)

    def _fresh(self) -> str | None:
        """How fresh the least fresh shard is; asked before the answer itself, which can only be fresher."""
        rows = self._engine.ask(sql.FRESH)
        oldest = min((row[0] for row in rows), default=0)
        return library._iso(oldest) if oldest else None

    def _now(self) -> int:
        return library._microseconds("clock", self._clock())


def _missing(device_id: str) -> str:
    return f"device_id: no device has the id {device_id!r}: none of that id has been forwarded"


def _meter(row: Sequence[Any], device: DeviceRecord) -> PowerMeter:
    device_id, id_, kind, volts, amperes, capacity, charge, name, updated = row
    updated_at = None if updated is None else library._iso(updated)
    return PowerMeter(
        id_, device_id, MeterType(kind), volts, amperes, capacity, charge, name, updated_at,
        device.low_battery_threshold, device.critical_battery_threshold,
    )  # fmt: skip


def _event(row: Sequence[Any]) -> dict[str, Any]:
    id_, device_id, kind, value, at, note = row
    event = PowerEvent(id_, device_id, PowerEventType(kind), value, library._iso(at), note)
    return dataclasses.asdict(event)


def _fresh_hours(shard: Shard, of: str, first: int, names: dict[str, Any]) -> dict[str, Any] | None:
    """The parameters of a question about hours that have to be computed now; None where there are none."""
    ((count, oldest),) = shard.query(sql.oldest_dirty(of), first=first, **names)
    return {"oldest": oldest} if count else None


def _tallies(shard: Shard, of: str, after: int, names: dict[str, Any]) -> dict[tuple[str, str], library._Tally]:
    """The library's tallies, by device and meter, of the readings later than `after`."""
    first = after // sql.HOUR + 1
    fresh = _fresh_hours(shard, of, first, names)
    rows = shard.query(sql.tallies(of, fresh is not None), after=after, first=first, **names, **(fresh or {}))
    return {(row[0], row[1]): library._Tally(*row[2:]) for row in rows}


def _budgets(shard: Shard, of: str, after: int, names: dict[str, Any]) -> dict[str, dict[str, Any]]:
    records = {row[0]: DeviceRecord(*row[:6]) for row in shard.query(sql.devices(of), **names)}
    tallies = _tallies(shard, of, after, names)
    meters: dict[str, list[tuple[int, PowerMeter]]] = {id_: [] for id_ in records}
    last_day: dict[str, dict[int, library._Tally]] = {id_: {} for id_ in records}
    for number, row in enumerate(shard.query(sql.meters(of), **names)):
        id_ = row[0]
        if id_ not in records:  # its device's record is still on its way
            continue
        meters[id_].append((number, _meter(row, records[id_])))
        tally = tallies.get((id_, row[1]))
        if tally is not None and row[2] in library._LOADS:
            last_day[id_][number] = tally
    return {id_: library._budget(record, meters[id_], last_day[id_]) for id_, record in records.items()}


def _energies(shard: Shard, first_day: int) -> list[Sequence[Any]]:
    ((max_gap,),) = shard.query(sql.MAX_GAP)
    first = max(first_day * 24 - -(-max_gap // sql.HOUR), 0)  # a day's first energy may begin that long before it
    fresh = _fresh_hours(shard, sql.EVERY, first, {})
    return shard.query(sql.days(fresh is not None), day=first_day, first=first, **(fresh or {}))


def _energy_row(day: int, site: str, kind: str, out: float, into: float) -> dict[str, Any]:
    begin = (_EPOCH + timedelta(days=day)).date().isoformat()
    return {
        "day": begin, "site": site, "type": kind,
        "energy_out_wh": library._tidy(out), "energy_in_wh": library._tidy(into),
    }  # fmt: skip


def shown(meter: PowerMeter) -> dict[str, Any]:
    """A meter as JSON has it: its fields, then its wattage and state."""
    return {**dataclasses.asdict(meter), "wattage": meter.wattage, "state": meter.state.value}
