"""The engine's tables: their columns and how each is made, for ClickHouse 24.8 and later.

Whole microseconds, Float64, and ReplacingMergeTree.

A device can only ever write rows of its own: `device_id` is in the key of everything that devices
send. Rows that come twice are one row (FINAL), that with the highest version. What a device has
deleted stays as a row with `deleted` = 1, so that an older message that comes after it does not
bring it back.

What is measured is sorted by time first, and lies in partitions by month: a question about a day
reads a day, however much history there is, and a month that is over goes as a whole. `hour` and
`day` are made by the engine itself, so that no program can store a reading where it is not looked
for.

Versions are (line << 20) | n: the line is the number that the stream gave to a forwarder's start, n
counts what it has claimed since. No clock is in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from power_fleet.codec import COUNT_BITS
from power_manager import HOUR_US

TEXT = "String"
WHOLE = "Int64"
VERSION = "UInt64"
NUMBER = "Float64"
FLAG = "UInt8"  # 0 or 1
MAYBE_TEXT = "Nullable(String)"
MAYBE_WHOLE = "Nullable(Int64)"
MAYBE_NUMBER = "Nullable(Float64)"

LINE_BITS = COUNT_BITS  # of a version: what a line has counted. Its number is above them

READINGS = {
    "device_id": TEXT,
    "meter_id": TEXT,
    "at": WHOLE,  # microseconds since 1970
    "voltage": MAYBE_NUMBER,
    "current_draw": MAYBE_NUMBER,
    "charge_pct": MAYBE_NUMBER,
    # Microseconds: the file's setting, with each reading, so that its energy needs nothing else.
    "max_gap": WHOLE,
    "generation": VERSION,  # of its batch; of a deleted one the revision of the deletion
    "deleted": FLAG,
}
# An hour of a meter by itself. The energy between its first reading and the one before is not in
# it, so that it depends on no other hour; `first_` and `last_` are there to add that. Wattages and
# energy are those of the readings that have watts, power_count of them; where that is 0 they are 0
# and mean nothing. The charges likewise: charge_count.
HOURLY = {
    "device_id": TEXT,
    "meter_id": TEXT,
    "hour": WHOLE,  # hours since 1970
    "reading_count": WHOLE,
    "power_count": WHOLE,
    "wattage_sum": NUMBER,
    "min_wattage": NUMBER,
    "max_wattage": NUMBER,
    "min_charge_pct": NUMBER,
    "max_charge_pct": NUMBER,
    "energy_out": NUMBER,  # Wh
    "energy_in": NUMBER,  # Wh
    "first_at": WHOLE,
    "first_wattage": NUMBER,
    "last_at": WHOLE,
    "last_wattage": NUMBER,
    "max_gap": WHOLE,
    "charge_count": WHOLE,
    # Those of power_touched that it has seen: it is right as long as there are no more.
    "touches": VERSION,
}
# How often readings of a device's hour have come; counted after they are stored.
TOUCHED = {"device_id": TEXT, "hour": WHOLE, "touches": VERSION}
EVENTS = {
    "device_id": TEXT,
    "at": WHOLE,
    "id": TEXT,
    "sequence": WHOLE,  # in the device's file
    "type": TEXT,
    "value": NUMBER,
    "note": MAYBE_TEXT,
    "meter_id": MAYBE_TEXT,
    # The stream's number of the message: who follows the events of the fleet goes by it.
    "taken": VERSION,
    "generation": VERSION,
    "deleted": FLAG,
}
# What devices have deleted, to be applied to what comes late.
DELETIONS = {
    "device_id": TEXT,
    "revision": VERSION,
    "kind": TEXT,
    "meter_id": TEXT,
    "since": WHOLE,
    "until": WHOLE,
}
DEVICES = {
    "device_id": TEXT,
    "name": TEXT,
    "site": TEXT,
    "shutdown_threshold": NUMBER,
    "target_wh": MAYBE_NUMBER,
    "low_battery_threshold": MAYBE_NUMBER,
    "critical_battery_threshold": MAYBE_NUMBER,
    "max_gap": WHOLE,
    "revision": VERSION,
    "deleted": FLAG,
}
# A device's present meters are those whose line is at least that of the device's record: it is sent
# after them, and a new line sends all of them again. So the meters of a card that was replaced are
# history.
METERS = {
    "device_id": TEXT,
    "meter_id": TEXT,
    "position": WHOLE,
    "type": TEXT,
    "name": MAYBE_TEXT,
    "capacity_wh": NUMBER,
    "voltage": NUMBER,
    "current_draw": NUMBER,
    "charge_pct": MAYBE_NUMBER,
    "updated": MAYBE_WHOLE,
    "active": FLAG,
    "power_known": FLAG,
    "alert_level": TEXT,
    "revision": VERSION,
    "deleted": FLAG,
}
# Which devices have said that a meter is theirs; it is the first one's, by the place in the stream.
CLAIMS = {
    "meter_id": TEXT,
    "device_id": TEXT,
    "rank": VERSION,  # higher for what came earlier
}
FIRST_RANK = 2**63  # less the place in the stream of the first message that named the meter
# The starts of a device's forwarders.
LINES = {
    "device_id": TEXT,
    "line": VERSION,
    "file_id": TEXT,
    "opened": VERSION,  # microseconds since 1970, by the stream's clock
    "number": WHOLE,  # the running number that the file had reached
    "version": TEXT,  # of the package
    "site": TEXT,
}
# When the stream last took in something of a device's line, by the stream's clock; and the running
# number in it.
SEEN = {
    "device_id": TEXT,
    "line": VERSION,
    "file_id": TEXT,
    "number": WHOLE,
    "seen": VERSION,
}
# What an operator has retired: a device (meter_id '') or a meter. It counts in no present answer;
# its history stays.
RETIRED = {
    "device_id": TEXT,
    "meter_id": TEXT,
    "retired": FLAG,  # 0: taken back
    "at": VERSION,  # microseconds since 1970
    "replaced_by": TEXT,  # a device's id, or ''
}
# What was noticed about a device.
ALARMS = {
    "device_id": TEXT,
    "kind": TEXT,
    "at": VERSION,  # microseconds since 1970
    "note": TEXT,
    "cleared": VERSION,  # microseconds since 1970; 0: it has not been
}
# How many days of readings and of hours are kept: see keep.py.
KEEP = {
    "name": TEXT,
    "days": WHOLE,  # 0: for ever
    "floor": WHOLE,  # hours since 1970: before it something has gone by an earlier setting
    "at": VERSION,  # microseconds since 1970
}
# Everything that the stream took in before then is stored.
FRESH = {"name": TEXT, "fresh": VERSION}
SHARD = {"name": TEXT, "number": WHOLE, "total": WHOLE}

# What is inserted is on the disk when the insert returns; what is older than is kept goes by whole
# parts.
SETTINGS = " SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, ttl_only_drop_parts = 1"
TAKEN_RANGE = "INDEX taken_range taken TYPE minmax GRANULARITY 1"
HOUR_OF_AT = f"intDiv(at, {HOUR_US})"
# A month as 202611. What is dated before 2020 or after 2100 lies in the first and the last of them:
# clocks may be wrong by decades, and a day of the engine's ends in 2149.
FIRST_DAY, LAST_DAY = 18_262, 47_846  # days since 1970
_MONTH = f"toYYYYMM(toDate(least(greatest({{day}}, {FIRST_DAY}), {LAST_DAY})))"
MONTH_OF_AT = _MONTH.format(day=f"intDiv({HOUR_OF_AT}, 24)")
MONTH_OF_HOUR = _MONTH.format(day="intDiv(hour, 24)")


@dataclass(frozen=True)
class Table:
    """How a table is made: its columns, its engine's kind, the column of the version, and its key.

    `made`: columns that the engine makes of others, by their expression. `month`: what puts a row
    into its partition.
    """

    columns: Mapping[str, str]
    key: str
    version: str = ""
    kind: str = "Replacing"
    month: str = ""
    made: Mapping[str, str] | None = None
    index: str = ""

    def definition(self) -> str:
        """The columns, as CREATE TABLE lists them."""
        listed = [f"{name} {type_}" for name, type_ in self.columns.items()]
        listed += [f"{name} {WHOLE} MATERIALIZED {of}" for name, of in (self.made or {}).items()]
        if self.index:
            listed.append(self.index)
        return ", ".join(listed)

    def types(self) -> dict[str, str]:
        """The types of all columns by name, those that the engine makes last."""
        return {**self.columns, **dict.fromkeys(self.made or {}, WHOLE)}


TABLES = {
    "power_readings": Table(
        READINGS,
        key="hour, device_id, meter_id, at",
        version="generation",
        month=MONTH_OF_AT,
        made={"hour": HOUR_OF_AT},
    ),
    "power_hourly": Table(
        HOURLY,
        key="day, device_id, meter_id, hour",
        version="touches",
        month=MONTH_OF_HOUR,
        made={"day": "intDiv(hour, 24)"},
    ),
    "power_touched": Table(
        TOUCHED,
        key="day, device_id, hour",
        kind="Summing",
        month=MONTH_OF_HOUR,
        made={"day": "intDiv(hour, 24)"},
    ),
    "power_events": Table(
        EVENTS,
        key="device_id, at, id",
        version="generation",
        # What is new is in the parts that were made last: the others say by it that they have
        # nothing.
        index=TAKEN_RANGE,
    ),
    "power_deletions": Table(
        DELETIONS,
        key="device_id, revision, kind, meter_id, since, until",
    ),
    "power_devices": Table(DEVICES, key="device_id", version="revision"),
    "power_meters": Table(METERS, key="device_id, meter_id", version="revision"),
    "power_claims": Table(CLAIMS, key="meter_id, device_id", version="rank"),
    "power_lines": Table(LINES, key="device_id, line"),
    "power_seen": Table(SEEN, key="device_id, line", version="seen"),
    "power_retired": Table(RETIRED, key="device_id, meter_id", version="at"),
    "power_alarms": Table(ALARMS, key="device_id, kind, at", version="cleared"),
    "power_keep": Table(KEEP, key="name", version="at"),
    "power_fresh": Table(FRESH, key="name", version="fresh"),
    "power_shard": Table(SHARD, key="name"),
}
