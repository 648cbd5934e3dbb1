"""A consistent copy of the database while it is in use: as an answer, and as a command."""

from __future__ import annotations

import json
import os
import ssl
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO

from power_manager import PowerManager, StorageError, replace_file
from power_service.errors import ServiceError

MEDIA_TYPE = "application/vnd.sqlite3"
_CHUNK_BYTES = 256 * 1024
_MAGIC = b"SQLite format 3\0"
_SECONDS = 300.0  # of silence: the service copies the file before it sends it


class BackupFailed(ServiceError):
    """No backup was made; the message says why."""


# --- As an answer


def copy(pm: PowerManager) -> BinaryIO:
    """An open copy without a name: it is gone however the service ends. Raises StorageError."""
    database = Path(os.path.abspath(pm.db_path))
    try:
        # Beside the database: /tmp may have no room for it.
        with tempfile.TemporaryDirectory(dir=database.parent, prefix=".power-backup-") as directory:
            path = Path(directory) / "copy.db"
            pm.backup(path)
            return path.open("rb")
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(database.parent, error.strerror) from error


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
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        request = urllib.request.Request(f"{url.rstrip('/')}/v1/backup", headers=headers)
        # The file first: where it cannot be made, the service need not copy anything.
        with (
            replace_file(target, 0o600) as file,
            opener.open(request, timeout=_SECONDS) as answer,
        ):
            _save(answer, file, target)
    except StorageError:
        raise
    except urllib.error.HTTPError as error:
        raise BackupFailed(f"{url}: {_detail(error)}") from None
    except urllib.error.URLError as error:
        raise BackupFailed(f"{url}: {_reason(error)}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise BackupFailed(f"{url}: {error}") from None


def _save(answer: HTTPResponse, file: BinaryIO, target: Path) -> None:
    """Write an answer to a new file, which becomes `target`.

    Raises ValueError if it is no database, or not all of one; StorageError.
    """
    byte_count = 0
    while chunk := answer.read(_CHUNK_BYTES):
        if byte_count == 0 and not chunk.startswith(_MAGIC):
            raise ValueError("the answer is not a database: check the service's address")
        byte_count += len(chunk)
        try:
            file.write(chunk)
        except OSError as error:  # as on a full disk: not the service's fault
            raise StorageError(target, str(error.strerror or error)) from error
    if byte_count == 0 or str(byte_count) != answer.headers["Content-Length"]:
        raise ValueError("the answer ended early: try again")


def _reason(error: urllib.error.URLError) -> str:
    """Why there is no connection, and what would do."""
    reason = error.reason
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
