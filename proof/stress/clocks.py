"""Log under clocks that no server has, and compare everything with a plain model.

A device without a clock of its own boots in 1970, jumps by years in both directions once it has the network, stands
still, or tells the same instant twice. The library takes its clock as an argument, so each such life is played here,
first by a script and then at random: live and recorded readings, prunes, reports. Present state, history, statistics,
alerts and report must be those of model.py. Where Debian's faketime is installed, whole processes run under it too.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import model
from common import CHECKOUT, Deadline, Findings, parse, scratch

import power_manager

_YEAR = 365.25 * 86400
_NOW = 1_750_000_000.0
_LAST = 7_289_654_000.0  # shortly before the end of 2200
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def iso(us: int) -> str:
    """The library's text of a time."""
    return (_EPOCH + timedelta(microseconds=us)).isoformat(timespec="microseconds")


class Life:
    """A device with a settable clock, and its model."""

    def __init__(self, path: Path, out: Findings, alert_repeat: float | None = None) -> None:
        self.now, self.out, self.path = _NOW, out, path
        self.pm = power_manager.PowerManager(
            path, clock=lambda: self.now, alert_repeat=alert_repeat
        )
        self.model = model.Model(
            None if alert_repeat is None else round(alert_repeat * model.SECOND)
        )
        self.pm.register_device("d", "Device")
        self.model.devices["d"] = model.Device("d", "Device")
        meter = self.pm.add_meter("d", "battery", 50.0)
        self.meter = self.model.meters[meter.id] = model.Meter(meter.id, "d", "battery", 50.0, None)

    def us(self) -> int:
        """The clock in microseconds."""
        return round(self.now * model.SECOND)

    def live(self, volts: float, amperes: float, charge: float | None) -> None:
        """Log a live reading on both sides."""
        got = self.pm.log_power(self.meter.id, volts, amperes, charge)
        row = self.model.live(self.meter, self.us(), volts, amperes, charge)
        self.out.counts["readings"] += 1
        self.out.expect(
            got.timestamp == iso(row[0]),
            "time of a live reading",
            f"{got.timestamp}, not {iso(row[0])}",
        )

    def recorded(self, at: float, volts: float, amperes: float, charge: float | None) -> None:
        """Log a recorded reading on both sides."""
        got = self.pm.log_power(self.meter.id, volts, amperes, charge, timestamp=at)
        row, _ = self.model.recorded(self.meter, round(at * model.SECOND), volts, amperes, charge)
        self.out.counts["readings"] += 1
        same = (got.timestamp, got.voltage, got.current_draw, got.charge_pct) == (
            iso(row[0]),
            *row[1:],
        )
        self.out.expect(same, "a recorded reading", f"{got}, not {row}")

    def prune(self, days: float) -> None:
        """Prune on both sides."""
        expected = self.model.prune(self.us() - round(days * model.DAY))
        self.out.expect(self.pm.prune(days) == expected, "prune", f"expected {expected}")

    def compare(self, days: float) -> None:
        """Compare what the library tells with the model."""
        meter, out, after = self.meter, self.out, self.us() - round(days * model.DAY)
        out.counts["comparisons"] += 1
        present = self.pm.get_meter(meter.id)
        shown = (present.voltage, present.current_draw, present.charge_pct)
        out.expect(shown == meter.present, "present state", f"{shown}, not {meter.present}")
        history = [r.timestamp for r in self.pm.iter_history(meter.id)]
        out.expect(
            history == [iso(us) for us in sorted(meter.kept)], "history", f"{len(history)} readings"
        )
        events = [(e.type.value, e.value, e.timestamp) for e in self.pm.get_events("d", 10**6)]
        expected_events = [(e.kind, e.value, iso(e.us)) for e in self.model.events_of("d")]
        out.expect(events == expected_events, "alerts", f"{events[:3]}, not {expected_events[:3]}")
        buckets = {row.start: row for row in self.pm.get_statistics(meter.id, days=days)}
        expected = {
            iso(us): row for us, row in self.model.buckets(meter, model.HOUR, after).items()
        }
        out.expect(
            list(buckets) == list(expected),
            "hours of statistics",
            f"{len(buckets)}, not {len(expected)}",
        )
        for start in buckets.keys() & expected.keys():
            wrong = model.differences(expected[start], buckets[start], meter.energy_known)
            out.expect(not wrong, "statistics", f"{start}: {wrong}")
        self._compare_report(days, after)

    def _compare_report(self, days: float, after: int) -> None:
        report = json.loads(self.pm.export_report("d", days))
        part, rows = report["meters"][0], self.model.window(self.meter, after)
        self.out.expect(
            part["reading_count"] == len(rows), "report's count", f"{part}, not {len(rows)}"
        )
        if rows:
            before = [row for row in sorted(self.meter.counted) if row[0] < rows[0][0]]
            whole = self.model.has_whole_hours(self.meter, after)
            expected = self.model.statistics(rows, before[-1] if before and whole else None)
            wrong = model.differences(expected, part, self.meter.energy_known)
            self.out.expect(not wrong, "report", wrong)
        events = len(self.model.events_of("d", after))
        self.out.expect(
            report["event_count"] == events,
            "report's events",
            f"{report['event_count']}, not {events}",
        )

    def close(self, name: str) -> None:
        """End this life with check()."""
        self.pm.close()
        self.out.whole(self.path, name)


