"""A consistent copy of the database while it is in use: as an answer, and as a command."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import ssl
import tempfile
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO

from power_manager import PowerManager, StorageError, replace_file
from power_service.errors import ServiceError
from power_service.locks import locked, locked_if_free
from power_service.settings import TOKEN_VARIABLE

MEDIA_TYPE = "application/vnd.sqlite3"
_CHUNK_BYTES = 256 * 1024
_MAGIC = b"SQLite format 3\0"
_SECONDS = 300.0  # of silence: the service copies the file before it sends it
_PREFIX = ".power-backup-"  # of the directories in which copies are made
_log = logging.getLogger("power_service")


class BackupFailed(ServiceError):
    """No backup was made; the message says why."""


# --- As an answer


def copy(pm: PowerManager) -> BinaryIO:
    """An open copy without a name: it is gone however the service ends. Raises StorageError.

    Until it is whole it has a name, which a service that is killed leaves behind: see
    remove_abandoned().
    """
    beside = Path(os.path.abspath(pm.db_path)).parent  # /tmp may have no room for it
    with _about(beside), contextlib.ExitStack() as at_the_end:
        with locked(beside):  # or another process would take the new directory for abandoned
            _remove_abandoned(beside)
            made = tempfile.TemporaryDirectory(dir=beside, prefix=_PREFIX)
            path = Path(at_the_end.enter_context(made)) / "copy.db"
            at_the_end.enter_context(locked(path.parent))
        pm.backup(path)
        return path.open("rb")


def remove_abandoned(database: Path) -> None:
    """Remove what services that were killed have left of copies beside the database.

    Each may be as large as the database. What cannot be removed stays, and the log says so.
    """
    beside = Path(os.path.abspath(database)).parent
    try:
        with locked(beside):
            _remove_abandoned(beside)
    except OSError as error:  # of a directory that only its files can be read of
        _log.warning("unfinished copies in %s cannot be looked for: %s", beside, error.strerror)


def _remove_abandoned(beside: Path) -> None:
    """Remove the directories of copies that no process holds the lock of."""
    for directory in beside.glob(f"{_PREFIX}*"):
        try:
            with locked_if_free(directory) as is_abandoned:
                if is_abandoned:
                    shutil.rmtree(directory)
                    _log.warning("removed %s: a copy that was never finished", directory)
        except OSError as error:  # such as that of another user
            _log.warning("%s cannot be removed: %s", directory, error.strerror)


@contextlib.contextmanager
def _about(path: Path) -> Iterator[None]:
    """Let an OSError of the block be a StorageError about `path`; one that is already stays."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(path, str(error.strerror or error)) from error


class OneAtATime:
    """Lets one backup run at a time: each takes as much disk as the database."""

    def __init__(self) -> None:
        self._is_taken = False

    def take(self) -> bool:
        """Take the place; return whether it was free."""
        was_free = not self._is_taken
        self._is_taken = True
        return was_free

    def give_back(self) -> None:
        """Free the place."""
        self._is_taken = False


class Sending:
    """A copy that is being sent; its place is freed just before the last part is sent."""

    def __init__(self, file: BinaryIO, place: OneAtATime) -> None:
        self._file = file
        self._place = place
        self.size = os.fstat(file.fileno()).st_size

    def chunks(self) -> Iterator[bytes]:
        """The copy's bytes, part by part."""
        chunk = self._file.read(_CHUNK_BYTES)
        while chunk:
            following = self._file.read(_CHUNK_BYTES)
            if not following:
                self.end()
            yield chunk
            chunk = following

    def end(self) -> None:
        """Close the copy and free its place, once."""
        if not self._file.closed:
            self._file.close()
            self._place.give_back()


# --- As a command


def copy_file(database: Path, target: Path) -> None:
    """Copy a database on this machine. Raises StorageError, BackupFailed."""
    if not database.exists():  # the library would make one
        raise BackupFailed(f"{database}: no such file: name the service's database with --db")
    with PowerManager(database) as pm:
        pm.backup(target)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: another server must not get the token."""

    def redirect_request(self, *_: Any) -> None:
        """Refuse, which raises HTTPError."""


def download(url: str, token: str | None, target: Path) -> None:
    """Copy a service's database over HTTP. An older `target` stays if that fails.

    Raises BackupFailed, and StorageError where the copy cannot be written.
    """
    if not url.startswith(("http://", "https://")):
        raise BackupFailed(
            f"{url}: expected the address of a service, such as http://127.0.0.1:8080"
        )
    # The file first: where it cannot be made, the service need not copy anything. Every fault of
    # the service is a BackupFailed, so an OSError is one of the disk.
    with (
        _about(target),
        replace_file(target, 0o600) as file,
        contextlib.closing(_received(url, token)) as chunks,
    ):
        for chunk in chunks:
            file.write(chunk)


def _received(url: str, token: str | None) -> Generator[bytes, None, None]:
    """The copy that a service makes, part by part. Raises BackupFailed."""
    headers = _authorization(token)
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        request = urllib.request.Request(f"{url.rstrip('/')}/v1/backup", headers=headers)
        with opener.open(request, timeout=_SECONDS) as answer:
            yield from _checked(answer)
    except urllib.error.HTTPError as error:
        raise BackupFailed(f"{url}: {_detail(error)}") from None
    except urllib.error.URLError as error:
        raise BackupFailed(f"{url}: {_reason(error.reason)}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise BackupFailed(f"{url}: {_reason(error)}") from None


def _checked(answer: HTTPResponse) -> Iterator[bytes]:
    """The parts of an answer. Raises ValueError if it is no database, or not all of one."""
    byte_count = 0
    while chunk := answer.read(_CHUNK_BYTES):
        if byte_count == 0 and not chunk.startswith(_MAGIC):
            raise ValueError("the answer is not a database: check the service's address")
        byte_count += len(chunk)
        yield chunk
    if byte_count == 0 or str(byte_count) != answer.headers["Content-Length"]:
        raise ValueError("the answer ended early: try again")


def _authorization(token: str | None) -> dict[str, str]:
    """The header with a token, if there is one. Raises BackupFailed, which does not show it."""
    if not token:
        return {}
    if not (token.isascii() and token.isprintable()):
        raise BackupFailed(
            f"${TOKEN_VARIABLE}: expected a token as power-service token new prints it, got text "
            "with the end of a line, or another character that no token has"
        )
    return {"Authorization": f"Bearer {token}"}


def _reason(reason: str | BaseException) -> str:
    """Why there is no copy, and what would do."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({reason.verify_message}): name the file of a "
            "certificate of your own in $SSL_CERT_FILE"
        )
    return str(getattr(reason, "strerror", None) or reason)


def _detail(error: urllib.error.HTTPError) -> str:
    """The service's own text of an error, or its status."""
    try:
        return str(json.loads(error.read(65_536))["detail"])
    except (ValueError, KeyError, TypeError, OSError, HTTPException):
        return f"{error.code} {error.reason}"
