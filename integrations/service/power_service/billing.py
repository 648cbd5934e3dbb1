"""Stripe's webhooks, if STRIPE_WEBHOOK_SECRET is set: deliveries go to power_billing.

The route is not in the OpenAPI contract: only Stripe calls it, and it exists only with billing.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Mapping

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from power_manager import PowerManager, not_installed
from power_service.problems import Code, Problem, retry_later
from power_service.settings import Refused, Settings
from power_service.storage import Lane, Storage, storage_of

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

    Raises Refused if a setting or a package is missing, or if there is no file for its events.
    """
    given = [name for name in _NAMES if environ.get(name)]
    if not given:
        return
    if service.is_fleet:
        raise Refused(
            f"{given[0]} is set, and a fleet is served: Stripe's invoices become events in a file; "
            "unset it, or start a service with --db for it"
        )
    try:
        # Imported only where it is used. Taking deliveries does not need Stripe's SDK of 30 MB.
        webhooks = importlib.import_module("power_billing.webhooks")
    except ModuleNotFoundError as error:
        raise Refused(f"{given[0]} is set, but {not_installed(error, 'billing')}") from None
    try:
        settings = webhooks.WebhookSettings.from_environ(environ)
    except webhooks.BillingError as error:
        raise Refused(str(error)) from None

    async def deliver(request: Request) -> Response:
        storage = storage_of(request)
        body = await request.body()  # raw: the signature is of these bytes
        signature = request.headers.get("stripe-signature")
        try:
            # Before it is queued: a forged delivery takes none of the writer's time.
            event = await asyncio.to_thread(webhooks.verified, settings, body, signature)
            done = await storage.call(Lane.WRITE, webhooks.handle, storage.pm, settings, event)
        except webhooks.BadSignature as error:
            raise Problem(Code.UNAUTHORIZED, str(error)) from None
        except webhooks.BadEvent as error:
            raise Problem(Code.MALFORMED_JSON, str(error)) from None
        except webhooks.BillingError as error:
            # The tables belong to a later version. Stripe delivers again.
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
        except webhooks.BillingError as error:
            # No samples rather than wrong ones: missing samples are noticed.
            _log.error("%s", error)
            return b""

    app.state.billing_metrics = text


async def billing_metrics(app: FastAPI, storage: Storage) -> bytes:
    """Billing's own metrics for Prometheus; nothing if it is not configured."""
    text = getattr(app.state, "billing_metrics", None)
    if text is None:
        return b""
    found: bytes = await storage.call(Lane.WRITE, text, storage.pm)  # it may make its tables
    return found
