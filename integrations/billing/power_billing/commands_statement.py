"""`power-billing statement`: a month for people, for a bookkeeping program, or for the customer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from power_billing.command_line import (
    customer_argument,
    file_argument,
    given_price,
    month_argument,
    opened,
)
from power_billing.money import UNITS, parse_amount, parse_currency, price_of
from power_billing.statement import make_statement
from power_billing.statement_formats import as_csv, as_html, as_json, as_text
from power_billing.tables import tables
from power_manager import CommandParser, Screen

_FORMATS = ("text", "json", "csv", "html")


def add_statement_command(parser: CommandParser, clock: Callable[[], float]) -> None:
    """Add the command."""
    command = parser.add_command(
        "statement",
        _statement,
        "show what a month was billed, by customer, device and day",
        examples=["--month 2026-10", "--month 2026-10 --customer cus_Nf1XyzAbc --format html"],
        group="usage",
    )
    add = command.add_argument
    add(
        "--month",
        type=month_argument(clock),
        required=True,
        metavar="YYYY-MM",
        help="a calendar month of UTC",
    )
    add("--customer", type=customer_argument, metavar="ID", help="only this customer")
    add("--format", choices=_FORMATS, default="text", help="what is printed (default: %(default)s)")
    add(
        "--price",
        type=parse_amount,
        metavar="AMOUNT",
        help="price of one unit (default: the one given to setup)",
    )
    add(
        "--currency",
        type=parse_currency,
        metavar="CODE",
        help="currency of that price, such as eur",
    )
    add("--unit", choices=UNITS, help="unit of that price (default: kWh)")
    add(
        "--tariff",
        type=file_argument,
        metavar="FILE",
        help="the ledger's tariff with other prices (default: those given to setup)",
    )


def _statement(options: argparse.Namespace) -> int:
    if (options.price is None) != (options.currency is None):
        options.usage_error("--price and --currency go together: give both")
    if options.unit is not None and options.price is None:
        options.usage_error("--unit is of --price: give both")
    if options.tariff is not None and options.price is not None:
        options.usage_error("--tariff has the prices: leave out --price, --currency and --unit")
    price = None if options.price is None else given_price(options)
    tariff = None
    if options.tariff is not None:
        from power_billing.tariff_file import read_tariff

        tariff = read_tariff(options.tariff)
    with opened(options) as (pm, place):
        if price is None:
            with tables(place) as conn:
                price = price_of(conn)
        statement = make_statement(
            pm,
            place,
            options.month,
            customer=options.customer,
            price=price,
            tariff=tariff,
            clock=options.clock,
        )
    if options.format == "text":
        print(as_text(statement, Screen.of(sys.stdout)))
    else:
        as_format = {"json": as_json, "csv": as_csv, "html": as_html}[options.format]
        print(as_format(statement).rstrip("\n"))
    return 0
