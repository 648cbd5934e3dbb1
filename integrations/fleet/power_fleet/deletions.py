"""What a device has deleted leaves the engine, whatever the order of arrival.

Each deletion has a revision, and each row the generation of the batch that brought it. A deletion
takes the rows of its range whose generation is lower, and puts rows in their place that say
`deleted` and have its revision as theirs: a copy that comes later loses against them, and readings
that were recorded after the deletion win.

What is deleted already is taken out of what has just been stored here, in memory: a late message
costs one insert, however many deletions its device has made.

Two sinks may have the deletion and what it deletes in hand at once. Each of them first stores what
it has, and then looks for what the other has stored: so the later one sees both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from power_fleet import sql, tables
from power_fleet.engine import Shard, named_parts

_Values = Sequence[Any]  # of a row to be stored, in the order of its table's columns


class _Deletion(NamedTuple):
    """A row of power_deletions."""

    device_id: str
    revision: int
    kind: str
    meter_id: str
    since: int
    until: int

    def takes(self, meter_id: str) -> bool:
        """Whether it is about this meter of its device, or about all."""
        return self.kind == "device" or self.meter_id == meter_id


def apply(
    shard: Shard,
    generations: Mapping[str, int],
    tables: Mapping[str, Sequence[_Values]],
) -> dict[str, int]:
    """Apply deletions to a shard: those just stored to all rows, those known to rows just stored.

    `generations` are the devices that rows have just been stored of, with the lowest generation of
    those; `tables` are the rows by table. Returns how many deletions were looked at, by device.
    Raises EngineError; doing it again is harmless.
    """
    looked_at: dict[str, int] = {}
    for row in set(map(tuple, tables.get("power_deletions", ()))):
        _apply(shard, row)
        # All deleted hours of the range: an attempt before this one may have ended before it
        # touched them.
        shard.insert_from("power_touched", sql.TOUCH_DELETED, **_parameters(row))
    known = _known(shard, generations)
    if known:
        for name, columns in _TAKEN_FROM.items():
            gone = _gone(name, columns, tables.get(name, ()), known)
            if gone:
                shard.insert_columns(name, columns, list(zip(*gone)))
    for device_id, some in known.items():
        looked_at[device_id] = len(some)
    return looked_at


_TAKEN_FROM = {
    "power_readings": tables.READINGS,
    "power_meters": tables.METERS,
    "power_events": tables.EVENTS,
    "power_devices": tables.DEVICES,
}


def _known(shard: Shard, generations: Mapping[str, int]) -> dict[str, list[_Deletion]]:
    """By device, the deletions that rows just stored may be older than, the latest first."""
    known: dict[str, list[_Deletion]] = {}
    for named in named_parts(list(generations)):
        lowest = min(generations[device_id] for device_id in named)
        for row in shard.select(sql.DELETIONS, devices=tuple(named), generation=lowest):
            deletion = _Deletion(**row)
            if deletion.revision > generations[deletion.device_id]:
                known.setdefault(deletion.device_id, []).append(deletion)
    for some in known.values():
        some.sort(key=lambda deletion: deletion.revision, reverse=True)
    return known


def _gone(
    table: str,
    columns: Mapping[str, str],
    rows: Iterable[_Values],
    known: Mapping[str, Sequence[_Deletion]],
) -> list[_Values]:
    """The rows that take the place of those that are deleted already: see sql._deleted."""
    names = list(columns)
    version_column = "generation" if "generation" in columns else "revision"
    version_at = names.index(version_column)
    deleted_at = names.index("deleted")
    empty = [place for place, name in enumerate(names) if columns[name].startswith("Nullable")]
    gone: list[_Values] = []
    for row in rows:
        if row[0] not in known:  # the first column is the device, of all of them
            continue
        revision = _revision_over(table, row, row[version_at], known[row[0]])
        if revision is not None:
            values = list(row)
            for place in empty:
                values[place] = None
            values[version_at] = revision
            values[deleted_at] = 1
            gone.append(values)
    return gone


def _revision_over(
    table: str, row: _Values, version: int, known: Iterable[_Deletion]
) -> int | None:
    """The revision of the latest deletion that takes a row; None where none does."""
    for deletion in known:
        if deletion.revision <= version:
            return None
        if _takes(table, row, deletion):
            return deletion.revision
    return None


def _takes(table: str, row: _Values, deletion: _Deletion) -> bool:
    """Whether a deletion takes a row of a table, apart from which is the later one."""
    if table == "power_readings":
        return deletion.takes(row[1]) and deletion.since <= row[2] < deletion.until
    if table == "power_meters":
        return deletion.kind != "readings" and deletion.takes(row[1])
    return deletion.kind == "device"


def _apply(shard: Shard, deletion: Sequence[Any]) -> None:
    parameters = _parameters(deletion)
    shard.insert_from("power_readings", sql.DELETE_READINGS, **parameters)
    if parameters["kind"] == "readings":
        return
    shard.insert_from("power_meters", sql.DELETE_METERS, **parameters)
    if parameters["kind"] == "device":
        shard.insert_from("power_events", sql.DELETE_EVENTS, **parameters)
        shard.insert_from("power_devices", sql.DELETE_DEVICE, **parameters)


def _parameters(deletion: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(tables.DELETIONS, deletion))
