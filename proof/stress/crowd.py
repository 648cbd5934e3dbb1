"""Let many processes and threads write, prune, back up, send and report on one database at once.

Each process has one PowerManager that its threads share: two that log single readings, one that
logs batches, one that groups calls in transactions. Other processes prune, back up (every copy is
checked), report, and take what waits to be sent. Their clocks go an hour a second, so that prune
finds whole hours. All the while one reader stays open in this process: an iteration that has met
a first part only, and a second connection in a read transaction. No call may fail, no
acknowledged reading may come again, check() must find nothing at any time, and in the end each
meter must hold an unbroken run until the last confirmed reading, counted whole in its statistics.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from common import Deadline, Findings, number_of, parse, scratch

import power_manager

_SPEED = 3600.0  # seconds of the clock in one real second
_KEEP_DAYS = 1 / 24
_BATCH = 200
_ROLES = ("pruner", "backups", "reports", "sender")


def fast_clock(origin: float) -> Callable[[], float]:
    """A clock that showed the real time at that time, and has gone fast since."""
    return lambda: origin + (time.time() - origin) * _SPEED


class Worker:
    """One process of the crowd: threads around one PowerManager, until the time is over."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.path: Path = args.path
        self.name: str = args.name
        self.seed = f"{args.seed}/{args.name}"
        self.deadline = Deadline(args.seconds)
        self.pm = power_manager.PowerManager(self.path, clock=fast_clock(args.origin))
        self.errors: list[str] = []
        self.counts: dict[str, int] = {}

    def run(self, jobs: Mapping[str, Callable[[str], None]]) -> None:
        """Run the jobs, a thread each; print what came of them as JSON."""
        threads = [threading.Thread(target=self._guarded, args=item) for item in jobs.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.pm.close()
        print(json.dumps({"errors": self.errors, "counts": self.counts}))

    def _guarded(self, name: str, job: Callable[[str], None]) -> None:
        try:
            job(name)
        except Exception as exc:  # noqa: BLE001  # handed to the parent, which counts it as a failure
            self.errors.append(f"{self.name}, {name}: {type(exc).__name__}: {exc}")

    def _meter(self, name: str) -> str:
        return next(meter.id for meter in self.pm.list_meters(self.name) if meter.name == name)

    def single(self, name: str) -> None:
        """Log readings one by one."""
        meter = self._meter(name)
        number = 0
        while not self.deadline.over():
            number += 1
            self.pm.log_power(meter, float(number), 1.0, 50.0)
            self.counts[name] = number

    def batches(self, name: str) -> None:
        """Log batches; every tenth fails in its middle and must leave nothing."""
        meter = self._meter(name)
        number = 0
        rounds = 0
        while not self.deadline.over():
            rounds += 1
            rows: list[tuple[object, ...]] = [
                (meter, float(number + n + 1), 1.0) for n in range(_BATCH)
            ]
            if rounds % 10 == 0:
                with contextlib.suppress(power_manager.InvalidValue):
                    self.pm.log_many([*rows, (meter, "wrong", 1.0)])
                    self.errors.append(f"{self.name}: a wrong batch was taken")
            number += self.pm.log_many(rows)
            self.counts[name] = number

    def grouped(self, name: str) -> None:
        """Log in transactions with an event each; every tenth is rolled back."""
        meter = self._meter(name)
        number = 0
        rounds = 0
        while not self.deadline.over():
            rounds += 1
            with contextlib.suppress(ZeroDivisionError), self.pm.transaction():
                for n in range(5):
                    self.pm.log_power(meter, float(number + n + 1), 1.0)
                self.pm.trigger_event(self.name, "restore", float(number))
                if rounds % 10 == 0:
                    raise ZeroDivisionError
                number += 5
            self.counts[name] = number
            self.counts["events"] = number // 5

    def pruner(self, _: str) -> None:
        """Prune, with a breath between."""
        breath = threading.Event()
        while not self.deadline.over():
            gone = self.pm.prune(_KEEP_DAYS)
            self.counts["pruned"] = self.counts.get("pruned", 0) + gone
            breath.wait(0.05)

    def sender(self, _: str) -> None:
        """Take what waits, and acknowledge it: nothing of it may come again."""
        sent: set[str] = set()
        breath = threading.Event()
        while not self.deadline.over():
            batch = self.pm.pending_readings()
            again = [reading.id for reading in batch if reading.id in sent]
            self.errors += [f"{id_} comes again" for id_ in again[:3]]
            self.pm.acknowledge(batch)
            sent.update(reading.id for reading in batch)
            if not batch:
                breath.wait(0.01)
        self.counts["sent"] = len(sent)

    def backups(self, name: str) -> None:
        """Back up, and check every copy."""
        copy = self.path.with_name(f"{name}.copy.db")
        while not self.deadline.over():
            self.pm.backup(copy)
            with power_manager.PowerManager(copy) as copied:
                self.errors += [f"backup: {problem}" for problem in copied.check()]
            self.counts["backups"] = self.counts.get("backups", 0) + 1

    def reports(self, _: str) -> None:
        """Report, and check the whole file, at random."""
        rng = random.Random(self.seed)
        devices = [device.id for device in self.pm.list_devices()]
        while not self.deadline.over():
            report = json.loads(self.pm.export_report(rng.choice(devices)))
            budget = self.pm.power_budget_check(devices)
            if len(report["meters"]) != len(budget[report["device_id"]]["states"]):
                self.errors.append(f"a report and a budget disagree: {report['device_id']}")
            if rng.random() < 0.2:
                self.errors += [f"check(): {problem}" for problem in self.pm.check()]
                self.counts["checks"] = self.counts.get("checks", 0) + 1
            self.counts["reports"] = self.counts.get("reports", 0) + 1


def _work(args: argparse.Namespace) -> int:
    worker = Worker(args)
    if args.role == "writer":
        names = {"single-0": worker.single, "single-1": worker.single, "batches": worker.batches}
        worker.run(names | {"grouped": worker.grouped})
    else:
        job: Callable[[str], None] = getattr(worker, args.role)
        threads = 1 if args.role == "sender" else 2
        worker.run({f"{args.name}-{n}": job for n in range(threads)})
    return 0


class OpenReader:
    """A reader in no hurry: an unfinished iteration, and a second connection's transaction."""

    def __init__(self, path: Path, pm: power_manager.PowerManager) -> None:
        self.meter = pm.list_meters("idle")[0].id
        self.history = pm.iter_history(self.meter)
        self.seen = [number_of(next(self.history)) for _ in range(10)]
        self._conn = sqlite3.connect(path, isolation_level=None)
        self._conn.execute("BEGIN")
        self._before = self._count()

    def _count(self) -> object:
        return self._conn.execute(
            "SELECT count(*), total(timestamp) FROM power_readings"
        ).fetchall()

    def finish(self, out: Findings, last: int) -> None:
        """Expect that the snapshot has not moved, and that the iteration reaches the newest."""
        out.expect(self._count() == self._before, "the open transaction's snapshot has moved")
        self._conn.execute("COMMIT")
        self._conn.close()
        self.seen += [number_of(reading) for reading in self.history]
        rising = all(a < b for a, b in zip(self.seen, self.seen[1:]))
        out.expect(
            rising and self.seen[-1] == last,
            "the open iteration",
            f"...{self.seen[-3:]}, expected {last}",
        )


def _prepare(path: Path, writers: list[str]) -> int:
    """Register the writers; give the idle device's meter readings for the open reader. How many."""
    with power_manager.PowerManager(path) as pm:
        for name in writers:
            pm.register_device(name, name)
            for meter in ("single-0", "single-1", "batches", "grouped"):
                pm.add_meter(name, "battery", 50.0, meter)
        pm.register_device("idle", "Idle")
        idle = pm.add_meter("idle", "main")
        # Out of the pruners' reach, fast as their clocks are.
        later = time.time() + 50 * 365 * 86400
        return pm.log_many((idle.id, float(n + 1), 1.0, None, later + n) for n in range(5000))


def _judge(path: Path, results: dict[str, dict[str, int]], out: Findings) -> None:
    """Compare what is left with what each writer was confirmed."""
    with power_manager.PowerManager(path) as pm:
        for name, counts in results.items():
            for meter in pm.list_meters(name):
                expected = counts.get(str(meter.name), 0)
                found = [number_of(reading) for reading in pm.iter_history(meter.id)]
                hours = pm.get_statistics(meter.id, days=10_000)
                counted = sum(row.reading_count for row in hours)
                unbroken = found == list(range(expected - len(found) + 1, expected + 1))
                holds = unbroken and counted == expected == int(meter.voltage)
                detail = (
                    f"{name}/{meter.name}: {found[-2:]}, {counted} counted, expected {expected}"
                )
                out.expect(holds, "readings of a writer", detail)
                out.counts["readings"] += expected
            events = len(
                [event for event in pm.get_events(name, 10**7) if event.type.value == "restore"]
            )
            out.expect(events == counts.get("events", 0), "events of a writer", f"{events}")


def _crowd(path: Path, args: argparse.Namespace, out: Findings) -> None:
    writers = [f"writer-{n}" for n in range(args.writers)]
    last = _prepare(path, writers)
    roles = dict.fromkeys(writers, "writer") | {role: role for role in _ROLES}
    origin = time.time()
    with power_manager.PowerManager(path) as pm:
        reader = OpenReader(path, pm)
        processes = {}
        for name, role in roles.items():
            command: list[str | Path] = [
                sys.executable,
                __file__,
                "--role",
                role,
                "--name",
                name,
                "--path",
                path,
            ]
            command += ["--seconds", str(args.seconds), "--seed", str(args.seed)]
            command += ["--origin", str(origin)]
            processes[name] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        results: dict[str, dict[str, int]] = {}
        for name, process in processes.items():
            printed, _ = process.communicate()
            out.expect(
                process.returncode == 0, "a process failed", f"{name}: exit {process.returncode}"
            )
            answer = json.loads(printed or '{"errors": [], "counts": {}}')
            for error in answer["errors"]:
                out.fail("an error in the crowd", error)
            if name in writers:
                results[name] = answer["counts"]
            else:
                out.counts.update(answer["counts"])
        reader.finish(out, last)
    _judge(path, results, out)


def main() -> int:
    """Let the crowd in; then judge what is left."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--writers",
        type=int,
        default=3,
        help="writing processes, of four threads each (default: 3)",
    )
    parser.add_argument("--role", choices=["writer", *_ROLES], help=argparse.SUPPRESS)
    parser.add_argument("--origin", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    args = parse(__doc__, parser, seconds=6.0)
    out = Findings(__file__)
    if args.role:
        return _work(args)
    with scratch(in_memory=False) as place:
        path = place / "crowd.db"
        _crowd(path, args, out)
        out.whole(path, "the crowd has left")
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
