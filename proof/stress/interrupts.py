"""Interrupt every public call at every function entry and return, and look at what is left.

A Ctrl-C, a time limit or a handler that ends the program may stop a call between any two of its
steps. Three kinds are tried, each on a fresh copy of one small database:

- emulated: an exception at one function entry, function return or return of a C function after
  the other, of every public call, alone and inside transaction() and connection(), in the main
  thread and in another one, the exception kept alive and dropped;
- by signal: the same calls under a real SIGALRM at a random moment whose handler raises
  KeyboardInterrupt;
- from handlers: handlers of real signals that themselves call log_power() or trigger_event(), or
  end the program.

After each, another process, another thread and this thread must be able to write at once; a
second PowerManager must see what every returned call has stored; the interrupted call must be
there as a whole or not at all; no reader may be left behind; and check() must find nothing. Three
planted faults must be found.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import functools
import gc
import itertools
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import workloads
from common import Deadline, Findings, parse, scratch

import power_manager

_NOW = 1_750_000_000.0  # epoch seconds, the time of every trial
_DAY = 86400.0
_CHUNK_AND_MORE = 10_050  # rows of a log_many that needs a second chunk
_SELDOM = 20  # turns in which a call that takes long has one
_MANY_PLACES = 2_000  # a call with more places than that is tried at so many of them
_JOIN_SECONDS = 10.0  # after which a thread counts as one that waits for ever
_TRIAL_SECONDS = 120.0  # after which this program ends itself and shows where it stands
_FILE = "p.db"
_WRITERS = {"own": "this thread", "thread": "another thread", "process": "another process"}

Content = dict[str, object]
Problems = list[tuple[str, str]]  # what kind of thing is wrong, and its details


class Interrupted(KeyboardInterrupt):
    """What is raised in the middle of a call."""


class RolledBack(Exception):
    """Leaves a transaction on purpose."""


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = _NOW

    def __call__(self) -> float:
        """Now, in epoch seconds."""
        return self.now


# --- The database of a trial


def _make_template(directory: Path) -> None:
    """Write what every trial begins with: a database, an older backup, a first release's file."""
    clock = Clock()
    with power_manager.PowerManager(directory / _FILE, clock=clock) as pm:
        pm.register_device("d", "Device", target_wh=100.0)
        pm.register_device("e", "Other device")
        pm.register_device("after", "What is written after an interrupt")
        pack = pm.add_meter("d", "battery", 50.0, "pack")
        pm.add_meter("d", "main", name="mains")
        panel = pm.add_meter("d", "solar", name="panel")
        pm.add_meter("e", "battery", 10.0, "other")
        for name in ("own", "thread", "process"):
            pm.add_meter("after", "main", name=name)
        rows: list[tuple[str, float, float, float | None, float]] = []
        for number in range(75):
            at = _NOW - 2 * _DAY + number * 2300
            rows.append((pack.id, 12.0, 0.5 + number / 100, 90.0 - number / 3, at))
            rows.append((panel.id, 18.0, number % 7 / 10, None, at + 1))
        pm.log_many(rows)
        pm.trigger_event("d", "restore", 1.0, "by hand")
        pm.prune(1.5)
        pm.backup(directory / "backup.db")
        pm.acknowledge(pm.pending_readings(40))
        pm.log_power(pack.id, 11.0, 1.0, 50.0, timestamp=_NOW - 1000)
        pm.log_power(panel.id, 17.0, None, timestamp=_NOW - 40_000)
        pm.event_follower("follower", from_start=True).acknowledge(1)
    workloads.first_release(directory / "first.db")


class Bench:
    """A copy of the template, a PowerManager on it, and the ids of its meters."""

    def __init__(self, template: Path, directory: Path) -> None:
        workloads.clear(directory)
        for path in template.iterdir():
            shutil.copyfile(path, directory / path.name)
        self.directory = directory
        self.path = directory / _FILE
        self.clock = Clock()
        self.pm = power_manager.PowerManager(self.path, clock=self.clock)
        self.ids = {str(meter.name): meter.id for meter in self.pm.list_meters()}
        self.pack = self.ids["pack"]

    def close(self) -> None:
        """Close the file."""
        self.pm.close()


