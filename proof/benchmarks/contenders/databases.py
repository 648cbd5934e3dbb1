"""Other ways to an SQL database: sqlite-utils, dataset, DuckDB, and Home Assistant's SQLAlchemy."""

# ruff: noqa: D102  # the protocol's methods are documented once, in base.Contender
from __future__ import annotations

import csv
import importlib
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from readings import Row

from .base import METER, Contender, Reading, report_sql

_COLUMNS = ("meter", "time", "voltage", "current", "charge")
_WHERE = f"meter = '{METER}' AND time > "
_COMMIT_INTERVAL = 5.0  # seconds: Home Assistant's default


def _record(row: Row) -> dict[str, Any]:
    return dict(zip(_COLUMNS, (METER, *row)))


class SqliteUtils(Contender):
    """Dicts into a table with a key of meter and time; SQLite's own journal mode and syncs."""

    lacks = "no present state or statistics: a report reads every reading"

    def open(self) -> None:
        self.db = importlib.import_module("sqlite_utils").Database(self.place.folder / "utils.db")
        types = dict(zip(_COLUMNS, (str, float, float, float, float)))
        self.table = self.db["reading"].create(types, pk=("meter", "time"), if_not_exists=True)

    def log(self, voltage: float, current: float, charge: float) -> None:
        self.table.insert(_record((self.clock(), voltage, current, charge)))

    def group(self, values: Sequence[tuple[float, float, float]]) -> None:
        rows = []
        for value in values:
            self.clock.tick()
            rows.append((self.clock(), *value))
        self.bulk(rows)

    def bulk(self, ready: Iterable[Any]) -> None:
        self.table.insert_all(map(_record, ready), batch_size=10_000)

    def history(self, since: float) -> Sequence[Any]:
        return list(
            self.table.rows_where("meter = ? AND time > ?", (METER, since), order_by="time")
        )

    def report(self, since: float) -> tuple[float, ...]:
        return tuple(self.db.execute(report_sql("reading", _WHERE + "?", 1.0), (since,)).fetchone())

    def close(self) -> None:
        self.db.conn.close()


class Dataset(Contender):
    """Dicts into a table that makes itself, indexed by meter and time; WAL, as dataset sets it."""

    lacks = (
        "no key over meter and time, no present state or statistics: a report reads every reading"
    )

    def open(self) -> None:
        self.db = importlib.import_module("dataset").connect(
            f"sqlite:///{self.place.folder / 'dataset.db'}"
        )
        self.table = self.db["reading"]
        with self.db:
            for column in _COLUMNS:
                self.table.create_column(
                    column, self.db.types.text if column == "meter" else self.db.types.float
                )
            self.table.create_index(["meter", "time"])

    def log(self, voltage: float, current: float, charge: float) -> None:
        self.table.insert(_record((self.clock(), voltage, current, charge)))

    def group(self, values: Sequence[tuple[float, float, float]]) -> None:
        with self.db:
            for value in values:
                self.clock.tick()
                self.log(*value)

    def bulk(self, ready: Iterable[Any]) -> None:
        with self.db:
            self.table.insert_many([_record(row) for row in ready], chunk_size=10_000)

    def history(self, since: float) -> Sequence[Any]:
        return list(self.table.find(meter=METER, time={">": since}, order_by="time"))

    def report(self, since: float) -> tuple[float, ...]:
        found = next(
            iter(self.db.query(report_sql("reading", _WHERE + ":since", 1.0), since=since))
        )
        return tuple(found.values())

    def close(self) -> None:
        self.db.close()


