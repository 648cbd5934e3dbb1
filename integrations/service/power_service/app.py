"""All of it as one ASGI application."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, WebSocketRoute
from starlette.types import ASGIApp

from power_manager import PowerManagerError
from power_service import __version__, docs, openapi
from power_service.auth import Gate
from power_service.backup import OneAtATime
from power_service.billing import add_webhook
from power_service.bodies import JSON
from power_service.compress import Compress, FixedFile
from power_service.dashboard import add_dashboard
from power_service.fleet_source import open_fleet
from power_service.guard import Guard
from power_service.hub import Hub
from power_service.metrics import Metrics
from power_service.pages import page
from power_service.problems import Code, Problem, of_library_error
from power_service.routes import ROUTERS
from power_service.settings import Settings
from power_service.storage import Storage
from power_service.stream import stream
from power_service.tokens import TokenFile

METHODS = ("GET", "PUT", "POST", "PATCH", "DELETE")  # of the routes


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The database is open, and followed, for as long as the application runs."""
    state = app.state
    state.storage = state.gate.storage = Storage(state.settings, state.clock, state.fleet)
    state.backups = OneAtATime()
    state.hub = Hub(state.settings, state.storage, state.gate, state.metrics)
    try:
        await state.hub.start()
        yield
    finally:
        await state.hub.stop()
        state.storage.close()


def bare_app(settings: Settings, clock: Callable[[], float] = time.time) -> FastAPI:
    """The routes without the guard around them; no database is open yet.

    `clock` returns epoch seconds. Raises Refused for a fleet whose settings are wrong.
    """
    app = FastAPI(
        title="Power service",
        version=__version__,
        summary=openapi.SUMMARY,
        description=openapi.DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.metrics = Metrics()
    app.state.clock = clock
    app.state.fleet = open_fleet(settings, clock) if settings.is_fleet else None
    app.state.gate = Gate(settings, TokenFile(settings.token_file))
    for router in ROUTERS:
        app.include_router(router)
    app.router.routes.append(WebSocketRoute("/v1/stream", stream))
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


def create_app(
    settings: Settings, clock: Callable[[], float] = time.time
) -> tuple[ASGIApp, FastAPI]:
    """The application to serve, and the FastAPI inside it. Raises Refused."""
    app = bare_app(settings, clock)
    document = openapi.build(app)
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


# --- Errors


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _library_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, PowerManagerError)
    return of_library_error(error).response()


async def _invalid_parameters(_: Request, error: Exception) -> Response:
    """FastAPI's own answer would echo the input, which may be no JSON at all."""
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in error.errors()]
    return Problem(Code.INVALID_VALUE, "; ".join(faults)[:1000]).response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = ", ".join(sorted(_methods(request)))
        return Problem(
            Code.METHOD_NOT_ALLOWED, f"expected one of: {allowed}", {"Allow": allowed}
        ).response()
    code = Code.ROUTE_NOT_FOUND if error.status_code == 404 else Code.INTERNAL
    return Problem(code, str(error.detail)).response()


def _methods(request: Request) -> set[str]:
    """The methods of all routes at that path; the framework names those of the first route only."""
    found = set()
    for method in METHODS:
        scope = {**request.scope, "method": method, "path_params": {}}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            found.add(method)
    return found


async def _client_gone(_: Request, __: Exception) -> Response:
    return Problem(Code.MALFORMED_JSON, "the body ended early").response()


async def _unexpected(_: Request, __: Exception) -> Response:  # the server logs it
    return Problem(Code.INTERNAL, "an error of the service, see its log").response()


_HANDLERS = {
    Problem: _problem,
    PowerManagerError: _library_error,
    RequestValidationError: _invalid_parameters,
    HTTPException: _http_error,
    ClientDisconnect: _client_gone,
    Exception: _unexpected,
}
