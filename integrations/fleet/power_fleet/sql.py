"""The questions, as SQL that ClickHouse 18 and 26 understand alike: no window functions, so pairs are made of arrays.

A meter's readings of one hour are a segment: their sums, and the first and the last of them that have watts. segments()
makes them of readings; power_hourly keeps those of closed hours. tallies() and days() put segments in order of time and
add the trapezoid between one segment's last reading and the next one's first, so that the energy is that over all
readings. A reading without volts or amperes counts in reading_count and charge alone: its neighbours are neighbours of
each other. An hour whose readings were all deleted is a segment of 0 readings, which takes the place of what was kept.

`devices` is a condition on device_id, or EVERY; parameters are those of clickhouse_connect: %(name)s.
"""

from __future__ import annotations

from collections.abc import Mapping

from power_fleet import schema
from power_manager import HOUR_US

HOUR = HOUR_US  # microseconds

EVERY = "1"
THESE = "device_id IN %(devices)s"
BETWEEN_HOURS = f"{THESE} AND at >= %(first)s * {HOUR} AND at < %(end)s * {HOUR}"
THESE_HOURS = "(device_id, hour) IN %(hours)s"

# Trapezoids in watt-hours between neighbours: times and watts of the later ones, times and watts of the earlier ones.
# The gap comes as an array of its own: ClickHouse 18 forgets a column that only the inside of a lambda names.
_STEPS = """arrayMap((t, w, s, v, gap) -> if(t - s <= gap, (v + w) * (t - s) / 7200000000., 0.),
    arrayPopFront({first}_ts), arrayPopFront({first}_ws), arrayPopBack({last}_ts), arrayPopBack({last}_ws),
    arrayPopFront(gaps))"""
_OUT = "arrayMap(x -> if(x > 0., x, 0.), steps)"
_IN = "arrayMap(x -> if(x < 0., 0. - x, 0.), steps)"
_SUMS = "reading_count, power_count, wattage_sum, min_wattage, max_wattage, min_charge_pct, max_charge_pct"
_SEGMENT = f"{_SUMS}, energy_out, energy_in, first_at, first_wattage, last_at, last_wattage, max_gap, charge_count"


def segments(where: str, hours: str = EVERY) -> str:
    """The segments of the readings that `where` picks, of these hours: the columns of power_hourly but for touches.

    `hours` is asked outside of the table: ClickHouse 18 would look it up for the index once for each query around it,
    and again for each around that, which took ten times as long as all the rest.
    """
    return f"""
SELECT device_id, meter_id, hour, {_SUMS}, arraySum({_OUT}) AS energy_out, arraySum({_IN}) AS energy_in,
  all_ts[1] AS first_at, all_ws[1] AS first_wattage, all_ts[-1] AS last_at, all_ws[-1] AS last_wattage, max_gap,
  charge_count
FROM (
  SELECT device_id, meter_id, hour, {_SUMS}, max_gap, charge_count, all_ts, all_ws,
    {_STEPS.format(first="all", last="all")} AS steps
  FROM (
    SELECT device_id, meter_id, hour, {_SUMS}, max_gap, charge_count, gaps, arraySort(times) AS all_ts,
      arraySort((w, t) -> t, watts, times) AS all_ws
    FROM (
      SELECT device_id, meter_id, hour, toInt64(countIf(there)) AS reading_count,
        toInt64(countIf(known)) AS power_count, sumIf(wattage, known) AS wattage_sum,
        minIf(wattage, known) AS min_wattage, maxIf(wattage, known) AS max_wattage,
        toInt64(countIf(charged)) AS charge_count, minIf(charge, charged) AS min_charge_pct,
        maxIf(charge, charged) AS max_charge_pct, max(gap) AS max_gap,
        groupArrayIf(gap, known) AS gaps, groupArrayIf(at, known) AS times, groupArrayIf(wattage, known) AS watts
      FROM (
        SELECT device_id, meter_id, toInt64(intDiv(at, {HOUR})) AS hour, at, max_gap AS gap,
          ifNull(charge_pct, 0.) AS charge, deleted = 0 AND isNotNull(charge_pct) AS charged,
          ifNull(voltage, 0.) * ifNull(current_draw, 0.) AS wattage, deleted = 0 AS there,
          deleted = 0 AND isNotNull(voltage) AND isNotNull(current_draw) AS known
        FROM power_readings FINAL WHERE {where}
      ) WHERE {hours} GROUP BY device_id, meter_id, hour
    )
  )
)"""