class DuckDB(Contender):
    """A table without a key, which would cost more than the readings; bulk by a CSV file."""

    lacks = (
        "one process at a time may have the file open; "
        "no key, so a reading sent twice is there twice"
    )

    def open(self) -> None:
        self.conn = importlib.import_module("duckdb").connect(str(self.place.folder / "duck.db"))
        self.conn.execute(
            """CREATE TABLE IF NOT EXISTS reading (
                meter INTEGER, time DOUBLE, voltage DOUBLE, current DOUBLE, charge DOUBLE
            )"""
        )

    def log(self, voltage: float, current: float, charge: float) -> None:
        self.conn.execute(
            "INSERT INTO reading VALUES (1, ?, ?, ?, ?)", (self.clock(), voltage, current, charge)
        )

    def group(self, values: Sequence[tuple[float, float, float]]) -> None:
        self.conn.execute("BEGIN")
        for value in values:
            self.clock.tick()
            self.log(*value)
        self.conn.execute("COMMIT")

    def bulk(self, ready: Iterable[Any]) -> None:
        path = self.place.folder / "bulk.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows((1, *row) for row in ready)
        self.conn.execute(f"COPY reading FROM '{path}' (HEADER false)")
        path.unlink()

    def history(self, since: float) -> Sequence[Any]:
        sql = """SELECT time, voltage, current, charge FROM reading
            WHERE meter = 1 AND time > ? ORDER BY time"""
        return [Reading(METER, *row) for row in self.conn.execute(sql, (since,)).fetchall()]

    def report(self, since: float) -> tuple[float, ...]:
        sql = report_sql("reading", "meter = 1 AND time > ?", 1.0)
        return tuple(self.conn.execute(sql, (since,)).fetchone())

    def close(self) -> None:
        self.conn.close()


class RecorderORM(Contender):
    """SQLAlchemy's ORM as Home Assistant's recorder uses it: WAL, normal, one commit every 5 s.

    Kinder than the recorder itself, which stores a row for each of the three values, and some of
    its own with them.
    """

    modes = ("normal",)
    lacks = (
        "what came in the last 5 s is lost with the process, more with the power; "
        "a report reads every reading"
    )

    def open(self) -> None:
        sa = importlib.import_module("sqlalchemy")
        orm = importlib.import_module("sqlalchemy.orm")
        engine = self.engine = sa.create_engine(f"sqlite:///{self.place.folder / 'recorder.db'}")
        with engine.connect() as conn:
            conn.execute(sa.text("PRAGMA journal_mode = wal"))

        def normal(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA synchronous = normal")

        sa.event.listen(engine, "connect", normal)
        engine.dispose()  # the connection that was made before the listener
        base = orm.declarative_base()
        columns = {name: sa.Column(sa.Float) for name in _COLUMNS[2:]}
        self.kind: Any = type(
            "Reading",
            (base,),
            {
                "__tablename__": "reading",
                "__table_args__": (sa.Index("by_meter", "meter", "time"),),
                "id": sa.Column(sa.Integer, primary_key=True),
                "meter": sa.Column(sa.Integer),
                "time": sa.Column(sa.Float),
                **columns,
            },
        )
        base.metadata.create_all(engine)
        self.sa = sa
        self.session = orm.Session(engine)
        self.committed = self.clock()

    def _add(self, row: Row) -> None:
        time, voltage, current, charge = row
        self.session.add(
            self.kind(meter=1, time=time, voltage=voltage, current=current, charge=charge)
        )

    def log(self, voltage: float, current: float, charge: float) -> None:
        now = self.clock()
        self._add((now, voltage, current, charge))
        if now - self.committed >= _COMMIT_INTERVAL:
            self.session.commit()
            self.committed = now

    def group(self, values: Sequence[tuple[float, float, float]]) -> None:
        for value in values:
            self.clock.tick()
            self._add((self.clock(), *value))
        self.session.commit()

    def bulk(self, ready: Iterable[Any]) -> None:
        rows = iter(ready)
        while part := list(islice(rows, 10_000)):
            for row in part:
                self._add(row)
            self.session.flush()
            self.session.expunge_all()
        self.session.commit()

    def history(self, since: float) -> Sequence[Any]:
        found = (
            self.sa.select(self.kind)
            .where(self.kind.meter == 1, self.kind.time > since)
            .order_by(self.kind.time)
        )
        self.session.expunge_all()  # the day is read, not remembered
        rows: Sequence[Any] = self.session.scalars(found).all()
        return rows

    def report(self, since: float) -> tuple[float, ...]:
        sql = self.sa.text(report_sql("reading", "meter = 1 AND time > :since", 1.0))
        return tuple(self.session.execute(sql, {"since": since}).one())

    def close(self) -> None:
        self.session.commit()
        self.session.close()
        self.engine.dispose()
