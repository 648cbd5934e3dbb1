"""A consistent copy of the database, while everybody reads and writes: as an answer, and as a command."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO

from power_manager import PowerManager, StorageError

MEDIA_TYPE = "application/vnd.sqlite3"
_CHUNK_BYTES = 256 * 1024
_MAGIC = b"SQLite format 3\0"
_SECONDS = 300.0  # of silence: the service copies the file before it sends it


class BackupFailed(Exception):
    """There is no backup; the message says why."""


# --- As an answer


def copy(pm: PowerManager) -> BinaryIO:
    """A copy, open and without a name: however the service ends, nothing of it is left. Raises StorageError."""
    database = Path(os.path.abspath(pm.db_path))
    try:
        # Beside the database, for there may be no room for it in /tmp.
        with tempfile.TemporaryDirectory(dir=database.parent, prefix=".power-backup-") as directory:
            path = Path(directory) / "copy.db"
            pm.backup(path)
            return path.open("rb")
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(database.parent, error.strerror) from error


class OneAtATime:
    """A place for one: each backup takes as much of the disk as the database."""

    def __init__(self) -> None:
        self._is_taken = False

    def take(self) -> bool:
        """Take the place, if it is free."""
        was_free = not self._is_taken
        self._is_taken = True
        return was_free

    def give_back(self) -> None:
        """Let the next one have it."""
        self._is_taken = False


class Sending:
    """A copy on its way; it ends before its last part is sent, so that whoever has it all can ask for another."""

    def __init__(self, file: BinaryIO, place: OneAtATime) -> None:
        self._file = file
        self._place = place
        self.size = os.fstat(file.fileno()).st_size

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, part by part."""
        chunk = self._file.read(_CHUNK_BYTES)
        while chunk:
            following = self._file.read(_CHUNK_BYTES)
            if not following:
                self.end()
            yield chunk
            chunk = following

    def end(self) -> None:
        """Close it, and give the place back; doing it again does nothing."""
        if not self._file.closed:
            self._file.close()
            self._place.give_back()


# --- As a command


def copy_file(database: Path, target: Path) -> None:
    """Copy a database of this machine. Raises StorageError, BackupFailed."""
    if not database.exists():  # the library would make it
        raise BackupFailed(f"{database}: no such file: name the service's database with --db")
    with PowerManager(database) as pm:
        pm.backup(target)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Somebody else is not sent the token."""

    def redirect_request(self, *_: Any) -> None:
        """Refuse; it becomes an error."""


def download(url: str, token: str | None, target: Path) -> None:
    """Copy the database of a service that is elsewhere. Raises BackupFailed; a file at `target` is then as it was."""
    if not url.startswith(("http://", "https://")):
        raise BackupFailed(
            f"{url}: expected the address of a service, such as http://127.0.0.1:8080"
        )
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    opener = urllib.request.build_opener(_NoRedirect)
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        request = urllib.request.Request(f"{url.rstrip('/')}/v1/backup", headers=headers)
        with opener.open(request, timeout=_SECONDS) as answer:
            _save(answer, unfinished)
        os.replace(unfinished, target)
    except urllib.error.HTTPError as error:
        raise BackupFailed(f"{url}: {_detail(error)}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise BackupFailed(f"{url}: {error}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _save(answer: HTTPResponse, path: Path) -> None:
    """Save all of an answer, private to its owner and on the disk. Raises ValueError where it is not all, or none."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w+b") as file:
        shutil.copyfileobj(answer, file, _CHUNK_BYTES)
        file.flush()
        os.fsync(descriptor)
        if str(file.tell()) != answer.headers["Content-Length"]:
            raise ValueError("the answer ended early: try again")
        file.seek(0)
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("the answer is no database: is this the service's address?")


def _detail(error: urllib.error.HTTPError) -> str:
    """What a service says of an error."""
    try:
        return str(json.loads(error.read(65_536))["detail"])
    except (ValueError, KeyError, TypeError, OSError, HTTPException):
        return f"{error.code} {error.reason}"
