"""The routes as a FastAPI application: its state, and what becomes of errors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, WebSocketRoute

from power_manager import PowerManagerError
from power_service import __version__
from power_service.auth import Gate
from power_service.backup import OneAtATime, remove_abandoned
from power_service.fleet_source import open_fleet
from power_service.hub import Hub
from power_service.metrics import Metrics
from power_service.problems import Code, Problem, of_library_error
from power_service.routes import ROUTERS
from power_service.settings import Settings
from power_service.storage import Storage
from power_service.stream import stream
from power_service.tokens import TokenFile

METHODS = ("GET", "PUT", "POST", "PATCH", "DELETE")  # of the routes
_SUMMARY = (
    "Power telemetry of edge devices: readings in, events, statistics, budgets and reports out"
)
_DESCRIPTION = """REST and WebSocket over power_manager. Records have the library's names.

A service serves a file, or a fleet whose devices send their files to an engine; `source` in
`GET /v1/me` says which. The routes are the same. For a fleet, whatever writes is refused with 409
`needs_a_file`; for a file, all routes under `/v1/fleet` are 404 `no_fleet`.

Numbers are strict: NaN, Infinity, 1e999, true and "12.5" are refused with 422. So are a key of a
body and a parameter of a query that are unknown, or come twice. Errors are RFC 9457 problem JSON;
programs should use `code`. A token bound to devices gets 403 for everything of other devices,
whether they exist or not.

The stream is the WebSocket `/v1/stream?device_id=&after=&file_id=`; its messages are under
`webhooks`. Resume with the last `sequence` as `after` and the `file_id` of the last hello.
Authenticate with the subprotocols `power.v1` and `token.<token>`, with an Authorization header, or
with `ticket=` from `POST /v1/stream/tickets`. Close codes: 1012, the service restarts, and 1013,
the client was too slow: reconnect and resume; 4000 + an HTTP status, the connection is refused,
with the problem's code as reason.
"""


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The database is open, and followed, for as long as the application runs."""
    state = app.state
    state.storage = state.gate.storage = Storage(state.settings, state.clock, state.fleet)
    state.backups = OneAtATime()
    if not state.settings.is_fleet:
        remove_abandoned(state.settings.db)
    state.hub = Hub(state.settings, state.storage, state.gate, state.metrics)
    try:
        await state.hub.start()
        yield
    finally:
        await state.hub.stop()
        state.storage.close()


def make_api(settings: Settings, clock: Callable[[], float] = time.time) -> FastAPI:
    """The routes without the guard around them; no database is open before it runs.

    `clock` returns epoch seconds. Raises Refused for a fleet whose settings are wrong.
    """
    app = FastAPI(
        title="Power service",
        version=__version__,
        summary=_SUMMARY,
        description=_DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.metrics = Metrics()
    app.state.clock = clock
    app.state.queries = {}  # those that each route knows, once the contract is made
    app.state.fleet = open_fleet(settings, clock) if settings.is_fleet else None
    app.state.gate = Gate(settings, TokenFile(settings.token_file))
    for router in ROUTERS:
        app.include_router(router)
    app.router.routes.append(WebSocketRoute("/v1/stream", stream))
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


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
    if error.status_code == 404:
        detail = "nothing has this path: /docs has the routes, and / is the page"
        return Problem(Code.ROUTE_NOT_FOUND, detail).response()
    return Problem(Code.INTERNAL, str(error.detail)).response()


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
