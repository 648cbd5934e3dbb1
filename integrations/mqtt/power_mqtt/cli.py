"""`power-mqtt`: a module for each command."""

from __future__ import annotations

import argparse
import importlib
import logging
from collections.abc import Sequence

from power_manager import (
    CommandParser,
    PowerManagerError,
    __version__,
    print_error,
    program_name,
    run_program,
)
from power_mqtt.errors import Misuse, MqttError

# Each has a function add_command(parser) that adds one command, whose `run` takes the parsed
# arguments and returns the exit code. In the order of the help.
_MODULES = ("power_mqtt.publish",)


def _parser() -> CommandParser:
    parser = CommandParser(
        program_name("power-mqtt", "-m power_mqtt"),
        "A power_manager file and an MQTT broker.",
        name="power-mqtt",
        version=__version__,
        examples=["publish --broker mqtt://localhost", "help publish"],
    )
    for name in _MODULES:
        importlib.import_module(name).add_command(parser)
    parser.add_help_commands("power-mqtt")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code.

    0: it did its work, or ended because of SIGTERM; 1 for an error, 2 for wrong usage, 130 for Ctrl-C.
    """

    def program() -> int:
        parser = _parser()
        args: argparse.Namespace = parser.parse_args(argv)
        try:
            code: int = args.run(args)
        except Misuse as error:
            parser.commands[args.command].error(str(error))
        return code

    handler = logging.StreamHandler()  # to the standard error of now
    handler.setFormatter(logging.Formatter("power-mqtt: %(message)s"))
    log = logging.getLogger("power_mqtt")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        return run_program(program, "power-mqtt", (PowerManagerError, MqttError))
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        print_error(f"power-mqtt: {package} is not installed: pip install '.[mqtt]'")
        return 1
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
