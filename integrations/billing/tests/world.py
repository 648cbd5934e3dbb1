"""A file with devices, a clock that tests set, and a loopback Stripe: all that a run needs."""

from __future__ import annotations

from pathlib import Path

import power_billing
import stripe
from loopback import KEY, FakeTransport, Loopback
from power_billing.decisions import Undecided, undecided
from power_billing.hours import oldest_billable
from power_billing.keys import API_KEY, Secret
from power_billing.outbox import Entry, every_entry
from power_billing.sources import Devices
from power_billing.stripe_client import make_client
from power_billing.stripe_setup import setup
from power_billing.stripe_sinks import StripeMeterSink, open_sink
from power_billing.tables import Place, ledger_id, set_setting, tables
from power_billing.usage import Run

from power_manager import PowerManager

HOUR = 3600.0
NOW = 1_790_000_000.0 // HOUR * HOUR + 600  # ten minutes into an hour
MAX_GAP = 1500.0  # seconds
CUSTOMER = "cus_Nf1XyzAbc"


def outbox(place: Place) -> list[Entry]:
    """Every event that there ever was, by customer, hour and revision."""
    with tables(place) as conn:
        return every_entry(conn)


class World:
    """`now` is what the machine's clock says, `true_now` what Stripe's does; both start at NOW."""

    def __init__(self, db: Path | str, newest_by: str = "receipt") -> None:
        self.now = self.true_now = NOW
        self.slept: list[float] = []
        self.server = Loopback(lambda: self.true_now, newest_by)
        self.open(db)
        self.meters: dict[str, str] = {}
        self.add_device("edge")

    def open(self, db: Path | str) -> None:
        """Open the file, as after a restore."""
        self.pm = PowerManager(db, max_gap=MAX_GAP, clock=lambda: self.now)
        self.devices: Devices = self.pm  # what billing sees of them; the ledger is there too
        self.usage = Run(self.pm, clock=lambda: self.now, sleep=self.slept.append)

    def setup_from(self, other: World) -> None:
        """Know the meter that the other's setup has made, as two files at one Stripe do."""
        setup(self.devices, make_client(Secret(API_KEY, KEY), {}, self.transport(other.server)))

    def copy_from(self, other: World) -> None:
        """The same, as a copy of the other's ledger that lives on beside it: it has its id."""
        self.setup_from(other)
        self.copy_id_from(other)

    def copy_id_from(self, other: World) -> None:
        """Have the id of the other's ledger."""
        with tables(other.pm) as conn:
            theirs = ledger_id(conn)
        with tables(self.pm) as conn:
            set_setting(conn, "ledger_id", theirs)

    def add_device(self, device_id: str, kind: str = "main") -> str:
        """A device with one more meter; the meter's id."""
        self.pm.register_device(device_id, device_id)
        self.meters[device_id] = self.pm.add_meter(device_id, kind).id
        return self.meters[device_id]

    def link(
        self, device_id: str = "edge", customer: str = CUSTOMER, hours_ago: float = 24 * 30
    ) -> power_billing.Link:
        """Bill a device from some hours ago on."""
        since = self.now - hours_ago * HOUR
        return power_billing.link(
            self.devices, device_id, customer, since=since, clock=lambda: self.now
        )

    def use(self, watt_hours: float, hours_ago: int, device_id: str = "edge") -> None:
        """Let a device consume that much in the hour that began so many hours before this one."""
        begin = NOW // HOUR * HOUR - hours_ago * HOUR
        # A constant load over 0.4 hours; hours beside each other are further apart than MAX_GAP.
        for second in (600.0, 2040.0):
            self.pm.log_power(
                self.meters[device_id], watt_hours / 0.4, 1.0, timestamp=begin + second
            )

    def transport(self, server: Loopback) -> FakeTransport:
        """What carries the SDK's requests."""
        return FakeTransport(server)

    def sink(self, stream: bool = False) -> StripeMeterSink:
        """The Stripe sink, by way of the official SDK; with setup where there was none."""
        client = make_client(Secret(API_KEY, KEY), {}, self.transport(self.server))
        if not self.server.meters:
            setup(self.devices, client)

        def session(token: str) -> stripe.StripeClient:
            return make_client(Secret("session", token), {}, self.transport(self.server))

        return open_sink(
            self.devices, client, stream=stream, session=session, clock=lambda: self.now
        )

    def report(self, **options: object) -> power_billing.Report:
        """A run to Stripe."""
        return self.usage.report(self.sink(), **options)  # type: ignore[arg-type]

    def billed(self, customer: str = CUSTOMER) -> int:
        """What Stripe would put on the invoices, in Wh."""
        return self.server.billed(customer)


def pass_time(worlds: list[World], hours: float) -> None:
    """Let time pass for all of them."""
    for world in worlds:
        world.now += hours * HOUR
        world.true_now += hours * HOUR


def to_decide(world: World) -> Undecided:
    """What a person would be shown."""
    return undecided(world.pm, oldest_billable(world.now))
