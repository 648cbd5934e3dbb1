"""The fleet's answers, where POWER_FLEET_CLICKHOUSE names its engine: power_fleet asks, and its README has the rest.

The routes are no part of the OpenAPI contract: they are there only where a fleet is. `Fresh-As-Of` says how fresh.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, FastAPI, Query, Request
from starlette.responses import Response

from power_service.auth import Reader, check_devices, forbidden_device
from power_service.bodies import JSON
from power_service.problems import Code, retry_later
from power_service.routes import ID_LIMITS, DeviceId, ReportDays
from power_service.settings import Refused
from power_service.tokens import Grant

NAME = "POWER_FLEET_CLICKHOUSE"
THREADS = 4  # not the library's: an engine that hangs holds up no reader of the file
WAITING = 100  # questions, beyond which the next is refused
_log = logging.getLogger("power_service")
_DeviceIds = Annotated[
    list[Annotated[str, Query(**ID_LIMITS)]], Query(max_length=100, description="none: all")
]
_router = APIRouter(prefix="/v1/fleet", include_in_schema=False)


def add_fleet(app: FastAPI, environ: Mapping[str, str]) -> None:
    """Add the routes if the environment names an engine. Raises Refused where it names one that cannot be asked."""
    urls = environ.get(NAME, "").split()
    if not urls:
        return
    try:
        # With it comes the engine's client: only for those who have a fleet.
        fleet = importlib.import_module("power_fleet.fleet")
        engine = importlib.import_module("power_fleet.engine")
    except ImportError as error:
        raise Refused(
            f"{NAME} is set, but {error.name} is not installed: pip install '.[fleet]'"
        ) from None
    try:
        app.state.fleet = fleet.Fleet(urls)
    except engine.Refused as error:
        raise Refused(f"{NAME}: {error}") from None
    app.state.fleet_error, app.state.fleet_shown = engine.EngineError, fleet.shown
    app.state.fleet_threads = anyio.CapacityLimiter(THREADS)
    app.include_router(_router)


async def _ask(request: Request, question: Callable[..., Any], *arguments: object) -> Any:
    """An answer; 503 where the engine does not give one, or too many wait for it."""
    threads = request.app.state.fleet_threads
    if threads.statistics().tasks_waiting >= WAITING:
        raise retry_later(Code.OVERLOADED, "too many questions to the fleet are waiting", 5)
    try:
        return await anyio.to_thread.run_sync(
            functools.partial(question, *arguments), limiter=threads
        )
    except request.app.state.fleet_error as error:
        _log.error("the fleet's engine: %s", error)
        raise retry_later(
            Code.STORAGE_UNAVAILABLE, "the fleet's engine does not answer now", 5
        ) from None


def _response(answer: Any, text: str | None = None) -> Response:
    fresh = {"Fresh-As-Of": answer.fresh_as_of} if answer.fresh_as_of else {}
    return Response(
        json.dumps(answer.value) if text is None else text, headers=fresh, media_type=JSON
    )


def _covered(grant: Grant, device_ids: list[str]) -> list[str] | None:
    """The devices to ask about: those named, else those of the grant, else None for all. Raises Problem 403."""
    check_devices(grant, *device_ids)
    return device_ids or (None if grant.devices is None else list(grant.devices))


@_router.get("/budget")
async def get_budget(request: Request, grant: Reader, device_id: _DeviceIds = []) -> Response:  # noqa: B006 - it is copied
    """The library's budget of each device."""
    return _response(
        await _ask(request, request.app.state.fleet.budget, _covered(grant, device_id))
    )


@_router.get("/devices/{device_id}/report")
async def get_report(
    request: Request, grant: Reader, device_id: DeviceId, days: ReportDays = 7.0
) -> Response:
    """The library's report of a device."""
    check_devices(grant, device_id)
    period = int(days) if days.is_integer() else days
    answer = await _ask(request, request.app.state.fleet.report, device_id, period)
    return _response(answer, answer.value)


@_router.get("/meters")
async def get_meters(request: Request, grant: Reader, device_id: _DeviceIds = []) -> Response:  # noqa: B006 - it is copied
    """Every meter in its present state."""
    answer = await _ask(request, request.app.state.fleet.latest, _covered(grant, device_id))
    return _response(
        answer, json.dumps([request.app.state.fleet_shown(meter) for meter in answer.value])
    )


@_router.get("/energy")
async def get_energy(
    request: Request, grant: Reader, days: Annotated[int, Query(ge=1, le=36_500)] = 7
) -> Response:
    """Energy by day, site and meter type; not for tokens bound to devices, which are of no whole site."""
    if grant.devices is not None:
        raise forbidden_device()
    return _response(await _ask(request, request.app.state.fleet.energy, days))


@_router.get("/silent")
async def get_silent(
    request: Request, grant: Reader, minutes: Annotated[float, Query(ge=0, le=1e6)] = 60.0
) -> Response:
    """Devices that the stream has had nothing from for so long."""
    answer = await _ask(request, request.app.state.fleet.silent, minutes)
    return _response(
        answer, json.dumps([row for row in answer.value if grant.covers(row["device_id"])])
    )
