"""The data that every contender gets: a seeded pack of batteries, sampled evenly, and its clock.

Standard library only, and of no contender: the worker processes of other interpreters import it
too.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterator

Row = tuple[float, float, float, float]  # epoch seconds, volts, amperes, percent of charge

START = 1_704_067_200.0  # 2024-01-01T00:00:00Z
DAY = 86_400


class Clock:
    """The simulated meter's time, in epoch seconds: as fast as the contender stores readings."""

    def __init__(self, step: float) -> None:
        self.step = step
        self.now = START

    def __call__(self) -> float:
        """Now."""
        return self.now

    def tick(self) -> None:
        """Go on to the next reading."""
        self.now += self.step


@functools.cache
def day_of_values(seed: int, *, quantised: bool = True) -> list[tuple[float, float, float]]:
    """A day of volts, amperes and percent, one a second, as a sensor of mV and mA gives them.

    Not quantised: full doubles, as a driver gives them that scales a raw count by a calibration
    factor.
    """
    chance = random.Random(seed)
    values = []
    drift = 0.0
    for second in range(DAY):
        sun = max(0.0, math.sin((second / 3600 - 6) / 12 * math.pi))
        drift = 0.999 * drift + chance.gauss(0.0, 0.01)
        charge = 55.0 + 35.0 * math.sin((second / 3600 - 9) / 12 * math.pi)
        volts = 11.0 + charge / 70 + 0.1 * drift
        amperes = 0.6 + drift - 1.4 * sun
        values.append((volts, amperes, charge))
    if quantised:
        return [(round(v, 3), round(c, 3), round(q, 1)) for v, c, q in values]
    return values


def rows(
    values: list[tuple[float, float, float]], begin: int, end: int, step: float
) -> Iterator[Row]:
    """Readings number `begin` up to `end`, `step` seconds apart; the day of values is repeated."""
    length = len(values)
    return ((START + (i + 1) * step, *values[i % length]) for i in range(begin, end))
