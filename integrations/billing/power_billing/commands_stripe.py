"""`power-billing setup`: what has to be at Stripe. The SDK takes a while to import: only where it is used."""

from __future__ import annotations

import argparse
import os

from power_billing.command_line import opened
from power_billing.keys import API_KEY, read_secret
from power_manager import CommandParser


def add_stripe_commands(parser: CommandParser) -> None:
    """Add the commands about what is at Stripe."""
    parser.add_command(
        "setup",
        _setup,
        "find Stripe's meter, or make it, and print the price to make",
        examples=[""],
        group="Stripe",
    )


def _setup(options: argparse.Namespace) -> int:
    from power_billing.stripe_client import make_client
    from power_billing.stripe_setup import setup

    with opened(options) as (_, place):
        meter_id = setup(place, make_client(read_secret(os.environ, API_KEY), os.environ))
    print(f"meter {meter_id} is ready. Make a price on it, and subscribe each customer to that;")
    print("0.03 cents a Wh are 0.30 a kWh:")
    print("  stripe prices create --currency usd --product prod_... -d unit_amount_decimal=0.03 \\")
    print('    -d "recurring[interval]=month" -d "recurring[usage_type]=metered" \\')
    print(f'    -d "recurring[meter]={meter_id}"')
    return 0
