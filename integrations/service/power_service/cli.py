"""`power-service` serves; `power-service token` makes, lists and revokes tokens."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from power_manager import DB_PATH, PowerManager, PowerManagerError
from power_service import __version__
from power_service.settings import Refused, Settings, how_to_make_one
from power_service.tokens import Scope, TokenFile

_DESCRIPTORS_OF_THE_SERVICE = 200  # the database's, beside those of connections
_log = logging.getLogger("power_service")


def _number(kind: Callable[[str], float], low: int, high: int) -> Callable[[str], float]:
    """What reads an option's number, and refuses one beyond these bounds; NaN is beyond any."""

    def number(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if low <= value <= high:
                return value
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"expected {what} from {low} to {high}, got {text!r}")

    return number


def _common(parser: argparse.ArgumentParser) -> None:
    db = Path(os.environ.get("POWER_MANAGER_DB") or DB_PATH)
    parser.add_argument(
        "--db",
        type=Path,
        default=db,
        help="(default: $POWER_MANAGER_DB, else power_manager.db here)",
    )
    parser.add_argument(
        "--tokens", type=Path, metavar="FILE", help="the tokens (default: beside the database)"
    )


def _serve_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="power-service",
        description="REST and WebSocket over power_manager.",
        epilog="power-service token --help: make, list and revoke tokens.",
    )
    _common(parser)
    add = parser.add_argument
    add("--version", action="version", version=f"%(prog)s {__version__}")
    add("--host", default="127.0.0.1", help="the address to listen at (default: %(default)s)")
    add(
        "--port",
        type=_number(int, 0, 65_535),
        default=8080,
        help="0: any free one (default: %(default)s)",
    )
    add(
        "--no-auth",
        action="store_true",
        help="let everybody on this machine in; for loopback addresses only",
    )
    add(
        "--behind-proxy",
        action="store_true",
        help="a proxy on this machine does TLS, and says who the client is",
    )
    add("--tls-cert", type=Path, metavar="FILE", help="certificate chain, PEM")
    add("--tls-key", type=Path, metavar="FILE", help="its key, PEM")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name clients use; may be repeated",
    )
    add(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="pages from elsewhere; may be repeated",
    )
    add(
        "--dashboard",
        type=Path,
        metavar="DIR",
        help="the built dashboard (default: the one that comes along)",
    )
    add(
        "--durability",
        choices=["full", "normal"],
        default="full",
        help="as PowerManager's (default: %(default)s)",
    )
    rate, count = _number(float, 0, 1_000_000), _number(int, 1, 1_000_000)
    add(
        "--rate",
        type=rate,
        default=100.0,
        help="requests a second for each token; 0: any (default: %(default)s)",
    )
    add(
        "--burst",
        type=count,
        default=200,
        help="requests a token may save up (default: %(default)s)",
    )
    add(
        "--max-connections",
        type=count,
        default=1000,
        help="streams included (default: %(default)s)",
    )
    add("--quiet", action="store_true", help="no line for each request")
    return parser


def _token_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="power-service token", description="Make, list and revoke tokens."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    new = commands.add_parser("new", help="make a token, and print it: it cannot be shown again")
    new.add_argument("name", help="whose it is, for people")
    new.add_argument("--scope", action="append", required=True, choices=[scope.value for scope in Scope],
                     help="may be repeated; read does not include write, nor write read; admin is both")  # fmt: skip
    new.add_argument(
        "--device", action="append", metavar="ID", help="only for this device; may be repeated"
    )
    listing = commands.add_parser("list", help="list the tokens")
    revoke = commands.add_parser("revoke", help="take a token back, from now on")
    revoke.add_argument("id", help="as listed")
    for command in (new, listing, revoke):
        _common(command)
    return parser


def _token(options: argparse.Namespace) -> int:
    tokens = TokenFile(Settings(db=options.db, tokens=options.tokens).token_file)
    if options.command == "new":
        token, grant = tokens.new(options.name, map(Scope, options.scope), options.device)
        print(token)
        print(
            f"token {grant.id} is in {tokens.path}; the text above is shown this once",
            file=sys.stderr,
        )
    elif options.command == "list":
        for grant in tokens.grants:
            bound = "all devices" if grant.devices is None else ", ".join(grant.devices)
            print(
                f"{grant.id}  {grant.created_at}  {'+'.join(grant.scopes):<10}  {grant.name}  ({bound})"
            )
    elif not tokens.revoke(options.id):
        print(
            f"power-service: no token has the id {options.id!r}: see power-service token list",
            file=sys.stderr,
        )
        return 1
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        db=options.db,
        host=options.host,
        port=options.port,
        tokens=options.tokens,
        auth=not options.no_auth,
        behind_proxy=options.behind_proxy,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        allowed_hosts=tuple(options.allow_host),
        allowed_origins=tuple(options.allow_origin),
        dashboard=options.dashboard,
        durability=options.durability,
        rate=options.rate,
        burst=options.burst,
        max_connections=options.max_connections,
    )


def _log_to_stderr(quiet: bool) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # uvicorn's own lines name whole URLs, and a URL may hold a ticket.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    if quiet:
        logging.getLogger("power_service.access").setLevel(logging.WARNING)


def _connections_allowed(wanted: int) -> int:
    """How many connections there can be: one descriptor for each, and some for the rest of the service.

    The system's limit is raised as far as it lets us: it often begins with 1,024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _DESCRIPTORS_OF_THE_SERVICE
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    return min(wanted, max(most - _DESCRIPTORS_OF_THE_SERVICE, most // 2))


def _serve(settings: Settings, quiet: bool) -> int:
    try:
        from power_service.app import (
            create_app,
        )  # FastAPI takes half a second to import: not for `token`
        from power_service.server import make_server, run
    except ModuleNotFoundError as error:
        print(
            f"power-service: {error.name} is not installed: pip install '.[service]'",
            file=sys.stderr,
        )
        return 1
    _log_to_stderr(quiet)
    tokens = TokenFile(settings.token_file)
    settings.check(len(tokens.grants))
    with PowerManager(settings.db, durability=settings.durability):
        pass  # says what is wrong with the file, if anything is, in one line
    if settings.auth and not tokens.grants:
        _log.warning(
            "there is no token yet, so nobody gets in; make one: %s", how_to_make_one(settings)
        )
    allowed = _connections_allowed(settings.max_connections)
    if allowed < settings.max_connections:
        _log.warning("the system's limit of open files allows %d connections only", allowed)
        settings = dataclasses.replace(settings, max_connections=allowed)
    guarded, app = create_app(settings)
    return run(make_server(settings, guarded, app))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0, 1 for an error, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["token"]:
            return _token(_token_parser().parse_args(arguments[1:]))
        options = _serve_parser().parse_args(arguments)
        return _serve(_settings(options), options.quiet)
    except Refused as error:
        print(f"power-service: {error}", file=sys.stderr)
        return 2
    except (PowerManagerError, OSError) as error:
        print(f"power-service: {error}", file=sys.stderr)
        return 1
