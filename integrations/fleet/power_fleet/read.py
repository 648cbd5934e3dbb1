"""The reading half of PowerManager, of a fleet: what a service over one file answers, it answers over an engine.

The same methods with the same arguments, records, roundings and errors, so that routes, page and client need not know.
What an engine cannot give it says as the library would: StorageError, which names the fleet's engine.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from power_fleet import sql
from power_fleet.dead import DEAD_STREAM
from power_fleet.discovery import NotRunning, find_hub
from power_fleet.engine import Engine, EngineError, Row, Shard, at_once, parts
from power_fleet.fleet import Fleet
from power_fleet.history import NEVER, hour_rows, meter_sums
from power_fleet.metrics import fleet_metrics
from power_fleet.records import device_of, event_of, missing
from power_fleet.stream import NATS_FAILURES, STREAM, Nats, Refused
from power_manager import (
    DAY_US,
    HOUR_US,
    SECOND_US,
    Deletion,
    DeviceRecord,
    EnergyTotals,
    InvalidValue,
    MeterSums,
    MeterType,
    NotFound,
    PowerEvent,
    PowerMeter,
    PowerReading,
    PowerStatistics,
    StorageError,
    check_count,
    check_duration,
    check_iterable,
    check_text,
    from_microseconds,
    make_budget,
    rounded,
    to_microseconds,
)

_P = ParamSpec("_P")
_T = TypeVar("_T")
__all__ = ["FleetSource", "Refused", "open_source"]

END_OF_TIME_US = 7_289_654_400 * SECOND_US  # 2201, as the library has it
LOOK_SECONDS = 1.0  # between two looks for an engine that does not answer
SETTLE_SECONDS = 2.0  # in which every sink has stored what it had taken before
BUDGET_SECONDS = 2.0  # that the budgets of all devices are kept: every page asks for them
STATE_SECONDS = 5.0  # that the state of the stream is kept
_log = logging.getLogger("power_fleet")
PLACES = (
    8192  # numbers of events for each message of the stream: events beyond that are in lists alone
)
_MANY = 500  # devices, from which on all are asked about: naming them takes longer
_FEW_READINGS = 10_000  # a page that has less makes the next one longer
_LONG_GAP_US = DAY_US  # a device that counts energy over longer gaps is asked about by itself

_PLACES_OF_METER = (
    "SELECT device_id FROM power_meters FINAL WHERE deleted = 0 AND meter_id = %(meter_id)s"
)
_CLAIMS = """SELECT meter_id, device_id, rank FROM power_claims FINAL
WHERE meter_id IN %(meters)s ORDER BY meter_id, rank DESC, device_id"""
_READINGS = """SELECT at, voltage, current_draw, charge_pct FROM power_readings FINAL
WHERE deleted = 0 AND device_id = %(device_id)s AND meter_id = %(meter_id)s
AND hour >= %(first)s AND hour <= %(last)s AND at >= %(since)s AND at < %(until)s ORDER BY at"""
_HOURS_WITH_READINGS = """SELECT DISTINCT hour FROM power_touched WHERE device_id = %(device_id)s
AND hour >= %(first)s AND hour <= %(last)s AND day >= intDiv(%(first)s, 24) AND day <= intDiv(%(last)s, 24)
ORDER BY hour"""
_MEAN_WATTAGE = """SELECT avg(voltage * current_draw) AS wattage, count(voltage * current_draw) AS powers
FROM power_readings FINAL
WHERE deleted = 0 AND device_id = %(device_id)s AND meter_id = %(meter_id)s
AND hour >= intDiv(%(after)s, 3600000000) AND hour <= intDiv(%(last)s, 3600000000)
AND at > %(after)s AND at <= %(last)s"""
_GAPS = f"SELECT device_id, max_gap FROM power_devices FINAL WHERE deleted = 0 AND {sql.THESE}"
_EVENT_COLUMNS = "id, device_id, type, value, at, note, meter_id"
_NEWEST_EVENTS = f"""SELECT {_EVENT_COLUMNS} FROM power_events FINAL
WHERE deleted = 0 AND device_id = %(device_id)s ORDER BY at DESC, sequence DESC LIMIT %(limit)s"""
# The events of one message are those of one device; they are numbered in the order in which its file has them.
_EVENTS_SINCE = f"""SELECT * FROM (
  SELECT {_EVENT_COLUMNS}, toInt64(taken) AS taken,
    toInt64(row_number() OVER (PARTITION BY taken, device_id ORDER BY sequence)) AS place
  FROM power_events FINAL WHERE deleted = 0 AND taken >= %(taken)s)
