"""Fuzz the library with Hypothesis: its methods against a plain model, its command line and importers with garbage.

Methods: a state machine calls everything that writes, in any order, alone, in transactions and in ones that roll back,
with good and bad values, and compares everything that reads with model.py. Command line: random arguments, and files
of random text, broken CSV and NDJSON; there must be no traceback and no exit code but 0, 1 and 2, and an import that
fails must have stored nothing. Needs hypothesis (requirements.txt).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import model
from common import CHECKOUT, Deadline, Findings, parse, scratch

import power_manager

try:
    import hypothesis
    from hypothesis import HealthCheck, settings
    from hypothesis import strategies as st
    from hypothesis.stateful import (
        RuleBasedStateMachine,
        invariant,
        precondition,
        rule,
        run_state_machine_as_test,
    )
except ImportError:
    print("fuzz: skipped: needs hypothesis, see requirements.txt")
    sys.exit(0)

_HOUR_SECONDS = 3600.0
_START = 1.7e9 // _HOUR_SECONDS * _HOUR_SECONDS
_BAD_NUMBERS: tuple[Any, ...] = (
    float("nan"),
    float("inf"),
    -float("inf"),
    "1",
    b"1",
    None,
    True,
    [],
    1e300,
    "x",
)
Drawn = tuple[int, float, float, "float | None", "float | None"]  # meter, V, A, %, seconds from now
_KINDS = ("main", "battery", "solar", "ups")
_EVENTS = ("charge_start", "discharge", "low_battery", "shutdown", "restore")

volts = st.one_of(st.integers(-20, 20), st.floats(-50, 50), st.decimals(-50, 50, places=3)).map(
    float
)
charges = st.one_of(
    st.none(),
    st.sampled_from([0.0, 4.99, 5.0, 6.99, 7.0, 20.0, 21.99, 22.0, 95.0, 100.0]),
    st.floats(-10, 110),
)
steps = st.sampled_from(
    [0.0, 1e-6, 0.25, 1.0, 59.0, 600.0, 3599.5, 3600.0, 3601.0, 90_000.0, -1.0, -1800.0, -90_000.0]
)
offsets = st.one_of(st.sampled_from([0.0, -1.0, 1.0, -3600.0, 3600.0]), st.floats(-200_000, 10_000))
days = st.sampled_from([0.0, 0.01, 0.04, 1.0, 1.5, 7.0, 400.0])
budgets = st.none() | st.floats(0, 100)
texts = st.text(max_size=12) | st.sampled_from(
    ["", " ", "a\0b", "\ud800", "x" * 201, "Ünï ☀", "a/b"]
)


class RolledBack(Exception):
    """Leaves a transaction on purpose."""


class Methods(RuleBasedStateMachine):
    """A PowerManager and its model, side by side."""

    totals: Findings

    def __init__(self) -> None:
        super().__init__()
        self._place = tempfile.TemporaryDirectory(
            dir="/dev/shm" if os.path.isdir("/dev/shm") else None
        )
        self.path, self.now, self.model = Path(self._place.name) / "p.db", _START, model.Model()
        self.pm = self._open()

    def _open(self) -> power_manager.PowerManager:
        return power_manager.PowerManager(self.path, clock=lambda: self.now)

    def us(self) -> int:
        """The clock in microseconds."""
        return round(self.now * model.SECOND)

    def some_meter(self, index: int) -> model.Meter:
        """One of the meters."""
        return list(self.model.meters.values())[index % len(self.model.meters)]

    def some_device(self, index: int) -> str:
        """One of the devices' ids."""
        return list(self.model.devices)[index % len(self.model.devices)]

    def teardown(self) -> None:
        """End with check()."""
        self.totals.counts["sequences of calls"] += 1
        problems = self.pm.check()
        self.pm.close()
        self._place.cleanup()
        assert problems == []

    @rule(by=steps)
    def move_clock(self, by: float) -> None:
        """Move the clock."""
        self.now = max(1.0, self.now + by)

    @rule()
    def reopen(self) -> None:
        """Close and open again."""
        self.pm.close()
        self.pm = self._open()

    @rule(device=st.sampled_from("abc"), name=texts, budget=budgets, low=st.none() | st.just(30.0))
    def register(self, device: str, name: str, budget: float | None, low: float | None) -> None:
        """Register or update a device, or be refused for its name."""
        fine = bool(name.strip()) and len(name) <= 200 and "\0" not in name
        fine = fine and not any("\ud800" <= char <= "\udfff" for char in name)
        if not fine:
            _refused(lambda: self.pm.register_device(device, name))
            return
        got = self.pm.register_device(device, name, 2.5, budget, low_battery_threshold=low)
        assert (got.id, got.name, got.target_wh) == (device, name, budget)
        known = self.model.devices.setdefault(device, model.Device(device, name))
        known.name, known.shutdown_threshold, known.target_wh, known.low = name, 2.5, budget, low

    @precondition(lambda self: self.model.devices and len(self.model.meters) < 6)
    @rule(
        device=st.integers(0, 5),
        kind=st.sampled_from(_KINDS),
        capacity=st.sampled_from([0.0, 50.0]),
    )
    def add_meter(self, device: int, kind: str, capacity: float) -> None:
        """Add a meter."""
        id_ = self.some_device(device)
        got = self.pm.add_meter(id_, kind, capacity, f"{kind} meter")
        assert (got.type, got.state) == (kind, self._state_of_new(kind))
        self.model.meters[got.id] = model.Meter(got.id, id_, kind, capacity, f"{kind} meter")

    @staticmethod
    def _state_of_new(kind: str) -> str:
        return "unknown" if kind == "main" else "charging"

    @precondition(lambda self: self.model.meters)
    @rule(index=st.integers(0, 5), volt=volts, ampere=volts, charge=charges)
    def log_live(self, index: int, volt: float, ampere: float, charge: float | None) -> None:
        """Log a live reading."""
        meter = self.some_meter(index)
        got = self.pm.log_power(meter.id, volt, ampere, charge)
        row = self.model.live(meter, self.us(), volt, ampere, charge)
        assert _as_row(got) == row

    @precondition(lambda self: self.model.meters)
    @rule(index=st.integers(0, 5), volt=volts, ampere=volts, charge=charges, offset=offsets)
    def log_recorded(
        self, index: int, volt: float, ampere: float, charge: float | None, offset: float
    ) -> None:
        """Log a recorded reading."""
        meter, at = self.some_meter(index), max(0.0, self.now + offset)
        got = self.pm.log_power(meter.id, volt, ampere, charge, timestamp=at)
        row, _ = self.model.recorded(meter, round(at * model.SECOND), volt, ampere, charge)
        assert _as_row(got) == row

    @precondition(lambda self: self.model.meters)
    @rule(
        rows=st.lists(
            st.tuples(st.integers(0, 5), volts, volts, charges, st.none() | offsets), max_size=30
        ),
        bad=st.none() | st.sampled_from(_BAD_NUMBERS),
        nested=st.booleans(),
    )
    def log_many(self, rows: list[Drawn], bad: Any, nested: bool) -> None:
        """Log a batch; one with a bad row stores nothing and names that row."""
        batch: list[tuple[Any, ...]] = []
        for index, volt, ampere, charge, offset in rows:
            at = None if offset is None else max(0.0, self.now + offset)
            batch.append((self.some_meter(index).id, volt, ampere, charge, at))
        if bad is not None:
            message = _refused(
                lambda: self.pm.log_many([*batch, (self.some_meter(0).id, bad, 1.0)])
            )
            assert f"row {len(batch) + 1}" in message
            return
        with self.pm.transaction() if nested else contextlib.nullcontext():
            got = self.pm.log_many(iter(batch))
        new = 0
        for id_, volt, ampere, charge, at in batch:
            meter = self.model.meters[id_]
            if at is None:
                self.model.live(meter, self.us(), volt, ampere, charge)
                new += 1
            else:
                new += self.model.recorded(meter, round(at * model.SECOND), volt, ampere, charge)[1]
        assert got == new

    @precondition(lambda self: self.model.meters)
    @rule(index=st.integers(0, 5), volt=volts, count=st.integers(0, 5), inner=st.booleans())
    def roll_back(self, index: int, volt: float, count: int, inner: bool) -> None:
        """Do a lot in a transaction that fails: nothing of it may be left."""
        meter = self.some_meter(index)
        with contextlib.suppress(RolledBack), self.pm.transaction():
            with self.pm.transaction() if inner else contextlib.nullcontext():
                for n in range(count):
                    self.pm.log_power(meter.id, volt, 1.0, 1.0 + n)
                self.pm.trigger_event(meter.device_id, "shutdown")
                self.pm.prune(0)
                self.pm.add_meter(meter.device_id, "main")
            raise RolledBack

    @precondition(lambda self: self.model.devices)
    @rule(index=st.integers(0, 5), kind=st.sampled_from(_EVENTS), value=st.floats(-1e9, 1e9))
    def trigger(self, index: int, kind: str, value: float) -> None:
        """Record an event."""
        device = self.some_device(index)
        self.pm.trigger_event(device, kind, value, "note")
        self.model.events.append(model.Event(device, kind, value, self.us(), "note"))

    @rule(keep=days)
    def prune(self, keep: float) -> None:
        """Delete old readings."""
        assert self.pm.prune(keep) == self.model.prune(self.us() - round(keep * model.DAY))

    @precondition(lambda self: self.model.meters)
    @rule(index=st.integers(0, 5), bad=st.sampled_from(_BAD_NUMBERS), where=st.integers(0, 5))
    def misuse(self, index: int, bad: Any, where: int) -> None:
        """Give a bad value somewhere; it is refused and nothing is stored."""
        meter, pm = self.some_meter(index), self.pm
        calls: list[Callable[[], object]] = [
            lambda: pm.log_power(meter.id, bad, 1.0),
            lambda: pm.log_power(meter.id, 1.0, bad),
            lambda: pm.prune(bad if bad != 1e300 else -1),
            lambda: pm.add_meter(meter.device_id, "battery", bad if bad != 1e300 else -1),
            lambda: pm.log_power("no such meter", 1.0, 1.0),
            lambda: pm.get_history(meter.id, bad),
        ]
        _refused(calls[where])

    @rule()
    def back_up(self) -> None:
        """Back up; the copy has the same readings."""
        copy = self.path.with_name("copy.db")
        self.pm.backup(copy)
        with power_manager.PowerManager(copy) as copied:
            counts = [sum(1 for _ in copied.iter_history(meter)) for meter in self.model.meters]
            assert counts == [len(meter.kept) for meter in self.model.meters.values()]
            assert copied.check() == []

    @precondition(lambda self: self.model.meters)
    @rule(
        index=st.integers(0, 5),
        hours=st.sampled_from([0.0, 0.5, 1.0, 24.0, 1e4]),
        since=offsets,
        until=offsets,
    )
    def read_history(self, index: int, hours: float, since: float, until: float) -> None:
        """Compare both histories."""
        meter, after = self.some_meter(index), self.us() - round(hours * model.HOUR)
        kept = [row for _, row in sorted(meter.kept.items())]
        assert [_as_row(r) for r in self.pm.get_history(meter.id, hours)] == [
            row for row in kept if row[0] > after
        ]
        start, end = (max(0.0, self.now + offset) for offset in (since, until))
        got = [_as_row(r) for r in self.pm.iter_history(meter.id, since=start, until=end)]
        assert got == [row for row in kept if round(start * 1e6) <= row[0] < round(end * 1e6)]

    @precondition(lambda self: self.model.meters)
    @rule(index=st.integers(0, 5), span=days, size=st.sampled_from(["hour", "day"]))
    def read_statistics(self, index: int, span: float, size: str) -> None:
        """Compare statistics."""
        meter, after = self.some_meter(index), self.us() - round(span * model.DAY)
        expected = self.model.buckets(meter, {"hour": model.HOUR, "day": model.DAY}[size], after)
        got = {
            _us(row.start): row for row in self.pm.get_statistics(meter.id, days=span, bucket=size)
        }
        assert list(got) == list(expected)
        for start, row in expected.items():
            assert model.differences(row, got[start], meter.energy_known) == []

    @precondition(lambda self: self.model.devices)
    @rule(index=st.integers(0, 5), span=days)
    def read_report(self, index: int, span: float) -> None:
        """Compare a report."""
        device, after = self.some_device(index), self.us() - round(span * model.DAY)
        report = json.loads(self.pm.export_report(device, span))
        events = self.model.events_of(device, after)
        assert report["event_count"] == len(events)
        assert [(e["type"], _us(e["timestamp"])) for e in report["events"]] == [
            (e.kind, e.us) for e in events[:20]
        ]
        meters = self.model.of_device(device)
        assert [part["meter_id"] for part in report["meters"]] == [meter.id for meter in meters]
        for part, meter in zip(report["meters"], meters):
            expected = self._window(meter, after)
            if expected is None:
                assert part["reading_count"] == 0
            else:
                assert model.differences(expected, part, meter.energy_known) == []
                assert part["current_state"] == self.model.state(meter)

    def _window(self, meter: model.Meter, after: int) -> dict[str, float] | None:
        rows = self.model.window(meter, after)
        if not rows:
            return None
        before = [row for row in sorted(meter.counted) if row[0] < rows[0][0]]
        whole = self.model.has_whole_hours(meter, after)
        return self.model.statistics(rows, before[-1] if before and whole else None)

    @precondition(lambda self: self.model.devices)
    @rule()
    def read_budget(self) -> None:
        """Compare the budget of all devices and one unknown, and the runtime."""
        budget = self.pm.power_budget_check([*self.model.devices, "unknown"])
        assert list(budget.pop("unknown")) == ["error"]
        for id_, entry in budget.items():
            meters = self.model.of_device(id_)
            _close(entry["total_wattage"], sum(m.watts for m in meters))
            _close(
                entry["load_wattage"], sum(max(m.watts, 0.0) for m in meters if m.kind != "solar")
            )
            _close(entry["solar_wattage"], sum(m.watts for m in meters if m.kind == "solar"))
            assert entry["states"] == [self.model.state(m) for m in meters]
            runtime = self.model.runtime(
                [(m.capacity_wh, m.present[2], m.watts) for m in meters if m.kind == "battery"]
            )
            for got in (entry["estimated_runtime_hours"], self.pm.estimate_runtime(id_)):
                assert (got is None) == (runtime is None)
                assert (
                    got is None
                    or runtime is None
                    or abs(got - runtime) <= 0.005 + 1e-9 * abs(runtime)
                )
            if all(m.energy_known for m in meters):
                windows = [
                    self._window(m, self.us() - model.DAY) for m in meters if m.kind != "solar"
                ]
                _close(entry["energy_24h_wh"], sum(w["energy_out_wh"] for w in windows if w))

    @invariant()
    def present_and_events(self) -> None:
        """The present state of each meter and the events of each device are always right."""
        for id_, meter in self.model.meters.items():
            got = self.pm.get_meter(id_)
            assert (got.voltage, got.current_draw, got.charge_pct) == meter.present
            assert got.state == self.model.state(meter)
        numbered = self.pm.events_since(0, limit=10**6)
        assert [(e.device_id, e.type, e.value, _us(e.timestamp)) for _, e in numbered] == [
            (e.device_id, e.kind, e.value, e.us) for e in self.model.events
        ]
        assert [device.id for device in self.pm.list_devices()] == list(self.model.devices)


