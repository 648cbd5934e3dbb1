"""`power-service` serves; `power-service token` makes, lists and revokes tokens; `power-service backup` copies."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import resource
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

from power_manager import (
    Column,
    CommandParser,
    PowerManager,
    PowerManagerError,
    Screen,
    make_table,
    print_error,
    printable,
    program_name,
    run_program,
)
from power_service import __version__
from power_service.backup import BackupFailed, copy_file, download
from power_service.demo import Demo
from power_service.listener import bind
from power_service.settings import (
    Refused,
    Settings,
    add_options,
    how_to_make_one,
    read_settings,
    unknown_variables,
)
from power_service.tokens import Grant, Scope, TokenFile

_DESCRIPTORS_OF_THE_SERVICE = 200  # the database's, beside those of connections
_log = logging.getLogger("power_service")


Announce = Callable[[str], None]  # is called with the address, when the service listens
_TOKEN_VARIABLE = "POWER_SERVICE_TOKEN"
_ABOUT_TOKENS = """
The tokens are in a file beside the database: name the one that the service has, by --db, or by the variable that the
service is given."""


def _parser() -> CommandParser:
    parser = CommandParser(
        program_name("power-service", "-m power_service"),
        "REST and WebSocket over power_manager. Without a command it serves.\n"
        "Each option has a variable too, as POWER_SERVICE_ALLOW_HOST; the README has those that have no option.",
        name="power-service",
        version=__version__,
        examples=["--demo --open", "--db power_manager.db", "token new laptop --scope read"],
    )
    add_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no line for each request")
    parser.add_argument(
        "--demo",
        action="store_true",
        help="serve three made-up devices with a year behind them, from a directory of its own, without tokens",
    )
    parser.add_argument(
        "--open",
        action="store_true",
        help="open the page in a browser, signed in; print the link, which is good once and for 10 minutes",
    )
    _add_token_commands(parser)
    _add_backup_command(parser)
    parser.add_help_commands("power-service")
    return parser


def _add_backup_command(parser: CommandParser) -> None:
    command = parser.add_command(
        "backup",
        _backup,
        "copy the database while the service runs",
        examples=["copy.db", "copy.db --url http://127.0.0.1:8080"],
    )
    command.description = (
        f"{command.description} power-manager restore puts the copy back.\n"
        f"With --url the token, of scope admin, is in ${_TOKEN_VARIABLE}: others see command lines."
    )
    command.add_argument("file", type=Path, help="the copy; a file of that name is replaced")
    command.add_argument("--url", help="of a service that is elsewhere (default: the file of --db)")
    add_options(command, ["db"])


def _add_token_commands(parser: CommandParser) -> None:
    text = "make, list and revoke tokens"
    token = parser.add_command("token", None, text, examples=["list"])
    new = token.add_command(
        "new",
        _new_token,
        "make a token, and print it: it cannot be shown again",
        examples=["laptop --scope read --scope write", "edge-001 --scope write --device edge-001"],
    )
    new.add_argument("name", help="whose it is, for people")
    new.add_argument(
        "--scope",
        action="append",
        required=True,
        choices=[scope.value for scope in Scope],
        help="may be repeated; read does not include write, nor write read; admin is both",
    )
    new.add_argument(
        "--device", action="append", metavar="ID", help="only for this device; may be repeated"
    )
    listing = token.add_command("list", _list_tokens, "list the tokens", examples=[""])
    text = "take a token back, from now on"
    revoke = token.add_command("revoke", _revoke_token, text, examples=["3f9c1a20"])
    revoke.add_argument("id", help="as listed")
    for command in (token, new, listing, revoke):
        command.description = f"{command.description}{_ABOUT_TOKENS}"
        add_options(command, ["db", "tokens"])


def _new_token(options: argparse.Namespace, settings: Settings) -> int:
    tokens = TokenFile(settings.token_file)
    token, grant = tokens.new(options.name, map(Scope, options.scope), options.device)
    print(token)
    print_error(f"token {grant.id} is in {tokens.path}; the text above is shown this once")
    return 0


def _list_tokens(_: argparse.Namespace, settings: Settings) -> int:
    grants = TokenFile(settings.token_file).grants
    if not grants:
        print_error(f"there is no token yet; make one: {how_to_make_one(settings)}")
        return 0
    columns = [
        Column("id", lambda grant: grant.id),
        Column("created", lambda grant: grant.created_at),
        Column("scopes", lambda grant: "+".join(grant.scopes)),
        Column("name", lambda grant: grant.name, shrinks=True),
        Column("devices", _shown_devices, shrinks=True),
    ]
    print(make_table(columns, grants, Screen.of(sys.stdout)))
    return 0


def _shown_devices(grant: Grant) -> str:
    return "all" if grant.devices is None else ", ".join(grant.devices)


def _revoke_token(options: argparse.Namespace, settings: Settings) -> int:
    if TokenFile(settings.token_file).revoke(options.id):
        return 0
    print_error(f"power-service: no token has the id {options.id!r}: see power-service token list")
    return 1


def _backup(options: argparse.Namespace, settings: Settings) -> int:
    if options.url:
        download(options.url, os.environ.get(_TOKEN_VARIABLE), options.file)
    else:
        copy_file(settings.db, options.file)
    print(f"The copy is {options.file}: power-manager restore puts it back.")
    return 0


def _run_service(options: argparse.Namespace, settings: Settings) -> int:
    if settings.is_fleet and "db" in options:
        raise Refused("--db, and a fleet: a service shows a file or a fleet; start one for each")
    if options.demo:
        return _serve_demo(options, settings)
    if options.open:
        return _serve(settings, options.quiet, _open_page, signs_in=True)
    return _serve(settings, options.quiet)


def _say_nothing(_: str) -> None:
    """Nobody waits for the address."""


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    serve = argparse.Namespace(command="serve", run=_run_service)  # unless a command is given
    options: argparse.Namespace = _parser().parse_args(argv, serve)
    return options


def _settings(options: argparse.Namespace) -> Settings:
    return read_settings(vars(options))


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


def _serve(
    settings: Settings, quiet: bool, announce: Announce = _say_nothing, *, signs_in: bool = False
) -> int:
    """Serve; `signs_in`: the address that is announced is a link by which one can sign in once, if that is needed."""
    # FastAPI takes half a second to import: not for `token`.
    from power_service.app import create_app
    from power_service.server import make_server, run

    _log_to_stderr(quiet)
    for name in unknown_variables(os.environ):
        _log.warning("%s is no setting of this service: see its README", name)
    tokens = TokenFile(settings.token_file)
    settings.check(len(tokens.grants))
    if not settings.is_fleet:
        with PowerManager(settings.db, durability=settings.durability):
            pass  # says what is wrong with the file, if anything is, in one line
    if settings.auth and not tokens.grants and not signs_in:
        _log.warning(
            "there is no token yet, so nobody gets in; make one: %s", how_to_make_one(settings)
        )
    allowed = _connections_allowed(settings.max_connections)
    if allowed < settings.max_connections:
        _log.warning("the system's limit of open files allows %d connections only", allowed)
        settings = settings.model_copy(update={"max_connections": allowed})
    guarded, app = create_app(settings)

    def announce_page(url: str) -> None:
        if signs_in and settings.auth:
            url += f"#/sign-in/{app.state.gate.sign_in_ticket()}"  # a fragment, so no log of requests has it
        announce(url)

    return run(make_server(settings, guarded, app, announce_page))


# --- The demo


def _serve_demo(options: argparse.Namespace, settings: Settings) -> int:
    """Serve a file of made-up devices, in a directory that goes with the service."""
    given = [name for name in ("db", "tokens", "fleet", "hub") if name in options]
    if given:
        raise Refused(f"--demo makes a file of its own: leave out --{given[0]}")
    importlib.import_module("power_service.app")  # before the year is made: it may not be installed
    with tempfile.TemporaryDirectory(prefix="power-demo-", ignore_cleanup_errors=True) as directory:
        path = Path(directory) / "power_manager.db"
        made = {"db": path, "tokens": None, "no_auth": True, "fleet": (), "hub": False}
        settings = settings.model_copy(update=made)
        settings.check(token_count=0)
        if "port" not in options and not _is_free(settings.host, settings.port):
            settings = settings.model_copy(update={"port": 0})
        print("Making a year of three devices ...", flush=True)
        demo = Demo(path)
        demo.make()

        def announce(url: str) -> None:
            print(
                f"The demo is at {url}\nIts file is {path}, for as long as it runs: Ctrl+C ends it."
            )
            sys.stdout.flush()
            if options.open:
                _open_in_browser(url)

        demo.start()
        try:
            return _serve(settings, True, announce)
        finally:
            demo.stop()


def _is_free(host: str, port: int) -> bool:
    try:
        for listening in bind(host, port):
            listening.close()
    except OSError:
        return False
    return True


def _open_page(url: str) -> None:
    print(f"The page is at {url}", flush=True)
    _open_in_browser(url)


def _open_in_browser(url: str) -> None:
    """In a thread: a browser of the terminal returns when it is closed."""
    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0, 1 for an error, 2 for wrong usage."""
    options = _options(argv)

    def run() -> int:
        try:
            code: int = options.run(options, _settings(options))
            return code
        except Refused as error:
            print_error(f"power-service: {printable(error)}")
            return 2

    return run_program(run, "power-service", (PowerManagerError, BackupFailed))
