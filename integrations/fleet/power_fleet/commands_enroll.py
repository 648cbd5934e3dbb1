"""`power-fleet enroll`, `revoke`, `enrolled` and `key`.

Who may send to the fleet's NATS servers.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Container
from pathlib import Path
from typing import Any

from power_fleet import enroll
from power_fleet.discovery import USERS, hub_directory
from power_fleet.enroll import DEVICE, OPERATOR, SINK, User
from power_fleet.errors import Refused, WrongOptions
from power_fleet.keys import make_key, read_key, write_key
from power_fleet.options import (
    OPERATOR_GROUP,
    USERS_VARIABLE,
    parse_public_key,
    print_done,
)
from power_fleet.subjects import token
from power_manager import (
    Column,
    CommandParser,
    Screen,
    StorageError,
    make_table,
    print_error,
    shown_json,
)

SOME_PUBLIC_KEY = "UB6YJCO7EZ4OGYZ7VRG6MF7QVSWIFYRXCZAQ2VYRDYKGW7NR2MMSUVGK"
PLACE = "/etc/power/nats.key"  # of a device's key in the lines for it


def add_commands(parser: CommandParser) -> None:
    """Add `enroll`, `revoke`, `enrolled` and `key`."""
    _add_enroll(parser)
    command = parser.add_command(
        "revoke",
        _revoke,
        "take a device's rights away; the server closes an open connection of it",
        examples=["edge-001 --users devices.conf", "sink-1 --role sink --users devices.conf"],
        group=OPERATOR_GROUP,
    )
    command.add_argument("id", help="the device, or the name that was enrolled")
    _add_role(command)
    _add_users(command)
    _add_pid_file(command)
    command.add_json()

    command = parser.add_command(
        "enrolled",
        _enrolled,
        "list who has a key",
        examples=["--users devices.conf", "--users devices.conf --json"],
        group=OPERATOR_GROUP,
    )
    _add_users(command)
    command.add_json()

    command = parser.add_command(
        "key",
        _key,
        "make a key here, or show the public half of one that is there",
        examples=[PLACE],
        group=OPERATOR_GROUP,
    )
    command.add_argument("file", type=Path, help="the file of the key")
    command.add_json()


def _add_enroll(parser: CommandParser) -> None:
    command = parser.add_command(
        "enroll",
        _enroll,
        "let a device send: make its key and give it its rights",
        examples=[
            "edge-001 --users devices.conf",
            f"edge-001 --users devices.conf --public-key {SOME_PUBLIC_KEY}",
            "sink-1 --role sink --users devices.conf",
        ],
        group=OPERATOR_GROUP,
    )
    command.add_argument(
        "ids", nargs="+", metavar="id", help="the device; several that share a file share a key"
    )
    _add_role(command)
    _add_users(command)
    _add_pid_file(command)
    command.add_argument(
        "--key-out", type=Path, metavar="FILE", help="where the new key goes (default: ID.key)"
    )
    command.add_argument(
        "--public-key",
        type=parse_public_key,
        metavar="KEY",
        help="the public half of a key that `power-fleet key` made on the device",
    )
    command.add_argument(
        "--again", action="store_true", help="replace the key that it has, and revoke that"
    )
    command.add_json()


def _add_role(command: CommandParser) -> None:
    command.add_argument(
        "--role",
        choices=(DEVICE, SINK, OPERATOR),
        default=DEVICE,
        help="a sink takes from the stream, an operator runs `stream` and `dead` (default: device)",
    )


def _add_users(command: CommandParser) -> None:
    command.add_setting(
        "--users",
        variable=USERS_VARIABLE,
        text="the file of users that the servers' configuration includes",
        shown_default="that of this machine's hub",
        type=Path,
        metavar="FILE",
    )


def _add_pid_file(command: CommandParser) -> None:
    command.add_argument(
        "--pid-file",
        type=Path,
        metavar="FILE",
        help="of the server on this machine, which then reads the users again",
    )


def _users_file(options: argparse.Namespace) -> Path:
    if options.users is not None:
        users: Path = options.users
        return users
    hub = hub_directory()
    if hub is None:
        raise WrongOptions(f"--users: name the file of users, here or in ${USERS_VARIABLE}")
    if not (hub / USERS).exists():
        raise Refused(
            f"the hub of {hub} takes what anyone on this machine sends: "
            "start it with --listen, --cert and --key"
        )
    return hub / USERS


def _enroll(options: argparse.Namespace) -> int:
    if options.public_key and options.key_out:
        raise WrongOptions("--key-out: with --public-key the device has the key already")
    path = _users_file(options)
    before = {user.public for user in enroll.users(path)} if path.exists() else set()
    key_file: Path | None = None
    if options.public_key:
        user = enroll.enroll(
            path, options.ids, options.public_key, role=options.role, again=options.again
        )
        text = _done(user, options.again, before)
    else:
        key_file = options.key_out or Path(f"{token(options.ids[0])}.key")
        user = _enroll_with_new_key(options, path, key_file)
        text = f"{_done(user, options.again, before)}; its key: {key_file}"
    lines = [text, *_lines_for(user)]
    facts = {**_record(user), "key_file": key_file and str(key_file)}
    return _finish(options, path, lines, facts)


def _done(user: User, again: bool, before: Container[str]) -> str:
    """What was done; before: the public keys that were enrolled until now."""
    if user.public in before:
        return f"{_named(user)} is enrolled with the key that it had"
    if again:
        return f"{_named(user)} is enrolled with a new key, and the old one is revoked"
    return f"{_named(user)} is enrolled"


def _enroll_with_new_key(options: argparse.Namespace, path: Path, key_file: Path) -> User:
    """Write the key before it is enrolled, so that no key is enrolled that is not on the disk."""
    enroll.check_ids(path, options.ids, role=options.role, again=options.again)
    key = make_key()
    write_key(key_file, key, options.ids[0])
    try:
        return enroll.enroll(path, options.ids, key.public, role=options.role, again=options.again)
    except BaseException:
        key_file.unlink()
        raise


def _lines_for(user: User) -> list[str]:
    """What to do where the key is used."""
    command = {DEVICE: "forward", SINK: "sink", OPERATOR: "dead list"}[user.role]
    return [
        f"Copy the key to {PLACE} there, readable by the program's user alone (chmod 600). Then:",
        f"  power-fleet {command} --nats tls://HOST:4222 --ca /etc/power/ca.pem --key-file {PLACE}",
    ]


def _finish(
    options: argparse.Namespace, path: Path, lines: list[str], facts: dict[str, Any]
) -> int:
    """Have the server read the users again, and print what was done; return the exit code."""
    failure: StorageError | None = None
    reloaded = False
    try:
        reloaded = _reload(options, path)
    except StorageError as error:
        failure = error  # the users are written all the same
    text = "\n".join([*lines, _told(path, reloaded)])
    print_done(options, text, **facts, reloaded=reloaded)
    if failure is None:
        return 0
    print_error(f"power-fleet: the users are written, but no server was told: {failure}")
    return 1


def _reload(options: argparse.Namespace, path: Path) -> bool:
    """Have the server of this machine read the users again; False if none is known."""
    pid_file = options.pid_file
    if pid_file is None and path.parent == hub_directory():
        pid_file = path.parent / "nats" / "nats.pid"
    if pid_file is None:
        return False
    enroll.reload_server(pid_file)
    return True


def _told(path: Path, reloaded: bool) -> str:
    if reloaded:
        return "The server of this machine reads the users again."
    file = shlex.quote(str(path))
    return f"To do on each server: copy {file} to it, then nats-server --signal reload"


def _revoke(options: argparse.Namespace) -> int:
    path = _users_file(options)
    user = enroll.revoke(path, options.id, role=options.role)
    lines = [f"{_named(user)} is revoked"]
    if user.role == DEVICE:
        lines.append("What the stream has taken from it already is stored.")
    return _finish(options, path, lines, {"ids": list(user.ids), "role": user.role})


def _enrolled(options: argparse.Namespace) -> int:
    found = enroll.users(_users_file(options))
    if options.json:
        print(shown_json([_record(user) for user in found]))
        return 0
    columns = [
        Column("id", _named, shrinks=True),
        Column("role", lambda user: user.role),
        Column("since", lambda user: user.since.isoformat()),
        Column("public key", lambda user: user.public, shrinks=True),
    ]
    if found:
        print(make_table(columns, found, Screen.of(sys.stdout)))
    else:
        print("no one is enrolled yet: `power-fleet enroll ID` does it")
    return 0


def _record(user: User) -> dict[str, Any]:
    return {
        "ids": list(user.ids),
        "role": user.role,
        "since": user.since.isoformat(),
        "public_key": user.public,
        "may_publish": user.may_publish,
    }


def _key(options: argparse.Namespace) -> int:
    made = not options.file.exists()
    if made:
        write_key(options.file, make_key(), options.file.stem)
        print_error(f"power-fleet: made {options.file}")
    public = read_key(options.file).public
    print_done(options, public, file=str(options.file), public_key=public, made=made)
    return 0


def _named(user: User) -> str:
    return ", ".join(user.ids)
