"""`power-fleet`: a module for each group of commands.

Answers go to standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
from collections.abc import Sequence

from power_fleet.errors import Refused, WrongOptions
from power_fleet.options import add_variables, log_level
from power_manager import (
    CommandParser,
    PowerManagerError,
    __version__,
    log_to_stderr,
    not_installed,
    print_error,
    printable,
    program_name,
    run_program,
)

NAME = "power-fleet"
# Each has a function add_commands(parser), in the order of the help. A command's `run` takes the
# parsed options and returns the exit code. None of them imports what an extra brings: --help and
# --version work without it.
_MODULES = (
    "power_fleet.commands_hub",
    "power_fleet.commands_device",
    "power_fleet.commands_server",
    "power_fleet.commands_questions",
    "power_fleet.commands_alarms",
    "power_fleet.commands_life",
    "power_fleet.commands_enroll",
    "power_fleet.commands_dead",
    "power_fleet.commands_metrics",
)


def make_parser() -> CommandParser:
    """The parser of the whole command line."""
    parser = CommandParser(
        program_name(NAME, "-m power_fleet"),
        "From many devices' files to one engine.",
        name=NAME,
        version=__version__,
        examples=["forward --once", "help forward"],
    )
    add_variables(parser)
    for name in _MODULES:
        importlib.import_module(name).add_commands(parser)
    parser.add_help_commands(NAME)
    _set_usage_errors(parser)
    return parser


def _set_usage_errors(parser: CommandParser) -> None:
    """Give each command `usage_error`, which prints its usage and a message, and exits with 2."""
    for command in parser.commands.values():
        command.set_defaults(usage_error=command.error)
        _set_usage_errors(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code.

    0: it did its work, or ended because of SIGTERM; 1 for an error, 2 for wrong usage, 130 for
    Ctrl-C. Raises SystemExit for usage that argparse refuses.
    """
    return run_program(lambda: _run(argv), NAME, (PowerManagerError,))


def _run(argv: Sequence[str] | None) -> int:
    options: argparse.Namespace = make_parser().parse_args(argv)
    # Of others' loggers only errors: what they warn of, ours says with what is done about it.
    with log_to_stderr("power_fleet", log_level(options), others=logging.ERROR):
        try:
            return _obey(options)
        except ModuleNotFoundError as error:
            extra = "hub,service" if options.command == "hub" else "fleet"
            print_error(f"{NAME}: {not_installed(error, extra)}")
            return 1


def _obey(options: argparse.Namespace) -> int:
    """Run the command."""
    try:
        code: int = options.run(options)
    except WrongOptions as error:
        options.usage_error(str(error))
        raise
    except Refused as error:
        print_error(f"{NAME}: {printable(error)}")
        return 2
    except (asyncio.TimeoutError, TimeoutError) as error:  # some of them have no text
        print_error(f"{NAME}: {printable(error) or 'no answer in time'}")
        return 1
    except Exception as error:
        if not _is_of_nats(error):
            raise
        print_error(f"{NAME}: {printable(error) or type(error).__name__}")
        return 1
    return code


def _is_of_nats(error: Exception) -> bool:
    """Whether it is one of NATS's errors, whose module may not be installed."""
    try:
        from nats.errors import Error
    except ModuleNotFoundError:
        return False
    return isinstance(error, Error)
