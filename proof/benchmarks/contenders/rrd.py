"""RRDtool, by Debian's python3-rrdtool."""

# ruff: noqa: D102  # the protocol's methods are documented once, in base.Contender
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import rrdtool  # type: ignore[import-not-found, unused-ignore]  # Debian's, for the system's python only
from readings import START, Row

from .base import METER, Contender, Reading, Unsupported

_BATCH = 500  # readings in the arguments of one update


class RRDtool(Contender):
    """One archive of every step, as long as the run, and one of hours for a year (average, least, most)."""

    modes = ("none",)
    lacks = (
        "keeps no exact times (steps of whole seconds) and no single readings past its archive, syncs nothing, refuses"
        " late readings; its energies are means of steps times hours, not trapezoids of readings"
    )

    def open(self) -> None:
        self.path = str(self.place.folder / "meter.rrd")
        self.step = self.place.step
        sources = [
            f"DS:{name}:GAUGE:{max(3600, 2 * self.step)}:U:U"
            for name in ("volts", "amperes", "charge", "watts")
        ]
        hour = max(1, 3600 // self.step)
        hours = 366 * 24
        archives = [f"RRA:AVERAGE:0.5:1:{self.place.room}"]
        archives += [f"RRA:{kind}:0.5:{hour}:{hours}" for kind in ("AVERAGE", "MIN", "MAX")]
        begin = str(int(START) - 1)
        rrdtool.create(self.path, "--start", begin, "--step", str(self.step), *sources, *archives)

    def ready(self, row: Row) -> Any:
        time, volts, amperes, charge = row
        return f"{time:.0f}:{volts}:{amperes}:{charge}:{volts * amperes}"

    def log(self, voltage: float, current: float, charge: float) -> None:
        rrdtool.update(self.path, self.ready((self.clock(), voltage, current, charge)))

    def group(self, values: Sequence[tuple[float, float, float]]) -> None:
        def ticking() -> Iterable[str]:
            for value in values:
                self.clock.tick()
                yield self.ready((self.clock(), *value))

        rrdtool.update(self.path, *ticking())

    def bulk(self, ready: Iterable[Any]) -> None:
        batch: list[str] = []
        for text in ready:
            batch.append(text)
            if len(batch) == _BATCH:
                rrdtool.update(self.path, *batch)
                batch.clear()
        if batch:
            rrdtool.update(self.path, *batch)

    def _fetch(self, kind: str, since: float, step: int) -> tuple[int, list[tuple[Any, ...]]]:
        begin = int(since) // step * step
        end = int(self.clock()) // step * step
        span = ("--start", str(begin), "--end", str(end), "--resolution", str(step))
        (first, _, _), _, found = rrdtool.fetch(self.path, kind, *span)
        return first, found

    def history(self, since: float) -> Sequence[Any]:
        first, found = self._fetch("AVERAGE", since, self.step)
        times = range(first + self.step, first + self.step * (len(found) + 1), self.step)
        return [
            Reading(METER, float(at), *row[:3])
            for at, row in zip(times, found)
            if row[0] is not None
        ]

    def report(self, since: float) -> tuple[float, ...]:
        if self.clock() - since < 7200:
            raise Unsupported("nothing shorter than its hours")
        means = [row for row in self._fetch("AVERAGE", since, 3600)[1] if row[3] is not None]
        least = [row for row in self._fetch("MIN", since, 3600)[1] if row[3] is not None]
        most = [row for row in self._fetch("MAX", since, 3600)[1] if row[3] is not None]
        watts = [row[3] for row in means]
        extremes = min(row[3] for row in least), max(row[3] for row in most)
        charges = min(row[2] for row in least), max(row[2] for row in most)
        out = sum(w for w in watts if w > 0)
        taken_in = -sum(w for w in watts if w < 0)
        return (
            3600 / self.step * len(watts),
            sum(watts) / len(watts),
            *extremes,
            *charges,
            out,
            taken_in,
        )
