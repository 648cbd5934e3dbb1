"""Stripe's webhooks, where STRIPE_WEBHOOK_SECRET is set: the deliveries go to power_billing, whose README has the rest.

The route is no part of the OpenAPI contract: it is Stripe's to call, and is there only where billing is.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Mapping

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from power_manager import PowerManager
from power_service.problems import Code, Problem, retry_later
from power_service.settings import Refused, Settings
from power_service.storage import Lane, Storage

PATH = "/v1/stripe/webhook"
_NAMES = (
    "STRIPE_WEBHOOK_SECRET",
    "STRIPE_WEBHOOK_SECRET_FILE",
    "POWER_BILLING_SHUTDOWN",
    "POWER_BILLING_GRACE_HOURS",
)
_log = logging.getLogger("power_service")


def add_webhook(app: FastAPI, environ: Mapping[str, str], service: Settings) -> None:
    """Add the route if the environment asks for it.

    Raises Refused where it asks for half of it, or where there is no file for the events that it makes.
    """
    given = [name for name in _NAMES if environ.get(name)]
    if not given:
        return
    if service.is_fleet:
        raise Refused(
            f"{given[0]} is set, and a fleet is served: Stripe's invoices become events in a file; unset it, or start "
            "a service with --db for it"
        )
    try:
        # Only for those who bill. Stripe's SDK, of 30 MB, is not needed to take deliveries.
        webhooks = importlib.import_module("power_billing.webhooks")
    except ImportError as error:
        raise Refused(
            f"{given[0]} is set, but {error.name} is not installed: pip install '.[billing]'"
        ) from None
    try:
        settings = webhooks.WebhookSettings.from_environ(environ)
    except webhooks.BillingError as error:
        raise Refused(str(error)) from None

    async def deliver(request: Request) -> Response:
        storage: Storage = request.app.state.storage
        body = await request.body()  # raw: what was signed are these bytes
        signature = request.headers.get("stripe-signature")
        try:
            # Before it is queued: who is not Stripe takes none of the one writer's time.
            event = await asyncio.to_thread(webhooks.verified, settings, body, signature)
            done = await storage.call(Lane.WRITE, webhooks.handle, storage.pm, settings, event)
        except webhooks.BadSignature as error:
            raise Problem(Code.UNAUTHORIZED, str(error)) from None
        except webhooks.BadEvent as error:
            raise Problem(Code.MALFORMED_JSON, str(error)) from None
        except (
            webhooks.BillingError
        ) as error:  # its tables are a later version's: Stripe delivers again
            _log.error("%s", error)
            raise retry_later(
                Code.STORAGE_UNAVAILABLE, "the billing tables cannot be used", 60
            ) from None
        _log.info("stripe: %s", done)
        return Response(status_code=200)

    app.add_route(PATH, deliver, methods=["POST"], include_in_schema=False)
    metrics = importlib.import_module("power_billing.metrics")

    def text(pm: PowerManager) -> bytes:
        try:
            found: bytes = metrics.scraped(pm, settings.ledger)
            return found
        except (
            webhooks.BillingError
        ) as error:  # a sample that is missing is seen; a wrong one is not
            _log.error("%s", error)
            return b""

    app.state.billing_metrics = text


async def billing_metrics(app: FastAPI, storage: Storage) -> bytes:
    """What billing has for Prometheus beside the service's own; nothing where it is not configured."""
    text = getattr(app.state, "billing_metrics", None)
    if text is None:
        return b""
    found: bytes = await storage.call(Lane.WRITE, text, storage.pm)  # its tables may be made by it
    return found
