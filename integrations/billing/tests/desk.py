"""A customer with two devices, and a Stripe that delivers webhooks, signed by hand."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import time

from power_billing.keys import WEBHOOK_SECRET, Secret
from power_billing.tables import tables
from power_billing.webhooks import (
    WebhookSettings,
    handle,
    tell_due,
    verified,
)
from world import CUSTOMER, World

SECRET = "whsec_Ab3dEf6hIj9kLmN0pQrStUv"
HOUR = 3600


class Desk:
    """A customer with two devices, and a Stripe that delivers. `now` is this machine's clock."""

    def __init__(
        self, world: World, policy: str = "final_attempt", grace_hours: float = 0.0
    ) -> None:
        self.pm, self.now = world.pm, int(time.time())
        world.now = float(self.now)
        world.add_device("twin")
        world.link(hours_ago=1)
        world.link("twin", hours_ago=1)
        self.settings = WebhookSettings(
            (Secret(WEBHOOK_SECRET, SECRET),), policy, grace_hours * HOUR
        )
        self._ids = itertools.count()

    def event(self, kind: str, **invoice: object) -> bytes:
        """An event as Stripe writes it; `at` is when it was made; `id` and `invoice` are ids."""
        made = {
            "id": invoice.pop("id", f"evt_{next(self._ids)}"),
            "object": "event",
            "api_version": "2026-10-28.endive",
            "created": invoice.pop("at", self.now),
            "livemode": False,
            "type": kind,
            "data": {
                "object": {
                    "id": invoice.pop("invoice", "in_1"),
                    "object": "invoice",
                    "customer": CUSTOMER,
                    **invoice,
                }
            },
        }
        return json.dumps(made).encode()

    def deliver(self, kind: str, **invoice: object) -> str:
        """Deliver a new event, signed."""
        return self.send(self.event(kind, **invoice))

    def send(self, body: bytes) -> str:
        """Deliver a body, signed now."""
        event = verified(self.settings, body, sign(body, self.now), self.clock)
        return handle(self.pm, self.settings, event, self.clock)

    def clock(self) -> float:
        """What this machine's clock says."""
        return float(self.now)

    def tell_due(self, after: float = 0.0) -> int:
        """As report does, so many seconds later."""
        with tables(self.pm) as conn:
            return tell_due(self.pm, conn, self.now + after)

    def fail(self, attempt: int, again: bool, **invoice: object) -> str:
        """A payment has failed; Stripe will try again, or not."""
        following = self.now + 86_400 if again else None
        return self.deliver(
            "invoice.payment_failed",
            attempt_count=attempt,
            next_payment_attempt=following,
            **invoice,
        )

    def pay(self, **invoice: object) -> str:
        """The invoice is paid."""
        return self.deliver("invoice.paid", attempt_count=1, next_payment_attempt=None, **invoice)

    def told(self) -> list[tuple[str, str]]:
        """Device and event, in order of recording."""
        return [(event.device_id, event.type.value) for _, event in self.pm.events_since(0)]


DOWN = [("edge", "shutdown"), ("twin", "shutdown")]
UP = [("edge", "restore"), ("twin", "restore")]


def sign(body: bytes, at: int, secret: str = SECRET) -> str:
    """The header that Stripe would send: an HMAC made by hand."""
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def thin_event(kind: str, event_id: str) -> bytes:
    """A thin event as Stripe documents it: an id, a type, a time as text, and what it is about."""
    about = {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"}
    head = {"id": event_id, "object": "v2.core.event", "type": kind, "livemode": False}
    more = {"created": "2026-09-21T12:00:00.000Z", "context": None, "related_object": about}
    return json.dumps({**head, **more}).encode()
