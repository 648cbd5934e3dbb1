"""`power-service` serves; its command `token` manages tokens, `backup` copies the database."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from power_manager import (
    Column,
    CommandParser,
    PowerManager,
    PowerManagerError,
    Screen,
    log_to_stderr,
    make_table,
    print_error,
    printable,
    program_name,
    run_program,
    shown_json,
    sigterm_as_exit,
)
from power_service import __version__
from power_service.backup import copy_file, download
from power_service.demo import Demo
from power_service.listener import CannotListen, bind
from power_service.settings import (
    TOKEN_VARIABLE,
    Refused,
    Settings,
    add_options,
    how_to_make_one,
    read_settings,
    unknown_variables,
)
from power_service.tokens import Grant, Scope, TokenFile

_DESCRIPTORS_OF_THE_SERVICE = 200  # for the database and the rest, beside one a connection
_log = logging.getLogger("power_service")


Announce = Callable[[str], None]  # called with the address when the service listens

_ABOUT_TOKENS = """
Tokens are in a file beside the database: give the same --db, or variable, as the service has."""
_TEXTS_OF_COMMANDS = {"db": "the service's database"}  # which they do not make


def _parser() -> CommandParser:
    parser = CommandParser(
        program_name("power-service", "-m power_service"),
        "REST and WebSocket over power_manager. Without a command it serves.\n"
        "The README lists more settings, which are variables only.",
        name="power-service",
        version=__version__,
        examples=["--demo --open", "--db power_manager.db", "token new laptop --scope read"],
    )
    add_options(parser)
    parser.add_argument("--quiet", action="store_true", help="log no line for each request")
    parser.add_argument(
        "--demo",
        action="store_true",
        help="serve three made-up devices with a year of data, from a temporary directory, without "
        "tokens",
    )
    parser.add_argument(
        "--open",
        action="store_true",
        help="open the page in a browser, signed in, and print its link, which is valid once, for "
        "10 minutes",
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
        f"With --url, put a token of scope admin into ${TOKEN_VARIABLE}: other users see command "
        "lines."
    )
    command.add_argument("file", type=Path, help="the copy; a file of that name is replaced")
    command.add_argument(
        "--url", help="the address of a service, to copy its database (default: copy --db)"
    )
    add_options(command, ["db"], _TEXTS_OF_COMMANDS)
    command.add_json()
    command.set_defaults(parser=command)


def _add_token_commands(parser: CommandParser) -> None:
    text = "make, list and revoke tokens"
    token = parser.add_command("token", None, text, examples=["list"])
    new = token.add_command(
        "new",
        _new_token,
        "make a token and print it; it cannot be shown again",
        examples=["laptop --scope read --scope write", "edge-001 --scope write --device edge-001"],
    )
    new.add_argument("name", type=_not_empty, help="a name that tells people what the token is for")
    new.add_argument(
        "--scope",
        action="append",
        required=True,
        choices=[scope.value for scope in Scope],
        help="what it may do: read, write (neither includes the other) or admin (both, and delete "
        "and back up) (repeatable)",
    )
    new.add_argument(
        "--device",
        action="append",
        metavar="ID",
        type=_not_empty,
        help="a device that it is for (repeatable) (default: all)",
    )
    listing = token.add_command("list", _list_tokens, "list the tokens", examples=["", "--json"])
    text = "revoke a token; it stops working within a second"
    revoke = token.add_command("revoke", _revoke_token, text, examples=["3f9c1a20"])
    revoke.add_argument("id", help="the token's id, as listed")
    for command in (token, new, listing, revoke):
        command.description = f"{command.description}{_ABOUT_TOKENS}"
        add_options(command, ["db", "tokens"], _TEXTS_OF_COMMANDS)
        command.set_defaults(parser=command)
    for command in (new, listing, revoke):
        command.add_json()


def _not_empty(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected a name, got {text!r}")
    return text


def _new_token(options: argparse.Namespace, settings: Settings) -> int:
    tokens = TokenFile(settings.token_file)
    token, grant = tokens.new(options.name, map(Scope, options.scope), options.device)
    try:
        print(shown_json({"token": token, **_token_as_json(grant)}) if options.json else token)
        sys.stdout.flush()
    except BaseException:  # nobody has seen it, and nothing else has its text
        tokens.revoke(grant.id)
        raise
    for text in _doubts(options, settings):
        print_error(f"power-service: {text}")
    if not options.json:
        print_error(
            f"power-service: token {grant.id} is in {tokens.path}; its text is printed only this "
            "once"
        )
    return 0


def _doubts(options: argparse.Namespace, settings: Settings) -> Iterator[str]:
    """What about a new token may be a slip of the pen: a database or devices that are not there."""
    if settings.is_fleet or settings.tokens is not None:
        return  # it does not go by a database
    if not settings.db.exists():
        yield f"{settings.db}: there is no such database yet: start the service with the same --db"
        return
    if options.device:
        with PowerManager(settings.db) as pm:
            known = {device.id for device in pm.list_devices()}
        for device_id in dict.fromkeys(options.device):
            if device_id not in known:
                yield f"no device has the id {device_id!r} yet: the token is for that id alone"


def _list_tokens(options: argparse.Namespace, settings: Settings) -> int:
    grants = TokenFile(settings.token_file).grants
    if options.json:
        print(shown_json([_token_as_json(grant) for grant in grants]))
        return 0
    if not grants:
        how = how_to_make_one(settings)
        print_error(f"power-service: there is no token yet; make one: {how}")
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


def _token_as_json(grant: Grant) -> dict[str, object]:
    """What programs may know of a token; `devices` None: all of them."""
    return {
        "id": grant.id,
        "name": grant.name,
        "created_at": grant.created_at,
        "scopes": grant.scopes,
        "devices": grant.devices,
    }


def _revoke_token(options: argparse.Namespace, settings: Settings) -> int:
    if TokenFile(settings.token_file).revoke(options.id):
        text = f"Token {printable(options.id)} is revoked."
        print(shown_json({"revoked": options.id}) if options.json else text)
        return 0
    print_error(f"power-service: no token has the id {options.id!r}: see power-service token list")
    return 1


def _backup(options: argparse.Namespace, settings: Settings) -> int:
    if options.url and "db" in options:
        raise Refused("--db and --url: a backup is of one of them: leave the other out")
    if options.url:
        download(options.url, os.environ.get(TOKEN_VARIABLE), options.file)
    else:
        copy_file(settings.db, options.file)
    byte_count = options.file.stat().st_size
    if options.json:
        print(shown_json({"path": str(options.file), "bytes": byte_count}))
        return 0
    copy = printable(options.file)
    print(f"The copy is {copy}, {byte_count:,} bytes: power-manager restore puts it back.")
    return 0


def _run_service(options: argparse.Namespace, settings: Settings) -> int:
    if settings.is_fleet and "db" in options:
        raise Refused("--db and a fleet: a service serves only one of them; start one for each")
    if options.demo:
        return _serve_demo(options, settings)
    if options.quiet:
        logging.getLogger("power_service.access").setLevel(logging.WARNING)
    with log_to_stderr("power_service"):
        if options.open:
            return _serve(settings, _open_page, signs_in=True)
        return _serve(settings, _say_nothing)


def _say_nothing(_: str) -> None:
    """The log names the address."""


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    # Unless a command is given.
    serve = argparse.Namespace(command="serve", run=_run_service, parser=parser)
    options: argparse.Namespace = parser.parse_args(argv, serve)
    return options


def _settings(options: argparse.Namespace) -> Settings:
    return read_settings(vars(options))


def _connections_allowed(wanted: int) -> int:
    """How many connections there can be: each needs a descriptor, and the service some more.

    This raises the process's limit, often 1,024, as far as the system allows.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _DESCRIPTORS_OF_THE_SERVICE
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    return min(wanted, max(most - _DESCRIPTORS_OF_THE_SERVICE, most // 2))


def _with_connections_allowed(settings: Settings) -> Settings:
    """Settings with fewer connections where the system does not allow as many."""
    allowed = _connections_allowed(settings.max_connections)
    if allowed == settings.max_connections:
        return settings
    _log.warning("the system's limit of open files allows only %d connections", allowed)
    return settings.model_copy(update={"max_connections": allowed})


def _serve(
    settings: Settings,
    announce: Announce,
    *,
    signs_in: bool = False,
    at_hard_end: Callable[[], object] | None = None,
) -> int:
    """Serve; with `signs_in`, the announced address is a link that signs in once, if needed.

    `at_hard_end` is called where a call still runs when the time for an end is over.
    """
    # FastAPI takes half a second to import: `token` does without it.
    from power_service.app import create_app
    from power_service.server import make_server, run

    for name in unknown_variables(os.environ):
        _log.warning("%s is not a setting of this service: see its README", name)
    tokens = TokenFile(settings.token_file)
    settings.check(len(tokens.grants))
    settings = _with_connections_allowed(settings)
    guarded, app = create_app(settings)

    def announce_page(url: str) -> None:
        if signs_in and settings.auth:
            # A fragment: browsers do not send it, so no log of requests has it.
            url += f"#/sign-in/{app.state.gate.sign_in_ticket()}"
        announce(url)

    server = make_server(settings, guarded, app, announce_page)
    if at_hard_end is not None:
        server.at_hard_end = at_hard_end
    # The port before the database: a start that fails must not leave an empty one behind.
    bound = bind(settings.host, settings.port)
    with contextlib.ExitStack() as at_the_end:
        for listening in bound:
            at_the_end.enter_context(listening)
        if not settings.is_fleet:
            with PowerManager(settings.db, durability=settings.durability):
                pass  # a file that cannot be used is said in one line
        if settings.auth and not tokens.grants and not signs_in:
            _log.warning(
                "there is no token yet, so every request is refused; make one: %s",
                how_to_make_one(settings),
            )
        return run(server, bound)


# --- The demo


def _serve_demo(options: argparse.Namespace, settings: Settings) -> int:
    """Serve a file of made-up devices, in a directory that is removed when the service ends."""
    given = [name for name in ("db", "tokens", "fleet", "hub") if name in options]
    if given:
        raise Refused(f"--demo makes a file of its own: leave out --{given[0]}")
    importlib.import_module("power_service.app")  # before the year is made: it may not be installed
    with tempfile.TemporaryDirectory(prefix="power-demo-", ignore_cleanup_errors=True) as directory:
        path = Path(directory) / "power_manager.db"
        made = {"db": path, "tokens": None, "no_auth": True, "fleet": (), "hub": False}
        settings = settings.model_copy(update=made)
        settings.check(token_count=0)
        settings = _with_free_port(settings, is_port_given="port" in settings.model_fields_set)
        print("Making a year of three devices ...", flush=True)
        demo = Demo(path)
        demo.make()

        def announce(url: str) -> None:
            print(
                f"The demo is at {url}\n"
                f"Its file is {path}, for as long as it runs: Ctrl-C ends it.",
                flush=True,
            )
            if options.open:
                _open_in_browser(url)

        demo.start()
        try:
            # What it prints is for a person: of the log, only what is wrong.
            with log_to_stderr("power_service", logging.WARNING):
                remove = functools.partial(shutil.rmtree, directory, ignore_errors=True)
                return _serve(settings, announce, at_hard_end=remove)
        finally:
            demo.stop()


def _with_free_port(settings: Settings, *, is_port_given: bool) -> Settings:
    """Settings whose port is free: the demo takes another one, unless the port was chosen.

    Raises CannotListen.
    """
    try:
        for listening in bind(settings.host, settings.port):
            listening.close()
        return settings
    except CannotListen:
        if is_port_given:
            raise
    print(f"Port {settings.port} is taken by another program: the demo takes a free one.")
    return settings.model_copy(update={"port": 0})


def _open_page(url: str) -> None:
    print(f"The page is at {url}", flush=True)
    _open_in_browser(url)


def _open_in_browser(url: str) -> None:
    """Open it in a thread: a browser of the terminal returns only when it is closed."""
    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0, 1: error, 2: wrong usage, 130: Ctrl-C."""
    return run_program(lambda: run(argv), "power-service", (PowerManagerError,), extra="service")


def run(argv: Sequence[str] | None) -> int:
    """Do what the command line says; return the exit code. Raises PowerManagerError, OSError."""
    # However it ends, the demo's directory is removed.
    with sigterm_as_exit(0), _sighup_as_sigterm():
        options = _options(argv)
        try:
            code: int = options.run(options, _settings(options))
            return code
        except Refused as error:
            usage = options.parser.format_usage()
            print_error(f"{usage}power-service: {printable(error)}")
            return 2


@contextlib.contextmanager
def _sighup_as_sigterm() -> Iterator[None]:
    """Let SIGHUP, of a terminal that is closed, do what SIGTERM does then; not under nohup."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
