"""Which devices and meters a fleet has, and where the readings of a meter are; for read."""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from power_fleet import read_sql, sql
from power_fleet.engine import Engine, Row, Shard, named_parts
from power_fleet.records import device_of, missing
from power_manager import DeviceRecord, NotFound, PowerMeter, check_text


@dataclass(frozen=True)
class Place:
    """Where the readings of a meter are."""

    shard: Shard
    device_id: str
    meter_id: str

    def select(self, question: str, **parameters: Any) -> list[Row]:
        """The rows of an answer about the meter."""
        return self.shard.select(
            question, device_id=self.device_id, meter_id=self.meter_id, **parameters
        )


def find_place(engine: Engine, meter_id: str) -> Place:
    """Where a meter's readings are; one that was retired or replaced has a history still.

    Raises NotFound.
    """
    id_ = check_text("meter_id", meter_id)
    rows = engine.select(read_sql.PLACES_OF_METER, meter_id=id_)
    device_ids = sorted(row["device_id"] for row in rows)
    if not device_ids:
        raise not_found("meter", id_)
    device_id = device_ids[0]
    if len(device_ids) > 1:
        device_id = _owners(engine, [id_], device_ids).get(id_, device_id)
    return Place(shard_of(engine, device_id), device_id, id_)


def shard_of(engine: Engine, device_id: str) -> Shard:
    """The shard that has a device's rows."""
    return engine.shards[engine.shard_of(device_id)]


def known_devices(
    engine: Engine, device_ids: Iterable[str] | None, which: str = sql.AT_WORK
) -> list[DeviceRecord]:
    """Those of these devices, or of all, that are known, by id; `which`: a condition."""
    rows: list[Row] = []
    if device_ids is None:
        rows += engine.select(sql.devices(which))
    else:
        ids = [check_text("device_id", id_) for id_ in device_ids]
        for part in named_parts(ids):
            question = sql.devices(f"{sql.THESE} AND {which}")
            rows += engine.select(question, devices=tuple(part))
    rows.sort(key=lambda row: str(row["device_id"]))
    return [device_of(row) for row in rows]


def meters_of_owners(engine: Engine, meters: list[PowerMeter]) -> list[PowerMeter]:
    """The meters, but of each that two devices have only the first one's.

    A stolen device must not take another's place.
    """
    count = collections.Counter(meter.id for meter in meters)
    doubted = [id_ for id_, devices in count.items() if devices > 1]
    if not doubted:
        return meters
    owners = _owners(engine, doubted)
    return [meter for meter in meters if owners.get(meter.id, meter.device_id) == meter.device_id]


def _owners(
    engine: Engine, meter_ids: Sequence[str], device_ids: Collection[str] | None = None
) -> dict[str, str]:
    """By meter, the device that has named it first, of these devices or of all."""
    first: dict[str, tuple[int, str]] = {}
    for part in named_parts(meter_ids):
        for row in engine.select(read_sql.CLAIMS, meters=tuple(part)):
            if device_ids is None or row["device_id"] in device_ids:
                claim = (row["rank"], row["device_id"])
                first[row["meter_id"]] = max(first.get(row["meter_id"], (0, "")), claim)
    return {meter_id: device_id for meter_id, (_, device_id) in first.items()}


def not_found(kind: str, id_: str) -> NotFound:
    """What is raised for a device or a meter that nobody has."""
    return NotFound(missing(kind, id_), kind, id_)