def _us(text: str) -> int:
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(
        microseconds=1
    )


def _as_row(reading: power_manager.PowerReading) -> model.Row:
    return _us(reading.timestamp), reading.voltage, reading.current_draw, reading.charge_pct


def _close(got: float, expected: float) -> None:
    assert abs(got - expected) <= 1e-4 + 1e-9 * abs(expected), (got, expected)


def _refused(call: Callable[[], object]) -> str:
    """The message with which the call is refused, as a mistake of the caller."""
    try:
        call()
    except (power_manager.InvalidValue, power_manager.NotFound) as exc:
        return str(exc)
    raise AssertionError("not refused")


# --- Command line

_COMMANDS = (
    *("register", "add-meter", "devices", "meters", "log", "import", "export", "stats"),
    *("events", "event", "budget", "report", "prune", "backup", "check"),
)
_WORDS = st.one_of(
    st.sampled_from(
        ["d", "d/m", "battery", "--json", "--days", "1", "-1", "nan", "1e400", "--limit", "--since"]
    ),
    st.sampled_from(
        [
            "2024-01-01T00:00:00Z",
            "now",
            "--bucket",
            "day",
            "--format",
            "ndjson",
            "--name",
            "--",
            "-",
        ]
    ),
    texts.filter(lambda text: "\0" not in text and "\ud800" not in text),
)
_CELLS = st.one_of(
    st.sampled_from(["", "1.5", "-2", "1e999", "nan", "x", '"', "99"]),
    st.sampled_from(["2024-01-01T00:00:00Z", "2024-01-01", "1700000000"]),
    st.text(max_size=8),
)
_LINES = st.lists(st.lists(_CELLS, max_size=6).map(",".join), max_size=12)
_CSV = _LINES.map(lambda lines: "\n".join(["timestamp,voltage,current,charge_pct", *lines]))
_OBJECTS = st.dictionaries(
    st.sampled_from(["timestamp", "voltage", "current", "charge_pct", "x"]),
    st.one_of(
        _CELLS,
        st.floats(),
        st.integers(),
        st.none(),
        st.booleans(),
        st.lists(st.none(), max_size=2),
    ),
)
_NDJSON = st.lists(_OBJECTS.map(json.dumps) | st.text(max_size=20), min_size=1, max_size=10).map(
    "\n".join
)
_FILES = st.one_of(
    _CSV.map(lambda text: text.encode("utf-8", "surrogatepass")),
    _NDJSON.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
    _CSV.map(lambda text: text.encode("utf-16")),
)