WHERE place < {PLACES} AND (taken > %(taken)s OR place > %(place)s) AND taken <= %(settled)s
ORDER BY taken, place LIMIT %(limit)s"""
_TAKEN = "SELECT toInt64(min(taken)) AS first, toInt64(max(taken)) AS last, count() AS events FROM power_events"
_LAST_HEARD = "SELECT device_id, toInt64(max(seen)) AS seen FROM power_seen GROUP BY device_id"
_DELETIONS = """SELECT device_id, toInt64(revision) AS revision, meter_id, since, until FROM power_deletions FINAL
WHERE kind = 'readings' AND {of} ORDER BY device_id, revision"""
_LINES = """SELECT device_id, argMax(version, line) AS version, toInt64(argMax(opened, line)) AS opened
FROM power_lines GROUP BY device_id"""
_SITES = "SELECT device_id, site FROM power_devices FINAL WHERE deleted = 0"
_ALARMS = """SELECT device_id, kind, toInt64(at) AS at, note FROM power_alarms FINAL WHERE cleared = 0
ORDER BY device_id, at, kind"""


def open_source(
    urls: Sequence[str], hub: bool = False, clock: Callable[[], float] = time.time
) -> FleetSource:
    """A source of the engine at these URLs, or of this machine's hub, wherever that is from now on.

    Raises Refused; nothing is asked yet.
    """
    return FleetSource(_hub_urls if hub else lambda: urls, clock)


def _hub_urls() -> Sequence[str]:
    """Where the engine of this machine's hub is now. Raises Refused."""
    try:
        addresses = find_hub()
    except (NotRunning, StorageError) as error:
        raise Refused(f"--hub: {error}") from error
    if addresses is None:
        raise Refused("--hub: no hub was started here: start power-fleet hub, or name --fleet")
    return [addresses.clickhouse]


def _answering(
    ask: Callable[Concatenate[FleetSource, _P], _T],
) -> Callable[Concatenate[FleetSource, _P], _T]:
    """An engine that does not answer is to the caller what a file is that cannot be read."""

    @functools.wraps(ask)
    def asked(source: FleetSource, /, *arguments: _P.args, **options: _P.kwargs) -> _T:
        with source.answering():
            return ask(source, *arguments, **options)

    return asked


@dataclass(frozen=True)
class _Place:
    """Where the readings of a meter are."""

    shard: Shard
    device_id: str
    meter_id: str

    def select(self, question: str, **parameters: Any) -> list[Row]:
        """The rows of an answer about the meter."""
        return self.shard.select(
            question, device_id=self.device_id, meter_id=self.meter_id, **parameters
        )


