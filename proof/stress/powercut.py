"""Cut the power at every file operation of writing programs, and look at what is left.

A recorder (powercut.c, preloaded) logs each creation, write, truncation, sync, rename and removal
of a run, and each moment at which the library had confirmed something. From that log this program
builds what a disk may hold after a power cut at any point of it: what the last sync of each file
forced, with none, a beginning, a random choice of 512-byte sectors, or all of the writes since;
and of the names in the directory those that the last sync of the directory forced, with a
beginning of the changes since. Every such image must open, check() must find nothing, and the
readings, statistics, alerts and backups in it must be those of an unbroken run; with durability
"full" nothing confirmed may be missing.

The same is done to runs with a planted fault, which must be found. Needs gcc. Not modelled:
writes through mmap (the -shm, which SQLite builds anew), names that come back in another order
than they were made, sectors torn inside.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import workloads
from common import Deadline, Findings, parse, recorder, scratch

_RECORD = struct.Struct("=IIQqQ")  # as in powercut.c
OPENED, CREATED, WRITTEN, TRUNCATED, SYNCED, NAMES_SYNCED, UNLINKED, RENAMED, ACKNOWLEDGED = range(
    1, 10
)
_SECTOR = 512
_MODES = ("none", "beginning", "sectors", "all")
_COUNTS = {
    "single": 30,
    "crowd": 12,
    "many": 4,
    "prune": 30,
    "sweep": 1,
    "backup": 20,
    "restore": 15,
    "upgrade": 12,
}
_PLANTED = (  # fault, workload; None as a workload's fault: the disk lies
    ("early-ack", "single"),
    ("sync-off", "single"),
    ("sync-off", "crowd"),
    ("lying disk", "single"),
    ("split", "single"),
    ("split", "upgrade"),
    ("rename-first", "backup"),
)


class Entry(NamedTuple):
    """One record of the log."""

    op: int
    inode: int
    name: str
    offset: int
    data: bytes


Change = tuple[int, bytes | None]  # a write of bytes at an offset, or with None a truncation to it


@dataclass
class Content:
    """A file's bytes on the disk, and the changes that no sync has forced there."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Change] = field(default_factory=list)


def run(
    kind: str, fault: str | None, durability: str, library: Path, place: Path
) -> tuple[list[Entry], Path]:
    """Run a workload under the recorder; return its log and the directory as it was before."""
    data = place / "data"
    log = place / "log"
    before = place / "before"
    for directory in (data, before):
        workloads.clear(directory)
    log.unlink(missing_ok=True)
    if kind == "upgrade":
        workloads.first_release(data / "p.db")
        (before / "p.db").write_bytes((data / "p.db").read_bytes())
        (before / "inode").write_text(str((data / "p.db").stat().st_ino))
    env = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "RECORDER_DIR": str(data),
        "RECORDER_LOG": str(log),
    }
    if fault == "lying disk":
        env["RECORDER_LIES"] = "1"
    command: list[str | Path] = [
        sys.executable,
        workloads.PROGRAM,
        kind,
        data,
        "--ack",
        data / "notes.ack",
    ]
    command += ["--durability", durability, "--count", str(_COUNTS[kind])]
    command += ["--fault", str(fault)] if fault in workloads.FAULTS else []
    writers = [
        subprocess.Popen([*command, "--writer", f"w{n}"], env=env)
        for n in range(3 if kind == "crowd" else 1)
    ]
    if sum(writer.wait() for writer in writers):
        raise SystemExit(f"powercut: the workload {kind} failed by itself")
    return list(_entries(log.read_bytes())), before


def _entries(log: bytes) -> Iterator[Entry]:
    at = 0
    while at < len(log):
        op, name_length, inode, offset, length = _RECORD.unpack_from(log, at)
        at += _RECORD.size
        name = log[at : at + name_length].decode()
        at += name_length + length
        yield Entry(op, inode, name, offset, log[at - length : at])


