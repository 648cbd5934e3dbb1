"""Take away the disk's space, its health, the memory and the right to write, and give them back.

Every failure must be a StorageError that names the file; what was confirmed must be there
afterwards and nothing of what failed; check() must find nothing; and writing must work again when
the cause is gone. A full disk is a small tmpfs where this runs as root and may mount, and a limit
on the size of files (RLIMIT_FSIZE) everywhere; a failing disk is strace's fault injection, where
there is strace; memory is limited by PRAGMA hard_heap_limit in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import workloads
from common import Deadline, Findings, number_of, parse, scratch

import power_manager

_CALLS = (
    "pwrite64",
    "fdatasync",
    "pread64",
    "ftruncate",
    "openat",
    "fstat",
    "unlink",
    "mmap",
    "fallocate",
    "fcntl",
)
_ERRORS = ("EIO", "ENOSPC")
_NOBODY = 65534


class Probe:
    """A database whose every call may fail, and what must then be in it."""

    def __init__(self, path: Path, out: Findings, label: str) -> None:
        self.path = path
        self.out = out
        self.label = label
        self.copy = path.with_name("copy.db")
        self.pm = power_manager.PowerManager(path)
        self.pm.register_device("d", "D")
        self.meter = self.pm.add_meter("d", "main", name="m").id
        self.number = 0
        self.copied: int | None = None  # readings in the copy

    def attempt(self, call: Callable[[], object], name: str) -> bool:
        """Whether the call worked; if not, it must have been a StorageError that names the file."""
        try:
            call()
        except power_manager.StorageError as exc:
            self.out.counts[f"refusals ({self.label})"] += 1
            named = str(exc.filename) in (str(self.path), str(self.copy)) and str(
                exc.filename
            ) in str(exc)
            self.out.expect(named, f"{self.label}: {name} does not name the file", exc)
            if self.label == "full disk":
                led_astray = "directory exists" in str(exc) or "damaged" in str(exc)
                self.out.expect(not led_astray, f"{self.label}: {name} names another cause", exc)
            return False
        except Exception as exc:  # noqa: BLE001  # another kind of exception is one of the things looked for
            self.out.fail(
                f"{self.label}: {name} raises {type(exc).__name__}, no StorageError",
                repr(exc)[:200],
            )
            return False
        return True

    def log(self) -> bool:
        """Log the next reading."""
        worked = self.attempt(
            lambda: self.pm.log_power(self.meter, self.number + 1.0, 1.0), "log_power"
        )
        self.number += worked
        return worked

    def log_many(self, count: int) -> bool:
        """Log a batch."""
        rows = [(self.meter, self.number + n + 1.0, 1.0) for n in range(count)]
        worked = self.attempt(lambda: self.pm.log_many(rows), "log_many")
        self.number += count * worked
        return worked

    def anything(self, rng: random.Random) -> bool:
        """Do something at random; say whether it worked."""
        choice = rng.random()
        if choice < 0.5:
            return self.log()
        if choice < 0.7:
            return self.log_many(rng.choice([10, 500, 5000]))
        if choice < 0.8:
            worked = self.attempt(lambda: self.pm.backup(self.copy), "backup")
            if worked:
                self.copied = self.number
            return worked
        if choice < 0.82 and self.copied is not None:
            worked = self.attempt(lambda: self.pm.restore(self.copy), "restore")
            if worked:
                self.number = self.copied
            return worked
        if choice < 0.85:
            return self.attempt(
                lambda: self.pm.register_device(f"d{rng.random()}", "D" * 200), "register_device"
            )
        return self.attempt(lambda: self.pm.export_report("d"), "export_report")

    def back_to_normal(self) -> None:
        """Expect that all works again, and that the file holds what it confirmed and no more."""
        self.out.expect(
            self.log() and self.log_many(20), f"{self.label}: no writing after the cause is gone"
        )
        self._compare(self.pm)
        self.attempt(self.pm.close, "close")
        with power_manager.PowerManager(self.path) as pm:
            self._compare(pm)
        self.out.whole(self.path, self.label)

    def _compare(self, pm: power_manager.PowerManager) -> None:
        found = [number_of(reading) for reading in pm.iter_history(self.meter)]
        expected = list(range(1, self.number + 1))
        self.out.expect(
            found == expected, f"{self.label}: readings", f"{len(found)}, expected {self.number}"
        )


# --- A full disk


@contextlib.contextmanager
def _small_disk(place: Path, megabytes: int) -> Iterator[Path | None]:
    """A tmpfs of that size, or None where this user cannot mount one."""
    disk = place / "disk"
    disk.mkdir()
    options = f"size={megabytes}m"
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    if mounted:
        command: list[str | Path] = ["mount", "-t", "tmpfs", "-o", options, "power-stress", disk]
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield disk if mounted else None
    finally:
        if mounted:
            # Lazily: a failed run may still have files open.
            subprocess.run(["umount", "-l", disk], check=True)
        disk.rmdir()


def _fill(path: Path, leave: int) -> None:
    """Write a file until no more than so many bytes are free on its disk."""
    free = os.statvfs(path.parent).f_bavail * os.statvfs(path.parent).f_frsize
    with open(path, "wb") as ballast:
        ballast.write(bytes(max(0, free - leave)))


def _full_disk(disk: Path, out: Findings, rng: random.Random) -> None:
    """Fill a small disk to within some pages; work until it refuses; make room again."""
    probe = Probe(disk / "p.db", out, "full disk")
    for _ in range(rng.randint(0, 3)):
        probe.log_many(rng.choice([10, 2000]))
    ballast = disk / "ballast"
    _fill(ballast, rng.choice([0, 4096, 20_000, 60_000, 200_000]))
    if rng.random() < 0.3:  # open anew on the full disk
        probe.attempt(probe.pm.close, "close")
        if not probe.attempt(lambda: power_manager.PowerManager(probe.path).close(), "opening"):
            out.counts["openings refused (full disk)"] += 1
        ballast.unlink()
        probe.pm = power_manager.PowerManager(probe.path)
        _fill(ballast, rng.choice([0, 4096, 60_000]))
    refused = tries = 0
    while refused < 5 and tries < 400:
        refused += not probe.anything(rng)
        tries += 1
    out.expect(refused > 0, "full disk: nothing was refused", f"{tries} calls")
    ballast.unlink()
    probe.copy.unlink(missing_ok=True)
    probe.back_to_normal()
    left = [path.name for path in disk.iterdir() if path.name.endswith((".tmp", "-journal"))]
    out.expect(not left, "full disk: a failed backup leaves files", left)


def _size_limit(place: Path, out: Findings, rng: random.Random) -> None:
    """Limit the size of files to a little more than what the database has."""
    directory = place / "limit"
    workloads.clear(directory)
    probe = Probe(directory / "p.db", out, "RLIMIT_FSIZE")
    probe.log_many(rng.choice([10, 500]))
    largest = max(path.stat().st_size for path in directory.iterdir())
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + rng.randrange(100_000), hard))
    try:
        refused = tries = 0
        while refused < 5 and tries < 200:
            refused += not probe.anything(rng)
            tries += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    out.expect(refused > 0, "RLIMIT_FSIZE: nothing was refused", f"{tries} calls")
    probe.back_to_normal()


# --- A failing disk


def _failing_disk(place: Path, out: Findings, rng: random.Random) -> None:
    """Run a patient writer under strace, which lets system calls on its files fail."""
    directory = place / "failing"
    acks = place / "acks"
    workloads.clear(directory)
    acks.unlink(missing_ok=True)
    kind = rng.choice(["single", "many", "prune", "backup", "restore"])
    call = rng.choice(_CALLS)
    error = rng.choice(_ERRORS)
    # No locks that fail again and again: SQLite itself tries each of them for ten seconds.
    again = rng.choice([""] if call == "fcntl" else ["", "", "+7", "+"])
    when = f"{rng.randint(1, rng.choice([20, 200]))}{again}"
    command: list[str | Path] = ["strace", "-f", "-qq", "-o", place / "trace"]
    for name in ("p.db", "p.db-wal", "p.db-shm", "p.db-journal", "copy.db"):
        command += ["-P", directory / name]
    command += ["-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}"]
    command += [
        sys.executable,
        workloads.PROGRAM,
        kind,
        directory,
        "--ack",
        acks,
        "--count",
        "25",
        "--patient",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    label = f"{call}={error}, when={when}, {kind}"
    # A writer that cannot even open the file ends with the StorageError that says so.
    *_, last = ["", *done.stderr.strip().splitlines()]
    refused = last.startswith("power_manager.StorageError") and str(directory) in last
    out.counts["writers that ended with a StorageError (failing disk)"] += refused
    out.expect(
        done.returncode == 0 or refused,
        "failing disk: another failure than StorageError",
        f"{label}: {last}",
    )
    confirmed = workloads.read_acks(acks.read_text()) if acks.exists() else {}
    out.counts["refusals (failing disk)"] += (
        acks.read_text().count("refused") if acks.exists() else 0
    )
    wrong, lost = workloads.judge(kind, directory, confirmed)
    for problem in wrong:
        out.fail("failing disk: what is left", f"{label}: {problem}")
    out.expect(not lost, "failing disk: confirmed work lost", f"{label}: {lost}")
    command = [sys.executable, workloads.PROGRAM, kind, directory, "--ack", acks, "--count", "3"]
    healed = subprocess.run(command, capture_output=True, text=True)
    out.expect(
        healed.returncode == 0,
        "failing disk: no writing afterwards",
        f"{label}: {healed.stderr[-300:]}",
    )
    wrong, lost = workloads.judge(kind, directory, workloads.read_acks(acks.read_text()))
    out.expect(
        not wrong and not lost, "failing disk: after going on", f"{label}: {wrong}, {lost} lost"
    )
    out.counts["runs (failing disk)"] += 1


# --- No memory


def _starve(path: Path, limit: int, seed: str) -> int:
    """Work with so much memory for SQLite, in a process of its own; write the last number."""
    out = Findings("memory")
    rng = random.Random(seed)
    probe = Probe(path, out, "no memory")
    probe.log_many(200)
    with contextlib.closing(sqlite3.connect(":memory:")) as conn, contextlib.suppress(MemoryError):
        # The limit is the whole process's: lower than what is in use, it fails this very answer.
        conn.execute(f"PRAGMA hard_heap_limit = {limit}")
    for _ in range(60):
        probe.anything(rng)
    path.with_name("number").write_text(f"{probe.number} {out.counts['refusals (no memory)']}")
    return int(bool(out.failures))


def _no_memory(place: Path, out: Findings, rng: random.Random) -> None:
    directory = place / "memory"
    workloads.clear(directory)
    path = directory / "p.db"
    limit = rng.choice([1, 50_000, 100_000, 200_000, 400_000, 800_000])
    command: list[str | Path] = [sys.executable, __file__, "--starve", path, "--limit", str(limit)]
    done = subprocess.run([*command, "--seed", str(rng.random())], capture_output=True, text=True)
    for line in done.stdout.splitlines() + done.stderr.strip().splitlines()[-1:]:
        out.fail("no memory", f"{limit} bytes: {line}")
    out.expect(
        done.returncode == 0 or bool(done.stdout),
        "no memory",
        f"{limit} bytes: exit {done.returncode}",
    )
    number, refused = map(int, path.with_name("number").read_text().split())
    out.counts["refusals (no memory)"] += refused
    with power_manager.PowerManager(path) as pm:
        meter = pm.list_meters("d")[0].id
        found = [number_of(reading) for reading in pm.iter_history(meter)]
        out.expect(
            found == list(range(1, number + 1)),
            "no memory: readings",
            f"{len(found)}, expected {number}",
        )
        pm.log_power(meter, number + 1.0, 1.0)
    out.whole(path, "no memory")


# --- No right to write


def _refuses(directory: Path, out: Findings, label: str) -> None:
    """A read-only directory: its database, a new one and a backup into it are refused by name."""
    calls: dict[str, tuple[Path, Callable[[], object]]] = {
        "opening": (
            directory / "p.db",
            lambda: power_manager.PowerManager(directory / "p.db").close(),
        ),
        "making": (
            directory / "new.db",
            lambda: power_manager.PowerManager(directory / "new.db").close(),
        ),
    }
    with power_manager.PowerManager(":memory:") as memory:
        calls["backup"] = (directory / "copy.db", lambda: memory.backup(directory / "copy.db"))
        for name, (path, call) in calls.items():
            try:
                call()
                out.fail(f"{label}: {name} is not refused", path)
            except power_manager.StorageError as exc:
                out.counts["refusals (read-only)"] += 1
                out.expect(
                    str(exc.filename) == str(path), f"{label}: {name} does not name the file", exc
                )
            except Exception as exc:  # noqa: BLE001  # another kind of exception is one of the things looked for
                out.fail(f"{label}: {name} raises {type(exc).__name__}, no StorageError", exc)


def _read_only_disk(disk: Path, out: Findings) -> None:
    """Mount the disk read-only, and writable again."""
    probe = Probe(disk / "p.db", out, "read-only disk")
    probe.log_many(10)
    probe.pm.close()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        _refuses(disk, out, "read-only disk")
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    probe.pm = power_manager.PowerManager(probe.path)
    probe.back_to_normal()


def _read_only_directory(place: Path, out: Findings) -> None:
    """Take the right to write from a directory; root, whom that does not stop, works in a child.

    The child gives up root's rights.
    """
    directory = place / "read-only"
    directory.mkdir()
    probe = Probe(directory / "p.db", out, "read-only directory")
    probe.log_many(10)
    probe.pm.close()
    place.chmod(0o755)
    owner = _NOBODY if os.geteuid() == 0 else -1
    for path in (directory, *directory.iterdir()):
        os.chown(path, owner, -1)
    directory.chmod(0o500)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        seen = Findings("read-only")
        if owner != -1:
            os.setresuid(owner, owner, owner)
        _refuses(directory, seen, "read-only directory")
        sys.stdout.flush()
        os._exit(int(bool(seen.failures)))
    _, status = os.waitpid(child, 0)
    out.expect(status == 0, "read-only directory", "see above")
    directory.chmod(0o700)
    for path in (directory, *directory.iterdir()):
        os.chown(path, os.geteuid(), -1)
    probe.pm = power_manager.PowerManager(probe.path)
    probe.back_to_normal()


def _rounds(place: Path, out: Findings, rng: random.Random, deadline: Deadline) -> None:
    """Go through all causes until the time is over."""
    strace = shutil.which("strace") is not None
    if not strace:
        out.notes.append("strace is not installed: no failing disk")
    rounds = 0
    while rounds == 0 or not deadline.over():
        with _small_disk(place, 3) as disk:
            if disk is None and rounds == 0:
                out.notes.append("no right to mount: the full disk by RLIMIT_FSIZE only")
            if disk is not None:
                _full_disk(disk, out, rng)
                for path in disk.iterdir():
                    path.unlink()
                if rounds % 10 == 0:
                    _read_only_disk(disk, out)
        _size_limit(place, out, rng)
        for _ in range(4 if strace else 0):
            _failing_disk(place, out, rng)
        _no_memory(place, out, rng)
        rounds += 1
    out.counts["rounds"] += rounds


def main() -> int:
    """Take everything away, one thing after the other, until the time is over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--starve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    if "--starve" in sys.argv:
        parser.add_argument("--seed")
        starving = parser.parse_args()
        return _starve(starving.starve, starving.limit, starving.seed)
    args = parse(__doc__, parser, seconds=8.0)
    out = Findings(__file__)
    # As Python does by itself: a write beyond the limit is an error.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with scratch(in_memory=False) as place:
        _read_only_directory(place, out)
        _rounds(place, out, random.Random(args.seed), Deadline(args.seconds))
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