def _lasting_fields(kind: Any) -> Callable[[object], object]:
    """What gets the fields of a kind of record, but for those that are random."""
    names = [field.name for field in dataclasses.fields(kind)]
    return attrgetter(*(name for name in names if name not in ("id", "meter_id")))


_LASTING_FIELDS: dict[type[object], Callable[[object], object]] = {
    kind: _lasting_fields(kind)
    for kind in (
        power_manager.EnergyTotals,
        power_manager.PowerEvent,
        power_manager.PowerMeter,
        power_manager.PowerReading,
        power_manager.PowerStatistics,
    )
}


def _without_ids(record: object) -> object:
    """A record's fields, but for those that are random."""
    return _LASTING_FIELDS[type(record)](record)


def _content(pm: power_manager.PowerManager) -> Content:
    """All that the library tells of a file, but for random ids and the device "after"."""
    found: Content = {}
    devices = [device for device in pm.list_devices() if device.id != "after"]
    for device in devices:
        found[f"device {device.id}"] = dataclasses.astuple(device)
        found[f"events of {device.id}"] = [
            _without_ids(event) for event in pm.get_events(device.id, 10**6)
        ]
        for meter in pm.list_meters(device.id):
            of = f"{device.id}/{meter.name}"
            found[f"state of {of}"] = _without_ids(meter)
            found[f"readings of {of}"] = [_without_ids(r) for r in pm.iter_history(meter.id)]
            found[f"statistics of {of}"] = [
                _without_ids(row) for row in pm.get_statistics(meter.id, days=1000)
            ]
            found[f"energy of {of}"] = _without_ids(pm.energy_totals(meter.id))
    after = {meter.id for meter in pm.list_meters("after")}
    waiting = [r for r in pm.pending_readings(10**6) if r.meter_id not in after]
    found["waiting readings"] = sorted(map(str, map(_without_ids, waiting)))
    found["waiting deletions"] = [
        (deletion.device_id, deletion.since, deletion.until, deletion.kind)
        for deletion in pm.pending_deletions()
    ]
    found["cursor"] = pm.event_follower("follower").cursor
    return found


# --- The calls


@dataclasses.dataclass(frozen=True)
class Call:
    """A public call, or a group of them that is one transaction.

    takes_long: it is tried less often. partly: it commits in parts, so only what it never changes
    is compared. ends: it closes the object. others: what else may be left than the state before
    and the one after, each as the call that leads there.
    """

    name: str
    run: Callable[[Bench], object]
    takes_long: bool = False
    partly: bool = False
    ends: bool = False
    others: tuple[Callable[[Bench], object], ...] = ()


def _log_many_generated(bench: Bench, count: int) -> None:
    def rows() -> Iterator[tuple[str, float, float, float]]:
        for number in range(count):
            yield bench.pack, 12.0, 1.0 + number / 1000, 80.0

    bench.pm.log_many(rows())


def _log_many_with_calls(bench: Bench) -> None:
    """Call the library while its rows are pulled, before and after the first chunk is full."""

    def rows() -> Iterator[tuple[str, float, float]]:
        for number in range(_CHUNK_AND_MORE):
            if number == _CHUNK_AND_MORE - 5:
                bench.pm.log_power(bench.ids["mains"], 230.0, 1.0)
            yield bench.pack, 12.0, 1.0

    bench.pm.log_many(rows())


def _log_late_backlog(bench: Bench) -> None:
    """Readings in no order, some of them there already, of hours that are open."""
    order = random.Random(7).sample(range(40), 40)
    start = _NOW - 50_000
    bench.pm.log_many((bench.pack, 11.0, n / 10, None, start + n * 600) for n in order)


def _transaction(bench: Bench) -> None:
    with bench.pm.transaction():
        bench.pm.log_power(bench.pack, 12.0, 1.0, 4.0)
        bench.pm.trigger_event("d", "shutdown")
        bench.pm.get_history(bench.pack)
        bench.pm.log_many([(bench.ids["panel"], 18.0, -1.0)])


def _nested(bench: Bench) -> None:
    with bench.pm.transaction():
        bench.pm.log_power(bench.pack, 12.0, 1.0)
        with bench.pm.transaction():
            bench.pm.trigger_event("e", "restore")
            with bench.pm.transaction():
                bench.pm.log_power(bench.ids["other"], 3.0, 1.0, 3.0)


