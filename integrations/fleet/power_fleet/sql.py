"""The questions, as SQL for ClickHouse 24.8 and later.

A meter's readings of one hour are a segment: their sums, and the first and the last of them that
have watts. segments() makes them of readings; power_hourly keeps those of closed hours. hours()
puts segments in order of time and adds the trapezoid between one segment's last reading and the
next one's first, so that the energy is that over all readings, each part of it in the hour of the
later reading. A reading without volts or amperes counts in reading_count and charge alone: its
neighbours are neighbours of each other. An hour whose readings were all deleted is a segment of 0
readings, which takes the place of what was kept.

`devices` is a condition on device_id, or EVERY; parameters are those of clickhouse_connect:
%(name)s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from power_fleet import tables
from power_manager import HOUR_US

EVERY = "1"
THESE = "device_id IN %(devices)s"
THESE_HOURS = "(device_id, hour) IN %(hours)s"
SINCE = "hour >= %(first)s AND day >= intDiv(%(first)s, 24)"  # the key begins with the day
BETWEEN = f"{SINCE} AND hour < %(end)s AND day <= intDiv(%(end)s - 1, 24)"
READ_BETWEEN = (
    "hour >= %(first)s AND hour < %(end)s"  # of power_readings, whose key begins with the hour
)

# Of the readings that have watts, the one before in time. The first has itself: no time has passed,
# so no energy.
_NEIGHBOURS = "ROWS BETWEEN 1 PRECEDING AND CURRENT ROW"
# A trapezoid in watt-hours, of microseconds and watts.
_TRAPEZOID = "(before_wattage + {wattage}) * ({at} - before_at) / 7200000000."
_STEP = f"if({{known}} AND {{at}} - before_at <= {{gap}}, {_TRAPEZOID}, 0.) AS step"

SUMS = (
    "reading_count",
    "power_count",
    "wattage_sum",
    "min_wattage",
    "max_wattage",
    "min_charge_pct",
    "max_charge_pct",
    "charge_count",
)
SEGMENT = (
    *SUMS,
    "energy_out",
    "energy_in",
    "first_at",
    "first_wattage",
    "last_at",
    "last_wattage",
    "max_gap",
)
_SUMS = ", ".join(SUMS)
_SEGMENT = ", ".join(SEGMENT)


class Dialect(Protocol):
    """The questions that an engine without window functions is asked otherwise.

    This module is one of these.
    """

    def segments(self, where: str, hours: str = EVERY) -> str:
        """See segments below."""

    def tallies(self, devices: str, with_fresh: bool) -> str:
        """See tallies below."""

    def hours(self, devices: str, with_fresh: bool) -> str:
        """See hours below."""

    def days(self, devices: str, with_fresh: bool) -> str:
        """See days below."""


def segments(where: str, hours: str = EVERY) -> str:
    """The segments of the readings that `where` picks, of these hours.

    They have the columns of power_hourly except touches.
    """
    return f"""
SELECT device_id, meter_id, hour,
  toInt64(countIf(deleted = 0)) AS reading_count,
  toInt64(countIf(known)) AS power_count,
  sumIf(wattage, known) AS wattage_sum,
  minIf(wattage, known) AS min_wattage,
  maxIf(wattage, known) AS max_wattage,
  minIf(charge, charged) AS min_charge_pct,
  maxIf(charge, charged) AS max_charge_pct,
  sumIf(step, step > 0) AS energy_out,
  sumIf(-step, step < 0) AS energy_in,
  minIf(at, known) AS first_at,
  argMinIf(wattage, at, known) AS first_wattage,
  maxIf(at, known) AS last_at,
  argMaxIf(wattage, at, known) AS last_wattage,
  max(gap) AS max_gap,
  toInt64(countIf(charged)) AS charge_count
FROM (
  SELECT *, {_STEP.format(known="known", at="at", wattage="wattage", gap="gap")}
  FROM (
    SELECT *,
      lagInFrame(at, 1, at) OVER neighbours AS before_at,
      lagInFrame(wattage, 1, 0.) OVER neighbours AS before_wattage
    FROM (
      SELECT device_id, meter_id, hour, at, deleted, max_gap AS gap,
        deleted = 0 AND isNotNull(charge_pct) AS charged,
        ifNull(charge_pct, 0.) AS charge,
        deleted = 0 AND isNotNull(voltage) AND isNotNull(current_draw) AS known,
        ifNull(voltage, 0.) * ifNull(current_draw, 0.) AS wattage
      FROM power_readings FINAL WHERE {where} AND {hours}
    )
    WINDOW neighbours AS (PARTITION BY device_id, meter_id, hour, known ORDER BY at {_NEIGHBOURS})
  )
)
GROUP BY device_id, meter_id, hour"""


def touched(which: str) -> str:
    """How often the hours were touched."""
    return f"""SELECT device_id, hour, sum(touches) AS touches FROM power_touched
