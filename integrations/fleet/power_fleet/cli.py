"""`power-fleet`: a module for each group of commands.

Answers go to standard output, the rest to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
from collections.abc import Sequence

from power_manager import (
    CommandParser,
    PowerManagerError,
    __version__,
    print_error,
    printable,
    program_name,
    run_program,
)

# Each has a function add_commands(parser) that adds its commands, whose `run` takes the parsed options and returns the
# exit code. In the order of the help.
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
    """The parser of the whole command line. Raises ModuleNotFoundError where the extra is not installed."""
    parser = CommandParser(
        program_name("power-fleet", "-m power_fleet"),
        "From many devices' files to one engine.",
        name="power-fleet",
        version=__version__,
        examples=["forward --once", "help forward"],
    )
    for name in _MODULES:
        importlib.import_module(name).add_commands(parser)
    parser.add_help_commands("power-fleet")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code.

    0: it did its work, or ended because of SIGTERM; 1 for an error, 2 for wrong usage, 130 for Ctrl-C.
    """
    try:
        return _run(make_parser(), argv)
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        extra = "hub" if package == "chdb" else "fleet"
        print_error(f"power-fleet: {package} is not installed: pip install '.[{extra}]'")
        return 1


def _run(parser: CommandParser, argv: Sequence[str] | None) -> int:
    from nats.errors import Error as NatsError

    from power_fleet.dead import Unknown
    from power_fleet.options import log_at
    from power_fleet.stream import Refused

    def program() -> int:
        options: argparse.Namespace = parser.parse_args(argv)
        log_at(options)
        try:
            code: int = options.run(options)
        except Refused as error:
            print_error(f"power-fleet: {printable(error)}")
            return 2
        except (
            asyncio.TimeoutError,
            TimeoutError,
            NatsError,
        ) as error:  # some of them have no text
            print_error(f"power-fleet: {printable(error) or type(error).__name__}")
            return 1
        return code

    # Of the others' loggers only errors: what they warn of, ours says with what is done about it.
    logging.basicConfig(
        level=logging.ERROR, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return run_program(program, "power-fleet", (PowerManagerError, Unknown))