class Disk:
    """What a disk holds for certain after the log so far, and what it may hold beside that."""

    def __init__(self, before: Path) -> None:
        self._contents: dict[int, Content] = {}
        self._names: dict[str, Content] = {}
        self._durable_names: dict[str, Content] = {}
        self._pending_names: list[dict[str, Content | None]] = []
        self.acks: workloads.Acks = {}
        if (before / "p.db").exists():
            content = Content(bytearray((before / "p.db").read_bytes()))
            self._contents[int((before / "inode").read_text())] = content
            self._names["p.db"] = self._durable_names["p.db"] = content

    def _rename(self, change: dict[str, Content | None]) -> None:
        _apply_names(self._names, change)
        self._pending_names.append(change)

    def step(self, entry: Entry) -> None:
        """Take the next entry of the log."""
        if entry.op == ACKNOWLEDGED:
            self.acks |= workloads.read_acks(entry.data.decode())
        elif entry.op == CREATED:
            self._contents[entry.inode] = Content()  # the number may be that of a file that is gone
            self._rename({entry.name: self._contents[entry.inode]})
        elif entry.op == UNLINKED:
            self._rename({entry.name: None})
        elif entry.op == RENAMED:
            self._rename({entry.data.decode(): self._names[entry.name], entry.name: None})
        elif entry.op == NAMES_SYNCED:
            self._durable_names = dict(self._names)
            self._pending_names.clear()
        elif entry.op == SYNCED:
            content = self._contents[entry.inode]
            _apply(content.durable, content.pending)
            content.pending.clear()
        elif entry.op in (WRITTEN, TRUNCATED):
            change = (entry.offset, entry.data if entry.op == WRITTEN else None)
            self._contents[entry.inode].pending.append(change)

    def image(self, mode: str, rng: random.Random) -> dict[str, bytes]:
        """The files as they may be found after a power cut now."""
        count = {"none": 0, "all": len(self._pending_names)}.get(
            mode, rng.randint(0, len(self._pending_names))
        )
        names = dict(self._durable_names)
        for change in self._pending_names[:count]:
            _apply_names(names, change)
        files = {}
        for name, content in sorted(names.items()):
            buffer = bytearray(content.durable)
            _apply(buffer, _survivors(content.pending, mode, rng))
            files[name] = bytes(buffer)
        return files


def _apply_names(names: dict[str, Content], change: dict[str, Content | None]) -> None:
    for name, content in change.items():
        if content is None:
            names.pop(name, None)
        else:
            names[name] = content


def _apply(buffer: bytearray, changes: list[Change]) -> None:
    for offset, data in changes:
        if data is None:
            del buffer[offset:]
        buffer.extend(bytes(max(0, offset - len(buffer))))
        if data:
            buffer[offset : offset + len(data)] = data