WHERE {which} GROUP BY device_id, hour"""


def dirty(which: str) -> str:
    """Device, hour and touches of the hours that have to be computed.

    They are those that power_hourly does not have as they are now.
    """
    return f"""SELECT device_id, hour, touches FROM ({touched(which)})
WHERE (device_id, hour, touches) NOT IN (
  SELECT device_id, hour, touches FROM power_hourly FINAL WHERE {which})"""


def kept(which: str) -> str:
    """The segments that are kept."""
    return f"SELECT device_id, meter_id, hour, {_SEGMENT} FROM power_hourly FINAL WHERE {which}"


KEPT_BEFORE = "hour < %(oldest)s AND day <= intDiv(%(oldest)s - 1, 24)"
KEPT_SINCE = "hour >= %(oldest)s AND day >= intDiv(%(oldest)s, 24)"
READ_SINCE = "hour >= %(oldest)s AND hour < %(end)s"


def dirty_hours(devices: str) -> str:
    """A condition: the hours from %(oldest)s on and before %(end)s that have to be made."""
    hours_to_make = dirty(f"{devices} AND {BETWEEN} AND {KEPT_SINCE}")
    return f"(device_id, hour) IN (SELECT device_id, hour FROM ({hours_to_make}))"


def _newest(devices: str, with_fresh: bool) -> list[str]:
    """The segments from the hour %(first)s on and before %(end)s: those kept, and those made now.

    Which hours have to be made is asked once only: readings that come meanwhile would make an hour
    missing, or there twice, if one question left it out of what is kept and another one put it into
    what is made. So from %(oldest)s on, the first that has to be made, all that is kept is taken,
    and what is made wins over it.
    """
    which = f"{devices} AND {BETWEEN}"
    if not with_fresh:
        return [kept(which)]
    made = segments(f"{devices} AND {READ_SINCE}", dirty_hours(devices))
    listed = f"SELECT device_id, meter_id, hour, {_SEGMENT}"
    newest = f"""
SELECT device_id, meter_id, hour, {_SEGMENT}
FROM (
  {listed}, 0 AS made FROM ({kept(f"{which} AND {KEPT_SINCE}")})
  UNION ALL {listed}, 1 AS made FROM ({made})
)
ORDER BY made DESC LIMIT 1 BY device_id, meter_id, hour"""
    return [kept(f"{which} AND {KEPT_BEFORE}"), newest]


def in_part(devices: str) -> str:
    """A condition: the readings after %(after)s and before the hour %(first)s."""
    hours = f"hour >= intDiv(%(after)s, {HOUR_US}) AND hour < %(first)s"
    return f"{devices} AND at > %(after)s AND {hours}"


def _in_order(parts: list[str]) -> str:
    """All segments of these parts, each with the energy from the one before in its own."""
    union = " UNION ALL ".join(
        f"SELECT device_id, meter_id, hour, {_SEGMENT} FROM ({part})" for part in parts
    )
    step = _STEP.format(
        known="power_count > 0", at="first_at", wattage="first_wattage", gap="max_gap"
    )
    return f"""
SELECT device_id, meter_id, hour, {_SUMS},
  inside_out + greatest(step, 0.) AS energy_out,
  inside_in + greatest(-step, 0.) AS energy_in
FROM (
  SELECT device_id, meter_id, hour, {_SUMS},
    energy_out AS inside_out, energy_in AS inside_in, {step}
  FROM (
    SELECT *,
      lagInFrame(last_at, 1, first_at) OVER neighbours AS before_at,
      lagInFrame(last_wattage, 1, 0.) OVER neighbours AS before_wattage
    FROM ({union})
    WINDOW neighbours AS (
      PARTITION BY device_id, meter_id, power_count > 0 ORDER BY hour {_NEIGHBOURS}
    )
  )
)
WHERE reading_count > 0"""


def oldest_dirty(devices: str) -> str:
    """How many hours from %(first)s on and before %(end)s have to be made, and the oldest."""
    hours_to_make = dirty(f"{devices} AND {BETWEEN}")
    return f"SELECT toInt64(count()) AS hours, min(hour) AS oldest FROM ({hours_to_make})"


def tallies(devices: str, with_fresh: bool) -> str:
    """Of each meter the library's MeterSums and charge_count, over readings after %(after)s.

    The extremes of wattage are 0 where power_count is 0, those of charge where charge_count is.
    """
    rows = _in_order([segments(in_part(devices)), *_newest(devices, with_fresh)])
    return f"""
