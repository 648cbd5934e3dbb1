"""The engine's tables, the same on ClickHouse 18 and 26: whole microseconds, Float64, and ReplacingMergeTree.

Every table begins its key with the device: a device can only ever write rows of its own, and what belongs to it lies
together. Rows that come twice are one row (FINAL), that with the highest version. What a device has deleted stays as a
row with `deleted` = 1, so that an older message that comes after it does not bring it back.
"""

from __future__ import annotations

from clickhouse_connect.driver.client import Client

from power_fleet.engine import Engine, Shard
from power_fleet.stream import Refused

TEXT = "String"
WHOLE = "Int64"
VERSION = "UInt64"
NUMBER = "Float64"
FLAG = "UInt8"  # 0 or 1
MAYBE_TEXT = "Nullable(String)"
MAYBE_WHOLE = "Nullable(Int64)"
MAYBE_NUMBER = "Nullable(Float64)"

READINGS = {
    "device_id": TEXT, "meter_id": TEXT, "at": WHOLE,  # microseconds since 1970
    "voltage": MAYBE_NUMBER, "current_draw": MAYBE_NUMBER, "charge_pct": MAYBE_NUMBER,
    "max_gap": WHOLE,  # microseconds: the file's setting, with each reading, so that its energy needs nothing else
    "generation": VERSION,  # of its batch; of a deleted one the revision of the deletion
    "deleted": FLAG,
}  # fmt: skip
# An hour of a meter by itself. The energy between its first reading and the one before is not in it, so that it
# depends on no other hour; `first_` and `last_` are there to add that. Wattages and energy are those of the readings
# that have watts, power_count of them; where that is 0 they are 0 and mean nothing. The charges likewise: charge_count.
HOURLY = {
    "device_id": TEXT, "meter_id": TEXT, "hour": WHOLE,  # hours since 1970
    "reading_count": WHOLE, "power_count": WHOLE, "wattage_sum": NUMBER, "min_wattage": NUMBER, "max_wattage": NUMBER,
    "min_charge_pct": NUMBER, "max_charge_pct": NUMBER, "energy_out": NUMBER, "energy_in": NUMBER,  # Wh
    "first_at": WHOLE, "first_wattage": NUMBER, "last_at": WHOLE, "last_wattage": NUMBER, "max_gap": WHOLE,
    "charge_count": WHOLE,
    "touches": VERSION,  # those of power_touched that it has seen: it is right as long as there are no more
}  # fmt: skip
# How often readings of a device's hour have come; counted after they are stored.
TOUCHED = {"device_id": TEXT, "hour": WHOLE, "touches": VERSION}
EVENTS = {
    "device_id": TEXT, "at": WHOLE, "id": TEXT, "sequence": WHOLE, "type": TEXT, "value": NUMBER, "note": MAYBE_TEXT,
    "meter_id": MAYBE_TEXT, "generation": VERSION, "deleted": FLAG,
}  # fmt: skip
# What devices have deleted, to be applied to what comes late.
DELETIONS = {
    "device_id": TEXT, "revision": VERSION, "kind": TEXT, "meter_id": TEXT, "since": WHOLE, "until": WHOLE,
}  # fmt: skip
DEVICES = {
    "device_id": TEXT, "name": TEXT, "site": TEXT, "shutdown_threshold": NUMBER, "target_wh": MAYBE_NUMBER,
    "low_battery_threshold": MAYBE_NUMBER, "critical_battery_threshold": MAYBE_NUMBER, "max_gap": WHOLE,
    "revision": VERSION, "deleted": FLAG,
}  # fmt: skip
METERS = {
    "device_id": TEXT, "meter_id": TEXT, "position": WHOLE, "type": TEXT, "name": MAYBE_TEXT, "capacity_wh": NUMBER,
    "voltage": NUMBER, "current_draw": NUMBER, "charge_pct": MAYBE_NUMBER, "updated": MAYBE_WHOLE,
    "active": FLAG, "power_known": FLAG, "alert_level": TEXT, "revision": VERSION, "deleted": FLAG,
}  # fmt: skip
# When the stream last took in something from a device, by the stream's clock.
SEEN = {"device_id": TEXT, "seen": VERSION}
# Everything that the stream took in before then is stored.
FRESH = {"name": TEXT, "fresh": VERSION}
SHARD = {"name": TEXT, "number": WHOLE, "total": WHOLE}

