"""What a device has deleted leaves the engine: what was sent before the deletion, whatever the order of arrival.

Each deletion has a revision, and each row the generation of the batch that brought it. A deletion takes the rows of
its range whose generation is lower, and puts rows in their place that say `deleted` and have its revision as theirs: a
copy that comes later loses against them, and readings that were recorded after the deletion win.

Two sinks may have the deletion and what it deletes in hand at once. Each of them first stores what it has, and then
looks for what the other has stored: so the later one sees both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from power_fleet import schema, sql
from power_fleet.engine import Shard, parts


def apply(shard: Shard, generations: Mapping[str, int], deletions: Sequence[Sequence[Any]]) -> None:
    """Apply to a shard these deletions (rows of its table), and those that it knows to what has just been stored.

    `generations` are the devices that rows have just been stored of, with the lowest generation of those. Raises
    EngineError; doing it again is harmless.
    """
    applied: set[Sequence[Any]] = {tuple(deletion) for deletion in deletions}
    for deletion in applied:
        _apply(shard, deletion)
        # All deleted hours of the range: an attempt before this one may have ended before it touched them.
        shard.insert_from("power_touched", sql.TOUCH_DELETED, **_parameters(deletion))
    for named in parts(list(generations), lambda device_id: len(repr(device_id).encode()) + 2):
        lowest = min(generations[device_id] for device_id in named)
        known = shard.query(sql.DELETIONS, devices=tuple(named), generation=lowest)
        for deletion in known:
            device_id, revision, *_ = deletion
            if revision > generations[device_id] and tuple(deletion) not in applied:
                _apply(shard, deletion)


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
    return dict(zip(schema.DELETIONS, deletion))