SELECT device_id, meter_id,
  sum(readings) AS reading_count,
  sum(powers) AS power_count,
  sum(wattages) AS wattage_sum,
  minIf(least_wattage, powers > 0) AS min_wattage,
  maxIf(most_wattage, powers > 0) AS max_wattage,
  minIf(least_charge, charges > 0) AS min_charge_pct,
  maxIf(most_charge, charges > 0) AS max_charge_pct,
  sum(charges) AS charge_count,
  sum(out) AS energy_out,
  sum(into) AS energy_in
FROM (
  SELECT device_id, meter_id,
    reading_count AS readings, power_count AS powers, wattage_sum AS wattages,
    min_wattage AS least_wattage, max_wattage AS most_wattage,
    min_charge_pct AS least_charge, max_charge_pct AS most_charge, charge_count AS charges,
    energy_out AS out, energy_in AS into
  FROM ({rows})
)
GROUP BY device_id, meter_id"""


def hours(devices: str, with_fresh: bool) -> str:
    """Device, meter, hour, its SUMS and its energy, from the hour %(wanted)s on and before %(end)s.

    Segments are taken from the hour %(first)s on, which is earlier: the energy up to an hour's
    first reading is its.
    """
    return f"""
SELECT device_id, meter_id, hour, {_SUMS}, energy_out, energy_in
FROM ({_in_order(_newest(devices, with_fresh))}) WHERE hour >= %(wanted)s
ORDER BY device_id, meter_id, hour"""


def days(devices: str, with_fresh: bool) -> str:
    """Day since 1970, site, meter type, Wh out, Wh in.

    They are from the hour %(wanted)s on, which is the first of a day.
    """
    return f"""
SELECT day, site, type, sum(energy_out) AS energy_out_wh, sum(energy_in) AS energy_in_wh
FROM (
  SELECT device_id, meter_id, intDiv(hour, 24) AS day,
    sum(out) AS energy_out, sum(into) AS energy_in
  FROM (
    SELECT device_id, meter_id, hour, energy_out AS out, energy_in AS into
    FROM ({_in_order(_newest(devices, with_fresh))}) WHERE hour >= %(wanted)s
  )
  GROUP BY device_id, meter_id, day
) AS energies
ANY LEFT JOIN (SELECT device_id, meter_id, type FROM power_meters FINAL WHERE deleted = 0) AS types
USING (device_id, meter_id)
ANY LEFT JOIN (SELECT device_id, site FROM power_devices FINAL WHERE deleted = 0) AS sites
USING (device_id)
GROUP BY day, site, type"""


# What an operator has retired is in no present answer; what it has measured stays.
_RETIRED_DEVICES = "SELECT device_id FROM power_retired FINAL WHERE retired = 1 AND meter_id = ''"
_RETIRED_METERS = (
    "SELECT device_id, meter_id FROM power_retired FINAL WHERE retired = 1 AND meter_id != ''"
)
AT_WORK = f"device_id NOT IN ({_RETIRED_DEVICES})"
RETIRED = f"""SELECT device_id, toInt64(at) AS at, replaced_by FROM power_retired FINAL
WHERE retired = 1 AND meter_id = '' AND {THESE}"""


def devices(of: str) -> str:
    """The devices: the library's record, and the site."""
    return f"""SELECT device_id, name, shutdown_threshold, target_wh, low_battery_threshold,
  critical_battery_threshold, site
FROM power_devices FINAL WHERE deleted = 0 AND {of} ORDER BY device_id"""


def meters(of: str) -> str:
    """The present meters in the order in which they were added.

    A device's record is stored after its meters, and a new line has all of them again: so a meter
    whose line is lower than its device's is one of a card that was replaced, or of a file that was
    restored.
    """
    return f"""SELECT device_id, meter_id, type, voltage, current_draw, capacity_wh, charge_pct,
  name, updated, active, power_known, alert_level
FROM (
  SELECT *, bitShiftRight(revision, {tables.LINE_BITS}) AS line FROM power_meters FINAL
  WHERE deleted = 0 AND {of} AND (device_id, meter_id) NOT IN ({_RETIRED_METERS})
) AS meters
ANY LEFT JOIN (
  SELECT device_id, bitShiftRight(revision, {tables.LINE_BITS}) AS device_line
  FROM power_devices FINAL WHERE deleted = 0 AND {of}
) AS devices USING (device_id)
WHERE line >= device_line ORDER BY device_id, position"""


