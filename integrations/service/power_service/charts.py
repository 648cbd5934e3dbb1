"""Downsampling for charts that keeps extremes, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from operator import attrgetter

from power_manager import PowerReading

_VALUES: tuple[Callable[[PowerReading], float | None], ...] = tuple(
    map(attrgetter, ("voltage", "current_draw", "wattage", "charge_pct"))
)
POINTS_A_SPAN = 2 * len(_VALUES)

# A span's readings with the least and the greatest of each value, in the order of _VALUES.
Extremes = list[PowerReading]


def thin_out(readings: Iterable[PowerReading], max_points: int) -> list[PowerReading]:
    """At most max_points (at least POINTS_A_SPAN) of readings in order of time.

    All of them, if they are so few. Otherwise time is cut into equal spans, and the readings with
    the least and the greatest voltage, current_draw, wattage and charge_pct of each span stay, so
    that a chart shows every peak. Spans start short and double in length as readings come, so the
    end need not be known before. A value that is not known is no extreme; a span without any known
    value keeps one reading.
    """
    few: list[PowerReading] = []
    source = iter(readings)
    for reading in source:
        few.append(reading)
        if len(few) > max_points:
            break
    else:
        return few
    spans = _Spans(
        _seconds(few[0]),
        max(_seconds(few[-1]) - _seconds(few[0]), 1e-6),
        max_points // POINTS_A_SPAN,
    )
    for reading in few:
        spans.add(reading)
    for reading in source:
        spans.add(reading)
    return spans.readings()


def _seconds(reading: PowerReading) -> float:
    return datetime.fromisoformat(reading.timestamp).timestamp()


class _Spans:
    """Equal spans of time, never more than `count`."""

    def __init__(self, begin: float, length: float, count: int) -> None:
        self._begin = begin
        self._count = count
        self._width = length / count
        self._spans: dict[int, Extremes] = {}

    def add(self, reading: PowerReading) -> None:
        index = int((_seconds(reading) - self._begin) / self._width)
        while index >= self._count:
            self._double()
            index = int((_seconds(reading) - self._begin) / self._width)
        span = self._spans.get(index)
        if span is None:
            self._spans[index] = [reading] * POINTS_A_SPAN
        else:
            _widen(span, reading)

    def _double(self) -> None:
        self._width *= 2
        halves = self._spans
        self._spans = {}
        for index, extremes in halves.items():
            span = self._spans.setdefault(index // 2, extremes)
            if span is not extremes:
                for reading in extremes:
                    _widen(span, reading)

    def readings(self) -> list[PowerReading]:
        """The readings that stay, in order of time, each once."""
        found: list[PowerReading] = []
        for index in sorted(self._spans):
            by_time = {reading.timestamp: reading for reading in self._spans[index]}
            found += [by_time[timestamp] for timestamp in sorted(by_time)]
        return found


def _widen(span: Extremes, reading: PowerReading) -> None:
    for number, value in enumerate(_VALUES):
        here = value(reading)
        if here is None:
            continue
        least = value(span[2 * number])
        if least is None or here < least:
            span[2 * number] = reading
        greatest = value(span[2 * number + 1])
        if greatest is None or here > greatest:
            span[2 * number + 1] = reading
