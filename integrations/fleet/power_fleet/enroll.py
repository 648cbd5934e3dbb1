"""Who may do what at the NATS servers: the file of users that their configuration includes.

    authorization { include "devices.conf" }

(A server looks for it below the directory of its configuration.) A line of it is one user: the
public half of a key, and the rights that go with the user's role. So the servers hold no secret. A
file without any user would open a server to everyone: the first line is a user whose key no one
has.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from power_fleet.keys import check_public, inbox_prefix_of, make_key
from power_fleet.subjects import CONSUMER, DEAD_STREAM, STREAM, SUBJECT, token
from power_manager import InvalidValue, NotFound, StorageError, check_text, nearest, replace_file

DEVICE = "device"
SINK = "sink"
OPERATOR = "operator"
HUB = "hub"
ROLES = (DEVICE, SINK, OPERATOR, HUB)
_NOBODY = "nobody"

_HEAD = (
    "# Users of the NATS servers. `power-fleet enroll` and `revoke` write this file: "
    "what is changed here by hand is lost.\nusers: [\n"
)
_TAIL = "]\n"
_LINE = re.compile(r"  \{ nkey: .* \} # (\{.*\})")

# What each role may publish; a device its own subjects alone. Sinks store: they take from the
# stream, acknowledge, and write dead letters. Operators make the streams, and look after dead
# letters. A hub is both.
_READS = [
    "$JS.API.STREAM.NAMES",
    f"$JS.API.STREAM.INFO.{STREAM}",
    f"$JS.API.STREAM.INFO.{DEAD_STREAM}",
]
_SINK_MAY = [
    *_READS,
    f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}",
    f"$JS.ACK.{STREAM}.{CONSUMER}.>",
    "power.dead.*.*",
]
_OPERATOR_MAY = [
    "$JS.API.STREAM.NAMES",
    f"$JS.API.STREAM.*.{STREAM}",
    f"$JS.API.STREAM.*.{DEAD_STREAM}",
    f"$JS.API.STREAM.MSG.*.{DEAD_STREAM}",
    f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.{CONSUMER}",
    f"{SUBJECT}*",
]
_MAY: dict[str, list[str]] = {
    DEVICE: [],
    SINK: _SINK_MAY,
    OPERATOR: _OPERATOR_MAY,
    HUB: [
        *_SINK_MAY,
        *_OPERATOR_MAY,
        f"$JS.API.CONSUMER.INFO.{STREAM}.{CONSUMER}",
        f"$JS.API.CONSUMER.DELETE.{STREAM}.{CONSUMER}",
    ],
    _NOBODY: [],
}


@dataclass(frozen=True)
class User:
    """One user: `ids` are devices that share a key, or the name of a sink or a person."""

    role: str
    ids: tuple[str, ...]
    public: str
    since: datetime

    @property
    def may_publish(self) -> list[str]:
        """The subjects that it may publish."""
        own = [SUBJECT + token(id_) for id_ in self.ids] if self.role == DEVICE else []
        return [*own, *_MAY[self.role]]

    @property
    def line(self) -> str:
        """Its line of the file: what the server reads, then what this program reads."""
        listens = [] if self.role == _NOBODY else [f"{inbox_prefix_of(self.public)}.>"]
        rights = f"publish: {_listed(self.may_publish)}, subscribe: {_listed(listens)}"
        facts = {
            "role": self.role,
            "ids": self.ids,
            "public": self.public,
            "since": self.since.isoformat(),
        }
        return f"  {{ nkey: {self.public}, permissions: {{ {rights} }} }} # {json.dumps(facts)}\n"


def users(path: Path) -> list[User]:
    """The users of a file, in the order of enrolling. Raises StorageError."""
    return [user for user in _read(path) if user.role != _NOBODY]


def enroll(
    path: Path,
    ids: Sequence[str],
    public: str,
    *,
    role: str = DEVICE,
    again: bool = False,
    now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
) -> User:
    """Add a user to the file, which is made where there is none.

    With `again` in place of the one that has these ids, of which there has to be one.

    A device belongs to one user. Raises InvalidValue, NotFound, StorageError; the file is then as
    it was.
    """
    user = User(role, tuple(ids), check_public(public), now().replace(microsecond=0))
    with _changing(path) as present:
        rivals = _replaced(path, present, ids, role, again)
        for other in present:
            if other not in rivals and inbox_prefix_of(other.public) == inbox_prefix_of(public):
                raise InvalidValue(f"{_shown(other.ids)} has this key: make another one")
        for other in rivals:
            present.remove(other)
        present.append(user)
    return user


def check_ids(path: Path, ids: Sequence[str], *, role: str = DEVICE, again: bool = False) -> None:
    """Raise what enroll() would raise for these ids, whatever the key."""
    _replaced(path, _read(path) if path.exists() else [], ids, role, again)


def _replaced(
    path: Path, present: Sequence[User], ids: Sequence[str], role: str, again: bool
) -> list[User]:
    """Those in whose place a user with these ids comes. Raises InvalidValue, NotFound."""
    for id_ in ids:
        check_text("id", id_)
    if not ids or len(set(ids)) != len(ids):
        raise InvalidValue(f"expected different ids, at least one, got {list(ids)}")
    rivals = [other for other in present if other.role == role and set(other.ids) & set(ids)]
    for other in rivals:
        if not set(other.ids) <= set(ids):
            raise InvalidValue(f"{_shown(other.ids)} share a key: revoke it first")
        if not again:
            raise InvalidValue(
                f"{_shown(other.ids)} is enrolled already: give --again to replace its key"
            )
    if again and not rivals:
        raise _unknown(path, present, role, ids[0], ": leave out --again to enroll it")
    return rivals


def _unknown(
    path: Path, present: Sequence[User], role: str, id_: str, remedy: str = ""
) -> NotFound:
    known = [known for user in present if user.role == role for known in user.ids]
    hint = nearest(id_, known) or remedy
    return NotFound(f"no {role} {id_!r} is enrolled in {path}{hint}", role, id_)


def revoke(path: Path, id_: str, *, role: str = DEVICE) -> User:
    """Take the user that has this id out of the file; return it. Raises NotFound, StorageError."""
    with _changing(path) as present:
        found = [user for user in present if user.role == role and id_ in user.ids]
        if not found:
            raise _unknown(path, present, role, id_)
        present.remove(found[0])
    return found[0]


def make_file(path: Path) -> None:
    """Make the file where there is none: it lets no one in, and a server can include it."""
    with _changing(path):
        pass


def reload_server(pid_file: Path) -> None:
    """Have the server of this `pid_file` read its configuration again. Raises StorageError."""
    try:
        pid = int(pid_file.read_text(encoding="ascii"))
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
        if not name.startswith("nats-server"):  # the number went to another process meanwhile
            raise ProcessLookupError(f"process {pid} is {name}")
        os.kill(pid, signal.SIGHUP)
    except (OSError, ValueError) as error:
        raise StorageError(pid_file, f"no running NATS server by it: {error}") from error


def _shown(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids))


def _listed(subjects: Sequence[str]) -> str:
    # "deny" is what an empty list would not say: to the server it means everything.
    return json.dumps(list(subjects)) if subjects else '{ deny: ">" }'


# --- The file


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[list[User]]:
    """The users of a file, to be changed; written unless something was raised.

    One program at a time changes it.
    """
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        present = _read(path) if path.exists() else [_nobody()]
        yield present
        text = _HEAD + "".join(user.line for user in present) + _TAIL
        # A server that reads it meanwhile has the old one or the new one.
        with replace_file(path) as file:
            file.write(text.encode())
    finally:
        os.close(directory)


def _nobody() -> User:
    return User(
        _NOBODY, (_NOBODY,), make_key().public, datetime.now(timezone.utc).replace(microsecond=0)
    )


def _read(path: Path) -> list[User]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(path, f"no file of users: {error}") from error
    if not (text.startswith(_HEAD) and text.endswith(_TAIL)):
        raise StorageError(path, "not a file that `power-fleet enroll` made: name another one")
    lines = text[len(_HEAD) : -len(_TAIL)].splitlines()
    first = 1 + _HEAD.count("\n")
    return [_user(path, number, line) for number, line in enumerate(lines, first)]


def _user(path: Path, number: int, line: str) -> User:
    try:
        facts: dict[str, Any] = json.loads(_LINE.fullmatch(line)[1])  # type: ignore[index]
        user = User(
            facts["role"],
            tuple(facts["ids"]),
            facts["public"],
            datetime.fromisoformat(facts["since"]),
        )
        if user.role not in _MAY or f"nkey: {user.public}," not in line:
            raise ValueError(user.role)
    except (TypeError, ValueError, KeyError) as error:
        raise StorageError(
            path, f"line {number} was changed by hand: take it out, and enroll again"
        ) from error
    return user
