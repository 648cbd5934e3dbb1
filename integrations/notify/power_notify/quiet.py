"""Quiet hours, in which only critical events are told."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from datetime import time

_SPAN = re.compile(r"(\d\d?):(\d\d)-(\d\d?):(\d\d)")


@dataclass(frozen=True)
class QuietHours:
    """From `start` on and before `end`, local time; over midnight if `end` is less than `start`."""

    start: time
    end: time

    def contains(self, moment: time) -> bool:
        """Whether a local time of day lies within them.

        >>> night = parse_quiet_hours("22:00-07:00")
        >>> [night.contains(time(hour)) for hour in (21, 22, 6, 7)]
        [False, True, True, False]
        """
        if self.start < self.end:
            return self.start <= moment < self.end
        return moment >= self.start or moment < self.end


def parse_quiet_hours(text: str) -> QuietHours:
    """Text such as "22:00-07:00" as quiet hours, for argparse."""
    problem = f"expected hours such as 22:00-07:00, got {text!r}"
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(problem)
    start_hour, start_minute, end_hour, end_minute = map(int, found.groups())
    try:
        start = time(start_hour, start_minute)
        end = time(end_hour, end_minute)
    except ValueError:
        raise argparse.ArgumentTypeError(problem) from None
    if start == end:
        raise argparse.ArgumentTypeError(f"{problem}, which begin and end at the same time")
    return QuietHours(start, end)
