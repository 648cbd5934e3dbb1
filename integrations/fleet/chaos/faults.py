"""What can go wrong in the chaos program, a class each, and who starts again what has ended.

A fault harms something for a moment, and mends it. Each kind runs in a thread of its own, so that
several things are wrong at once; two faults never harm the same victim at the same time.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from chaos_common import Program
from servers import Server

HANGS = 15.0  # seconds without an answer, after which a server is started again
CHUNK = 1024 * 1024  # bytes of what fills a disk


@dataclass
class Victim:
    """A process that may be harmed: it is started again, but not while a fault holds it."""

    kind: str
    what: Server | Program
    held: threading.Lock = field(default_factory=threading.Lock, repr=False)
    spared: bool = False
    silent_since: float | None = None  # by the monotonic clock

    def start(self) -> None:
        """Start it, without waiting until it answers."""
        if isinstance(self.what, Server):
            self.what.start(wait=False)
        else:
            self.what.start()

    @property
    def has_ended(self) -> bool:
        """Whether its process is gone."""
        process = self.what.process
        return process is not None and process.poll() is not None

    @property
    def is_lost(self) -> bool:
        """Whether it has ended, or has not answered for long."""
        if self.has_ended:
            return True
        if isinstance(self.what, Program) or self.what.process is None or self.what.ready():
            self.silent_since = None
            return False
        now = time.monotonic()
        self.silent_since = self.silent_since or now
        return now - self.silent_since > HANGS


class Fault(Protocol):
    """One kind of harm."""

    name: str

    def harm(self, chance: random.Random, pause: Callable[[float], None]) -> bool:
        """Do it once, mend it, and say whether there was something to harm.

        `pause` waits, less once all is over.
        """


@dataclass
class Kill:
    """SIGKILL, and started again a moment later."""

    victims: Sequence[Victim]
    name: str = "killed"

    def harm(self, chance: random.Random, pause: Callable[[float], None]) -> bool:
        """Kill one."""
        victim = chance.choice(self.victims)
        with victim.held:
            if victim.spared:
                return False
            victim.what.kill()
            pause(chance.uniform(0.1, 2.0))
            victim.start()
        return True


@dataclass
class Stop:
    """SIGSTOP: the process is there, its connections are open, and it does nothing.

    Then it goes on.
    """

    victims: Sequence[Victim]
    longest: float = 8.0  # seconds
    name: str = "stopped"

    def harm(self, chance: random.Random, pause: Callable[[float], None]) -> bool:
        """Stop one."""
        victim = chance.choice(self.victims)
        with victim.held:
            process = victim.what.process
            if victim.spared or process is None or process.poll() is not None:
                return False
            process.send_signal(signal.SIGSTOP)
            pause(chance.uniform(0.5, self.longest))
            process.send_signal(signal.SIGCONT)
        return True


@dataclass
class FillDisk:
    """Nothing can be written any more; then there is room again."""

    disks: Sequence[Path]
    name: str = "disk full"
    longest: float = 6.0  # seconds

    def harm(self, chance: random.Random, pause: Callable[[float], None]) -> bool:
        """Fill one."""
        ballast = chance.choice(self.disks) / "ballast"
        try:
            fill(ballast)
            pause(chance.uniform(1.0, self.longest))
        finally:
            ballast.unlink(missing_ok=True)
        return True


@dataclass
class Do:
    """Something that is bad for others: a flood, a backfill. `what` does it once."""

    name: str
    what: Callable[[random.Random], None]

    def harm(self, chance: random.Random, pause: Callable[[float], None]) -> bool:
        """Do it."""
        self.what(chance)
        pause(chance.uniform(0.5, 3.0))
        return True


def fill(ballast: Path) -> None:
    """Write a file until its disk is full."""
    block = os.urandom(CHUNK)
    with ballast.open("wb", buffering=0) as file:
        size = CHUNK
        while size:
            try:
                file.write(block[:size])
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2


@contextlib.contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[bool]:
    """A disk of its own for a directory, in memory; yields whether this user may mount one."""
    directory.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory)]
    mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(directory)], check=False)


class Chaos:
    """All faults at once.

    A supervisor starts again what ended or hangs, as systemd and a health check would.
    """

    def __init__(self, victims: Sequence[Victim], faults: Sequence[Fault], seed: int) -> None:
        self._victims = victims
        self._faults = faults
        self._seed = seed
        self._over = threading.Event()  # no more harm
        self._ended = threading.Event()  # no more starting again
        self._failures: list[BaseException] = []
        self.done: collections.Counter[str] = collections.Counter()
        self.restarts: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The victims at work and supervised; they are gone afterwards."""
        supervisor = threading.Thread(target=self._supervise)
        try:
            for victim in self._victims:
                if victim.what.process is None:
                    victim.start()
            supervisor.start()
            yield
        finally:
            self._over.set()
            self._ended.set()
            if supervisor.is_alive():
                supervisor.join()
            for victim in self._victims:
                if isinstance(victim.what, Program):
                    victim.what.kill()

    def harm(self, seconds: float) -> None:
        """All kinds of harm for so long. Raises what a fault raised."""
        threads = [
            threading.Thread(target=self._keep_harming, args=(number, fault))
            for number, fault in enumerate(self._faults)
        ]
        for thread in threads:
            thread.start()
        self._over.wait(seconds)
        self._over.set()
        for thread in threads:
            thread.join()
        if self._failures:
            raise self._failures[0]

    def _keep_harming(self, number: int, fault: Fault) -> None:
        chance = random.Random(f"{self._seed} {number}")
        try:
            while not self._over.wait(chance.uniform(0.2, 3.0)):
                if fault.harm(chance, self._pause):
                    self.done[fault.name] += 1
        except BaseException as failure:  # noqa: BLE001  # said by harm(): a thread has nobody to say it to
            self._failures.append(failure)
            self._over.set()

    def _pause(self, seconds: float) -> None:
        self._over.wait(seconds)

    def _supervise(self) -> None:
        while not self._ended.wait(1.0):
            for victim in self._victims:
                if not victim.held.acquire(blocking=False):
                    continue  # a fault has it
                try:
                    if not victim.spared and victim.is_lost:
                        self.restarts[victim.kind] += 1
                        victim.what.kill()
                        victim.start()
                        victim.silent_since = None
                finally:
                    victim.held.release()
