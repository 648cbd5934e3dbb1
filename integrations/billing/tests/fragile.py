"""A process that can end between any two steps: a file, a ledger and a way to Stripe that do so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from sqlite3 import Connection

from loopback import FakeTransport, Loopback
from power_billing.tables import LedgerFile

from power_manager import PowerManager


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Fuse:
    """Burns down by one at every point between two steps; at 0 the process ends."""

    left: int | None = None

    def step(self) -> None:
        """Pass such a point."""
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise Killed

    @contextmanager
    def around(self) -> Iterator[None]:
        """Pass such a point before something and after it."""
        self.step()
        yield
        self.step()


class FragileManager(PowerManager):
    """A PowerManager whose process can end before, in, and after every transaction of billing."""

    fuse = Fuse()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """As the library's."""
        with self.fuse.around(), super().connection() as conn:
            yield conn
            self.fuse.step()


class FragileLedger(LedgerFile):
    """The same of a ledger's own file."""

    fuse = Fuse()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """As a ledger file's."""
        with self.fuse.around(), super().connection() as conn:
            yield conn
            self.fuse.step()


class FragileTransport(FakeTransport):
    """Its process can end before a request leaves and after it has arrived."""

    def __init__(self, server: Loopback, fuse: Fuse) -> None:
        super().__init__(server)
        self._fuse = fuse

    def request(self, *args: object, **options: object) -> tuple[str, int, dict[str, str]]:
        """As the loopback's."""
        with self._fuse.around():
            return super().request(*args, **options)  # type: ignore[arg-type]
