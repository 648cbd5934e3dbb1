"""Deliveries of Stripe's webhooks: their signature and their shape.

No SDK: a service that only takes deliveries need not have it. Stripe documents the header:
`t=<epoch seconds>`, and one or more `v1=<hex>`, each an HMAC-SHA256 over the time, a dot and the
raw body.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from power_billing.errors import BillingError
from power_billing.keys import Secret

TOLERANCE = 300  # seconds between a signature's time and now, either way
THIN = "v2.core.event"  # an event of API v2: it names an object and says nothing of it
LATEST = 2**40  # epoch seconds: no time that Stripe means is later


class BadSignature(BillingError):
    """Not from Stripe, or not from now."""


class BadEvent(BillingError):
    """From Stripe, but not an event that this webhook endpoint can take."""


@dataclass(frozen=True)
class StripeEvent:
    """A delivery: `created` is epoch seconds by Stripe's clock, `object` what the event is about.

    A thin event of API v2 says nothing about its object: `object` is empty, and `created` is 0.
    """

    id: str
    type: str
    created: int
    object: dict[str, Any]
    thin: bool = False


def check_signature(secrets: Sequence[Secret], body: bytes, header: str | None, now: float) -> None:
    """Raise BadSignature unless one of the secrets signed the body within 5 minutes of `now`."""
    times = []
    signatures = []
    for part in (header or "").split(","):
        name, _, value = part.strip().partition("=")
        if name == "t":
            times.append(value)
        elif name == "v1":
            signatures.append(value.encode(errors="replace"))
    signed_at, *more = times or [""]
    if more or not re.fullmatch("[0-9]{1,12}", signed_at):
        raise BadSignature("no signature of Stripe's: a header Stripe-Signature with t= and v1=")
    signed = signed_at.encode() + b"." + body
    for secret in secrets:
        expected = hmac.new(secret.reveal().encode(), signed, hashlib.sha256).hexdigest().encode()
        if any(hmac.compare_digest(expected, signature) for signature in signatures):
            break
    else:
        raise BadSignature("the signature is not Stripe's")
    # One from the future could be kept, and replayed for a long time.
    if abs(int(signed_at) - now) > TOLERANCE:
        raise BadSignature("the signature is dated more than 5 minutes before or after now")


def parse_event(body: bytes) -> StripeEvent:
    """The event in a body. Raises BadEvent for anything else that JSON, or no JSON, may be."""
    try:
        found = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadEvent(f"not a webhook event: {type(error).__name__}") from None
    if not isinstance(found, dict):
        raise BadEvent(f"not a webhook event: expected a JSON object, got {type(found).__name__}")
    event_id = read_id(found.get("id"), "id")
    kind = found.get("type")
    if not isinstance(kind, str) or not re.fullmatch(r"[a-z0-9_.]{1,100}", kind):
        raise BadEvent(f"{event_id}: type: expected a type of event, got {shown(kind)}")
    if found.get("object") == THIN:
        return StripeEvent(event_id, kind, 0, {}, thin=True)
    created = read_count(found.get("created"), f"{event_id}: created", LATEST)
    data = found.get("data")
    about = data.get("object") if isinstance(data, dict) else None
    if not isinstance(about, dict):
        raise BadEvent(f"{event_id}: data.object: expected an object, got {shown(about)}")
    return StripeEvent(event_id, kind, created, about)


def read_id(value: Any, name: str) -> str:
    """An id of Stripe's. Raises BadEvent for anything else, such as text that no file can keep."""
    if not isinstance(value, str) or not re.fullmatch("[!-~]{1,255}", value):
        raise BadEvent(f"{name}: expected an id of Stripe's, got {shown(value)}")
    return value


def read_count(value: Any, name: str, most: int) -> int:
    """A whole number from 0 to `most`. Raises BadEvent for anything else: true, 1e30, text."""
    if type(value) is not int or not 0 <= value <= most:
        raise BadEvent(f"{name}: expected a whole number from 0 to {most}, got {shown(value)}")
    return value


def shown(value: Any) -> str:
    """A value for a message: ASCII, and not long."""
    try:
        return ascii(value)[:60]
    except RecursionError:
        return "something deep"
