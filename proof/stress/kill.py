"""Kill writing programs (SIGKILL) at random moments and at their n-th write; judge what is left.

Each life of a directory is ended several times: the next writers go on where the killed ones
stopped. After each end the database must open, check() must find nothing, the readings of each
writer must be an unbroken run from 1, with their statistics, alerts and backups, and everything
that the library had confirmed must be there. Two planted faults must be found. The n-th write
needs gcc (the recorder of powercut.py); without it only the moments are random.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import workloads
from common import Deadline, Findings, parse, recorder, scratch

_PLANTED = (("early-ack", "single"), ("split", "single"))


class Life:
    """One directory whose writers are killed again and again."""

    def __init__(self, kind: str, place: Path, library: Path | None, rng: random.Random) -> None:
        self.kind = kind
        self._rng = rng
        self._library = library
        self.directory = place / "life"
        self._acks = place / "acks"
        workloads.clear(self.directory)
        self._acks.unlink(missing_ok=True)
        if kind == "upgrade":
            workloads.first_release(self.directory / "p.db")

    def end(self, fault: str | None = None, at_write: bool = False) -> tuple[list[str], int]:
        """Let writers run and kill them; what is wrong, and how much confirmed work is missing."""
        env = dict(os.environ)
        if at_write and self._library is not None:
            env |= {"LD_PRELOAD": str(self._library), "RECORDER_DIR": str(self.directory)}
            env["RECORDER_KILL_AT"] = str(
                self._rng.choice([self._rng.randint(1, 60), self._rng.randint(1, 600)])
            )
            env |= {"RECORDER_TEAR": "1"} if self._rng.random() < 0.5 else {}
        command: list[str | Path] = [
            sys.executable,
            workloads.PROGRAM,
            self.kind,
            self.directory,
            "--ack",
            self._acks,
        ]
        command += ["--fault", fault] if fault else []
        names = [f"w{n}" for n in range(3 if self.kind == "crowd" else 1)]
        writers = [subprocess.Popen([*command, "--writer", name], env=env) for name in names]
        for writer in writers:
            try:
                writer.wait(
                    timeout=10.0 if at_write and self._library else self._rng.uniform(0.05, 0.5)
                )
            except (
                subprocess.TimeoutExpired
            ):  # that is the random moment; a late one where a write was waited for
                writer.kill()
            if writer.wait() != -9:
                return [f"a writer ended by itself with {writer.returncode}"], 0
        acks = self._acks.read_text() if self._acks.exists() else ""
        return workloads.judge(self.kind, self.directory, workloads.read_acks(acks))


def _planted(fault: str, kind: str, place: Path, library: Path, seed: int, out: Findings) -> None:
    rng = random.Random(f"{seed}/{fault}")
    for _ in range(40):
        wrong, lost = Life(kind, place, library, rng).end(fault, at_write=True)
        if wrong or lost:
            print(f"planted: {fault:9} in {kind}: found: {wrong[0] if wrong else f'{lost} lost'}")
            out.counts["planted faults found"] += 1
            return
    out.fail("a planted fault is not found", f"{fault} in {kind}")


def main() -> int:
    """Kill writers of every kind until the time is over."""
    args = parse(__doc__, seconds=8.0)
    out = Findings(__file__)
    deadline = Deadline(args.seconds)
    rng = random.Random(args.seed)
    with scratch() as place:
        library = recorder(place)
        if library is not None:
            for fault, kind in _PLANTED:
                _planted(fault, kind, place, library, args.seed, out)
        lives = 0
        while lives < len(workloads.KINDS) or not deadline.over():
            kind = workloads.KINDS[lives % len(workloads.KINDS)]
            life = Life(kind, place, library, rng)
            for number in range(rng.randint(1, 4)):
                at_write = rng.random() < 0.5
                wrong, lost = life.end(at_write=at_write)
                out.counts["kills at a write" if at_write and library else "kills at a moment"] += 1
                for problem in wrong:
                    out.fail(f"{kind} after kill {number + 1}", problem)
                out.expect(not lost, f"{kind}: confirmed work lost", lost)
            lives += 1
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
