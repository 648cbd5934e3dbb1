"""Debian's ClickHouse 18.16, for the tests of replication and the chaos programs.

No package has a newer server.

It is older than what is supported. `import clickhouse18` lets Engine and Fleet take
`clickhouse18://host:port` for a URL, and `python chaos/clickhouse18.py ARGUMENTS` is `power-fleet
ARGUMENTS` with that. What differs is here: it is asked without window functions, so pairs are made
of arrays; it knows neither the index nor the syncing of tables; and clickhouse-connect cannot
connect to it, so its HTTP interface is spoken here.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

FLEET = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(FLEET), str(FLEET.parents[1])]

import urllib3  # noqa: E402 - all of these are found by the line above
from clickhouse_connect.driver.binding import finalize_query  # noqa: E402
from clickhouse_connect.driver.query import QueryResult  # noqa: E402
from power_fleet import cli, engine, sql, tables  # noqa: E402
from power_fleet.sql import EVERY, SEGMENT, SUMS  # noqa: E402

# --- How it is asked

# Trapezoids in watt-hours between neighbours: times and watts of the later ones, times and watts of
# the earlier ones. The gap comes as an array of its own: it forgets a column that only the inside
# of a lambda names.
_STEPS = """arrayMap((t, w, s, v, gap) -> if(t - s <= gap, (v + w) * (t - s) / 7200000000., 0.),
    arrayPopFront({first}_ts), arrayPopFront({first}_ws),
    arrayPopBack({last}_ts), arrayPopBack({last}_ws), arrayPopFront(gaps))"""
_OUT = "arrayMap(x -> if(x > 0., x, 0.), steps)"
_IN = "arrayMap(x -> if(x < 0., 0. - x, 0.), steps)"
_SUMS = ", ".join(SUMS[:-1])  # all but charge_count
_SEGMENT = ", ".join(SEGMENT)


class Dialect18:
    """The questions of power_fleet.sql, with the same names and parameters, for 18.16."""

    def segments(self, where: str, hours: str = EVERY) -> str:
        """See power_fleet.sql.

        `hours` is asked outside of the table: it would look it up for the index once for each query
        around it, and again for each around that, which took ten times as long as all the rest.
        """
        return f"""
SELECT device_id, meter_id, hour, {_SUMS}, charge_count,
  arraySum({_OUT}) AS energy_out, arraySum({_IN}) AS energy_in,
  all_ts[1] AS first_at, all_ws[1] AS first_wattage,
  all_ts[-1] AS last_at, all_ws[-1] AS last_wattage, max_gap
FROM (
  SELECT device_id, meter_id, hour, {_SUMS}, max_gap, charge_count, all_ts, all_ws,
    {_STEPS.format(first="all", last="all")} AS steps
  FROM (
    SELECT device_id, meter_id, hour, {_SUMS}, max_gap, charge_count, gaps,
      arraySort(times) AS all_ts, arraySort((w, t) -> t, watts, times) AS all_ws
    FROM (
      SELECT device_id, meter_id, hour, toInt64(countIf(there)) AS reading_count,
        toInt64(countIf(known)) AS power_count, sumIf(wattage, known) AS wattage_sum,
        minIf(wattage, known) AS min_wattage, maxIf(wattage, known) AS max_wattage,
        toInt64(countIf(charged)) AS charge_count, minIf(charge, charged) AS min_charge_pct,
        maxIf(charge, charged) AS max_charge_pct, max(gap) AS max_gap,
        groupArrayIf(gap, known) AS gaps, groupArrayIf(at, known) AS times,
        groupArrayIf(wattage, known) AS watts
      FROM (
        SELECT device_id, meter_id, hour, at, max_gap AS gap,
          ifNull(charge_pct, 0.) AS charge, deleted = 0 AND isNotNull(charge_pct) AS charged,
          ifNull(voltage, 0.) * ifNull(current_draw, 0.) AS wattage, deleted = 0 AS there,
          deleted = 0 AND isNotNull(voltage) AND isNotNull(current_draw) AS known
        FROM power_readings FINAL WHERE {where}
      ) WHERE {hours} GROUP BY device_id, meter_id, hour
    )
  )
)"""

    def _newest(self, devices: str, with_fresh: bool) -> list[str]:
        """As in power_fleet.sql; argMax stands in place of LIMIT BY with several columns."""
        which = f"{devices} AND {sql.BETWEEN}"
        if not with_fresh:
            return [sql.kept(which)]
        made = self.segments(f"{devices} AND {sql.READ_SINCE}", sql.dirty_hours(devices))
        listed = "SELECT device_id, meter_id, hour, " + ", ".join(
            f"{name} AS {name}_" for name in SEGMENT
        )
        latest = ", ".join(f"argMax({name}_, made) AS {name}" for name in SEGMENT)
        newest = f"""