class CommandLine:
    """A database that random commands are tried on."""

    def __init__(self, place: Path, out: Findings) -> None:
        self.path, self.out = place / "p.db", out
        with power_manager.PowerManager(self.path) as pm:
            pm.register_device("d", "D")
            self.meter = pm.add_meter("d", "battery", name="m").id
            pm.log_power(self.meter, 3.7, 0.5, 50.0)

    def run(self, *words: str) -> int:
        """Run the command line in this process; its exit code."""
        self.out.counts["commands"] += 1
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                return power_manager.main(["--db", str(self.path), *words])
            except SystemExit as exc:
                return exc.code if isinstance(exc.code, int) else -1

    def count(self) -> int:
        """How many readings there are."""
        with power_manager.PowerManager(self.path) as pm:
            return sum(1 for _ in pm.iter_history(self.meter))

    def arguments(self, command: str, words: list[str]) -> None:
        """Random words after a command."""
        if command in (
            "backup",
            "import",
            "export",
        ):  # they name files, which random words must not
            words = [word for word in words if word.startswith("-") or word in ("d/m", "1")]
        code = self.run(command, *words)
        assert code in (0, 1, 2), (command, words, code)

    def importing(self, data: bytes, skip_bad: bool) -> None:
        """A file of anything."""
        file, before = self.path.with_name("file"), self.count()
        file.write_bytes(data)
        code = self.run("import", "d/m", str(file), *(["--skip-bad"] if skip_bad else []))
        assert code in (0, 1), code
        assert code == 0 or self.count() == before, "stored although it failed"

    def from_pipe(self, data: bytes) -> None:
        """The same through a real process and its standard input."""
        before = self.count()
        command: list[str | Path] = [
            sys.executable,
            CHECKOUT / "power_manager.py",
            "--db",
            self.path,
            "import",
            "d/m",
        ]
        done = subprocess.run(command, input=data, capture_output=True)
        self.out.counts["commands"] += 1
        assert done.returncode in (0, 1), done.returncode
        assert b"Traceback" not in done.stderr, done.stderr[-400:]
        assert done.returncode == 0 or self.count() == before, "stored although it failed"


