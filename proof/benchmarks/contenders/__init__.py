"""The contenders, by name: where each is, and which module and distribution it needs."""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple, cast

from .base import Contender


class Entry(NamedTuple):
    """Module and class of a contender, and what must be installed for it."""

    module: str
    kind: str
    needs: str = "sqlite3"
    distribution: str = ""


CONTENDERS = {
    "power_manager": Entry("library", "PowerManagerContender"),
    "floor": Entry("handmade", "Floor"),
    "floor5": Entry("handmade", "Floor5"),
    "naive": Entry("handmade", "Naive"),
    "rrdtool": Entry("rrd", "RRDtool", "rrdtool"),
    "diskcache": Entry("stores", "DiskCache", "diskcache", "diskcache"),
    "sqlite-utils": Entry("databases", "SqliteUtils", "sqlite_utils", "sqlite-utils"),
    "dataset": Entry("databases", "Dataset", "dataset", "dataset"),
    "tinydb": Entry("stores", "TinyDB", "tinydb", "tinydb"),
    "duckdb": Entry("databases", "DuckDB", "duckdb", "duckdb"),
    "sqlalchemy": Entry("databases", "RecorderORM", "sqlalchemy", "SQLAlchemy"),
}


def load(name: str) -> type[Contender]:
    """The class of a contender; imports what it needs."""
    entry = CONTENDERS[name]
    return cast("type[Contender]", getattr(import_module(f"contenders.{entry.module}"), entry.kind))