def _survivors(pending: list[Change], mode: str, rng: random.Random) -> list[Change]:
    """The unforced changes that have reached the disk all the same."""
    if mode == "none" or not pending:
        return []
    if mode == "all":
        return pending
    if mode == "beginning":
        count = rng.randrange(len(pending))
        offset, data = pending[count]
        torn = (
            []
            if data is None
            else [(offset, data[: rng.randint(0, len(data)) // _SECTOR * _SECTOR])]
        )
        return [*pending[:count], *torn]
    survivors: list[Change] = []
    for offset, data in pending:
        if data is None:
            survivors += [(offset, None)] if rng.random() < 0.5 else []
            continue
        at = 0
        while at < len(data):
            size = min(_SECTOR - (offset + at) % _SECTOR, len(data) - at)
            survivors += [(offset + at, data[at : at + size])] if rng.random() < 0.5 else []
            at += size
    return survivors


class Cutter:
    """Cuts the power in one recorded run, again and again."""

    def __init__(self, kind: str, log: list[Entry], before: Path, place: Path) -> None:
        self.kind = kind
        self._log = log
        self._before = before
        self._place = place
        self.images = self.losing = self.worst = 0
        self.wrong: list[str] = []

    def cut(self, points: set[int], seed: str, deadline: Deadline) -> None:
        """Judge the images of all these points of the log, in a time."""
        disk = Disk(self._before)
        for index in range(len(self._log) + 1):
            for mode in _MODES if index in points else ():
                self._judge(disk, mode, f"{seed}/{index}/{mode}")
            if deadline.over():
                return
            if index < len(self._log):
                disk.step(self._log[index])

    def _judge(self, disk: Disk, mode: str, seed: str) -> None:
        directory = self._place / "image"
        workloads.clear(directory)
        for name, data in disk.image(mode, random.Random(seed)).items():
            (directory / name).write_bytes(data)
        wrong, lost = workloads.judge(self.kind, directory, disk.acks)
        self.images += 1
        self.losing += bool(lost)
        self.worst = max(self.worst, lost)
        self.wrong += [f"{seed}: {problem}" for problem in wrong]

    def sample(self, rng: random.Random, count: int) -> set[int]:
        """Some points of the log, and always its end."""
        every = range(len(self._log) + 1)
        return {len(self._log), *rng.sample(every, min(count, len(every)))}


def _honest(
    kind: str, durability: str, library: Path, place: Path, seed: int, seconds: float, out: Findings
) -> None:
    """Cut the power in runs of the library as it is; nothing may be found."""
    log, before = run(kind, None, durability, library, place)
    deadline = Deadline(seconds)
    passes = 0
    images = 0
    wrong = 0
    losing = 0
    while passes == 0 or not deadline.over():
        # At every twentieth pass another run: several processes never run twice alike.
        if passes and passes % 20 == 0:
            log, before = run(kind, None, durability, library, place)
        cutter = Cutter(kind, log, before, place)
        points = cutter.sample(random.Random(f"{seed}/{passes}"), 10)
        cutter.cut(points, f"{seed}/{passes}", Deadline(60.0))
        passes += 1
        images += cutter.images
        wrong += len(cutter.wrong)
        losing += cutter.losing
        for problem in cutter.wrong:
            out.fail(f"{kind}, {durability}", problem)
        if cutter.losing and durability == "full":
            detail = f"{cutter.losing} images, up to {cutter.worst}"
            out.fail(f"{kind}: acknowledged work lost", detail)
    out.counts["images"] += images
    print(
        f"{kind:8} durability {durability:6}: {len(log):5} operations, "
        f"{images:6} images, {wrong} wrong, {losing} losing acknowledged work",
        flush=True,
    )


def _planted(fault: str, kind: str, library: Path, place: Path, seed: int, out: Findings) -> None:
    """Cut the power in a run with a planted fault until it is found."""
    log, before = run(kind, fault, "full", library, place)
    cutter = Cutter(kind, log, before, place)
    rng = random.Random(f"{seed}/{fault}/{kind}")
    found = False
    for attempt in range(24):
        # A fault may show at a few points only: where chance has not met it, every point is tried.
        points = cutter.sample(rng, 10) if attempt < 20 else set(range(len(log) + 1))
        cutter.cut(points, f"{seed}/{attempt}", Deadline(60.0))
        found = bool(cutter.wrong or cutter.losing)
        if found:
            break
    sign = cutter.wrong[0] if cutter.wrong else f"{cutter.losing} images lose up to {cutter.worst}"
    print(
        f"planted: {fault:12} in {kind:8} {'found: ' + sign[:90] if found else 'NOT FOUND'}",
        flush=True,
    )
    out.counts["planted faults found"] += found
    out.expect(found, "a planted fault is not found", f"{fault} in {kind}, {cutter.images} images")


def main() -> int:
    """Cut the power in every workload, with the library as it is and with planted faults."""
    args = parse(__doc__, seconds=12.0)
    out = Findings(__file__)
    with scratch() as place:
        library = recorder(place)
        if library is None:
            print("powercut: skipped: needs gcc on Linux")
            return 0
        for fault, kind in _PLANTED:
            _planted(fault, kind, library, place, args.seed, out)
        runs = [(kind, "full") for kind in workloads.KINDS if kind != "sweep"] + [
            ("single", "normal")
        ]
        for kind, durability in runs:
            _honest(kind, durability, library, place, args.seed, args.seconds / len(runs), out)
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
