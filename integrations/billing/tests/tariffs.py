"""What the tests of tariffs share: files of tariffs, hours by text, a world with a tariff."""

from __future__ import annotations

from datetime import datetime, timezone

from loopback import KEY
from power_billing.hours import HOUR
from power_billing.keys import API_KEY, Secret
from power_billing.stripe_client import make_client
from power_billing.stripe_setup import setup_tariff
from power_billing.tariff_file import parse_tariff
from world import World

TWO = """
zone = "Europe/Berlin"
currency = "eur"

[peak]
hours = "07:00-22:00"
days = "mon-fri"
price = 0.34

[off_peak]
price = 0.20
"""
# By turns in one period and in the other, so that hours are in both whenever tests run.
BY_TURNS = """
currency = "eur"

[odd]
hours = [
    "01:00-02:00", "03:00-04:00", "05:00-06:00", "07:00-08:00", "09:00-10:00", "11:00-12:00",
    "13:00-14:00", "15:00-16:00", "17:00-18:00", "19:00-20:00", "21:00-22:00", "23:00-24:00",
]
price = 300

[even]
price = 100
"""
PEAK, OFF_PEAK = "power_watt_hours_peak", "power_watt_hours_off_peak"


def at(text: str) -> int:
    """An hour since 1970 by its begin in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()) // HOUR


def go_to(world: World, text: str) -> None:
    """Set the machine's clock and Stripe's to ten minutes into an hour of UTC."""
    world.now = world.true_now = at(text) * HOUR + 600.0


def set_tariff(world: World, text: str = TWO, meter_name: str | None = None) -> None:
    """As setup --tariff does."""
    client = make_client(Secret(API_KEY, KEY), {}, world.transport(world.server))
    setup_tariff(world.pm, client, "Energy", parse_tariff(text), meter_name)


def use_in(world: World, hour: int, watt_hours: float, device_id: str = "edge") -> None:
    """Let a device consume that much in an hour, beside what others logged there before."""
    for second in (600.0, 2040.0):
        timestamp = hour * HOUR + second
        world.pm.log_power(world.meters[device_id], watt_hours / 0.4, 1.0, timestamp=timestamp)