def _boot_in_1970(life: Life) -> None:
    """Nothing is known of the time at first: the year is 1970, then 2025."""
    for start in (0.0, _NOW):
        for n in range(40):
            life.now = start + n * 60
            life.live(3.7, 0.5, 60.0 - n)
        life.compare(1)


def _jumps_of_years(life: Life) -> None:
    """Ten years ahead and back again, with an alert on each side."""
    for offset in (0.0, 10 * _YEAR, 0.0, -20 * _YEAR, 0.0, _LAST - _NOW - 3600):
        for n in range(12):
            life.now = _NOW + offset + n * 30 + offset / _YEAR
            life.live(12.0 - n / 10, -1.0 if n % 5 == 0 else 2.0, 26.0 - 2 * n)
        life.compare(1)
        life.live(12.0, 1.0, 90.0)
    life.compare(36500)


def _frozen(life: Life) -> None:
    """Many readings in one instant are microseconds apart; a recorded one of that instant is there already."""
    for n in range(300):
        life.live(5.0, n / 100, 50.0)
        if n % 50 == 0:
            life.recorded(life.now, 1.0, 1.0, 1.0)
    life.compare(1)


def _same_instant_twice(life: Life) -> None:
    """The hour that daylight saving, or a step back of an hour, lets happen twice."""
    for start in (_NOW, _NOW):
        for n in range(120):
            life.now = start + n * 30
            life.live(4.0, 1.0 if n % 2 else -1.0, 80.0)
    life.compare(1)


def _step_back_after_prune(life: Life) -> None:
    """The clock is set back by minutes just after a prune, over the begin of an hour."""
    hour = _NOW // 3600 * 3600
    for n in range(-10, 10):
        life.now = hour + n * 60 + 20
        life.live(4.0, 1.0 + n / 100, 80.0)
    life.prune(580 / 86400)  # what is kept begins 20 seconds after the hour
    for seconds in (5, -30, -3, 70):
        life.now = hour + seconds
        life.live(4.2, 2.0, 70.0)
        life.out.expect(not (problems := life.pm.check()), "check() after a step back", problems)
    life.compare(1)


_SCRIPTS: tuple[Callable[[Life], None], ...] = (
    _boot_in_1970,
    _jumps_of_years,
    _frozen,
    _same_instant_twice,
    _step_back_after_prune,
)


