"""Makes the engine's tables, and refuses those that are not this version's; see tables."""

from __future__ import annotations

from collections.abc import Mapping

from power_fleet.engine import Engine, Shard
from power_fleet.errors import Refused
from power_fleet.tables import SETTINGS, SHARD, TABLES, Table


def create(engine: Engine) -> list[str]:
    """Make what is missing on every replica of every shard; return the statements.

    Doing it again changes nothing.

    Replicated tables take {shard} and {replica} from the macros of each server's configuration.
    Raises Refused where a table is there already, and another one.
    """
    done = []
    for number, shard in enumerate(engine.shards):
        for statement in statements(shard.replicated):
            shard.everywhere(statement)
            done.append(statement)
        check(shard, number, len(engine.shards))
        if not shard.select("SELECT number FROM power_shard FINAL"):
            shard.insert("power_shard", SHARD, [["shard", number, len(engine.shards)]])
    return done


def statements(replicated: bool) -> list[str]:
    """The statements that make the tables.

    What is inserted into them is on the disk when the insert returns.
    """
    return [_statement(name, table, replicated) for name, table in TABLES.items()]


def _statement(name: str, table: Table, replicated: bool) -> str:
    kind = f"{table.kind}MergeTree"
    arguments = []
    if replicated:
        kind = f"Replicated{kind}"
        arguments = [f"'/clickhouse/power_fleet/{{shard}}/{name}'", "'{replica}'"]
    if table.version:
        arguments.append(table.version)
    partition = f" PARTITION BY {table.month}" if table.month else ""
    return (
        f"CREATE TABLE IF NOT EXISTS {name} ({table.definition()}) "
        f"ENGINE = {kind}({', '.join(arguments)})"
        f"{partition} ORDER BY ({table.key}){SETTINGS}"
    )


def check_all(engine: Engine) -> None:
    """Raise Refused unless the tables are there, and every shard is the one that it was made as."""
    for number, shard in enumerate(engine.shards):
        if not check(shard, number, len(engine.shards)):
            raise Refused(f"shard {number} has no tables yet: run power-fleet schema")


def check(shard: Shard, number: int, total: int) -> bool:
    """Whether the shard has tables and knows what it is.

    Raises Refused where a table is another one than ours, and where the shard is: its devices would
    be on two shards.
    """
    if not _check_tables(shard):
        return False
    rows = shard.select("SELECT number, total FROM power_shard FINAL")
    for row in rows:
        if (row["number"], row["total"]) != (number, total):
            raise Refused(
                f"--clickhouse number {number + 1} of {total} was made as "
                f"number {row['number'] + 1} of {row['total']}: "
                "name all shards, in the order in which they were made"
            )
    return bool(rows)


def _check_tables(shard: Shard) -> bool:
    """Whether all tables are there; raises Refused for one of another shape."""
    found: dict[str, dict[str, str]] = {}
    for row in shard.select(
        "SELECT table, name, type FROM system.columns "
        "WHERE database = currentDatabase() AND table IN %(tables)s",
        tables=tuple(TABLES),
    ):
        found.setdefault(row["table"], {})[row["name"]] = row["type"]
    for name, columns in found.items():
        expected = TABLES[name].types()
        if columns != expected:
            raise Refused(
                f"the table {name} is not this version's: {_difference(expected, columns)}"
            )
    keys = shard.select(
        "SELECT name, sorting_key FROM system.tables "
        "WHERE database = currentDatabase() AND name IN %(tables)s",
        tables=tuple(TABLES),
    )
    for row in keys:
        if (
            row["sorting_key"].strip("()") != TABLES[row["name"]].key
        ):  # some write (name), some name
            raise Refused(
                f"the table {row['name']} is not this version's: "
                f"it is sorted by {row['sorting_key']}, not by {TABLES[row['name']].key}"
            )
    return found.keys() == TABLES.keys()


def _difference(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """A column in which they differ, and what would do."""
    remedy = "drop the table, or give a database of its own"
    for name, type_ in expected.items():
        if name not in found:
            return f"it lacks the column {name}; {remedy}"
        if found[name] != type_:
            return f"its column {name} is {found[name]}, not {type_}; {remedy}"
    more = sorted(found.keys() - expected.keys())
    return f"it has a column {more[0]}; {remedy}"
