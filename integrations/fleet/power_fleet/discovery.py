"""Where this machine's hub is: how commands without addresses find it.

A running hub has its addresses in DIR/hub.json, and locks DIR/lock.
`$XDG_STATE_HOME/power-fleet/hub` is a link to the DIR of the hub that was started last by this
user; `$POWER_FLEET_HUB` names another DIR.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from power_fleet.errors import FleetError
from power_manager import StorageError, replace_file

HUB_VARIABLE = "POWER_FLEET_HUB"
LOOPBACK = "127.0.0.1"
NATS_PORT = 4222
USERS = "devices.conf"  # of its NATS server, below its directory
READY_SECONDS = 60.0  # that a hub may take to start: it reads what waits in its stream
LOOK_SECONDS = 0.2
LOCK_SECONDS = 0.01  # between two attempts to have a lock that commands share


class NotRunning(FleetError, OSError):
    """There should be a hub, and it does not run; the message says how to start it."""


@dataclass(frozen=True)
class Addresses:
    """Where a hub's parts are. `clickhouse` holds the engine's password."""

    process: int
    nats: str
    clickhouse: str
    service: str = ""  # of its pages; "" without them
    key_file: str = ""  # who this machine's commands are to NATS; "" where everyone may connect
    certificate: str = ""  # of NATS, which alone is trusted; "" without TLS


def link_path(environ: Mapping[str, str]) -> Path:
    """The link to the DIR of the hub that was started last."""
    home = environ.get("HOME") or os.path.expanduser("~")
    state = environ.get("XDG_STATE_HOME") or os.path.join(home, ".local", "state")
    return Path(state) / "power-fleet" / "hub"


def hub_directory(environ: Mapping[str, str] | None = None) -> Path | None:
    """The DIR of this machine's hub, running or not; None where there never was one."""
    environ = os.environ if environ is None else environ
    named = environ.get(HUB_VARIABLE)
    if named:
        return Path(named)
    with contextlib.suppress(OSError):  # there is none, or it is no link
        return Path(os.readlink(link_path(environ)))
    return None


def find_hub(
    environ: Mapping[str, str] | None = None, wait: Callable[[float], None] = time.sleep
) -> Addresses | None:
    """The addresses of this machine's hub, which is waited for while it starts.

    None where there never was one.

    Raises NotRunning, StorageError.
    """
    directory = hub_directory(environ)
    if directory is None:
        return None
    file = directory / "hub.json"
    for _ in range(round(READY_SECONDS / LOOK_SECONDS)):
        if not is_running(directory):
            raise NotRunning(
                f"the hub of {directory} is not running: "
                f"`power-fleet hub --data {directory}` starts it"
            )
        try:
            return Addresses(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            wait(LOOK_SECONDS)
        except (OSError, ValueError, TypeError) as error:
            raise StorageError(file, f"not the addresses of a hub: {error}") from error
    raise NotRunning(
        f"the hub of {directory} is not ready after {READY_SECONDS:g} s: see what it says"
    )


def is_running(directory: Path) -> bool:
    """Whether a hub holds the lock of its directory.

    Raises StorageError where that cannot be asked.
    """
    try:
        with (directory / "lock").open("rb") as file:
            return not _is_locked(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(directory, f"{error.strerror}: is it another user's?") from error


def _is_locked(file: IO[bytes], kind: int) -> bool:
    """Lock a file, alone or shared, in place of the lock that it has; whether that was possible."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def locked(directory: Path, wait: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Make the directory where it is missing, and be its only hub. Raises StorageError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (directory / ".gitignore").write_text("*\n", encoding="ascii")  # it holds passwords
        file = (directory / "lock").open("ab")
    except OSError as error:
        raise StorageError(directory, f"{error.strerror}: name a directory of yours") from error
    with file:
        while not _is_locked(file, fcntl.LOCK_EX):
            # Commands that look whether a hub runs share the lock for a moment; a hub does not.
            if not _is_locked(file, fcntl.LOCK_SH):
                raise StorageError(directory, "another hub runs on it: end that one first")
            wait(LOCK_SECONDS)
        (directory / "hub.json").unlink(missing_ok=True)  # of one that was killed
        yield


@contextlib.contextmanager
def announced(
    directory: Path, addresses: Addresses, environ: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Have commands find the hub while it runs.

    Raises StorageError for its own file; the link is a convenience.
    """
    text = json.dumps(dataclasses.asdict(addresses), indent=2)
    with replace_file(directory / "hub.json", 0o600) as json_file:
        json_file.write(text.encode())
    link = link_path(os.environ if environ is None else environ)
    with contextlib.suppress(OSError):  # a service may have no home: then $POWER_FLEET_HUB says it
        _relink(link, directory.absolute())
    try:
        yield
    finally:
        (directory / "hub.json").unlink(missing_ok=True)


def _relink(link: Path, target: Path) -> None:
    link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = link.with_name(f"{link.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)
