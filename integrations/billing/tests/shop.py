"""The command line in front of a loopback Stripe that knows its customers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from loopback import Loopback, serve
from power_billing.cli import main
from power_billing.hours import HOUR, iso
from power_billing.keys import API_KEY, API_URL

from power_manager import PowerManager

ALICE, BOB = "cus_Alice1", "cus_Bob2"
PRICED = ("setup", "--product", "Energy", "--price", "0.30", "--currency", "eur")


@contextmanager
def at_stripe(
    server: Loopback,
    monkeypatch: pytest.MonkeyPatch,
    on_request: Callable[[str, str], None] = lambda *_: None,
) -> Iterator[Loopback]:
    """The server on a port, and an environment that leads there."""
    with serve(server, on_request) as url:
        monkeypatch.setenv(API_URL, url)
        monkeypatch.setenv(API_KEY, server.key)
        yield server


def add_used_device(pm: PowerManager, device_id: str, hour: int) -> str:
    """A device that used 10.5 Wh in each of three hours, the last two before `hour`; its meter."""
    pm.register_device(device_id, device_id.title())
    meter = pm.add_meter(device_id, "main").id
    for hours_ago in (4, 3, 2):
        for second in (600, 2040):
            at = (hour - hours_ago) * HOUR + second
            pm.log_power(meter, 10.5 / 0.4, 1.0, timestamp=at)
    return meter


class Printed(NamedTuple):
    """What a command has printed."""

    out: str
    err: str


class Commands:
    """The command line with devices and a ledger at one place, which options name.

    clock: the machine's; `hour` is the one in which it begins.
    """

    def __init__(
        self,
        place: Sequence[str],
        capsys: pytest.CaptureFixture[str],
        clock: Callable[[], float],
    ) -> None:
        self._place, self._capsys, self.clock = place, capsys, clock
        self.hour = int(clock() // HOUR)

    def __call__(self, *arguments: str, code: int = 0) -> list[str]:
        """Run a command; the lines that it prints, its errors after them."""
        printed = self.printed(*arguments, code=code)
        return [*printed.out.splitlines(), *printed.err.splitlines()]

    def printed(self, *arguments: str, code: int = 0) -> Printed:
        """Run a command; its output and its errors."""
        assert main([*self._place, *arguments], clock=self.clock) == code
        captured = self._capsys.readouterr()
        return Printed(captured.out, captured.err)

    def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Run a command with --json; the one object that it prints, and no error."""
        printed = self.printed(*arguments, "--json", code=code)
        assert printed.err == ""
        found: dict[str, Any] = json.loads(printed.out)
        return found


class Shop(Commands):
    """Devices `edge` and `twin` used 10.5 Wh in each of three hours; Stripe has Alice and Bob.

    The machine's clock is Stripe's.
    """

    def __init__(self, db: Path, stripe: Loopback, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__(["--db", str(db)], capsys, stripe.clock)
        self.db, self.stripe = db, stripe
        for customer in (ALICE, BOB):
            stripe.catalog.add_customer(customer)
        with PowerManager(db, max_gap=1500) as pm:
            for device in ("edge", "twin"):
                add_used_device(pm, device, self.hour)

    def tariff(self, text: str) -> tuple[str, ...]:
        """The command that sets up a tariff of that text."""
        path = self.db.with_name("tariff.toml")
        path.write_text(text)
        return "setup", "--product", "Energy", "--tariff", str(path)

    def objects(self, kind: str) -> list[dict[str, Any]]:
        """What Stripe has of a kind."""
        return list(self.stripe.catalog.objects[kind].values())

    def subscribe(
        self, *options: str, device: str = "edge", customer: str = ALICE, code: int = 0
    ) -> list[str]:
        """Subscribe a customer with a device that is billed from ten hours ago on."""
        since = iso(self.hour - 10)
        return self(
            "subscribe", device, "--customer", customer, "--since", since, *options, code=code
        )