def _nested_and_rolled_back(bench: Bench) -> None:
    with bench.pm.transaction():
        bench.pm.log_power(bench.pack, 12.0, 1.0)
        with contextlib.suppress(RolledBack), bench.pm.transaction():
            bench.pm.log_power(bench.ids["other"], 3.0, 1.0, 3.0)
            raise RolledBack
        bench.pm.trigger_event("e", "restore")


def _rolled_back(bench: Bench) -> None:
    with contextlib.suppress(RolledBack), bench.pm.transaction():
        bench.pm.log_power(bench.pack, 12.0, 1.0)
        bench.pm.delete_meter(bench.ids["panel"])
        raise RolledBack


def _refused_inside(bench: Bench) -> None:
    """A call that is refused takes back itself alone."""
    with bench.pm.transaction():
        bench.pm.log_power(bench.pack, 12.0, 1.0)
        with contextlib.suppress(power_manager.NotFound):
            bench.pm.log_many([(bench.pack, 1.0, 1.0), ("no such meter", 1.0, 1.0)])


def _connection(bench: Bench) -> None:
    with bench.pm.connection() as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS other_rows (value)")
        conn.execute("INSERT INTO other_rows VALUES (1)")
        bench.pm.log_power(bench.pack, 12.0, 1.0)
        with bench.pm.connection() as inner:
            inner.execute("SELECT count(*) FROM other_rows").fetchall()


def _go_on(bench: Bench, inner: bool = True) -> None:
    """Catch the interrupt of one call inside a transaction, and go on with it."""
    with bench.pm.transaction():
        bench.pm.log_power(bench.pack, 12.0, 1.0)
        if inner:
            with contextlib.suppress(Interrupted):
                bench.pm.log_power(bench.ids["mains"], 230.0, 2.0)
        bench.pm.trigger_event("d", "restore")


def _iterate(bench: Bench) -> None:
    for _ in bench.pm.iter_history(bench.pack):
        pass


def _open_again(bench: Bench, name: str) -> None:
    power_manager.PowerManager(bench.directory / name, clock=bench.clock).close()


def _follow(bench: Bench) -> None:
    follower = bench.pm.event_follower("follower")
    for sequence, _ in follower.pending():
        follower.acknowledge(sequence)
        break


def _follow_anew(bench: Bench) -> None:
    bench.pm.event_follower("another", from_start=True).pending()


