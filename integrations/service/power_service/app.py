"""All of it as one ASGI application: the routes, their contract, pages, webhooks and the guard."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from power_service import docs, openapi, queries
from power_service.api import METHODS, make_api
from power_service.billing import add_webhook
from power_service.bodies import JSON
from power_service.compress import Compress, FixedFile
from power_service.dashboard import add_dashboard
from power_service.guard import Guard
from power_service.pages import page
from power_service.problems import Code, Problem
from power_service.settings import Settings


def create_app(
    settings: Settings, clock: Callable[[], float] = time.time
) -> tuple[ASGIApp, FastAPI]:
    """The application to serve, and the FastAPI inside it. Raises Refused."""
    app = make_api(settings, clock)
    document = openapi.build(app)
    app.state.queries = queries.of_contract(document)
    contract = FixedFile(openapi.text(document).encode(), JSON, {"Cache-Control": "no-cache"})
    described = page("Power service: routes", docs.html(document))

    async def upgrade_required(_: Request) -> Response:
        detail = "this is a WebSocket: connect with ws:// or wss://"
        return Problem(Code.UPGRADE_REQUIRED, detail, {"Upgrade": "websocket"}).response()

    app.add_route("/openapi.json", contract.answer, include_in_schema=False)
    app.add_route("/docs", described.answer, include_in_schema=False)
    app.add_route("/v1/stream", upgrade_required, include_in_schema=False)
    add_webhook(app, os.environ, settings)
    add_dashboard(app, settings.dashboard)
    inner: ASGIApp = app
    if settings.allow_origin:
        inner = CORSMiddleware(
            app,
            settings.allow_origin,
            allow_methods=METHODS,
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After", "Fresh-As-Of"],
            max_age=600,
        )
    return Guard(Compress(inner), settings, app.state.metrics), app
