"""Stores of objects and documents: diskcache, TinyDB."""

# ruff: noqa: D102  # the protocol's methods are documented once, in base.Contender
from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from readings import Row

from .base import METER, Contender, Reading, Unsupported, brute_force


class DiskCache(Contender):
    """A cache without eviction, keyed by the time; its default is normal, full is asked of it."""

    modes = ("full", "normal")
    lacks = (
        "no query by time but walking its keys, no calculation: a report unpickles every reading"
    )

    def open(self) -> None:
        diskcache = importlib.import_module("diskcache")
        sync = {"full": 2, "normal": 1}[self.place.mode]
        self.cache = diskcache.Cache(
            str(self.place.folder),
            eviction_policy="none",
            size_limit=2**40,
            sqlite_synchronous=sync,
        )

    def log(self, voltage: float, current: float, charge: float) -> None:
        self.cache[self.clock()] = (voltage, current, charge)

    def group(self, values: Sequence[tuple[float, float, float]]) -> None:
        with self.cache.transact():
            for value in values:
                self.clock.tick()
                self.log(*value)

    def bulk(self, ready: Iterable[Any]) -> None:
        with self.cache.transact():
            for time, *values in ready:
                self.cache[time] = tuple(values)

    def _rows(self, since: float) -> list[Row]:
        found: list[Row] = []
        for time in self.cache.iterkeys(reverse=True):
            if time <= since:
                break
            found.append((time, *self.cache[time]))
        return found[::-1]

    def history(self, since: float) -> Sequence[Any]:
        return [Reading(METER, *row) for row in self._rows(since)]

    def report(self, since: float) -> tuple[float, ...]:
        return brute_force(self._rows(since))

    def close(self) -> None:
        self.cache.close()


class TinyDB(Contender):
    """Documents in one JSON file, which it writes anew for every reading."""

    modes = ("none",)
    lacks = (
        "syncs nothing, and a crash while it writes loses the file; "
        "writes the whole file for every reading"
    )

    def open(self) -> None:
        self.db = importlib.import_module("tinydb").TinyDB(self.place.folder / "tiny.json")

    def _document(self, row: Row) -> dict[str, Any]:
        return dict(zip(("time", "voltage", "current", "charge"), row), meter=METER)

    def log(self, voltage: float, current: float, charge: float) -> None:
        self.db.insert(self._document((self.clock(), voltage, current, charge)))

    def group(self, values: Sequence[tuple[float, float, float]]) -> None:
        def ticking() -> Iterator[dict[str, Any]]:
            for value in values:
                self.clock.tick()
                yield self._document((self.clock(), *value))

        self.db.insert_multiple(ticking())

    def bulk(self, ready: Iterable[Any]) -> None:
        self.db.insert_multiple(map(self._document, ready))

    def history(self, since: float) -> Sequence[Any]:
        field = importlib.import_module("tinydb").Query().time
        self.db.clear_cache()  # it would answer the same question from memory
        found: Sequence[Any] = self.db.search(field > since)
        return found

    def report(self, since: float) -> tuple[float, ...]:
        found = self.history(since)
        if not found:
            raise Unsupported("nothing found")
        return brute_force((d["time"], d["voltage"], d["current"], d["charge"]) for d in found)

    def close(self) -> None:
        self.db.close()
