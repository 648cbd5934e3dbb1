"""Bearer tokens: their file, what each may do, and one-use tickets."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from power_manager import replace_file
from power_service.locks import locked
from power_service.settings import Refused


class Scope(str, Enum):
    """What a token may do: read does not include write, nor write read; admin is both."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True)
class Grant:
    """What the owner of a token may do; `devices` None: on all of them."""

    id: str
    name: str
    scopes: tuple[str, ...]
    devices: tuple[str, ...] | None
    created_at: str
    sha256: str

    def has(self, scope: str) -> bool:
        """Whether that scope is granted."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def covers(self, device_id: str) -> bool:
        """Whether that device is granted."""
        return self.devices is None or device_id in self.devices


EVERYBODY = Grant("no-auth", "", (Scope.ADMIN.value,), None, "", "")  # under --no-auth


def digest(token: str) -> str:
    """What the file keeps of a token. A plain hash is enough: a token is 256 random bits."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> list[Grant]:
    """The grants in the file; none if there is no file. Raises Refused."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return []
    with file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise Refused(
                f"{path}: other users can read or write it: chmod 600 it, and make new tokens"
            )
        content = file.read()
    try:
        return [_grant(row) for row in json.loads(content)["tokens"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        # Not what the file has: it may be a secret of something else.
        raise Refused(
            f"{path}: expected a file of tokens, as power-service token new writes it: put it "
            "back, or move this one away and make new tokens"
        ) from None


def _grant(row: dict[str, Any]) -> Grant:
    """The grant in a row of the file. Raises ValueError, TypeError, KeyError for any other row."""
    scopes = tuple(Scope(scope).value for scope in row["scopes"])
    grant = Grant(**{**row, "scopes": scopes, "devices": _ids(row["devices"])})
    texts = (grant.id, grant.name, grant.created_at, grant.sha256, *(grant.devices or ()))
    if not all(isinstance(text, str) for text in texts) or isinstance(row["devices"], str):
        raise TypeError
    return grant


def _ids(ids: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if ids is None else tuple(dict.fromkeys(ids))


def _write(path: Path, grants: Iterable[Grant]) -> None:
    """Replace the file whole; it is private to its owner, also where root writes it.

    Raises StorageError.
    """
    text = json.dumps({"tokens": [asdict(grant) for grant in grants]}, indent=1)
    with replace_file(path, 0o600) as file:
        file.write(text.encode())


class TokenFile:
    """The valid tokens. Their file is read again when the command line has changed it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        # Two threads that read it at once could keep an earlier content as the latest.
        self._reading = threading.Lock()
        self.grants: list[Grant] = []
        self.refresh()

    def refresh(self) -> None:
        """Read the file again if it has changed. Raises Refused."""
        with self._reading:
            try:
                now = os.stat(self.path)
            except FileNotFoundError:
                self._seen = None
                self.grants = []
                return
            seen = (now.st_ino, now.st_mtime_ns, now.st_ctime_ns)
            if seen != self._seen:
                self.grants = _read(self.path)
                self._seen = seen

    def find(self, token: str) -> Grant | None:
        """The grant of a token, or None; it takes the same time for every token."""
        presented = digest(token)
        found = None
        for grant in self.grants:
            if hmac.compare_digest(grant.sha256, presented):
                found = grant
        return found

    def knows(self, grant: Grant) -> bool:
        """Whether that grant is still valid."""
        return grant is EVERYBODY or grant in self.grants

    def new(
        self, name: str, scopes: Iterable[Scope], devices: Iterable[str] | None = None
    ) -> tuple[str, Grant]:
        """Make a token; return its text, which is kept nowhere, and its grant.

        Raises Refused, OSError: there is no new token then.
        """
        token = "pm_" + secrets.token_urlsafe(32)
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        names = tuple(dict.fromkeys(scope.value for scope in scopes))
        grant = Grant(secrets.token_hex(4), name, names, _ids(devices), when, digest(token))
        with locked(self.path.parent):
            _write(self.path, [*_read(self.path), grant])
        self.refresh()
        return token, grant

    def revoke(self, token_id: str) -> bool:
        """Revoke a token; return whether there was one with that id. Raises Refused, OSError."""
        with locked(self.path.parent):
            before = _read(self.path)
            left = [grant for grant in before if grant.id != token_id]
            if len(left) < len(before):
                _write(self.path, left)
        self.refresh()
        return len(left) < len(before)


class Tickets:
    """One-use tickets, each worth a grant for some seconds: for the stream, and for sign-in links.

    They are in memory only. Their time is that of a clock that cannot be set.
    """

    def __init__(
        self, seconds: float = 30.0, size: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds = seconds
        self._size = size
        self._clock = clock
        # By hash, until when each is valid, and its grant; oldest first.
        self._open: dict[str, tuple[float, Grant]] = {}

    def issue(self, grant: Grant) -> str:
        """A new ticket for that grant."""
        ticket = secrets.token_urlsafe(32)
        now = self._clock()
        while self._open and (
            len(self._open) >= self._size or next(iter(self._open.values()))[0] < now
        ):
            del self._open[next(iter(self._open))]
        self._open[digest(ticket)] = (now + self.seconds, grant)
        return ticket

    def redeem(self, ticket: str) -> Grant | None:
        """The grant of an unused ticket, which is then used up; None for any other."""
        until, grant = self._open.pop(digest(ticket), (0.0, None))
        return grant if until >= self._clock() else None

    def give_back(self, ticket: str, grant: Grant) -> None:
        """Make a ticket valid again, for as long as a new one: its use failed."""
        self._open[digest(ticket)] = (self._clock() + self.seconds, grant)
