"""The command line in front of a loopback Stripe that knows its customers: what is set up, subscribed and refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from loopback import Loopback
from power_billing.cli import main
from power_billing.hours import iso

from power_manager import PowerManager

ALICE, BOB = "cus_Alice1", "cus_Bob2"
PRICED = ("setup", "--product", "Energy", "--price", "0.30", "--currency", "eur")


class Shop:
    """`stripe` has the customers Alice and Bob; devices `edge` and `twin` have used 10.5 Wh in each of three hours."""

    def __init__(self, db: Path, stripe: Loopback, capsys: pytest.CaptureFixture[str]) -> None:
        self.db, self.stripe, self._capsys = db, stripe, capsys
        self.hour = int(time.time() // 3600)
        for customer in (ALICE, BOB):
            stripe.catalog.add_customer(customer)
        with PowerManager(db, max_gap=1500) as pm:
            for device in ("edge", "twin"):
                pm.register_device(device, device.title())
                meter = pm.add_meter(device, "main").id
                for back in (4, 3, 2):
                    for second in (600, 2040):
                        at = (self.hour - back) * 3600 + second
                        pm.log_power(meter, 10.5 / 0.4, 1.0, timestamp=at)

    def __call__(self, *arguments: str, code: int = 0) -> list[str]:
        """Run a command; the lines that it prints, its errors after them."""
        assert main(["--db", str(self.db), *arguments]) == code
        captured = self._capsys.readouterr()
        return [*captured.out.splitlines(), *captured.err.splitlines()]

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
