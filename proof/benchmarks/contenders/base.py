"""What a contender is: one meter's readings in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, ClassVar

from readings import Clock, Row

# Seconds: over a longer gap no energy is booked. Every contender gets the library's rule.
MAX_GAP = 5400.0
# For those who name a meter by text; as long as the library's ids.
METER = "5f1d3a0c9b7e4482a6d0c1f2"


class Unsupported(Exception):
    """The contender has no such thing; its text says what is missing."""


@dataclass(slots=True)
class Reading:
    """One reading as an object, for the contenders that have none of their own."""

    meter: str
    time: float
    voltage: float
    current: float
    charge: float


@dataclass(frozen=True)
class Place:
    """Where and how a contender stores; step and room are for those that must know before."""

    folder: Path
    mode: str
    step: int
    room: int
    clock: Clock


class Contender:
    """The common protocol. A new one opens, or makes, its file in place.folder."""

    # "full", "normal", or "none": nothing is ever synced.
    modes: ClassVar[tuple[str, ...]] = ("full",)
    lacks: ClassVar[str] = ""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.clock = place.clock
        self.open()

    def open(self) -> None:
        """Make the file and the table."""
        raise NotImplementedError

    def log(self, voltage: float, current: float, charge: float) -> None:
        """Store one reading, taken at self.clock(), as durably as the mode says."""
        raise NotImplementedError

    def group(self, values: Sequence[tuple[float, float, float]]) -> None:
        """Store readings one by one in one transaction, the clock ticking between them."""
        raise Unsupported("no transaction over several readings")

    def ready(self, row: Row) -> Any:
        """A row as this contender's caller would hold it; not part of what is timed."""
        return row

    def bulk(self, ready: Iterable[Any]) -> None:
        """Store many readings in one transaction."""
        raise NotImplementedError

    def history(self, since: float) -> Sequence[Any]:
        """The readings later than that as objects, oldest first."""
        raise NotImplementedError

    def report(self, since: float) -> tuple[float, ...]:
        """A summary of the readings later than that.

        Count, mean, least and most watts, least and most charge, Wh out, Wh in.
        """
        raise NotImplementedError

    def verify(self) -> list[str]:
        """What is wrong with the file, by the contender's own check where it has one."""
        return []

    def close(self) -> None:
        """Close the file."""


def brute_force(rows: Iterable[Row]) -> tuple[float, ...]:
    """The report for contenders that cannot calculate: over all rows, in Python."""
    watts = []
    charges = []
    out = 0.0
    taken_in = 0.0
    last_time = -inf
    last_watt = 0.0
    for time, voltage, current, charge in rows:
        watt = voltage * current
        elapsed = time - last_time
        if elapsed <= MAX_GAP:
            energy = (watt + last_watt) * elapsed / 7200
            if energy > 0:
                out += energy
            else:
                taken_in -= energy
        last_time = time
        last_watt = watt
        watts.append(watt)
        charges.append(charge)
    return (
        len(watts),
        sum(watts) / len(watts),
        min(watts),
        max(watts),
        min(charges),
        max(charges),
        out,
        taken_in,
    )


def report_sql(table: str, where: str, unit: float) -> str:
    """The report for contenders that speak SQL; times are numbers, `unit` of them a second."""
    return f"""SELECT count(*), avg(w), min(w), max(w), min(charge), max(charge),
            sum(CASE WHEN e > 0 THEN e ELSE 0 END), -sum(CASE WHEN e < 0 THEN e ELSE 0 END)
        FROM (SELECT w, charge, CASE WHEN time - lag(time) OVER o <= {MAX_GAP * unit}
                THEN (w + lag(w) OVER o) * (time - lag(time) OVER o) / {7200 * unit} END AS e
            FROM (SELECT time, voltage * current AS w, charge FROM {table} WHERE {where}) AS r
            WINDOW o AS (ORDER BY time)) AS s"""
