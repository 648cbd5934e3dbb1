"""Prices of energy: what one watt-hour costs, exactly, in the smallest unit of a currency."""

from __future__ import annotations

import argparse
import re
import sqlite3
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from power_billing.tables import forget_setting, set_setting, setting
from power_manager import InvalidValue

# Units that a price may have, in watt-hours. Stripe's meter counts whole watt-hours in any case.
UNITS = {"Wh": 1, "kWh": 1_000, "MWh": 1_000_000}
METERED_UNIT = "Wh"
# How many decimals an amount has that Stripe takes in the currency; 2 for all others.
_DECIMALS = {
    **dict.fromkeys(
        [
            "bif",
            "clp",
            "djf",
            "gnf",
            "jpy",
            "kmf",
            "krw",
            "mga",
            "pyg",
            "rwf",
            "vnd",
            "vuv",
            "xaf",
            "xof",
            "xpf",
        ],
        0,
    ),
    **dict.fromkeys(["bhd", "jod", "kwd", "omr", "tnd"], 3),
}
_AMOUNT_SETTING = "price_amount"
_CURRENCY_SETTING = "price_currency"
_UNIT_SETTING = "price_unit"
_PLACES = 12  # Stripe's: decimals of unit_amount_decimal


def parse_amount(text: str) -> Decimal:
    """Text as an amount of money above 0, for argparse; exact, as a float is not.

    >>> parse_amount("0.30")
    Decimal('0.30')
    """
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,15})?", text) or not Decimal(text):
        raise argparse.ArgumentTypeError(f"expected an amount above 0 such as 0.30, got {text!r}")
    return Decimal(text)


def parse_currency(text: str) -> str:
    """Text as a currency's code in small letters, for argparse.

    >>> parse_currency("EUR")
    'eur'
    """
    if not re.fullmatch("[A-Za-z]{3}", text):
        raise argparse.ArgumentTypeError(f"expected three letters such as eur, got {text!r}")
    return text.lower()


@dataclass(frozen=True)
class Price:
    """`amount` (in the currency's main unit, such as euros) for one `unit` of energy.

    >>> Price.parse("0.30", "EUR", "kWh").unit_amount_decimal
    '0.03'
    """

    amount: Decimal
    currency: str
    unit: str

    @classmethod
    def parse(cls, amount: str, currency: str, unit: str = "kWh") -> Price:
        """A price as people write it.

        amount: above 0, with a point. currency: three letters. unit: Wh, kWh (default) or MWh.
        Raises InvalidValue for anything else, and for what Stripe cannot carry exactly.
        """
        if unit not in UNITS:
            raise InvalidValue(f"unit: expected {', '.join(UNITS)}, got {unit!r}")
        try:
            code = parse_currency(currency)
        except argparse.ArgumentTypeError as error:
            raise InvalidValue(f"currency: {error}") from None
        try:
            exact = parse_amount(amount)
        except argparse.ArgumentTypeError as error:
            raise InvalidValue(f"price: {error}") from None
        return cls.of(exact, code, unit)

    @classmethod
    def of(cls, amount: Decimal, currency: str, unit: str) -> Price:
        """A price that Stripe can carry exactly. Raises InvalidValue for any other."""
        made = cls(amount, currency, unit)
        if -int(made.minor_per_wh.as_tuple().exponent) > _PLACES:
            raise InvalidValue(
                f"price: {amount} {made.currency} a {unit} has more than {_PLACES} decimals a "
                "watt-hour: Stripe cannot carry it exactly"
            )
        return made

    @property
    def minor_per_wh(self) -> Decimal:
        """What a watt-hour costs in the currency's smallest unit, such as cents."""
        per_wh = self.amount.scaleb(self.decimals) / UNITS[self.unit]
        return per_wh.normalize()

    @property
    def decimals(self) -> int:
        """How many decimals amounts have in this currency."""
        return _DECIMALS.get(self.currency, 2)

    @property
    def unit_amount_decimal(self) -> str:
        """As Stripe takes it."""
        return f"{self.minor_per_wh:f}"

    def cost(self, watt_hours: int | Decimal) -> Decimal:
        """What so many watt-hours cost, in the main unit, rounded half up to its decimals."""
        exact = self.minor_per_wh * watt_hours
        return exact.quantize(Decimal(1), rounding=ROUND_HALF_UP).scaleb(-self.decimals)

    def __str__(self) -> str:
        shown = self.amount.normalize()
        if -int(shown.as_tuple().exponent) < self.decimals:
            shown = self.amount.quantize(Decimal(1).scaleb(-self.decimals))
        return f"{shown:f} {self.currency.upper()} a {self.unit}"


def keep_amount(conn: sqlite3.Connection, price: Price) -> None:
    """Remember a price in the ledger."""
    set_setting(conn, _AMOUNT_SETTING, str(price.amount))
    set_setting(conn, _CURRENCY_SETTING, price.currency)
    set_setting(conn, _UNIT_SETTING, price.unit)


def forget_amount(conn: sqlite3.Connection) -> None:
    """Forget the price."""
    for name in (_AMOUNT_SETTING, _CURRENCY_SETTING, _UNIT_SETTING):
        forget_setting(conn, name)


def price_of(conn: sqlite3.Connection) -> Price | None:
    """The price that was remembered last; None where there was none."""
    amount = setting(conn, _AMOUNT_SETTING)
    currency = setting(conn, _CURRENCY_SETTING)
    unit = setting(conn, _UNIT_SETTING)
    if amount is None or currency is None or unit is None:
        return None
    return Price.parse(amount, currency, unit)