class FleetSource:
    """Answers as PowerManager does, about the devices whose files are forwarded. Safe to use from many threads.

    `find_urls` says where the engine is, as Fleet takes it. It is asked again where the engine does not answer: a hub
    that was started anew has another port. All methods raise StorageError where the engine does not answer.
    """

    def __init__(
        self,
        find_urls: Callable[[], Sequence[str]],
        clock: Callable[[], float] = time.time,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self._find_urls = find_urls
        self._clock = clock
        self._settling = Settling(settle_seconds)
        self._all_budgets = _Kept(BUDGET_SECONDS, lambda: self._fleet.budget().value)
        self._stream_state = _Kept(STATE_SECONDS, self._ask_stream)
        self._looked_at = time.monotonic()
        self._urls = list(find_urls())
        self._engine = Engine(self._urls)
        self._fleet = Fleet(self._urls, clock)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Raise StorageError where the engine does not answer."""
        try:
            yield
        except EngineError as error:
            self._look_again()
            raise StorageError("the fleet's engine", error) from error

    def _look_again(self) -> None:
        """See whether the engine is elsewhere by now."""
        if time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        with contextlib.suppress(Refused):
            urls = list(self._find_urls())
            if urls != self._urls:
                self._engine = Engine(urls)
                self._fleet = Fleet(urls, self._clock)
                self._urls = urls

    # --- Devices and meters

    @_answering
    def list_devices(self) -> list[DeviceRecord]:
        """Every device, by id; but for those that are retired."""
        return self._devices(None)

    @_answering
    def devices_of(self, device_ids: Iterable[str]) -> list[DeviceRecord]:
        """Those of these devices that are known and not retired, by id."""
        return self._devices(device_ids)

    @_answering
    def get_device(self, device_id: str) -> DeviceRecord:
        """A device; one that is retired too, for its history stays. Raises NotFound."""
        for device in self._devices([device_id], sql.EVERY):
            return device
        raise _not_found("device", device_id)

    @_answering
    def list_meters(self, device_id: str | None = None) -> list[PowerMeter]:
        """The meters of a device, or all, in their present state, in order of adding; none of an unknown device.

        A meter that two devices have is the first one's: a stolen device must not take another's place.
        """
        meters = self._fleet.latest(None if device_id is None else [device_id]).value
        if device_id is not None:
            return meters
        count = collections.Counter(meter.id for meter in meters)
        doubted = [id_ for id_, devices in count.items() if devices > 1]
        if not doubted:
            return meters
        owners = self._owners(doubted)
        return [
            meter for meter in meters if owners.get(meter.id, meter.device_id) == meter.device_id
        ]

    @_answering
    def meters_of(self, device_ids: Iterable[str]) -> dict[str, list[PowerMeter]]:
        """By device id, its meters; a device that is not known is left out."""
        ids = list(device_ids)
        found: dict[str, list[PowerMeter]] = {one.id: [] for one in self._devices(ids)}
        for meter in self._fleet.latest(ids).value:
            if meter.device_id in found:
                found[meter.device_id].append(meter)
        return found

    @_answering
    def get_meter(self, meter_id: str) -> PowerMeter:
        """A meter in its present state. Raises NotFound."""
        place = self._place(meter_id)
        for meter in self._fleet.latest([place.device_id]).value:
            if meter.id == meter_id:
                return meter
        raise _not_found("meter", meter_id)

    def _devices(
        self, device_ids: Iterable[str] | None, which: str = sql.AT_WORK
    ) -> list[DeviceRecord]:
        """Those of these devices, or of all, that are known, by id; `which`: a condition."""
        rows: list[Row] = []
        if device_ids is None:
            rows += self._engine.select(sql.devices(which))
        else:
            ids = [check_text("device_id", id_) for id_ in device_ids]
            for part in parts(ids, lambda id_: len(repr(id_).encode()) + 2):
                question = sql.devices(f"{sql.THESE} AND {which}")
                rows += self._engine.select(question, devices=tuple(part))
        rows.sort(key=lambda row: str(row["device_id"]))
        return [device_of(row) for row in rows]

    def _place(self, meter_id: str) -> _Place:
        """Where a meter's readings are; one that was retired or replaced has a history still. Raises NotFound."""
        id_ = check_text("meter_id", meter_id)
        rows = self._engine.select(_PLACES_OF_METER, meter_id=id_)
        device_ids = sorted(row["device_id"] for row in rows)
        if not device_ids:
            raise _not_found("meter", id_)
        device_id = device_ids[0]
        if len(device_ids) > 1:
            device_id = self._owners([id_], device_ids).get(id_, device_id)
        return _Place(self._shard_of(device_id), device_id, id_)

    def _owners(
        self, meter_ids: Sequence[str], device_ids: Collection[str] | None = None
    ) -> dict[str, str]:
        """By meter, the device that has named it first, of these devices or of all."""
        first: dict[str, tuple[int, str]] = {}
        for part in parts(meter_ids, lambda id_: len(repr(id_).encode()) + 2):
            for row in self._engine.select(_CLAIMS, meters=tuple(part)):
                if device_ids is None or row["device_id"] in device_ids:
                    claim = (row["rank"], row["device_id"])
                    first[row["meter_id"]] = max(first.get(row["meter_id"], (0, "")), claim)
        return {meter_id: device_id for meter_id, (_, device_id) in first.items()}

    def _shard_of(self, device_id: str) -> Shard:
        return self._engine.shards[self._engine.shard_of(device_id)]

    # --- Readings and statistics

    @_answering
    def iter_history(
        self, meter_id: str, *, since: Any = None, until: Any = None
    ) -> Iterator[PowerReading]:
        """Iterate over the readings from `since` on and before `until`, oldest first, as PowerManager does."""
        start_us = 0 if since is None else to_microseconds(since, "since")
        end_us = END_OF_TIME_US if until is None else to_microseconds(until, "until")
        place = self._place(meter_id)
        hours = place.shard.select(
            _HOURS_WITH_READINGS,
            device_id=place.device_id,
            first=start_us // HOUR_US,
            last=max(end_us - 1, 0) // HOUR_US,
        )
        return self._readings(place, [row["hour"] for row in hours], start_us, end_us)

    def _readings(
        self, place: _Place, hours: list[int], start_us: int, end_us: int
    ) -> Iterator[PowerReading]:
        """The readings of a meter in these hours, a number of them at a time that makes pages of like size."""
        count = 1
        while hours:
            page, hours = hours[:count], hours[count:]
            with self.answering():
                rows = place.select(
                    _READINGS, first=page[0], last=page[-1], since=start_us, until=end_us
                )
            for row in rows:
                yield _reading(place.meter_id, row)
            if len(rows) < _FEW_READINGS:
                count *= 2
            elif count > 1:
                count //= 2

    @_answering
    def get_statistics(
        self, meter_id: str, *, days: float = 7, bucket: str = "hour"
    ) -> list[PowerStatistics]:
        """A row for each UTC hour or day with readings in the last `days`, as PowerManager's."""
        if bucket not in ("hour", "day"):
            raise InvalidValue(f"bucket: expected 'hour' or 'day', got {bucket!r}")
        length = 1 if bucket == "hour" else 24  # hours
        span_us = check_duration("days", days, DAY_US, "days")
        first = max(self._now_us() - span_us, -1) // (HOUR_US * length) * length
        place = self._place(meter_id)
        hours = self._hours([place.device_id], max(first, 0), None)
        by_bucket: dict[int, list[MeterSums]] = {}
        for hour, sums in hours.get((place.device_id, place.meter_id), ()):
            by_bucket.setdefault(hour // length * length, []).append(sums)
        return [
            _statistics(place.meter_id, hour, _added(by_bucket[hour])) for hour in sorted(by_bucket)
        ]

    @_answering
    def statistics_of(
        self, meters: Iterable[PowerMeter], since_us: int, until_us: int
    ) -> dict[str, list[PowerStatistics]]:
        """By meter id, statistics of the UTC hours from a moment on that begin before another, oldest first."""
        listed = list(meters)
        device_ids = list(dict.fromkeys(meter.device_id for meter in listed))
        hours = self._hours(device_ids, since_us // HOUR_US, -(-until_us // HOUR_US))
        return {
            meter.id: [
                _statistics(meter.id, hour, sums)
                for hour, sums in hours.get((meter.device_id, meter.id), ())
            ]
            for meter in listed
        }

    @_answering
    def energy_totals(self, meter_id: str) -> EnergyTotals:
        """The energy of a meter since its first reading. Raises NotFound."""
        place = self._place(meter_id)
        hours = self._hours([place.device_id], 0, None)
        sums = _added(sums for _, sums in hours.get((place.device_id, place.meter_id), ()))
        return EnergyTotals(place.meter_id, rounded(sums.energy_out_wh), rounded(sums.energy_in_wh))

    def _hours(
        self, device_ids: Sequence[str], first: int, end: int | None
    ) -> dict[tuple[str, str], list[tuple[int, MeterSums]]]:
        """By device and meter, its hours from one on and before another in order, each with its sums."""
        found: dict[tuple[str, str], list[tuple[int, MeterSums]]] = {}
        now_us = self._now_us()
        for answer in at_once(
            lambda part: _hour_sums(*part, first, end, now_us), self._parts(device_ids)
        ):
            found |= answer
        return found

    def _parts(self, device_ids: Sequence[str]) -> list[tuple[Shard, tuple[str, ...], int]]:
        """Shards, the devices to ask each for, and how long before its hour an energy of theirs may begin (µs)."""
        found: list[tuple[Shard, tuple[str, ...], int]] = []
        for number, shard in enumerate(self._engine.shards):
            mine = tuple(id_ for id_ in device_ids if self._engine.shard_of(id_) == number)
            if not mine:
                continue
            gaps = {row["device_id"]: row["max_gap"] for row in shard.select(_GAPS, devices=mine)}
            near = tuple(id_ for id_ in mine if gaps.get(id_, 0) <= _LONG_GAP_US)
            if near:
                found.append((shard, near, max(gaps.get(id_, 0) for id_ in near)))
            found += [(shard, (id_,), gaps[id_]) for id_ in mine if id_ not in near]
        return found

    # --- Events

    @_answering
    def get_events(self, device_id: str, limit: int = 50) -> list[PowerEvent]:
        """The device's newest events, newest first. Raises NotFound."""
        count = check_count("limit", limit)
        id_ = self.get_device(device_id).id
        rows = self._shard_of(id_).select(_NEWEST_EVENTS, device_id=id_, limit=count)
        return [event_of(row) for row in rows]

    @_answering
    def events_since(self, sequence: int, *, limit: int = 1000) -> list[tuple[int, PowerEvent]]:
        """Every device's events after a number, oldest first; numbered in the order of the fleet's stream.

        Several sinks store what they have taken at the same time: an event waits until those before it are there too.
        """
        taken, place = divmod(check_count("sequence", sequence), PLACES)
        count = check_count("limit", limit)
        settled = self._settling.settled(self._taken()[1])
        rows = self._engine.select(
            _EVENTS_SINCE, taken=taken, place=place, settled=settled, limit=count
        )
        rows.sort(key=lambda row: (row["taken"], row["place"]))
        return [(row["taken"] * PLACES + row["place"], event_of(row)) for row in rows[:count]]

    @_answering
    def last_sequence(self) -> int:
        """A number that no event so far is beyond, and every later one is; 0 before the first."""
        settled = self._settling.settled(self._taken()[1])
        return settled * PLACES + PLACES - 1 if settled else 0

    @_answering
    def first_sequence(self) -> int:
        """The number of the oldest event; 0 without any."""
        first = self._taken()[0]
        return first * PLACES + 1 if first else 0

    def _taken(self) -> tuple[int, int]:
        """The places in the stream of the first and the last message with events; 0 and 0 without any."""
        rows = [row for row in self._engine.select(_TAKEN) if row["events"]]
        first = min((row["first"] for row in rows), default=0)
        return first, max((row["last"] for row in rows), default=0)

    # --- Estimates, budget, report

    @_answering
    def estimate_runtime(
        self, device_id: str, *, window_minutes: float | None = None
    ) -> float | None:
        """Hours until the device's batteries are empty, as PowerManager's. Raises NotFound."""
        device = self.get_device(device_id)
        meters = self._fleet.latest([device.id]).value
        if window_minutes is not None:
            window_us = check_duration("window_minutes", window_minutes, 60 * SECOND_US, "min")
            meters = [self._averaged(meter, window_us) for meter in meters]
        hours: float | None = make_budget(device, meters, {})["estimated_runtime_hours"]
        return hours

    def _averaged(self, meter: PowerMeter, window_us: int) -> PowerMeter:
        """A battery with the mean of its watts over so long before its present state, where there is one."""
        if meter.type != MeterType.BATTERY or meter.updated_at is None:
            return meter
        last = to_microseconds(meter.updated_at)
        place = _Place(self._shard_of(meter.device_id), meter.device_id, meter.id)
        (row,) = place.select(_MEAN_WATTAGE, after=max(last - window_us, -1), last=last)
        if not row["powers"] or row["wattage"] is None or not math.isfinite(row["wattage"]):
            return meter
        return dataclasses.replace(
            meter, voltage=row["wattage"], current_draw=1.0, power_known=True
        )

    @_answering
    def power_budget_check(self, device_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The power budget of each device, as PowerManager's."""
        ids = [check_text("device_id", id_) for id_ in check_iterable("device_ids", device_ids)]
        if len(ids) <= _MANY:
            return self._fleet.budget(ids).value
        known = dict(self._all_budgets.value())
        missing = [id_ for id_ in ids if id_ not in known]
        known |= self._fleet.budget(missing).value
        return {id_: known[id_] for id_ in ids}

    @_answering
    def export_report(self, device_id: str, days: float = 7) -> str:
        """The device's report over the last days as JSON text, as PowerManager's. Raises NotFound."""
        return self._fleet.report(device_id, days).value

    # --- What a file does not have

    @_answering
    def last_heard(self) -> dict[str, int]:
        """By device id, when the stream last took in something from it: microseconds by its clock."""
        return {row["device_id"]: row["seen"] for row in self._engine.select(_LAST_HEARD)}

    @_answering
    def reading_deletions(self, device_ids: Collection[str] | None) -> list[Deletion]:
        """The deletions of readings of these devices, or of all, oldest first; numbered within each device."""
        every = device_ids is None or len(device_ids) > _MANY
        question = _DELETIONS.format(of=sql.EVERY if every else sql.THESE)
        parameters = {} if every else {"devices": tuple(device_ids or ())}
        return [
            Deletion(
                row["revision"],
                "readings",
                row["device_id"],
                row["meter_id"],
                from_microseconds(row["since"]) if row["since"] else None,
                from_microseconds(row["until"]) if row["until"] < END_OF_TIME_US else None,
            )
            for row in self._engine.select(question, **parameters)
        ]

    @_answering
    def fleet_devices(self) -> list[dict[str, Any]]:
        """Of each device its site, the version of what sends its file and since when, when it was heard, alarms."""
        sites = {row["device_id"]: row["site"] for row in self._engine.select(_SITES)}
        lines = {row["device_id"]: row for row in self._engine.select(_LINES)}
        heard = self.last_heard()
        alarms: dict[str, list[dict[str, str]]] = {}
        for row in self._engine.select(_ALARMS):
            alarm = {
                "kind": row["kind"],
                "since": from_microseconds(row["at"]),
                "note": row["note"],
            }
            alarms.setdefault(row["device_id"], []).append(alarm)
        found = []
        for device in self._devices(None):
            line = lines.get(device.id)
            seen = heard.get(device.id)
            found.append(
                {
                    "device_id": device.id,
                    "site": sites.get(device.id, ""),
                    "version": line["version"] if line else None,
                    "opened_at": from_microseconds(line["opened"]) if line else None,
                    "last_seen": from_microseconds(seen) if seen else None,
                    "alarms": alarms.get(device.id, []),
                }
            )
        return found

    @_answering
    def fleet_state(self) -> dict[str, Any]:
        """How far the engine is."""
        fresh = min((row["fresh"] for row in self._engine.select(sql.FRESH)), default=0)
        waiting, dead = self._stream_state.value()
        return {
            "fresh_as_of": from_microseconds(fresh) if fresh else None,
            "waiting_messages": waiting,
            "dead_letters": dead,
        }

    def _ask_stream(self) -> tuple[int | None, int | None]:
        """How many messages wait in the stream, and how many are dead letters; None: its stream is not known here."""
        source = self._stream()
        if source is None:
            return None, None
        try:
            return asyncio.run(_counts(source))
        except NATS_FAILURES as error:
            _log.warning("the fleet's stream: %s", error)
            return None, None

    def _stream(self) -> Nats | None:
        """The stream of the hub whose engine this is; None where no hub of this machine has it."""
        try:
            hub = find_hub(wait=_do_not_wait)
        except (NotRunning, StorageError):
            return None
        if hub is None or [hub.clickhouse] != self._urls:
            return None
        return Nats(
            hub.nats,
            key_file=Path(hub.key_file) if hub.key_file else None,
            certificate=Path(hub.certificate) if hub.certificate else None,
        )

    def metrics_text(self) -> bytes:
        """The metrics of the engine, and of its stream where that is known, for Prometheus."""
        return asyncio.run(fleet_metrics(self._engine, self._stream()))

    @_answering
    def energy(self, days: int) -> list[dict[str, Any]]:
        """Energy by UTC day, site and meter type, as Fleet's."""
        return [{**row, "type": MeterType(row["type"])} for row in self._fleet.energy(days).value]

    @_answering
    def silent(self, minutes: float) -> list[dict[str, Any]]:
        """The devices that nothing came from for so long, as Fleet's."""
        return [dict(row) for row in self._fleet.silent(minutes).value]

    def _now_us(self) -> int:
        return to_microseconds(self._clock(), "clock")


def _hour_sums(
    shard: Shard,
    device_ids: tuple[str, ...],
    gap_us: int,
    first: int,
    end: int | None,
    now_us: int,
) -> dict[tuple[str, str], list[tuple[int, MeterSums]]]:
    """The hours of these devices' meters, asked for from so early on that the energy of the first is whole."""
    hours = range(first, NEVER if end is None else end)
    found: dict[tuple[str, str], list[tuple[int, MeterSums]]] = {}
    for row in hour_rows(shard, sql.THESE, {"devices": device_ids}, hours, gap_us, now_us):
        of_meter = found.setdefault((row["device_id"], row["meter_id"]), [])
        of_meter.append((row["hour"], meter_sums(row)))
    return found


class Settling:
    """How far the stream's messages are all stored: as far as the newest was, so many seconds ago."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: collections.deque[tuple[float, int]] = collections.deque()

    def settled(self, newest: int) -> int:
        """The place in the stream up to which all is there; `newest` is that of what was stored last."""
        now = self._clock()
        with self._lock:
            if not self._seen:
                self._seen.append(
                    (now - self._seconds, newest)
                )  # what is there at first has been there
            if newest > self._seen[-1][1]:
                self._seen.append((now, newest))
            while len(self._seen) > 1 and self._seen[1][0] <= now - self._seconds:
                self._seen.popleft()
            return self._seen[0][1]


class _Kept(Generic[_T]):
    """An answer that is kept for some seconds, however many ask."""

    def __init__(self, seconds: float, ask: Callable[[], _T]) -> None:
        self._seconds = seconds
        self._ask = ask
        self._lock = threading.Lock()
        self._answer: tuple[float, _T] | None = None

    def value(self) -> _T:
        """The answer, no older than that."""
        with self._lock:
            if self._answer is None or time.monotonic() - self._answer[0] >= self._seconds:
                self._answer = (time.monotonic(), self._ask())
            return self._answer[1]


def _do_not_wait(_: float) -> None:
    raise NotRunning("the hub is starting")


async def _counts(source: Nats) -> tuple[int, int]:
    """The messages of the stream, and of the dead letters."""
    connection = await source.connect("power-service")
    try:
        js = connection.jetstream()
        waiting = (await js.stream_info(STREAM)).state.messages
        return waiting, (await js.stream_info(DEAD_STREAM)).state.messages
    finally:
        await connection.close()


def _not_found(kind: str, id_: str) -> NotFound:
    return NotFound(missing(kind, id_), kind, id_)


def _reading(meter_id: str, row: Row) -> PowerReading:
    volts = row["voltage"]
    amperes = row["current_draw"]
    known = volts is not None and amperes is not None
    return PowerReading(
        f"{meter_id}:{row['at']}",
        meter_id,
        volts,
        amperes,
        round(volts * amperes, 4) if known else None,
        row["charge_pct"],
        from_microseconds(row["at"]),
    )


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _added(parts: Iterable[MeterSums]) -> MeterSums:
    """The sums of several hours together."""
    listed = list(parts)
    return MeterSums(
        sum(part.reading_count for part in listed),
        sum(part.power_count for part in listed),
        sum(part.wattage_sum for part in listed),
        _least(part.min_wattage for part in listed),
        _most(part.max_wattage for part in listed),
        _least(part.min_charge_pct for part in listed),
        _most(part.max_charge_pct for part in listed),
        sum(part.energy_out_wh for part in listed),
        sum(part.energy_in_wh for part in listed),
    )


def _statistics(meter_id: str, hour: int, sums: MeterSums) -> PowerStatistics:
    return PowerStatistics(
        meter_id,
        from_microseconds(hour * HOUR_US),
        sums.reading_count,
        sums.avg_wattage,
        sums.min_wattage,
        sums.max_wattage,
        sums.min_charge_pct,
        sums.max_charge_pct,
        rounded(sums.energy_out_wh),
        rounded(sums.energy_in_wh),
    )
