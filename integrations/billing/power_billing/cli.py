"""`power-billing`: the command line; its commands are in the modules commands_*."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from power_billing.commands_decide import add_decision_commands
from power_billing.commands_links import add_link_commands
from power_billing.commands_statement import add_statement_command
from power_billing.commands_stripe import add_stripe_commands
from power_billing.commands_usage import add_usage_commands
from power_billing.keys import API_KEY, API_URL, WEBHOOK_SECRET
from power_billing.tables import LEDGER
from power_billing.webhooks import DEFAULT_GRACE_HOURS, DEFAULT_POLICY, GRACE, POLICY
from power_manager import (
    CommandParser,
    PowerManagerError,
    __version__,
    log_to_stderr,
    program_name,
    run_program,
)

NAME = "power-billing"
CLICKHOUSE = "POWER_FLEET_CLICKHOUSE"  # power-fleet's variable


def make_parser(clock: Callable[[], float] = time.time) -> CommandParser:
    """The parser of every command; `clock` is what times such as -24h are before."""
    parser = CommandParser(
        program_name(NAME, "-m power_billing"),
        "Bill the energy that devices used, each hour once.",
        name=NAME,
        version=__version__,
        examples=["link edge-001 --customer cus_Nf1XyzAbc", "report --dry-run", "help report"],
    )
    _add_place_options(parser)
    _add_variables(parser)
    add_link_commands(parser, clock)
    add_usage_commands(parser, clock)
    add_decision_commands(parser, clock)
    add_statement_command(parser, clock)
    add_stripe_commands(parser, clock)
    for command in parser.commands.values():
        _add_place_options_again(command)
    parser.add_help_commands(NAME)
    return parser


def _add_place_options(parser: CommandParser) -> None:
    """Add what says where the devices and the ledger are."""
    parser.add_database()
    parser.add_setting(
        "--ledger",
        variable=LEDGER,
        text="a separate file for the ledger",
        shown_default="the database",
        metavar="FILE",
    )
    parser.add_argument(
        "--fleet",
        action="store_true",
        help="bill the devices of a fleet's engine; needs --ledger",
    )
    # The variable is read by power_fleet: without --fleet it means nothing here.
    parser.add_argument(
        "--clickhouse",
        action="append",
        metavar="URL",
        help="the engine of --fleet, once for each shard (repeatable), its replicas separated by "
        f"commas (default: ${CLICKHOUSE}, else this machine's hub)",
    )


def _add_place_options_again(command: CommandParser) -> None:
    """Take the same after a command; the program's own help has them."""
    hidden: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    command.add_argument("--db", metavar="PATH", **hidden)
    command.add_argument("--ledger", metavar="FILE", **hidden)
    command.add_argument("--fleet", action="store_true", **hidden)
    command.add_argument("--clickhouse", metavar="URL", action="append", **hidden)


def _add_variables(parser: CommandParser) -> None:
    """Name the variables that have no option of their own."""
    add = parser.add_variable
    add(CLICKHOUSE, "the engine of `--fleet`, shards separated by spaces")
    add(API_KEY, "Stripe's key: `sk_` or `rk_`, `live` or `test`")
    add(f"{API_KEY}_FILE", "instead: a file that holds it")
    add(API_URL, "another address of Stripe's API, for tests: https, or this machine")
    add(
        WEBHOOK_SECRET,
        "for `power-service`: `whsec_...`, or several separated by commas or white space",
        default="no route",
    )
    add(f"{WEBHOOK_SECRET}_FILE", "instead: a file that holds it")
    add(
        POLICY,
        "for `power-service`: from when an unpaid invoice counts: `final_attempt`, after which "
        "Stripe does not try again, or `first_failure`",
        default=DEFAULT_POLICY,
    )
    add(
        GRACE,
        "for `power-service`: hours from then to the `shutdown`; 0: at once",
        default=f"{DEFAULT_GRACE_HOURS:g}",
    )


def main(argv: Sequence[str] | None = None, *, clock: Callable[[], float] = time.time) -> int:
    """Run the command line; return its exit code.

    0; 1 for an error, and for hours that are left; 2 for wrong usage; 130 for Ctrl-C. `clock`
    returns epoch seconds, as that of PowerManager.
    """

    def program() -> int:
        parser = make_parser(clock)
        options = parser.parse_args(argv)
        options.clock = clock
        _check_fleet(parser, options)
        with log_to_stderr("power_billing", logging.WARNING):
            code: int = options.run(options)
        return code

    return run_program(program, NAME, (PowerManagerError,), extra="billing")


def _check_fleet(parser: CommandParser, options: argparse.Namespace) -> None:
    """End with exit code 2 if only one of --fleet, --clickhouse and --ledger is given."""
    error = parser.commands[options.command].error
    options.usage_error = error
    if options.clickhouse and not options.fleet:
        error("--clickhouse is the engine of --fleet: give both")
    if options.fleet and not options.ledger:
        error(f"--fleet needs the ledger in a file of its own: --ledger FILE, or {LEDGER}")