def _settings(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )


def _attempt(name: str, test: Callable[[], object], out: Findings) -> None:
    """Run one Hypothesis test; it prints its smallest failing example by itself."""
    try:
        test()
    except Exception as exc:  # noqa: BLE001  # whatever was not expected is the finding
        notes = "\n    ".join(getattr(exc, "__notes__", []))
        out.fail(f"{name}: {type(exc).__name__}", f"{str(exc)[:600]}\n    {notes}")


def _round(number: str, place: Path, out: Findings, examples: int) -> None:
    """Each test once, with its own seed."""
    seed = hypothesis.seed(number)
    Methods.totals = out
    machine = seed(type("Methods", (Methods,), {}))
    _attempt(
        "methods", lambda: run_state_machine_as_test(machine, settings=_settings(examples)), out
    )
    line = CommandLine(place, out)
    words = hypothesis.given(st.sampled_from(_COMMANDS), st.lists(_WORDS, max_size=5))(
        line.arguments
    )
    _attempt("arguments", seed(_settings(examples * 2)(words)), out)
    files = hypothesis.given(_FILES, st.booleans())(line.importing)
    _attempt("import", seed(_settings(examples * 4)(files)), out)
    pipes = hypothesis.given(_FILES)(line.from_pipe)
    _attempt("import from a pipe", seed(_settings(max(2, examples // 8))(pipes)), out)
    out.whole(line.path, "the command line")


def main() -> int:
    """Fuzz until the time is over."""
    args, out = parse(__doc__, seconds=10.0), Findings(__file__)
    deadline, rounds, here = Deadline(args.seconds), 0, Path.cwd()
    while (rounds == 0 or not deadline.over()) and not out.failures:
        with scratch() as place:
            os.chdir(
                place
            )  # random words name files: `export --output -1` made one in the caller's directory
            try:
                _round(f"{args.seed}/{rounds}", place, out, 20)
            finally:
                os.chdir(here)
        rounds += 1
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
