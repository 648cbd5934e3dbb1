"""The reading half of PowerManager, of a fleet.

What a service over one file answers, it answers over an engine.

The same methods with the same arguments, records, roundings and errors, so that routes, page and
client need not know. What an engine cannot give it says as the library would: StorageError, which
names the fleet's engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from power_fleet import read_sql, sql
from power_fleet.cached import Cached, Settling
from power_fleet.codec import MAX_US
from power_fleet.engine import Engine, EngineError
from power_fleet.errors import Refused
from power_fleet.fleet import Fleet
from power_fleet.history import sums_by_hour
from power_fleet.metrics import fleet_metrics
from power_fleet.read_hub import count_messages, hub_urls, stream_of
from power_fleet.read_places import (
    Place,
    find_place,
    known_devices,
    meters_of_owners,
    not_found,
    shard_of,
)
from power_fleet.read_sql import PLACES
from power_fleet.records import added, event_of, hour_statistics, reading_of
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

__all__ = ["FleetSource", "Refused", "open_source"]

LOOK_SECONDS = 1.0  # between two looks for an engine that does not answer
SETTLE_SECONDS = 2.0  # in which every sink has stored what it had taken before
BUDGET_SECONDS = 2.0  # that the budgets of all devices are kept: every page asks for them
STATE_SECONDS = 5.0  # that the state of the stream is kept
_MANY = 500  # devices, from which on all are asked about: naming them takes longer
_FEW_READINGS = 10_000  # a page that has less makes the next one longer
_P = ParamSpec("_P")
_T = TypeVar("_T")


def open_source(
    urls: Sequence[str], hub: bool = False, clock: Callable[[], float] = time.time
) -> FleetSource:
    """A source of the engine at these URLs, or of this machine's hub, wherever that is from now on.

    Raises Refused; nothing is asked yet.
    """
    return FleetSource(hub_urls if hub else lambda: urls, clock)


def _answering(
    ask: Callable[Concatenate[FleetSource, _P], _T],
) -> Callable[Concatenate[FleetSource, _P], _T]:
    """An engine that does not answer is to the caller what a file is that cannot be read."""

    @functools.wraps(ask)
    def asked(source: FleetSource, /, *arguments: _P.args, **options: _P.kwargs) -> _T:
        with source.answering():
            return ask(source, *arguments, **options)

    return asked


class FleetSource:
    """Answers as PowerManager does, about the devices whose files are forwarded.

    Safe to use from many threads.

    `find_urls` says where the engine is, as Fleet takes it. It is asked again where the engine does
    not answer: a hub that was restarted has another port. All methods raise StorageError where
    the engine does not answer.
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
        self._all_budgets = Cached(BUDGET_SECONDS, lambda: self._fleet.budget().value)
        self._stream_state = Cached(STATE_SECONDS, lambda: count_messages(stream_of(self._urls)))
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
        return known_devices(self._engine, None)

    @_answering
    def devices_of(self, device_ids: Iterable[str]) -> list[DeviceRecord]:
        """Those of these devices that are known and not retired, by id."""
        return known_devices(self._engine, device_ids)

    @_answering
    def get_device(self, device_id: str) -> DeviceRecord:
        """A device; one that is retired too, for its history stays. Raises NotFound."""
        for device in known_devices(self._engine, [device_id], sql.EVERY):
            return device
        raise not_found("device", device_id)

    @_answering
    def list_meters(self, device_id: str | None = None) -> list[PowerMeter]:
        """The meters of a device, or all, in their present state, in order of adding.

        None of an unknown device. Of all, a meter that two devices have is the first one's.
        """
        if device_id is not None:
            return self._fleet.latest([device_id]).value
        return meters_of_owners(self._engine, self._fleet.latest().value)

    @_answering
    def meters_of(self, device_ids: Iterable[str]) -> dict[str, list[PowerMeter]]:
        """By device id, its meters; a device that is not known is left out."""
        ids = list(device_ids)
        found: dict[str, list[PowerMeter]] = {
            one.id: [] for one in known_devices(self._engine, ids)
        }
        for meter in self._fleet.latest(ids).value:
            if meter.device_id in found:
                found[meter.device_id].append(meter)
        return found

    @_answering
    def get_meter(self, meter_id: str) -> PowerMeter:
        """A meter in its present state. Raises NotFound."""
        place = find_place(self._engine, meter_id)
        for meter in self._fleet.latest([place.device_id]).value:
            if meter.id == meter_id:
                return meter
        raise not_found("meter", meter_id)

    # --- Readings and statistics

    @_answering
    def iter_history(
        self, meter_id: str, *, since: Any = None, until: Any = None
    ) -> Iterator[PowerReading]:
        """Iterate over the readings from `since` on and before `until`, as PowerManager does."""
        start_us = 0 if since is None else to_microseconds(since, "since")
        end_us = MAX_US if until is None else to_microseconds(until, "until")
        place = find_place(self._engine, meter_id)
        hours = place.shard.select(
            read_sql.HOURS_WITH_READINGS,
            device_id=place.device_id,
            first=start_us // HOUR_US,
            last=max(end_us - 1, 0) // HOUR_US,
        )
        return self._readings(place, [row["hour"] for row in hours], start_us, end_us)

    def _readings(
        self, place: Place, hours: list[int], start_us: int, end_us: int
    ) -> Iterator[PowerReading]:
        """The readings of a meter in these hours, asked for in pages of about the same size."""
        count = 1
        while hours:
            page, hours = hours[:count], hours[count:]
            with self.answering():
                rows = place.select(
                    read_sql.READINGS, first=page[0], last=page[-1], since=start_us, until=end_us
                )
            for row in rows:
                yield reading_of(place.meter_id, row)
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
        place = find_place(self._engine, meter_id)
        hours = sums_by_hour(self._engine, self._now_us(), [place.device_id], max(first, 0), None)
        by_bucket: dict[int, list[MeterSums]] = {}
        for hour, sums in hours.get((place.device_id, place.meter_id), ()):
            by_bucket.setdefault(hour // length * length, []).append(sums)
        return [
            hour_statistics(place.meter_id, hour, added(by_bucket[hour]))
            for hour in sorted(by_bucket)
        ]

    @_answering
    def statistics_of(
        self, meters: Iterable[PowerMeter], since_us: int, until_us: int
    ) -> dict[str, list[PowerStatistics]]:
        """By meter id, statistics of the UTC hours between two moments, oldest first."""
        listed = list(meters)
        device_ids = list(dict.fromkeys(meter.device_id for meter in listed))
        hours = sums_by_hour(
            self._engine, self._now_us(), device_ids, since_us // HOUR_US, -(-until_us // HOUR_US)
        )
        return {
            meter.id: [
                hour_statistics(meter.id, hour, sums)
                for hour, sums in hours.get((meter.device_id, meter.id), ())
            ]
            for meter in listed
        }

    @_answering
    def energy_totals(self, meter_id: str) -> EnergyTotals:
        """The energy of a meter since its first reading. Raises NotFound."""
        place = find_place(self._engine, meter_id)
        hours = sums_by_hour(self._engine, self._now_us(), [place.device_id], 0, None)
        sums = added(sums for _, sums in hours.get((place.device_id, place.meter_id), ()))
        return EnergyTotals(place.meter_id, rounded(sums.energy_out_wh), rounded(sums.energy_in_wh))

    # --- Events

    @_answering
    def get_events(self, device_id: str, limit: int = 50) -> list[PowerEvent]:
        """The device's newest events, newest first. Raises NotFound."""
        count = check_count("limit", limit)
        id_ = self.get_device(device_id).id
        rows = shard_of(self._engine, id_).select(
            read_sql.NEWEST_EVENTS, device_id=id_, limit=count
        )
        return [event_of(row) for row in rows]

    @_answering
    def events_since(self, sequence: int, *, limit: int = 1000) -> list[tuple[int, PowerEvent]]:
        """Every device's events after a number, oldest first.

        Numbered in the order of the fleet's stream.

        Several sinks store what they have taken at the same time: an event waits until those before
        it are there too.
        """
        taken, place = divmod(check_count("sequence", sequence), PLACES)
        count = check_count("limit", limit)
        settled = self._settling.settled(self._taken()[1])
        rows = self._engine.select(
            read_sql.EVENTS_SINCE, taken=taken, place=place, settled=settled, limit=count
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
        """The places in the stream of the first and the last message with events.

        They are 0 and 0 without any.
        """
        rows = [row for row in self._engine.select(read_sql.TAKEN) if row["events"]]
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
        """A battery with its mean watts over so long before its present state, if there is one."""
        if meter.type != MeterType.BATTERY or meter.updated_at is None:
            return meter
        last = to_microseconds(meter.updated_at)
        place = Place(shard_of(self._engine, meter.device_id), meter.device_id, meter.id)
        (row,) = place.select(read_sql.MEAN_WATTAGE, after=max(last - window_us, -1), last=last)
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
        """The device's report over the last days as JSON text, as PowerManager's.

        Raises NotFound.
        """
        return self._fleet.report(device_id, days).value

    # --- What a file does not have

    @_answering
    def last_heard(self) -> dict[str, int]:
        """By device id, when the stream last took in something from it.

        In microseconds by the stream's clock.
        """
        return {row["device_id"]: row["seen"] for row in self._engine.select(read_sql.LAST_HEARD)}

    @_answering
    def reading_deletions(self, device_ids: Collection[str] | None) -> list[Deletion]:
        """The deletions of readings of these devices, or of all, oldest first.

        They are numbered within each device.
        """
        every = device_ids is None or len(device_ids) > _MANY
        question = read_sql.DELETIONS.format(of=sql.EVERY if every else sql.THESE)
        parameters = {} if every else {"devices": tuple(device_ids or ())}
        return [
            Deletion(
                row["revision"],
                "readings",
                row["device_id"],
                row["meter_id"],
                from_microseconds(row["since"]) if row["since"] else None,
                from_microseconds(row["until"]) if row["until"] < MAX_US else None,
            )
            for row in self._engine.select(question, **parameters)
        ]

    @_answering
    def fleet_devices(self) -> list[dict[str, Any]]:
        """Of each device its site, its forwarder's version and start, when it was heard, alarms."""
        sites = {row["device_id"]: row["site"] for row in self._engine.select(read_sql.SITES)}
        lines = {row["device_id"]: row for row in self._engine.select(read_sql.LINES)}
        heard = self.last_heard()
        alarms: dict[str, list[dict[str, str]]] = {}
        for row in self._engine.select(read_sql.ALARMS):
            alarm = {
                "kind": row["kind"],
                "since": from_microseconds(row["at"]),
                "note": row["note"],
            }
            alarms.setdefault(row["device_id"], []).append(alarm)
        found = []
        for device in known_devices(self._engine, None):
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

    def metrics_text(self) -> bytes:
        """The metrics of the engine, and of its stream where that is known, for Prometheus."""
        return asyncio.run(fleet_metrics(self._engine, stream_of(self._urls)))

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
