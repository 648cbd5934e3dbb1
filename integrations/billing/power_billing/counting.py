"""Which meters of a device count, hour by hour, and what they add up to."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from power_billing.links import Link
from power_billing.sources import ALL_DAYS, HourUsage, MeterUsage, UsageSource
from power_manager import MeterType, PowerMeter, counted_meters


@dataclass(frozen=True)
class Used:
    """What a device used in an hour: nano-watt-hours out less in, of how many readings."""

    nwh: int = 0
    reading_count: int = 0


@dataclass(frozen=True)
class KnownMeter:
    """A meter that has counted, and its first and last hour with readings."""

    device_id: str
    meter_id: str
    type: str
    first_hour: int
    last_hour: int


@dataclass
class DeviceUsage:
    """What a linked device used in the link's hours.

    kept: hours in which a meter counted that is deleted now; only that meter could tell its share
    of them. is_deleted: the device itself is gone; its last readings were in `last_hour`. parts:
    the counted meters' own hours. meters: those that are new or have changed.
    """

    device_id: str
    by_hour: dict[int, Used] = field(default_factory=dict)
    kept: list[range] = field(default_factory=list)
    is_deleted: bool = False
    last_hour: int | None = None
    parts: list[HourUsage] = field(default_factory=list)
    meters: list[KnownMeter] = field(default_factory=list)

    def is_kept(self, hour: int) -> bool:
        """Whether what was billed of that hour stays, whatever is left in the file."""
        return self.is_deleted or any(hour in hours for hours in self.kept)


def chosen_meters(meters: Sequence[PowerMeter], types: Collection[str] | None) -> list[PowerMeter]:
    """The meters that count: those of the types, or by the library's rule."""
    if types is None:
        return counted_meters(meters)
    return [meter for meter in meters if meter.type.value in types]


def device_usage(
    source: UsageSource, link: Link, known: Mapping[str, KnownMeter], days: float
) -> DeviceUsage:
    """What a linked device used in the last `days`.

    known: its meters that have counted before, by id.
    """
    parts = source.usage(link.device_id, days)
    if parts is None:
        last_hour = max((meter.last_hour for meter in known.values()), default=None)
        kept = _deleted_hours(known, link.types, ())
        return DeviceUsage(link.device_id, kept=kept, is_deleted=True, last_hour=last_hour)
    known_before = known
    if any(part.hours and part.meter.id not in known for part in parts):
        whole = source.usage(
            link.device_id, ALL_DAYS
        )  # once a meter: when were its first readings?
        known = _with_new_meters(link.device_id, known, whole or [])
    known = _with_new_meters(link.device_id, known, parts)
    changed = [meter for meter in known.values() if known_before.get(meter.meter_id) != meter]
    usage = DeviceUsage(link.device_id, meters=changed)
    present = {part.meter.id for part in parts}
    usage.kept = _deleted_hours(known, link.types, present)
    for one in _counted_hours(parts, link.types, known):
        if link.covers(one.hour):
            before = usage.by_hour.get(one.hour, Used())
            usage.by_hour[one.hour] = Used(
                before.nwh + one.energy_nwh, before.reading_count + one.reading_count
            )
            usage.parts.append(one)
    return usage


def _deleted_hours(
    known: Mapping[str, KnownMeter], types: Collection[str] | None, present: Collection[str]
) -> list[range]:
    """The hours of each meter that has counted and is not there any more."""
    return [
        range(meter.first_hour, meter.last_hour + 1)
        for meter in known.values()
        if meter.meter_id not in present and _has_counted(meter, types, known)
    ]


def _main_since(known: Mapping[str, KnownMeter]) -> int | None:
    """The device's first hour with a main meter; None where it never had one."""
    mains = [meter.first_hour for meter in known.values() if meter.type == MeterType.MAIN.value]
    return min(mains, default=None)


def _has_counted(
    meter: KnownMeter, types: Collection[str] | None, known: Mapping[str, KnownMeter]
) -> bool:
    """Whether a meter that is deleted now was one of those that counted."""
    if types is not None:
        return meter.type in types
    main_since = _main_since(known)
    is_in_line = main_since is not None and main_since <= meter.first_hour
    return not (meter.type == MeterType.UPS.value and is_in_line)


def _with_new_meters(
    device_id: str, known: Mapping[str, KnownMeter], parts: Sequence[MeterUsage]
) -> dict[str, KnownMeter]:
    """The known meters, with those of `parts`, and their hours as far as they reach now."""
    found = dict(known)
    for part in parts:
        if part.hours:
            first_hour, last_hour = part.hours[0].hour, part.hours[-1].hour
            there = found.get(part.meter.id)
            if there is not None:
                first_hour = min(first_hour, there.first_hour)
                last_hour = max(last_hour, there.last_hour)
            found[part.meter.id] = KnownMeter(
                device_id, part.meter.id, part.meter.type.value, first_hour, last_hour
            )
    return found


def _counted_hours(
    parts: Sequence[MeterUsage], types: Collection[str] | None, known: Mapping[str, KnownMeter]
) -> Iterator[HourUsage]:
    """Each meter's hours in which it counts.

    A ups counts if the device has no main meter. A main meter counts from its first hour on: what
    was billed before it was added is not taken back.
    """
    main_since = _main_since(known)
    meters = [part.meter for part in parts]
    others = [meter for meter in meters if meter.type != MeterType.MAIN]
    counted_before = {meter.id for meter in chosen_meters(others, types)}
    counted_since = {meter.id for meter in chosen_meters(meters, types)}
    for part in parts:
        for one in part.hours:
            has_main = main_since is not None and one.hour >= main_since
            if part.meter.id in (counted_since if has_main else counted_before):
                yield one


# --- The meters that the ledger knows


def known_meters(conn: sqlite3.Connection, device_id: str) -> dict[str, KnownMeter]:
    """The device's meters that have counted, by their ids."""
    sql = "SELECT meter_id, type, first_hour, last_hour FROM billing_meters WHERE device_id = ?"
    return {
        meter_id: KnownMeter(device_id, meter_id, type_, first_hour, last_hour)
        for meter_id, type_, first_hour, last_hour in conn.execute(sql, (device_id,))
    }


def keep_meters(conn: sqlite3.Connection, meters: Iterable[KnownMeter]) -> None:
    """Know these meters from now on."""
    sql = "INSERT OR REPLACE INTO billing_meters VALUES (?, ?, ?, ?, ?)"
    for one in meters:
        values = (one.device_id, one.meter_id, one.type, one.first_hour, one.last_hour)
        conn.execute(sql, values)
