"""`power-mqtt`: the command line; each command has a module of its own."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from power_manager import (
    CommandParser,
    PowerManagerError,
    __version__,
    log_to_stderr,
    program_name,
    run_program,
)
from power_mqtt.errors import Misuse

# Each has a function add_command(parser), which adds one command; its `run` takes the parsed
# arguments and returns the exit code. They are in the order of the help.
_MODULES = ("power_mqtt.publish", "power_mqtt.subscribe", "power_mqtt.sniff")


def _parser() -> CommandParser:
    parser = CommandParser(
        program_name("power-mqtt", "-m power_mqtt"),
        "Publishes a power_manager file to an MQTT broker, and stores what MQTT devices publish.",
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

    0: it did its work, or SIGTERM ended it; 1: an error; 2: wrong usage; 130: Ctrl-C.
    """

    def program() -> int:
        parser = _parser()
        args: argparse.Namespace = parser.parse_args(argv)
        try:
            with log_to_stderr("power_mqtt"):
                code: int = args.run(args)
        except Misuse as error:
            parser.commands[args.command].error(str(error))
        return code

    return run_program(program, "power-mqtt", (PowerManagerError,), extra="mqtt")