_SINCE = "hour >= %(first)s"
_BETWEEN = f"{_SINCE} AND hour < %(end)s"


def _touched(which: str) -> str:
    """How often the hours were touched."""
    return f"SELECT device_id, hour, sum(touches) AS touches FROM power_touched WHERE {which} GROUP BY device_id, hour"


def _dirty(which: str) -> str:
    """Device, hour and touches of the hours that power_hourly does not have as they are now: they have to be made."""
    return f"""SELECT device_id, hour, touches FROM ({_touched(which)}) WHERE (device_id, hour, touches) NOT IN (
  SELECT device_id, hour, touches FROM power_hourly FINAL WHERE {which})"""


def _kept(which: str) -> str:
    return f"SELECT device_id, meter_id, hour, {_SEGMENT} FROM power_hourly FINAL WHERE {which}"


def _hours(devices: str, with_fresh: bool) -> list[str]:
    """The segments from the hour %(first)s on: those kept, and from %(oldest)s on, if there is any, those made now.

    Which hours have to be made is asked once only: readings that come meanwhile would make an hour missing, or there
    twice, if one question left it out of what is kept and another one put it into what is made. So from %(oldest)s on
    all that is kept is taken, and what is made wins over it.
    """
    before = _kept(f"{devices} AND {_SINCE} AND hour < %(oldest)s")
    if not with_fresh:
        return [before]
    since = f"{devices} AND hour >= %(oldest)s"
    hours = f"(device_id, hour) IN (SELECT device_id, hour FROM ({_dirty(since)}))"
    made = segments(f"{devices} AND at >= %(oldest)s * {HOUR}", hours)
    names = _SEGMENT.split(", ")
    listed = "SELECT device_id, meter_id, hour, " + ", ".join(
        f"{name} AS {name}_" for name in names
    )
    newest = f"""
SELECT device_id, meter_id, hour, {", ".join(f"argMax({name}_, made) AS {name}" for name in names)}
FROM ({listed}, 0 AS made FROM ({_kept(since)}) UNION ALL {listed}, 1 AS made FROM ({made}))
GROUP BY device_id, meter_id, hour"""
    return [before, newest]


def _ragged(devices: str) -> str:
    """The segment of the part of an hour after %(after)s and before the hour %(first)s."""
    return segments(f"{devices} AND at > %(after)s AND at < %(first)s * {HOUR}")


