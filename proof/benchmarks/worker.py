"""One contender in a process of its own: it does what lines of JSON say, and times itself.

So every contender has its own interpreter (RRDtool's may be another one), its own count of bytes
written and its own memory, and the pipe between the processes is in no figure.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from contenders import load
from contenders.base import Contender, Place, Unsupported
from readings import START, Clock, day_of_values, rows

_BLOCK = 1_000_000  # readings in one transaction of a bulk load


class Worker:
    """A contender and the state of its simulated meter."""

    def __init__(self, name: str) -> None:
        self.kind = load(name)
        self.contender: Contender | None = None

    def open(
        self, folder: str, mode: str, step: int, room: int, seed: int, quantised: bool
    ) -> dict[str, Any]:
        """Begin an empty file."""
        self.close()
        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).mkdir(parents=True)
        self.count = 0
        self.step = step
        self.clock = Clock(step)
        self.day = day_of_values(seed, quantised=quantised)
        self.contender = self.kind(Place(Path(folder), mode, step, room, self.clock))
        return {}

    def close(self) -> dict[str, Any]:
        """Close the file, as its size is to be taken."""
        if self.contender is not None:
            self.contender.close()
            self.contender = None
        return {}

    @property
    def opened(self) -> Contender:
        """The contender at work."""
        assert self.contender is not None
        return self.contender

    def load(self, count: int) -> dict[str, Any]:
        """Store readings in bulk, a million in a transaction."""
        seconds = 0.0
        goal = self.count + count
        while self.count < goal:
            end = min(self.count + _BLOCK, goal)
            ready = [self.opened.ready(row) for row in rows(self.day, self.count, end, self.step)]
            gc.collect()
            begin = perf_counter()
            self.opened.bulk(ready)
            seconds += perf_counter() - begin
            self.count = end
            self.clock.now = START + end * self.step
        return {"seconds": seconds}

    def log(self, count: int) -> dict[str, Any]:
        """Store readings one by one; each one's seconds."""
        times = []
        log = self.opened.log
        tick = self.clock.tick
        day = self.day
        for i in range(self.count, self.count + count):
            volts, amperes, charge = day[i % len(day)]
            tick()
            begin = perf_counter()
            log(volts, amperes, charge)
            times.append(perf_counter() - begin)
        self.count += count
        return {"times": times}

    def group(self, count: int) -> dict[str, Any]:
        """Store readings one by one in one transaction."""
        values = [self.day[i % len(self.day)] for i in range(self.count, self.count + count)]
        begin = perf_counter()
        self.opened.group(values)
        self.count += count
        return {"seconds": perf_counter() - begin}

    def history(self, hours: float) -> dict[str, Any]:
        """Read the last hours as objects."""
        gc.collect()
        begin = perf_counter()
        found = self.opened.history(self.clock() - hours * 3600)
        return {"seconds": perf_counter() - begin, "count": len(found)}

    def report(self, days: float) -> dict[str, Any]:
        """Summarise the last days."""
        begin = perf_counter()
        found = self.opened.report(self.clock() - days * 86400)
        return {"seconds": perf_counter() - begin, "answer": found}

    def verify(self) -> dict[str, Any]:
        """Let the contender check its own file."""
        return {"problems": self.opened.verify()}

    def written(self) -> dict[str, Any]:
        """Bytes this process has caused to be written to storage so far."""
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return {"bytes": int(fields["write_bytes"]) - int(fields["cancelled_write_bytes"])}


def main() -> None:
    """Serve until the standard input ends; sys.argv[1] is the contender's name."""
    worker = Worker(sys.argv[1])
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a contender prints must not get between the answers
    for line in sys.stdin:
        task = json.loads(line)
        try:
            answer = getattr(worker, task.pop("do"))(**task)
        except Unsupported as exc:
            answer = {"unsupported": str(exc)}
        print(json.dumps(answer), file=answers, flush=True)
    worker.close()


if __name__ == "__main__":
    main()
