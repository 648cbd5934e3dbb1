"""`power-fleet enroll`, `revoke`, `enrolled` and `key`: who may send to the fleet's NATS servers."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from power_fleet import enroll
from power_fleet.discovery import USERS, hub_directory
from power_fleet.enroll import DEVICE, OPERATOR, SINK, User
from power_fleet.keys import check_public, make_key, read_key, write_key
from power_fleet.options import OPERATOR_GROUP, add_json_option
from power_fleet.stream import Refused, token
from power_manager import (
    Column,
    CommandParser,
    InvalidValue,
    Screen,
    make_table,
    print_error,
    shown_json,
)

USERS_VARIABLE = "POWER_FLEET_USERS"
PLACE = "/etc/power/nats.key"  # of a device's key in the lines for it


def add_commands(parser: CommandParser) -> None:
    """Add `enroll`, `revoke`, `enrolled` and `key`."""
    command = parser.add_command(
        "enroll",
        _enroll,
        "let a device send: make its key, and give it its rights",
        examples=[
            "edge-001 --users devices.conf",
            "edge-001 --users devices.conf --public-key UB6YJCO7EZ4OGYZ7VRG6MF7QVSWIFYRXCZAQ2VYRDYKGW7NR2MMSUVGK",
            "sink-1 --role sink --users devices.conf",
        ],
        group=OPERATOR_GROUP,
    )
    command.add_argument(
        "ids", nargs="+", metavar="ID", help="the device; of several ones, all that are in one file"
    )
    _add_role(command)
    _add_users(command)
    command.add_argument(
        "--key-out", type=Path, metavar="FILE", help="the new key goes there (default: ID.key)"
    )
    command.add_argument(
        "--public-key",
        type=_public_key,
        metavar="KEY",
        help="of a key that the device has made by `power-fleet key`",
    )
    command.add_argument(
        "--again", action="store_true", help="a new key in place of the old one, which is revoked"
    )

    command = parser.add_command(
        "revoke",
        _revoke,
        "take a device's rights away; an open connection is closed",
        examples=["edge-001 --users devices.conf", "sink-1 --role sink --users devices.conf"],
        group=OPERATOR_GROUP,
    )
    command.add_argument("id", metavar="ID")
    _add_role(command)
    _add_users(command)

    command = parser.add_command(
        "enrolled",
        _enrolled,
        "list who has a key",
        examples=["--users devices.conf", "--users devices.conf --json"],
        group=OPERATOR_GROUP,
    )
    add_json_option(command)
    _add_users(command, changes=False)

    command = parser.add_command(
        "key",
        _key,
        "make a key here, or show the public half of one that is there",
        examples=[PLACE],
        group=OPERATOR_GROUP,
    )
    command.add_argument("file", type=Path, metavar="FILE", help="where the key is, or is to be")


def _add_role(command: CommandParser) -> None:
    command.add_argument(
        "--role",
        choices=(DEVICE, SINK, OPERATOR),
        default=DEVICE,
        help="device (default); sink: takes from the stream; operator: `stream`, `dead`",
    )


def _add_users(command: CommandParser, changes: bool = True) -> None:
    default = os.environ.get(USERS_VARIABLE)
    command.add_argument(
        "--users",
        type=Path,
        metavar="FILE",
        default=Path(default) if default else None,
        help=(
            "the users that the servers' configuration includes "
            f"(default: ${USERS_VARIABLE}, else those of this machine's hub)"
        ),
    )
    if changes:
        command.add_argument(
            "--pid-file",
            type=Path,
            metavar="FILE",
            help="of the server on this machine, which then reads the users anew",
        )


def _public_key(text: str) -> str:
    try:
        return check_public(text)
    except InvalidValue as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _users_file(options: argparse.Namespace) -> Path:
    if options.users is not None:
        users: Path = options.users
        return users
    hub = hub_directory()
    if hub is None:
        raise Refused(f"--users: name the file of users, here or in ${USERS_VARIABLE}")
    if not (hub / USERS).exists():
        raise Refused(
            f"the hub of {hub} takes what anybody on this machine sends: start it with --listen, --cert and --key"
        )
    return hub / USERS


def _enroll(options: argparse.Namespace) -> int:
    path = _users_file(options)
    if options.public_key and options.key_out:
        raise Refused("--key-out: with --public-key the device has the key already")
    if options.public_key:
        user = enroll.enroll(
            path, options.ids, options.public_key, role=options.role, again=options.again
        )
        print(f"{_named(user)} is enrolled")
    else:
        key_file = options.key_out or Path(f"{token(options.ids[0])}.key")
        user = _enroll_with_new_key(options, path, key_file)
        print(f"{_named(user)} is enrolled; its key: {key_file}")
    _print_lines(user)
    _say_reload(options, path)
    return 0


def _enroll_with_new_key(options: argparse.Namespace, path: Path, key_file: Path) -> User:
    """The key is on the disk before anybody may use it, and gone if nobody may."""
    key = make_key()
    write_key(key_file, key, options.ids[0])
    try:
        return enroll.enroll(path, options.ids, key.public, role=options.role, again=options.again)
    except BaseException:
        key_file.unlink()
        raise


def _print_lines(user: User) -> None:
    """What has to be typed where the key is."""
    command = {DEVICE: "forward", SINK: "sink", OPERATOR: "dead list"}[user.role]
    print(
        f"Copy the key to {PLACE} there, readable for the program's user alone (chmod 600), and start:"
    )
    print(
        f"  power-fleet {command} --nats tls://HOST:4222 --ca /etc/power/ca.pem --key-file {PLACE}"
    )


def _say_reload(options: argparse.Namespace, path: Path) -> None:
    """Have the server read the users, or say how."""
    pid_file = options.pid_file
    if pid_file is None and path.parent == hub_directory():
        pid_file = path.parent / "nats" / "nats.pid"
    if pid_file is None:
        print_error(
            f"To do on each server: copy {shlex.quote(str(path))} to it, then nats-server --signal reload"
        )
        return
    enroll.reload_server(pid_file)
    print_error("the server of this machine reads the users anew")


def _revoke(options: argparse.Namespace) -> int:
    path = _users_file(options)
    user = enroll.revoke(path, options.id, role=options.role)
    print(f"{_named(user)} is revoked")
    if user.role == DEVICE:
        print_error("What the stream has taken from it already is stored.")
    _say_reload(options, path)
    return 0


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
        print_error("nobody is enrolled yet: power-fleet enroll ID")
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
    if not options.file.exists():
        write_key(options.file, make_key(), options.file.stem)
        print_error(f"made {options.file}")
    print(read_key(options.file).public)
    return 0


def _named(user: User) -> str:
    return ", ".join(user.ids)