_THESE_EVENTS = f"FROM power_events FINAL WHERE deleted = 0 AND {THESE} AND at > %(after)s"
EVENT_COUNT = f"SELECT toInt64(count()) AS events {_THESE_EVENTS}"
EVENTS = f"""SELECT id, device_id, type, value, at, note, meter_id {_THESE_EVENTS}
ORDER BY at DESC, sequence DESC LIMIT 20"""
# Device, hour and touches of hours from %(first)s on and before %(end)s that have to be computed.
DIRTY = f"{dirty(BETWEEN)} ORDER BY hour, device_id LIMIT %(limit)s"
WEEK = 7 * 24  # hours
TOUCHED_WEEKS = f"""SELECT DISTINCT toInt64(intDiv(hour, {WEEK})) AS week
FROM power_touched WHERE hour < %(present)s"""
SILENT = f"""SELECT device_id, max(seen) AS last_seen FROM power_seen
WHERE device_id NOT IN (SELECT device_id FROM power_devices FINAL WHERE deleted = 1) AND {AT_WORK}
GROUP BY device_id HAVING last_seen <= %(before)s ORDER BY last_seen, device_id"""
FRESH = "SELECT max(fresh) AS fresh FROM power_fresh"

# Almost every device counts energy over gaps of an hour or two. One that does over months must not
# make the others' energy be looked for that far back: it is asked about by itself.
NEAR_US = 24 * HOUR_US
_FAR_DEVICES = (
    f"SELECT device_id FROM power_devices FINAL WHERE deleted = 0 AND max_gap > {NEAR_US}"
)
FAR = f"device_id IN ({_FAR_DEVICES})"
NEAR = f"device_id NOT IN ({_FAR_DEVICES})"
METER_COUNT = "SELECT toInt64(count()) AS meters FROM power_meters FINAL WHERE deleted = 0"
TOUCHED_DAYS = "SELECT DISTINCT day FROM power_touched WHERE day >= %(first_day)s ORDER BY day"
GAPS = f"""SELECT maxIf(max_gap, max_gap <= {NEAR_US}) AS near,
  maxIf(max_gap, max_gap > {NEAR_US}) AS far
FROM power_devices FINAL WHERE deleted = 0"""

# The longest gap that each of these devices counts energy over.
MAX_GAPS = f"""SELECT device_id, max_gap FROM power_devices FINAL
WHERE deleted = 0 AND {THESE} ORDER BY device_id"""

DELETIONS = """SELECT device_id, revision, kind, meter_id, since, until FROM power_deletions FINAL
WHERE device_id IN %(devices)s AND revision > %(generation)s ORDER BY device_id, revision"""
# What a deletion takes; the parameters are the columns of its row.
_OF_DEVICE = "device_id = %(device_id)s"
_OF_METER = f"{_OF_DEVICE} AND (%(kind)s = 'device' OR meter_id = %(meter_id)s)"
_IN_RANGE = (
    f"{_OF_METER} AND at >= %(since)s AND at < %(until)s "
    f"AND hour >= intDiv(%(since)s, {HOUR_US}) AND hour <= intDiv(%(until)s, {HOUR_US})"
)


def _deleted(table: str, columns: Mapping[str, str], version: str, where: str) -> str:
    """The rows that take the place of deleted ones, with the revision of the deletion."""
    values = {name: "NULL" for name, kind in columns.items() if kind.startswith("Nullable")}
    values |= {version: "toUInt64(%(revision)s)", "deleted": "toUInt8(1)"}
    # Named otherwise than the columns: ClickHouse takes the name of a column in WHERE as that of
    # the answer's.
    listed = ", ".join(f"{values.get(name, name)} AS {name}_" for name in columns)
    return f"""SELECT {listed} FROM {table} FINAL
WHERE {where} AND deleted = 0 AND {version} < %(revision)s"""


DELETE_READINGS = _deleted("power_readings", tables.READINGS, "generation", _IN_RANGE)
DELETE_EVENTS = _deleted("power_events", tables.EVENTS, "generation", _OF_DEVICE)
DELETE_METERS = _deleted("power_meters", tables.METERS, "revision", _OF_METER)
DELETE_DEVICE = _deleted("power_devices", tables.DEVICES, "revision", _OF_DEVICE)
TOUCH_DELETED = f"""SELECT DISTINCT device_id, hour, toUInt64(1) AS touches
FROM power_readings WHERE {_IN_RANGE} AND deleted = 1"""