def _random_life(life: Life, rng: random.Random) -> None:
    """Sixty random steps of the clock and of the device."""
    for _ in range(60):
        moved = rng.choice([0.0, 1e-6, 0.5, 60.0, 600.0, 3599.999999, 3600.0, -30.0, -5400.0])
        life.now += moved + rng.choice([0.0] * 8 + [_YEAR, -_YEAR])
        life.now = min(max(rng.choice([life.now] * 30 + [0.0, _NOW, _LAST]), 0.0), _LAST)
        volts, amperes = (
            round(rng.uniform(0, 15), 3),
            rng.choice([rng.uniform(-3, 3), round(rng.uniform(-3, 3), 2)]),
        )
        charge = rng.choice(
            [None, 4.0, 5.0, 6.9, 7.0, 19.0, 20.0, 21.9, 22.0, round(rng.uniform(-5, 105), 1)]
        )
        choice = rng.random()
        if choice < 0.75:
            life.live(volts, amperes, charge)
        elif choice < 0.95:
            at = life.now + rng.choice([0.0, 1.0, -45.0, -7200.0, 7200.0])
            life.recorded(min(max(at, 0.0), _LAST), volts, amperes, charge)
        elif choice < 0.97:
            life.prune(rng.choice([0.0, 0.01, 1.0]))
        else:
            life.compare(rng.choice([0.0, 0.02, 1.0, 3650.0, 36500.0]))
    life.compare(36500.0)


def _impossible(place: Path, out: Findings) -> None:
    """A clock that cannot be right is refused by name, and nothing is stored."""
    for number, now in enumerate((-1.0, float("nan"), float("inf"), 1e12)):
        life = Life(place / f"impossible-{number}.db", out)
        life.now = now
        try:
            life.pm.log_power(life.meter.id, 1.0, 1.0)
            out.fail("an impossible clock is taken", now)
        except power_manager.InvalidValue as exc:
            out.expect("clock" in str(exc), "an impossible clock is not named", exc)
        life.now = _NOW
        out.expect(
            not list(life.pm.iter_history(life.meter.id)), "stored under an impossible clock", now
        )
        life.close("an impossible clock")


_UNDER_FAKETIME = """
import sys; sys.path.insert(0, sys.argv[1]); import power_manager
with power_manager.PowerManager(sys.argv[2]) as pm:
    pm.register_device("d", "D")
    meter = (pm.list_meters("d") or [pm.add_meter("d", "battery")])[0].id
    pm.log_power(meter, 3.7, 0.5, 50.0)
    pm.export_report("d")
"""


def _faketime(place: Path, out: Findings) -> None:
    """Whole processes in other years, one after the other on one file."""
    program = shutil.which("faketime")
    if program is None:
        out.notes.append("faketime is not installed: no whole processes in other years")
        return
    path, years = place / "faketime.db", (2025, 1971, 2037, 2024, 1971, 2025)
    for year in years:
        command: list[str | Path] = [
            program,
            f"{year}-03-01 12:00:00",
            sys.executable,
            "-c",
            _UNDER_FAKETIME,
        ]
        command += [CHECKOUT, path]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "TZ": "UTC"}
        )
        out.expect(done.returncode == 0, f"under faketime in {year}", done.stderr[-300:])
    with power_manager.PowerManager(path) as pm:
        meter = pm.list_meters("d")[0]
        got = sorted(int(reading.timestamp[:4]) for reading in pm.iter_history(meter.id))
        out.expect(got == sorted(years), "years of readings under faketime", got)
        out.expect(
            (meter.updated_at or "").startswith("2025"), "present state under faketime", meter
        )
    out.whole(path, "faketime")


def main() -> int:
    """Play the scripts, then random lives until the time is over."""
    args, out = parse(__doc__, seconds=4.0), Findings(__file__)
    deadline = Deadline(args.seconds)
    with scratch() as place:
        for script in _SCRIPTS:
            life = Life(place / f"{script.__name__}.db", out)
            script(life)
            life.close(script.__name__)
        _impossible(place, out)
        _faketime(place, out)
        lives = 0
        while lives < 3 or not deadline.over():
            rng = random.Random(f"{args.seed}/{lives}")
            life = Life(place / "random.db", out, rng.choice([None, None, 0.0, 60.0, 86400.0]))
            _random_life(life, rng)
            life.close(f"random life {args.seed}/{lives}")
            life.path.unlink()
            lives += 1
        out.counts["random lives"] += lives
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