def _plain_calls() -> list[Call]:
    """The calls that one expression makes."""
    late = _NOW - 30_000.0
    calls: dict[str, Callable[[Bench], object]] = {
        # Reading.
        "get_device": lambda b: b.pm.get_device("d"),
        "list_devices": lambda b: b.pm.list_devices(),
        "get_meter": lambda b: b.pm.get_meter(b.pack),
        "list_meters": lambda b: b.pm.list_meters("d"),
        "calculate_wattage": lambda b: b.pm.calculate_wattage(b.pack),
        "get_history": lambda b: b.pm.get_history(b.pack, 48),
        "iter_history": _iterate,
        "pending_readings": lambda b: b.pm.pending_readings(50),
        "pending_deletions": lambda b: b.pm.pending_deletions(),
        "estimate_runtime": lambda b: b.pm.estimate_runtime("d", window_minutes=60),
        "get_events": lambda b: b.pm.get_events("d"),
        "events_since": lambda b: b.pm.events_since(0),
        "last_sequence": lambda b: b.pm.last_sequence(),
        "data_version": lambda b: b.pm.data_version(),
        "energy_totals": lambda b: b.pm.energy_totals(b.pack),
        "get_statistics": lambda b: b.pm.get_statistics(b.pack, bucket="day"),
        "power_budget_check": lambda b: b.pm.power_budget_check(["d", "e", "unknown"]),
        "export_report": lambda b: b.pm.export_report("d"),
        "check": lambda b: b.pm.check(),
        # Writing.
        "register_device": lambda b: b.pm.register_device("new", "New device"),
        "register_device, known": lambda b: b.pm.register_device("d", "Renamed", 2.0),
        "update_device": lambda b: b.pm.update_device("d", target_wh=7.0),
        "add_meter": lambda b: b.pm.add_meter("e", "ups", 20.0, "added"),
        "update_meter": lambda b: b.pm.update_meter(b.pack, name="pack 2", active=False),
        "log_power": lambda b: b.pm.log_power(b.pack, 12.0, 1.0, 80.0),
        "log_power, alert": lambda b: b.pm.log_power(b.pack, 11.0, 1.0, 4.0),
        "log_power, unknown": lambda b: b.pm.log_power(b.pack, None, None, 70.0),
        "log_power, late": lambda b: b.pm.log_power(b.pack, 12.0, 1.0, timestamp=late),
        "log_power, live at a time": lambda b: b.pm.log_power(
            b.pack, 12.0, 1.0, timestamp=late, live=True
        ),
        "log_power, of a closed hour": lambda b: b.pm.log_power(
            b.pack, 12.0, 1.0, timestamp=_NOW - 1.9 * _DAY, live=True
        ),
        "log_many, list": lambda b: b.pm.log_many([(b.pack, 12.0, 1.0), (b.ids["mains"], 230, 1)]),
        "log_many, generator": lambda b: _log_many_generated(b, 30),
        "log_many, late": _log_late_backlog,
        "trigger_event": lambda b: b.pm.trigger_event("d", "shutdown", 1.0, "note"),
        "acknowledge": lambda b: b.pm.acknowledge(b.pm.pending_readings(60)),
        "follower": _follow,
        "follower, new": _follow_anew,
        "delete_readings": lambda b: b.pm.delete_readings(b.pack, since=_NOW - 20_000),
        "delete_meter": lambda b: b.pm.delete_meter(b.pack),
        "delete_device": lambda b: b.pm.delete_device("d"),
        "restore": lambda b: b.pm.restore(b.directory / "backup.db"),
        "backup": lambda b: b.pm.backup(b.directory / "copy.db"),
        # Several calls in one transaction.
        "transaction": _transaction,
        "transaction, nested": _nested,
        "transaction, nested and rolled back": _nested_and_rolled_back,
        "transaction, rolled back": _rolled_back,
        "transaction, a call refused": _refused_inside,
        "connection": _connection,
        # Opening.
        "open": lambda b: _open_again(b, _FILE),
        "open, a new file": lambda b: _open_again(b, "new.db"),
        "open, of the first release": lambda b: _open_again(b, "first.db"),
    }
    return [Call(name, run) for name, run in calls.items()]


CALLS = (
    *_plain_calls(),
    Call("transaction, going on", _go_on, others=(functools.partial(_go_on, inner=False),)),
    Call(
        "log_many, more than a chunk",
        lambda bench: _log_many_generated(bench, _CHUNK_AND_MORE),
        takes_long=True,
    ),
    Call("log_many, calls inside", _log_many_with_calls, takes_long=True),
    Call("prune", lambda bench: bench.pm.prune(0.3), partly=True),
    Call("close", lambda bench: bench.pm.close(), ends=True),
)


# --- Interrupting


class Places:
    """A profile function that counts the places of a call, and raises at one of them."""

    def __init__(self, chosen: int = 0) -> None:
        self.chosen = chosen
        self.count = 0
        self.where = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Take one event of the interpreter: an entry, a return, or the return of a C function."""
        if event not in ("call", "return", "c_return"):
            return
        self.count += 1
        if self.count != self.chosen:
            return
        sys.setprofile(None)
        inside = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
        what = getattr(argument, "__name__", "") if event == "c_return" else ""
        self.where = f"{event} {what} in {inside}"
        del argument, frame  # a kept exception would keep them: a method with its cursor, a frame
        raise Interrupted

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """Watch what this thread does inside."""
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)


class Alarm:
    """A real SIGALRM after some time, whose handler raises; for the main thread."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.where = f"SIGALRM after {seconds * 1e6:.0f} us"
        self._armed = False

    def _handle(self, _: int, frame: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            if frame is not None:
                self.where += f" in {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            raise Interrupted

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """Set the alarm for what is done inside."""
        signal.signal(signal.SIGALRM, self._handle)
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        try:
            yield
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)