TABLES = {  # name: columns, engine, version, key
    "power_readings": (READINGS, "Replacing", "generation", "device_id, meter_id, at"),
    "power_hourly": (HOURLY, "Replacing", "touches", "device_id, meter_id, hour"),
    "power_touched": (TOUCHED, "Summing", "", "device_id, hour"),
    "power_events": (EVENTS, "Replacing", "generation", "device_id, at, id"),
    "power_deletions": (
        DELETIONS,
        "Replacing",
        "",
        "device_id, revision, kind, meter_id, since, until",
    ),
    "power_devices": (DEVICES, "Replacing", "revision", "device_id"),
    "power_meters": (METERS, "Replacing", "revision", "device_id, meter_id"),
    "power_seen": (SEEN, "Replacing", "seen", "device_id"),
    "power_fresh": (FRESH, "Replacing", "fresh", "name"),
    "power_shard": (SHARD, "Replacing", "", "name"),
}


def create(engine: Engine) -> list[str]:
    """Make what is missing on every replica of every shard; return the statements. Doing it again changes nothing.

    Replicated tables take {shard} and {replica} from the macros of each server's configuration.
    """
    done = []
    for number, shard in enumerate(engine.shards):
        for client in shard.clients:
            for statement in statements(shard.replicated, _syncs(client)):
                client.command(statement)
                done.append(statement)
        check(shard, number, len(engine.shards))
        if not shard.query("SELECT number FROM power_shard FINAL"):
            shard.insert("power_shard", SHARD, [["shard", number, len(engine.shards)]])
    return done


def statements(replicated: bool, syncs: bool) -> list[str]:
    """The statements that make the tables; with `syncs`, what is inserted is on the disk when the insert returns."""
    return [_statement(name, replicated, syncs) for name in TABLES]


def _statement(name: str, replicated: bool, syncs: bool) -> str:
    columns, kind, version, key = TABLES[name]
    arguments = [f"'/clickhouse/power_fleet/{{shard}}/{name}'", "'{replica}'"] if replicated else []
    arguments += [version] if version else []
    engine = f"{'Replicated' if replicated else ''}{kind}MergeTree({', '.join(arguments)})"
    listed = ", ".join(f"{column} {kind}" for column, kind in columns.items())
    settings = " SETTINGS fsync_after_insert = 1, fsync_part_directory = 1" if syncs else ""
    return (
        f"CREATE TABLE IF NOT EXISTS {name} ({listed}) ENGINE = {engine} ORDER BY ({key}){settings}"
    )


def _syncs(client: Client) -> bool:
    """Whether the server knows the settings by which an insert is synced: from 20.11 on."""
    version = client.query("SELECT version()").result_rows[0][0]
    return tuple(int(part) for part in version.split(".")[:2]) >= (20, 11)


def check_all(engine: Engine) -> None:
    """Raise Refused unless the tables are there and every shard is the one that it was made as."""
    for number, shard in enumerate(engine.shards):
        if not check(shard, number, len(engine.shards)):
            raise Refused(f"shard {number} has no tables yet: run power-fleet schema")


def check(shard: Shard, number: int, total: int) -> bool:
    """Whether the shard knows what it is; raises Refused where it is another: its devices would be on two shards."""
    if shard.query("EXISTS TABLE power_shard")[0][0] == 0:
        return False
    rows = shard.query("SELECT number, total FROM power_shard FINAL")
    if rows and tuple(rows[0]) != (number, total):
        raise Refused(
            f"--clickhouse number {number + 1} of {total} was made as number {rows[0][0] + 1} of {rows[0][1]}: "
            "name all shards, in the order in which they were made"
        )
    return bool(rows)
