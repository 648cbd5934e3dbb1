"""RRDtool, by Debian's python3-rrdtool."""

# ruff: noqa: D102  # the protocol's methods are documented once, in base.Contender
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

# Debian's, for the system's python only.
import rrdtool  # type: ignore[import-not-found, unused-ignore]
from readings import START, Row

from .base import METER, Contender, Reading, Unsupported

_BATCH = 500  # readings in the arguments of one update


class RRDtool(Contender):
    """An archive of every step, as long as the run, and a year of hours (mean, least, most)."""

    modes = ("none",)
    lacks = (
        "keeps no exact times (steps of whole seconds) and no single readings past its archive, "
        "syncs nothing, refuses late readings; its energies are means of steps times hours, "
        "not trapezoids of readings"
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

    def _hours(self, kind: str, since: float) -> list[tuple[float, float]]:
        """Charge and watts of the hours that have any."""
        _, found = self._fetch(kind, since, 3600)
        return [(charge, watt) for _, _, charge, watt in found if watt is not None]

    def history(self, since: float) -> Sequence[Any]:
        first, found = self._fetch("AVERAGE", since, self.step)
        times = range(first + self.step, first + self.step * (len(found) + 1), self.step)
        return [
            Reading(METER, float(at), volts, amperes, charge)
            for at, (volts, amperes, charge, _) in zip(times, found)
            if volts is not None
        ]

    def report(self, since: float) -> tuple[float, ...]:
        if self.clock() - since < 7200:
            raise Unsupported("nothing shorter than its hours")
        watts = [watt for _, watt in self._hours("AVERAGE", since)]
        least = self._hours("MIN", since)
        most = self._hours("MAX", since)
        out = sum(watt for watt in watts if watt > 0)
        taken_in = -sum(watt for watt in watts if watt < 0)
        return (
            3600 / self.step * len(watts),
            sum(watts) / len(watts),
            min(watt for _, watt in least),
            max(watt for _, watt in most),
            min(charge for charge, _ in least),
            max(charge for charge, _ in most),
            out,
            taken_in,
        )