def _joined(parts: list[str]) -> str:
    """The segments of each meter in order: arrays of their first and last readings, and of what is inside them."""
    listed = f"SELECT device_id, meter_id, hour, {_SEGMENT} FROM ("
    union = ") UNION ALL ".join(listed + part for part in parts) + ")"
    arrays = ("first_at", "first_wattage", "last_at", "last_wattage", "energy_out", "energy_in")
    grouped = ", ".join(f"groupArrayIf({name}, powers > 0) AS {name}s" for name in arrays)
    return f"""
SELECT device_id, meter_id, {_SUMS}, charge_count, all_hours, outs, ins,
  {_STEPS.format(first="first", last="last")} AS steps
FROM (
  SELECT device_id, meter_id, {_SUMS}, charge_count, gaps, arraySort(hours) AS all_hours,
    arraySort(first_ats) AS first_ts, arraySort((w, t) -> t, first_wattages, first_ats) AS first_ws,
    arraySort(last_ats) AS last_ts, arraySort((w, t) -> t, last_wattages, last_ats) AS last_ws,
    arraySort((e, t) -> t, energy_outs, hours) AS outs, arraySort((e, t) -> t, energy_ins, hours) AS ins
  FROM (
    SELECT device_id, meter_id, sum(n) AS reading_count, sum(powers) AS power_count, sum(wattage_sum_) AS wattage_sum,
      minIf(min_wattage_, powers > 0) AS min_wattage, maxIf(max_wattage_, powers > 0) AS max_wattage,
      sum(charges) AS charge_count, minIf(min_charge_, charges > 0) AS min_charge_pct,
      maxIf(max_charge_, charges > 0) AS max_charge_pct,
      groupArrayIf(gap_, powers > 0) AS gaps, groupArrayIf(hour, powers > 0) AS hours, {grouped}
    FROM (
      SELECT device_id, meter_id, hour, reading_count AS n, power_count AS powers, wattage_sum AS wattage_sum_,
        min_wattage AS min_wattage_, max_wattage AS max_wattage_,
        min_charge_pct AS min_charge_, max_charge_pct AS max_charge_, max_gap AS gap_,
        charge_count AS charges,
        {", ".join(arrays)}
      FROM ({union}) WHERE reading_count > 0
    ) GROUP BY device_id, meter_id
  )
)"""


def oldest_dirty(devices: str) -> str:
    """How many hours from %(first)s on have to be made to answer, and the oldest of them."""
    return f"SELECT toInt64(count()), min(hour) FROM ({_dirty(f'{devices} AND {_SINCE}')})"


def tallies(devices: str, with_fresh: bool) -> str:
    """Device, meter, charge_count, then the fields of the library's MeterSums, over the readings later than %(after)s.

    The extremes of wattage are 0 where power_count is 0, those of charge where charge_count is.
    """
    parts = [_ragged(devices), *_hours(devices, with_fresh)]
    return f"""SELECT device_id, meter_id, charge_count, {_SUMS}, arraySum({_OUT}) + arraySum(outs) AS energy_out,
  arraySum({_IN}) + arraySum(ins) AS energy_in FROM ({_joined(parts)})"""


def days(with_fresh: bool) -> str:
    """Day since 1970, site, meter type, Wh out, Wh in; from the day %(day)s on.

    Segments are taken from the hour %(first)s on, which is earlier: the energy up to a day's first reading is its.
    """
    parts = _hours(EVERY, with_fresh)
    energies = f"""
SELECT device_id, meter_id, intDiv(hour, 24) AS day, inside_out + before_out AS energy_out,
  inside_in + before_in AS energy_in
FROM (
  SELECT device_id, meter_id, all_hours, outs, ins, arrayPushFront({_OUT}, 0.) AS step_outs,
    arrayPushFront({_IN}, 0.) AS step_ins FROM ({_joined(parts)}) WHERE power_count > 0
) ARRAY JOIN all_hours AS hour, outs AS inside_out, ins AS inside_in, step_outs AS before_out, step_ins AS before_in"""
    by_meter = f"""
SELECT device_id, meter_id, day, sum(energy_out) AS out, sum(energy_in) AS into FROM ({energies})
WHERE day >= %(day)s GROUP BY device_id, meter_id, day"""
    # ClickHouse 18 takes one JOIN a query, 26 wants a name for each side.
    typed = f"""
SELECT device_id, day, type, out, into FROM ({by_meter}) AS energies
ANY LEFT JOIN (SELECT device_id, meter_id, type FROM power_meters FINAL WHERE deleted = 0) AS types
USING (device_id, meter_id)"""
    return f"""
SELECT day, site, type, sum(out), sum(into) FROM ({typed}) AS typed
ANY LEFT JOIN (SELECT device_id, site FROM power_devices FINAL WHERE deleted = 0) AS sites USING (device_id)
GROUP BY day, site, type"""


