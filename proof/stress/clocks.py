"""Log under clocks that no server has, and compare everything with a plain model.

A device without a clock of its own boots in 1970, jumps by years in both directions once it has
the network, stands still, or tells the same instant twice. The library takes its clock as an
argument, so each such life is played here, first by a script and then at random: live and
recorded readings, known and unknown currents, prunes, deletions and reports. Present state,
history, statistics, alerts, report and what waits to be sent must be those of model.py. Where
Debian's faketime is installed, whole processes run under it too.
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

    def __init__(
        self, path: Path, out: Findings, label: str, alert_repeat: float | None = None
    ) -> None:
        self.label = label
        self.now = _NOW
        self.out = out
        self.path = path
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

    def _expect(self, holds: bool, kind: str, detail: object) -> None:
        self.out.expect(holds, kind, f"{self.label}: {detail}")

    def us(self) -> int:
        """The clock in microseconds."""
        return round(self.now * model.SECOND)

    def live(self, volts: float | None, amperes: float | None, charge: float | None) -> None:
        """Log a live reading on both sides."""
        got = self.pm.log_power(self.meter.id, volts, amperes, charge)
        row = self.model.live(self.meter, self.us(), volts, amperes, charge)
        self._compare_reading("a live reading", got, row)

    def live_at(
        self, at: float, volts: float | None, amperes: float | None, charge: float | None
    ) -> None:
        """Log a live reading that was taken at a given time on both sides."""
        got = self.pm.log_power(self.meter.id, volts, amperes, charge, timestamp=at, live=True)
        row = self.model.live(self.meter, round(at * model.SECOND), volts, amperes, charge)
        self._compare_reading("a live reading of a given time", got, row)

    def recorded(
        self, at: float, volts: float | None, amperes: float | None, charge: float | None
    ) -> None:
        """Log a recorded reading on both sides."""
        got = self.pm.log_power(self.meter.id, volts, amperes, charge, timestamp=at)
        row, _ = self.model.recorded(self.meter, round(at * model.SECOND), volts, amperes, charge)
        self._compare_reading("a recorded reading", got, row)

    def _compare_reading(self, kind: str, got: power_manager.PowerReading, row: model.Row) -> None:
        self.out.counts["readings"] += 1
        shown = (got.timestamp, got.voltage, got.current_draw, got.charge_pct)
        expected = (iso(row.us), row.volts, row.amperes, row.charge)
        self._expect(shown == expected, kind, f"{shown}, not {expected}")
        self._expect(
            (got.wattage is None) == (row.watts is None), f"{kind}: its wattage", got.wattage
        )

    def prune(self, days: float) -> None:
        """Prune on both sides."""
        expected = self.model.prune(self.us() - round(days * model.DAY))
        got = self.pm.prune(days)
        self._expect(got == expected, "prune", f"{got}, expected {expected}")

    def delete(self, since: float, until: float) -> None:
        """Delete the readings of a span on both sides."""
        start = round(since * model.SECOND)
        end = round(until * model.SECOND)
        try:
            got: int | None = self.pm.delete_readings(self.meter.id, since=since, until=until)
        except power_manager.InvalidValue:
            got = None
        try:
            expected: int | None = self.model.delete_readings(self.meter, start, end)
        except model.Refused:
            expected = None
        self._expect(got == expected, "delete_readings", f"{got}, expected {expected}")

    def send(self, count: int) -> None:
        """Take readings that wait to be sent, and acknowledge them, on both sides."""
        batch = self.pm.pending_readings(count)
        self.pm.acknowledge(batch)
        for reading in batch:
            us = power_manager.to_microseconds(reading.timestamp)
            self._expect(us in self.meter.waiting, "a reading is sent again", reading)
            self.meter.waiting.discard(us)
        expected = min(count, len(batch) + len(self.meter.waiting))
        self._expect(len(batch) == expected, "readings that wait", f"{len(batch)}")

    def compare(self, days: float) -> None:
        """Compare what the library tells with the model."""
        meter = self.meter
        after = max(self.us() - round(days * model.DAY), -1)
        self.out.counts["comparisons"] += 1
        self._compare_present()
        history = [r.timestamp for r in self.pm.iter_history(meter.id)]
        expected_times = [iso(us) for us in sorted(meter.kept)]
        detail = f"{len(history)} readings, not {len(expected_times)}"
        self._expect(history == expected_times, "history", detail)
        events = [(e.type.value, e.value, e.timestamp) for e in self.pm.get_events("d", 10**6)]
        expected_events = [(e.kind, e.value, iso(e.us)) for e in self.model.events_of("d")]
        self._expect(
            events == expected_events, "alerts", f"{events[:3]}, not {expected_events[:3]}"
        )
        waiting = self.pm.pending_readings(10**6)
        times = sorted(power_manager.to_microseconds(r.timestamp) for r in waiting)
        self._expect(times == sorted(meter.waiting), "what waits", f"{len(times)} readings")
        buckets = {row.start: row for row in self.pm.get_statistics(meter.id, days=days)}
        expected = {
            iso(us): part for us, part in self.model.buckets(meter, model.HOUR, after).items()
        }
        detail = f"{len(buckets)}, not {len(expected)}"
        self._expect(list(buckets) == list(expected), "hours of statistics", detail)
        for start in buckets.keys() & expected.keys():
            wrong = model.differences(expected[start], buckets[start])
            self._expect(not wrong, "statistics", f"{start}: {wrong}")
        self._compare_report(days, after)

    def _compare_present(self) -> None:
        present = self.pm.get_meter(self.meter.id)
        expected = self.meter.present
        shown = (present.voltage, present.current_draw, present.charge_pct, present.power_known)
        wanted = (
            expected.volts or 0.0,
            expected.amperes or 0.0,
            expected.charge,
            expected.watts is not None,
        )
        self._expect(shown == wanted, "present state", f"{shown}, not {wanted}")

    def _compare_report(self, days: float, after: int) -> None:
        if days == 0:
            return
        report = json.loads(self.pm.export_report("d", days))
        part = report["meters"][0]
        expected = self.model.window(self.meter, after)
        if expected is None:
            self._expect(part["reading_count"] == 0, "report's count", part)
        else:
            wrong = model.differences(expected, part)
            self._expect(not wrong, "report", f"{days} days: {wrong}")
        events = len(self.model.events_of("d", after))
        detail = f"{report['event_count']}, not {events}"
        self._expect(report["event_count"] == events, "report's events", detail)

    def close(self) -> None:
        """End this life with check()."""
        self.pm.close()
        self.out.whole(self.path, self.label)


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
    """Many readings in an instant that has a recorded one already are microseconds apart."""
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


def _ahead_and_pruned(life: Life) -> None:
    """Two hours twenty years ahead, a prune of everything, then the right time: it stays open."""
    for n in range(30):
        life.now = _NOW - 7200 + n * 120
        life.live(4.0, 1.0, 80.0)
    for n in range(60):
        life.now = _NOW + 20 * _YEAR + n * 120
        life.live(4.0, 2.0, 80.0)
    life.prune(0)
    life.compare(36500)
    for n in range(90):
        life.now = _NOW + n * 120
        life.live(4.0, 3.0, 80.0)
        life.recorded(life.now - 60, 4.0, 3.5, None)
    life.compare(1)
    life.prune(0)
    life.compare(36500)


def _unknown_currents(life: Life) -> None:
    """A gauge without watts between readings with watts; over an hour, a prune and a gap."""
    for n in range(80):
        life.now = _NOW + n * 290
        life.live(4.0 if n % 3 else None, None if n % 4 == 0 else 1.5, 90.0 - n)
        if n % 9 == 0:
            life.recorded(life.now - 100, None, 1.0, None)
    life.compare(1)
    life.prune(0.1)
    life.recorded(life.now - 3 * 3600, 4.0, None, None)
    life.recorded(life.now - 1800, 4.0, 2.0, None)
    life.compare(1)


def _deleted(life: Life) -> None:
    """Deleted spans: in the middle, in the hour under way, and in hours that prune has closed."""
    for n in range(200):
        life.now = _NOW + n * 180
        life.live(4.0, 1.0 + n / 50, 80.0)
    hour = _NOW // 3600 * 3600
    life.delete(hour + 5400, hour + 9000)
    life.compare(1)
    life.delete(life.now - 600, life.now + 1)
    life.compare(1)
    life.prune(0.2)
    life.delete(hour + 1800, hour + 2000)  # refused where that hour is closed
    life.delete(hour + 3600, hour + 7200)
    life.compare(1)
    life.live(4.0, 1.0, 80.0)
    life.delete(0, life.now + 1)
    life.compare(36500)
    life.live(4.0, 1.0, None)
    life.compare(36500)


def _step_back_after_prune(life: Life) -> None:
    """The clock is set back by minutes just after a prune, over the start of an hour."""
    hour = _NOW // 3600 * 3600
    for n in range(-10, 10):
        life.now = hour + n * 60 + 20
        life.live(4.0, 1.0 + n / 100, 80.0)
    life.prune(0)  # closes the hour before, and leaves its last reading
    for seconds in (5, -30, -3, 70):
        life.now = hour + seconds
        life.live(4.2, 2.0, 70.0)
        problems = life.pm.check()
        life.out.expect(not problems, "check() after a step back", problems)
    life.compare(1)


_SCRIPTS: tuple[Callable[[Life], None], ...] = (
    _boot_in_1970,
    _jumps_of_years,
    _frozen,
    _same_instant_twice,
    _ahead_and_pruned,
    _unknown_currents,
    _deleted,
    _step_back_after_prune,
)


def _random_life(life: Life, rng: random.Random) -> None:
    """Sixty random steps of the clock and of the device."""
    for _ in range(60):
        moved = rng.choice([0.0, 1e-6, 0.5, 60.0, 600.0, 3599.999999, 3600.0, -30.0, -5400.0])
        life.now += moved + rng.choice([0.0] * 8 + [_YEAR, -_YEAR])
        life.now = min(max(rng.choice([life.now] * 30 + [0.0, _NOW, _LAST]), 0.0), _LAST)
        volts = rng.choice([round(rng.uniform(0, 15), 3)] * 9 + [None])
        exact = round(rng.uniform(-3, 3), 2)
        amperes = rng.choice([rng.uniform(-3, 3)] * 5 + [exact] * 5 + [None])
        charges = [None, 4.0, 5.0, 6.9, 7.0, 19.0, 20.0, 21.9, 22.0, round(rng.uniform(-5, 105), 1)]
        charge = rng.choice(charges)
        if volts is None and amperes is None and charge is None:  # it would be refused
            charge = 50.0
        near = life.now + rng.choice([0.0, 1.0, -45.0, -7200.0, 7200.0])
        at = min(max(near, 0.0), _LAST)
        choice = rng.random()
        if choice < 0.65:
            life.live(volts, amperes, charge)
        elif choice < 0.7:
            life.live_at(at, volts, amperes, charge)
        elif choice < 0.88:
            life.recorded(at, volts, amperes, charge)
        elif choice < 0.91:
            life.prune(rng.choice([0.0, 0.01, 0.1, 1.0]))
        elif choice < 0.93:
            life.delete(max(0.0, at - rng.choice([60.0, 5400.0, _YEAR])), at + 1)
        elif choice < 0.96:
            life.send(rng.randint(1, 20))
        else:
            life.compare(rng.choice([0.0, 0.02, 1.0, 3650.0, 36500.0]))
    life.compare(36500.0)


def _impossible(place: Path, out: Findings) -> None:
    """A clock that cannot be right is refused by name, and nothing is stored."""
    for number, now in enumerate((-1.0, float("nan"), float("inf"), 1e12)):
        life = Life(place / f"impossible-{number}.db", out, "an impossible clock")
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
        life.close()


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
    path = place / "faketime.db"
    years = (2025, 1971, 2037, 2024, 1971, 2025)
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
    args = parse(__doc__, seconds=4.0)
    out = Findings(__file__)
    deadline = Deadline(args.seconds)
    with scratch() as place:
        for script in _SCRIPTS:
            life = Life(place / f"{script.__name__}.db", out, script.__name__)
            script(life)
            life.close()
        _impossible(place, out)
        _faketime(place, out)
        lives = 0
        while lives < 3 or not deadline.over():
            rng = random.Random(f"{args.seed}/{lives}")
            repeat = rng.choice([None, None, 0.0, 60.0, 86400.0])
            life = Life(place / "random.db", out, f"life {args.seed}/{lives}", repeat)
            _random_life(life, rng)
            life.close()
            life.path.unlink()
            lives += 1
        out.counts["random lives"] += lives
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
