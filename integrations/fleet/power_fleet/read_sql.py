"""The questions of read.py, as SQL for ClickHouse: see sql.py."""

from __future__ import annotations

from power_manager import HOUR_US

# Numbers of events for each message of the stream: events beyond that are in lists alone.
PLACES = 8192

PLACES_OF_METER = (
    "SELECT device_id FROM power_meters FINAL WHERE deleted = 0 AND meter_id = %(meter_id)s"
)
CLAIMS = """SELECT meter_id, device_id, rank FROM power_claims FINAL
WHERE meter_id IN %(meters)s ORDER BY meter_id, rank DESC, device_id"""
READINGS = """SELECT at, voltage, current_draw, charge_pct FROM power_readings FINAL
WHERE deleted = 0 AND device_id = %(device_id)s AND meter_id = %(meter_id)s
AND hour >= %(first)s AND hour <= %(last)s AND at >= %(since)s AND at < %(until)s ORDER BY at"""
HOURS_WITH_READINGS = """SELECT DISTINCT hour FROM power_touched WHERE device_id = %(device_id)s
AND hour >= %(first)s AND hour <= %(last)s
AND day >= intDiv(%(first)s, 24) AND day <= intDiv(%(last)s, 24)
ORDER BY hour"""
MEAN_WATTAGE = f"""SELECT avg(voltage * current_draw) AS wattage,
  count(voltage * current_draw) AS powers
FROM power_readings FINAL
WHERE deleted = 0 AND device_id = %(device_id)s AND meter_id = %(meter_id)s
AND hour >= intDiv(%(after)s, {HOUR_US}) AND hour <= intDiv(%(last)s, {HOUR_US})
AND at > %(after)s AND at <= %(last)s"""
EVENT_COLUMNS = "id, device_id, type, value, at, note, meter_id"
NEWEST_EVENTS = f"""SELECT {EVENT_COLUMNS} FROM power_events FINAL
WHERE deleted = 0 AND device_id = %(device_id)s ORDER BY at DESC, sequence DESC LIMIT %(limit)s"""
# The events of one message are those of one device; they are numbered in the order in which its
# file has them.
EVENTS_SINCE = f"""SELECT * FROM (
  SELECT {EVENT_COLUMNS}, toInt64(taken) AS taken,
    toInt64(row_number() OVER (PARTITION BY taken, device_id ORDER BY sequence)) AS place
  FROM power_events FINAL WHERE deleted = 0 AND taken >= %(taken)s)
WHERE place < {PLACES} AND (taken > %(taken)s OR place > %(place)s) AND taken <= %(settled)s
ORDER BY taken, place LIMIT %(limit)s"""
TAKEN = """SELECT toInt64(min(taken)) AS first, toInt64(max(taken)) AS last, count() AS events
FROM power_events"""
LAST_HEARD = "SELECT device_id, toInt64(max(seen)) AS seen FROM power_seen GROUP BY device_id"
DELETIONS = """SELECT device_id, toInt64(revision) AS revision, meter_id, since, until
FROM power_deletions FINAL WHERE kind = 'readings' AND {of} ORDER BY device_id, revision"""
LINES = """SELECT device_id, argMax(version, line) AS version,
  toInt64(argMax(opened, line)) AS opened FROM power_lines GROUP BY device_id"""
SITES = "SELECT device_id, site FROM power_devices FINAL WHERE deleted = 0"
ALARMS = """SELECT device_id, kind, toInt64(at) AS at, note FROM power_alarms FINAL
WHERE cleared = 0 ORDER BY device_id, at, kind"""