SELECT device_id, meter_id, hour, {latest}
FROM ({listed}, 0 AS made FROM ({sql.kept(f"{which} AND {sql.KEPT_SINCE}")})
  UNION ALL {listed}, 1 AS made FROM ({made}))
GROUP BY device_id, meter_id, hour"""
        return [sql.kept(f"{which} AND {sql.KEPT_BEFORE}"), newest]

    def _joined(self, parts: list[str]) -> str:
        """The segments of each meter in order.

        Arrays of their first and last readings, and of what is inside them.
        """
        listed = f"SELECT device_id, meter_id, hour, {_SEGMENT} FROM ("
        union = ") UNION ALL ".join(listed + part for part in parts) + ")"
        arrays = ("first_at", "first_wattage", "last_at", "last_wattage", "energy_out", "energy_in")
        grouped = ", ".join(f"groupArrayIf({name}, powers > 0) AS {name}s" for name in arrays)
        return f"""
SELECT device_id, meter_id, {_SUMS}, charge_count, all_hours, sums, outs, ins,
  {_STEPS.format(first="first", last="last")} AS steps
FROM (
  SELECT device_id, meter_id, {_SUMS}, charge_count, gaps, arraySort(hours) AS all_hours,
    arraySort(first_ats) AS first_ts,
    arraySort((w, t) -> t, first_wattages, first_ats) AS first_ws,
    arraySort(last_ats) AS last_ts, arraySort((w, t) -> t, last_wattages, last_ats) AS last_ws,
    arraySort((n, t) -> t, all_sums, hours) AS sums,
    arraySort((e, t) -> t, energy_outs, hours) AS outs,
    arraySort((e, t) -> t, energy_ins, hours) AS ins
  FROM (
    SELECT device_id, meter_id, sum(n) AS reading_count, sum(powers) AS power_count,
      sum(wattage_sum_) AS wattage_sum, minIf(min_wattage_, powers > 0) AS min_wattage,
      maxIf(max_wattage_, powers > 0) AS max_wattage,
      sum(charges) AS charge_count, minIf(min_charge_, charges > 0) AS min_charge_pct,
      maxIf(max_charge_, charges > 0) AS max_charge_pct, groupArrayIf(gap_, powers > 0) AS gaps,
      groupArrayIf(hour, powers > 0) AS hours, groupArrayIf(
        (n, powers, wattage_sum_, min_wattage_, max_wattage_, min_charge_, max_charge_, charges),
        powers > 0
      ) AS all_sums, {grouped}
    FROM (
      SELECT device_id, meter_id, hour, reading_count AS n, power_count AS powers,
        wattage_sum AS wattage_sum_, min_wattage AS min_wattage_, max_wattage AS max_wattage_,
        min_charge_pct AS min_charge_, max_charge_pct AS max_charge_, max_gap AS gap_,
        charge_count AS charges,
        {", ".join(arrays)}
      FROM ({union}) WHERE reading_count > 0
    ) GROUP BY device_id, meter_id
  )
)"""

    def tallies(self, devices: str, with_fresh: bool) -> str:
        """See power_fleet.sql."""
        parts = [self.segments(sql.in_part(devices)), *self._newest(devices, with_fresh)]
        return f"""SELECT device_id, meter_id, charge_count, {_SUMS},
  arraySum({_OUT}) + arraySum(outs) AS energy_out, arraySum({_IN}) + arraySum(ins) AS energy_in
FROM ({self._joined(parts)})"""

    def hours(self, devices: str, with_fresh: bool) -> str:
        """See power_fleet.sql; hours without a reading that has watts are no neighbours."""
        newest = self._newest(devices, with_fresh)
        columns = f"device_id, meter_id, hour, {', '.join(SUMS)}, energy_out, energy_in"
        sums = ", ".join(f"sums_.{place} AS {name}" for place, name in enumerate(SUMS, 1))
        unions = " UNION ALL ".join(f"SELECT {columns} FROM ({part})" for part in newest)
        return f"""
SELECT {columns} FROM (
  SELECT device_id, meter_id, hour, {sums},
    inside_out + before_out AS energy_out, inside_in + before_in AS energy_in
  FROM (
    SELECT device_id, meter_id, all_hours, sums, outs, ins,
      arrayPushFront({_OUT}, 0.) AS step_outs, arrayPushFront({_IN}, 0.) AS step_ins
    FROM ({self._joined(newest)}) WHERE power_count > 0
  ) ARRAY JOIN all_hours AS hour, sums AS sums_, outs AS inside_out, ins AS inside_in,
    step_outs AS before_out, step_ins AS before_in
  UNION ALL
  SELECT {columns} FROM ({unions}) WHERE power_count = 0 AND reading_count > 0
) WHERE hour >= %(wanted)s ORDER BY device_id, meter_id, hour"""

    def days(self, devices: str, with_fresh: bool) -> str:
        """See power_fleet.sql; it takes one JOIN a query."""
        by_meter = f"""