def devices(of: str) -> str:
    """The devices, with when the stream last had something of each; the library's record first."""
    return f"""SELECT device_id, name, shutdown_threshold, target_wh, low_battery_threshold,
  critical_battery_threshold, site FROM power_devices FINAL WHERE deleted = 0 AND {of} ORDER BY device_id"""


def meters(of: str) -> str:
    """The meters in the order in which they were added."""
    return f"""SELECT device_id, meter_id, type, voltage, current_draw, capacity_wh, charge_pct, name, updated,
  active, power_known, alert_level
FROM power_meters FINAL WHERE deleted = 0 AND {of} ORDER BY device_id, position"""


_THESE_EVENTS = f"FROM power_events FINAL WHERE deleted = 0 AND {THESE} AND at > %(after)s"
EVENT_COUNT = f"SELECT toInt64(count()) {_THESE_EVENTS}"
EVENTS = f"""SELECT id, device_id, type, value, at, note, meter_id {_THESE_EVENTS}
ORDER BY at DESC, sequence DESC LIMIT 20"""
# Device, hour and touches of hours from %(first)s on and before %(end)s that have to be computed.
DIRTY = f"{_dirty(_BETWEEN)} ORDER BY hour, device_id LIMIT %(limit)s"
WEEK = 7 * 24  # hours
TOUCHED_WEEKS = f"SELECT DISTINCT toInt64(intDiv(hour, {WEEK})) AS week FROM power_touched WHERE hour < %(present)s"
SILENT = """SELECT device_id, max(seen) AS last_seen FROM power_seen
WHERE device_id NOT IN (SELECT device_id FROM power_devices FINAL WHERE deleted = 1) GROUP BY device_id
HAVING last_seen <= %(before)s ORDER BY last_seen, device_id"""
FRESH = "SELECT max(fresh) FROM power_fresh"
MAX_GAP = "SELECT max(max_gap) FROM power_devices FINAL WHERE deleted = 0"

DELETIONS = """SELECT device_id, revision, kind, meter_id, since, until FROM power_deletions FINAL
WHERE device_id IN %(devices)s AND revision > %(generation)s ORDER BY device_id, revision"""
# What a deletion takes; the parameters are the columns of its row.
_OF_DEVICE = "device_id = %(device_id)s"
_OF_METER = f"{_OF_DEVICE} AND (%(kind)s = 'device' OR meter_id = %(meter_id)s)"
_IN_RANGE = f"{_OF_METER} AND at >= %(since)s AND at < %(until)s"


def _deleted(table: str, columns: Mapping[str, str], version: str, where: str) -> str:
    """The rows that take the place of those that are deleted: theirs, with the revision of the deletion."""
    values = {name: "NULL" for name, kind in columns.items() if kind.startswith("Nullable")}
    values |= {version: "toUInt64(%(revision)s)", "deleted": "toUInt8(1)"}
    # Named otherwise than the columns: ClickHouse takes the name of a column in WHERE as that of the answer's.
    listed = ", ".join(f"{values.get(name, name)} AS {name}_" for name in columns)
    return f"""SELECT {listed} FROM {table} FINAL
WHERE {where} AND deleted = 0 AND {version} < %(revision)s"""


DELETE_READINGS = _deleted("power_readings", schema.READINGS, "generation", _IN_RANGE)
DELETE_EVENTS = _deleted("power_events", schema.EVENTS, "generation", _OF_DEVICE)
DELETE_METERS = _deleted("power_meters", schema.METERS, "revision", _OF_METER)
DELETE_DEVICE = _deleted("power_devices", schema.DEVICES, "revision", _OF_DEVICE)
TOUCH_DELETED = f"""SELECT DISTINCT device_id, toInt64(intDiv(at, {HOUR})) AS hour, toUInt64(1) AS touches
FROM power_readings WHERE {_IN_RANGE} AND deleted = 1"""