class OtherProcess:
    """A process that writes to the database when it is asked to; it says whether it could."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, "--other-process"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def write(self, path: Path, meter_id: str, number: int) -> str:
        """Let it log a reading of so many volts; what went wrong, or nothing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        task = {"path": str(path), "meter_id": meter_id, "number": number}
        print(json.dumps(task), file=self._process.stdin, flush=True)
        return str(json.loads(self._process.stdout.readline()))

    def stop(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _serve() -> int:
    """Be the other process."""
    power_manager.BUSY_TIMEOUT = 0.2
    for line in sys.stdin:
        task = json.loads(line)
        problem = ""
        try:
            with power_manager.PowerManager(task["path"], clock=Clock()) as pm:
                pm.log_power(task["meter_id"], task["number"], 1.0)
            with contextlib.closing(sqlite3.connect(task["path"], timeout=0)) as conn:
                busy, *_ = conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if busy:
                    problem = "a reader or a writer is left behind: the log cannot be emptied"
        except power_manager.PowerManagerError as exc:
            problem = str(exc)
        print(json.dumps(problem), flush=True)
    return 0


# --- One trial


class Judge:
    """Makes trials in a directory, and says what was wrong after each."""

    def __init__(self, place: Path, other: OtherProcess) -> None:
        self._template = place / "template"
        self._directory = place / "trial"
        self._other = other
        workloads.clear(self._template)
        _make_template(self._template)
        self._outcomes: dict[str, list[Content]] = {}
        self.places: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.left_files = 0
        self.swallowed = (
            0  # interrupts that came where Python lets none out: in the collector's callbacks
        )
        sys.unraisablehook = self._count_swallowed

    def _count_swallowed(self, unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, Interrupted):
            self.swallowed += 1
        else:
            sys.__unraisablehook__(unraisable)

    def measure(self, call: Call) -> None:
        """Run a call uninterrupted: what it leaves, its number of places, how long it takes."""
        contents = []
        for run in (None, call.run, *call.others):
            bench = Bench(self._template, self._directory)
            places = Places()
            if run is not None:
                begin = time.perf_counter()
                run(bench)
                self.seconds.setdefault(call.name, time.perf_counter() - begin)
            bench.close()
            with power_manager.PowerManager(bench.path, clock=Clock()) as pm:
                contents.append(_content(pm))
        bench = Bench(self._template, self._directory)
        places = Places()
        with places.armed():
            call.run(bench)
        bench.close()
        self._outcomes[call.name] = contents
        self.places[call.name] = places.count

    def trial(self, call: Call, interrupt: Places | Alarm, keep: bool, in_thread: bool) -> Problems:
        """Interrupt a call on a fresh database; return what is wrong afterwards."""
        faulthandler.dump_traceback_later(_TRIAL_SECONDS, exit=True)
        wrong: Problems = []
        work = functools.partial(self._attempt, call, interrupt, keep, wrong)
        if in_thread:
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            thread.join(_TRIAL_SECONDS / 2)
            if thread.is_alive():
                wrong.append(("the interrupted thread waits for ever", ""))
        else:
            work()
        faulthandler.cancel_dump_traceback_later()
        return wrong

    def _attempt(self, call: Call, interrupt: Places | Alarm, keep: bool, wrong: Problems) -> None:
        bench = Bench(self._template, self._directory)
        kept: list[BaseException] = []
        returned = False
        try:
            with interrupt.armed():
                call.run(bench)
                returned = True
        except Interrupted as exc:
            if keep:
                kept.append(exc)
        except Exception as exc:  # noqa: BLE001  # what an interrupt turns into is what is looked for
            wrong.append((f"the interrupt came out as {type(exc).__name__}", str(exc)))
        posts = self._write_afterwards(bench, call, wrong)
        self._look(bench, call, returned, posts, wrong)
        if kept:
            kept.clear()
            gc.collect()
            self._look(bench, call, returned, posts, wrong)
        try:
            bench.close()
        except power_manager.PowerManagerError as exc:
            wrong.append(("close() fails", str(exc)))
        known = {path.name for path in self._template.iterdir()}
        known |= {"copy.db", "new.db"}
        left = [path.name for path in self._directory.iterdir() if path.name not in known]
        self.left_files += bool(left)

    def _write_afterwards(self, bench: Bench, call: Call, wrong: Problems) -> dict[str, int]:
        """Let another process, another thread and this one write; the confirmed volts by meter."""
        confirmed: dict[str, int] = {}
        problem = self._other.write(bench.path, bench.ids["process"], 1)
        if problem:
            wrong.append(("another process cannot write", problem))
        else:
            confirmed["process"] = 1

        def write(name: str) -> None:
            try:
                bench.pm.log_power(bench.ids[name], 1.0, 1.0)
            except power_manager.StorageError as exc:
                if not (call.ends and "closed" in str(exc)):
                    wrong.append((f"{_WRITERS[name]} cannot write", str(exc)))
            except Exception as exc:  # noqa: BLE001  # whatever it is, it could not write
                wrong.append((f"{_WRITERS[name]} cannot write", repr(exc)))
            else:
                confirmed[name] = 1

        thread = threading.Thread(target=write, args=("thread",), daemon=True)
        thread.start()
        thread.join(_JOIN_SECONDS)
        if thread.is_alive():
            wrong.append(("another thread waits for ever", ""))
        write("own")
        return confirmed

    def _look(
        self, bench: Bench, call: Call, returned: bool, posts: dict[str, int], wrong: Problems
    ) -> None:
        """Compare what a second PowerManager sees with what may be there."""
        try:
            with power_manager.PowerManager(bench.path, clock=bench.clock) as pm:
                wrong += [("check()", problem) for problem in pm.check()]
                for name, volts in posts.items():
                    newest = [reading.voltage for reading in pm.iter_history(bench.ids[name])]
                    if newest[-1:] != [float(volts)]:
                        wrong.append(
                            (f"what {_WRITERS[name]} has written is gone", str(newest[-2:]))
                        )
                found = _content(pm)
        except power_manager.PowerManagerError as exc:
            wrong.append(("the file cannot be read", str(exc)))
            return
        before, after, *others = self._outcomes[call.name]
        allowed = [after, *others] if returned else [before, after, *others]
        if call.partly:
            allowed = [_never_pruned(content) for content in allowed]
            found = _never_pruned(found)
        if found not in allowed:
            nearest = min((_differences(found, content) for content in allowed), key=len)
            how = "returned" if returned else "interrupted"
            wrong.append((f"{how}, but neither undone nor done", "; ".join(nearest)[:300]))


def _never_pruned(content: Content) -> Content:
    """The parts that prune() does not change."""
    return {
        name: value
        for name, value in content.items()
        if not name.startswith(("readings of", "waiting"))
    }


def _differences(found: Content, expected: Content) -> list[str]:
    """The parts in which two contents differ."""
    names = {**found, **expected}
    return [name for name in names if found.get(name) != expected.get(name)]


# --- Planted faults: wrongs of a kind that a change to the library could bring


class _NeverRolledBack(sqlite3.Connection):
    """A connection that leaves its transaction open where it should be rolled back."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return super().execute("SELECT 1" if sql == "ROLLBACK" else sql, *values)

    def rollback(self) -> None:
        """Do nothing."""


class _NeverCommitted(sqlite3.Connection):
    """A connection whose every third COMMIT says that it is done, and is not."""

    commits = 0

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql == "COMMIT":
            _NeverCommitted.commits += 1
            if _NeverCommitted.commits % 3 == 0:
                sql = "ROLLBACK"
        return super().execute(sql, *values)


PLANTED: dict[str, type[sqlite3.Connection]] = {
    "no rollback": _NeverRolledBack,
    "split": workloads.SplitConnection,
    "no commit": _NeverCommitted,
}


@contextlib.contextmanager
def _planted(factory: type[sqlite3.Connection]) -> Iterator[None]:
    """Let the library's connections be of that kind."""
    connect = sqlite3.connect
    sqlite3.connect = functools.partial(connect, factory=factory)  # type: ignore[assignment]
    try:
        yield
    finally:
        sqlite3.connect = connect


def _find_planted(judge: Judge, out: Findings, rng: random.Random) -> None:
    """Interrupt log_power with each planted fault until it is found."""
    call = next(call for call in CALLS if call.name == "log_power, alert")
    judge.measure(call)
    for name, factory in PLANTED.items():
        found: Problems = []
        for _ in range(200):
            with _planted(factory):
                chosen = rng.randint(1, judge.places[call.name])
                found = judge.trial(call, Places(chosen), keep=False, in_thread=False)
            if found:
                print(f"planted: {name:12} found: {': '.join(found[0])[:90]}")
                out.counts["planted faults found"] += 1
                break
        out.expect(bool(found), "a planted fault is not found", name)


# --- The three kinds of interrupts


class Way(NamedTuple):
    """One way to interrupt a call."""

    call: Call
    place: int
    keep: bool  # whether the exception is kept alive
    in_thread: bool  # whether the call is made in another thread


def _in_turn(by_call: list[list[Way]]) -> Iterator[Way]:
    """The ways to interrupt calls, call by call; those that take long come less often."""
    turn = 0
    while any(by_call):
        for ways in by_call:
            if ways and (turn % _SELDOM == 0 or not ways[-1].call.takes_long):
                yield ways.pop()
        turn += 1


def _emulated(
    judge: Judge, calls: list[Call], out: Findings, rng: random.Random, deadline: Deadline
) -> None:
    """Interrupt at every place, in random order, until the time is over."""
    by_call: list[list[Way]] = []
    for call in calls:
        count = judge.places[call.name]
        places = list(range(1, count + 1))
        if count > _MANY_PLACES:
            middle = rng.sample(places, _MANY_PLACES // 2)
            quarter = _MANY_PLACES // 4
            places = sorted({*places[:quarter], *places[-quarter:], *middle})
        either = [False, True]
        ways = [Way(*way) for way in itertools.product([call], places, either, either)]
        rng.shuffle(ways)
        by_call.append(ways)
    number_of_all = sum(map(len, by_call))
    done = 0
    for call, place, keep, in_thread in _in_turn(by_call):
        if done > 0 and deadline.over():
            break
        interrupt = Places(place)
        for kind, detail in judge.trial(call, interrupt, keep, in_thread):
            how = f"{'kept' if keep else 'dropped'}, {'another' if in_thread else 'main'} thread"
            where = f"place {place}, {interrupt.where}, {how}"
            out.fail(f"{call.name}: {kind}", f"{where}: {detail}")
        done += 1
    out.counts["emulated interrupts"] += done
    places_of_all = sum(judge.places[call.name] for call in calls)
    out.notes.append(
        f"emulated: {done:,} of {number_of_all:,} trials, "
        f"{len(calls)} calls with {places_of_all:,} places"
    )


def _signals(
    judge: Judge, calls: list[Call], out: Findings, rng: random.Random, deadline: Deadline
) -> None:
    """Interrupt by SIGALRM at random moments until the time is over."""
    while not deadline.over():
        call = rng.choice(calls)
        alarm = Alarm(max(1e-6, rng.uniform(0, 1.1) * judge.seconds[call.name]))
        keep = rng.random() < 0.5
        for kind, detail in judge.trial(call, alarm, keep, in_thread=False):
            out.fail(f"{call.name}, signal: {kind}", f"{alarm.where}: {detail}")
        out.counts["signals"] += 1


class HandlerRun:
    """A program that logs readings while signals come whose handler calls the library too."""

    def __init__(self, path: Path, kind: str, rng: random.Random) -> None:
        self.kind = kind
        self._rng = rng
        self.pm = power_manager.PowerManager(path)
        self.pm.register_device("a", "A")
        self.main = self.pm.add_meter("a", "battery", 50.0, "main flow").id
        self.same = self.main if kind == "log_power, same meter" else ""
        self.meter = self.same or self.pm.add_meter("a", "battery", 50.0, "handler").id
        self.in_transaction = False  # a call that returns then is as lasting as that transaction
        self.returned = 0
        self.joined = 0
        self.refused = 0
        self.problems: Problems = []

    def handle(self, *_: object) -> None:
        """Call the library from a signal's handler."""
        try:
            if self.kind.startswith("log_power"):
                self.pm.log_power(self.meter, 9.0, 1.0, 40.0)
            else:
                self.pm.trigger_event("a", "shutdown")
            if self.in_transaction:
                self.joined += 1
            else:
                self.returned += 1
        except power_manager.StorageError as exc:
            self.problems.append(("refused, but not by name", str(exc)))
        except power_manager.PowerManagerError:
            self.refused += 1
        if self.kind == "trigger_event, exit":
            raise SystemExit(0)
        self._set_alarm()

    def _set_alarm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, self._rng.uniform(1e-4, 2e-3))

    def run(self, deadline: Deadline) -> int:
        """Log until the time is over or a handler ends the program; the number confirmed."""
        signal.signal(signal.SIGALRM, self.handle)
        self._set_alarm()
        confirmed = 0
        try:
            while not deadline.over():
                if confirmed % 7 == 6:
                    self.in_transaction = True
                    with self.pm.transaction():
                        self.pm.log_power(self.main, 1.0, 1.0, 50.0)
                        self.pm.log_power(self.main, 1.0, 1.0, 50.0)
                    confirmed += 2
                    self.in_transaction = False
                else:
                    self.pm.log_power(self.main, 1.0, 1.0, 50.0)
                    confirmed += 1
        except SystemExit:
            pass
        except Exception as exc:  # noqa: BLE001  # a handler's call must not disturb the main flow
            self.problems.append(("the main flow fails", repr(exc)))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
        return confirmed


HANDLERS = (
    "log_power, same meter",
    "log_power, another meter",
    "trigger_event",
    "trigger_event, exit",
)


def _handlers(place: Path, out: Findings, rng: random.Random, deadline: Deadline) -> None:
    """Let handlers call the library, one program after the other."""
    number = 0
    while number < len(HANDLERS) or not deadline.over():
        kind = HANDLERS[number % len(HANDLERS)]
        path = place / f"handler-{number}.db"
        run = HandlerRun(path, kind, rng)
        confirmed = run.run(Deadline(0.3))
        _judge_handler(run, path, confirmed, out)
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        number += 1
    out.counts["programs with handlers"] += number


def _judge_handler(run: HandlerRun, path: Path, confirmed: int, out: Findings) -> None:
    """Compare what is in the file with what returned, in the main flow and in the handler."""
    for kind, detail in run.problems:
        out.fail(f"handler, {run.kind}: {kind}", detail)
    ends = run.kind == "trigger_event, exit"
    out.counts["handler calls that returned"] += run.returned + run.joined
    out.counts["handler calls that were refused"] += run.refused
    with power_manager.PowerManager(path) as pm:
        problems = pm.check()
        out.expect(not problems, f"handler, {run.kind}: check()", problems)
        volts = [
            reading.voltage for meter in pm.list_meters() for reading in pm.iter_history(meter.id)
        ]
        events = [event for event in pm.get_events("a", 10**6) if event.type == "shutdown"]
        by_handler = len(events) if run.kind.startswith("trigger_event") else volts.count(9.0)
        most = run.returned + run.joined
        least = run.returned if ends else most
        detail = f"{by_handler} of {run.returned} and {run.joined} in a transaction"
        out.expect(least <= by_handler <= most, f"handler, {run.kind}: its calls", detail)
        # The call that a handler's exit interrupts may be there or not: one reading, or a
        # transaction of two.
        surplus = volts.count(1.0) - confirmed
        detail = f"{volts.count(1.0)}, {confirmed} confirmed"
        fits = 0 <= surplus <= (2 if ends else 0)
        out.expect(fits, f"handler, {run.kind}: readings of the main flow", detail)
    try:
        run.pm.log_power(run.main, 1.0, 1.0)
        run.pm.close()
    except power_manager.PowerManagerError as exc:
        out.fail(f"handler, {run.kind}: nothing works afterwards", exc)


def main() -> int:
    """Interrupt in all three ways until the time is over."""
    parser = argparse.ArgumentParser()
    names = [call.name for call in CALLS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CALL")
    parser.add_argument("--other-process", action="store_true", help=argparse.SUPPRESS)
    args = parse(__doc__, parser, seconds=12.0)
    out = Findings(__file__)
    if args.other_process:
        return _serve()
    power_manager.BUSY_TIMEOUT = 1.0
    rng = random.Random(args.seed)
    calls = [call for call in CALLS if call.name in args.only]
    other = OtherProcess()
    try:
        with scratch() as place:
            judge = Judge(place, other)
            _find_planted(judge, out, rng)
            for call in calls:
                judge.measure(call)
            _emulated(judge, calls, out, rng, Deadline(args.seconds * 0.6))
            _signals(judge, calls, out, rng, Deadline(args.seconds * 0.2))
            _handlers(place, out, rng, Deadline(args.seconds * 0.2))
            out.notes.append(f"trials that left temporary files: {judge.left_files}")
            out.notes.append(f"interrupts that Python swallowed in a callback: {judge.swallowed}")
    finally:
        other.stop()
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