SELECT device_id, meter_id, intDiv(hour, 24) AS day, sum(energy_out) AS out, sum(energy_in) AS into
FROM ({self.hours(devices, with_fresh)}) GROUP BY device_id, meter_id, day"""
        typed = f"""
SELECT device_id, day, type, out, into FROM ({by_meter})
ANY LEFT JOIN (SELECT device_id, meter_id, type FROM power_meters FINAL WHERE deleted = 0)
USING (device_id, meter_id)"""
        return f"""
SELECT day, site, type, sum(out) AS energy_out_wh, sum(into) AS energy_in_wh FROM ({typed})
ANY LEFT JOIN (SELECT device_id, site FROM power_devices FINAL WHERE deleted = 0) USING (device_id)
GROUP BY day, site, type"""


# --- How it is spoken to


class Connection18:
    """A server over HTTP: questions in JSON, inserts in RowBinary; both keep every bit."""

    dialect: sql.Dialect = Dialect18()

    def __init__(self, url: str) -> None:
        self.place = url
        self._url = url.replace("clickhouse18://", "http://") + "/"
        self._pool = urllib3.PoolManager(maxsize=engine.THREADS, retries=False)

    def ping(self, seconds: float) -> bool:
        """Whether it gives a sign of life within that time."""
        try:
            return self._pool.request("GET", f"{self._url}ping", timeout=seconds).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> QueryResult:
        """Ask."""
        settings = {"output_format_json_quote_64bit_integers": 0, "wait_end_of_query": 1}
        text = f"{_bound(sql, parameters)} FORMAT JSONCompact"
        answer = json.loads(self._send(text.encode(), settings))
        makers = [float if "Float64" in column["type"] else None for column in answer["meta"]]
        rows = [
            tuple(
                value if make is None or value is None else make(value)
                for make, value in zip(makers, row)
            )
            for row in answer["data"]
        ]
        return QueryResult(rows, column_names=tuple(column["name"] for column in answer["meta"]))

    def command(
        self,
        statement: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> object:
        """Do something that has no rows for an answer."""
        statement = statement.replace(tables.SETTINGS, "").replace(f", {tables.TAKEN_RANGE}", "")
        text = _bound(statement, parameters)
        return self._send(text.encode(), _known(settings or {}))

    def insert(
        self,
        table: str,
        columns: Mapping[str, str],
        values: Sequence[Sequence[Any]],
        settings: Mapping[str, Any],
        column_oriented: bool,
    ) -> None:
        """Insert rows, or columns."""
        rows = zip(*values) if column_oriented else values
        packers = [_packer(kind) for kind in columns.values()]
        data = b"".join(pack(value) for row in rows for pack, value in zip(packers, row))
        if data:
            query = {"query": f"INSERT INTO {table} ({', '.join(columns)}) FORMAT RowBinary"}
            self._send(data, query | _known(settings))

    def _send(self, body: bytes, fields: Mapping[str, Any]) -> bytes:
        url = f"{self._url}?{urlencode(fields)}"
        timeout = urllib3.Timeout(connect=engine.PING_SECONDS, read=engine.ANSWER_SECONDS)
        answer = self._pool.request("POST", url, body=body, timeout=timeout)
        if answer.status != 200:
            raise OSError(answer.data.decode(errors="replace").strip()[:1000])
        return answer.data


def _bound(text: str, parameters: Mapping[str, Any] | None) -> str:
    return finalize_query(text, dict(parameters)) if parameters else text


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings of inserts that it knows."""
    return {name: value for name, value in settings.items() if name.startswith("insert_")}


def _packer(kind: str) -> Callable[[Any], bytes]:
    """What makes RowBinary of a value of this type."""
    if kind.startswith("Nullable("):
        pack = _packer(kind.removeprefix("Nullable(").removesuffix(")"))
        return lambda value: b"\1" if value is None else b"\0" + pack(value)
    if kind == "String":
        return _text
    return struct.Struct({"Int64": "<q", "UInt64": "<Q", "Float64": "<d", "UInt8": "<B"}[kind]).pack


def _text(value: str) -> bytes:
    data = value.encode()
    length = len(data)
    size = b""
    while length > 127:
        size += bytes([length & 127 | 128])
        length >>= 7
    return size + bytes([length]) + data


engine.CONNECTIONS["clickhouse18"] = Connection18

if __name__ == "__main__":
    sys.exit(cli.main())
