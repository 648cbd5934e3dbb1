"""`power-billing`: the command line; its commands are in the modules commands_*."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence

import power_billing
from power_billing.commands_decide import add_decision_commands
from power_billing.commands_links import add_link_commands
from power_billing.commands_statement import add_statement_command
from power_billing.commands_stripe import add_stripe_commands
from power_billing.commands_usage import add_usage_commands

from power_billing.tables import LEDGER
from power_manager import (
    DB_PATH,
    CommandParser,
    NotFound,
    PowerManagerError,
    print_error,
    printable,
    run_program,
)

NAME = "power-billing"
CLICKHOUSE = "POWER_FLEET_CLICKHOUSE"  # power-fleet's variable


def make_parser() -> CommandParser:
    """The parser of every command."""
    parser = CommandParser(
        NAME,
        "Bill the energy that devices used, once.",
        version=power_billing.__version__,
        examples=["link edge-001 --customer cus_Nf1XyzAbc", "report --dry-run", "help report"],
    )
    parser.add_argument(
        "--db",
        default=os.environ.get("POWER_MANAGER_DB") or str(DB_PATH),
        metavar="PATH",
        help="the database (default: $POWER_MANAGER_DB, else power_manager.db here)",
    )
    parser.add_argument(
        "--ledger",
        default=os.environ.get(LEDGER),
        metavar="FILE",
        help=f"a file of the ledger's own (default: ${LEDGER}, else the database)",
    )
    parser.add_argument(
        "--fleet",
        action="store_true",
        help="bill the devices of a fleet's engine; needs --ledger",
    )
    parser.add_argument(
        "--clickhouse",
        action="append",
        metavar="URL",
        help=f"the engine of --fleet, once for each shard, its replicas by commas (default: ${CLICKHOUSE}, shards by "
        "spaces, else this machine's hub)",
    )
    add_link_commands(parser)
    add_usage_commands(parser)
    add_decision_commands(parser)
    add_statement_command(parser)
    add_stripe_commands(parser)
    parser.add_help_commands(NAME)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code.

    0; 1 for an error, and for hours that are left; 2 for wrong usage; 130 for Ctrl-C.
    """

    def program() -> int:
        parser = make_parser()
        options = parser.parse_args(argv)
        _check_fleet(parser, options)
        logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
        try:
            code: int = options.run(options)
        except NotFound as error:
            if error.kind != "device":
                raise
            lists = "power-fleet latest" if options.fleet else "power-manager devices"
            print_error(f"{NAME}: no device {printable(error.id)}: `{lists}` lists them")
            return 1
        except ModuleNotFoundError as error:
            print_error(f"{NAME}: {error.name} is not installed: pip install '.[billing]'")
            return 1
        return code

    return run_program(program, NAME, (PowerManagerError,))


def _check_fleet(parser: CommandParser, options: argparse.Namespace) -> None:
    """End with exit code 2 if only one of --fleet, --clickhouse and --ledger is given."""
    options.usage_error = parser.error
    if options.clickhouse and not options.fleet:
        parser.error("--clickhouse is the engine of --fleet: give both")
    if options.fleet and not options.ledger:
        parser.error(f"--fleet needs the ledger in a file of its own: --ledger FILE, or {LEDGER}")
