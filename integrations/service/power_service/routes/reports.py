"""Events, and what the library works out: runtime, budget, report, sparklines."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from power_manager import (
    PowerEvent,
)
from power_service import models, shapes
from power_service.auth import (
    Reader,
    Writer,
    check_devices,
    check_meter,
)
from power_service.bodies import (
    JSON,
    json_response,
    read_object,
    type_as_sent,
)
from power_service.hours import sparklines
from power_service.hub import Begin, where_to_resume
from power_service.problems import unknown_id
from power_service.routes.parameters import ID_LIMITS, DeviceId, body_of
from power_service.shapes import MAX_FILE_ID
from power_service.source import Source
from power_service.storage import Lane, storage_of
from power_service.tokens import Grant

router = APIRouter(prefix="/v1")
# More than 0: the least that the library takes is a microsecond.
LEAST_DAYS = 1e-9
ReportDays = Annotated[
    float, Query(ge=LEAST_DAYS, le=36_500, description="how far back, in days: more than 0")
]


# --- Events


@router.get(
    "/devices/{device_id}/events",
    operation_id="listEvents",
    response_model=list[PowerEvent],
    tags=["events"],
)
async def list_events(
    request: Request,
    grant: Reader,
    device_id: DeviceId,
    limit: Annotated[int, Query(ge=0, le=10_000)] = 50,
) -> Response:
    """A device's newest events, newest first."""
    check_devices(grant, device_id)
    storage = storage_of(request)
    return json_response(
        models.EVENTS, await storage.call(Lane.READ, storage.source.get_events, device_id, limit)
    )


@router.post(
    "/devices/{device_id}/events",
    operation_id="triggerEvent",
    response_model=PowerEvent,
    status_code=201,
    tags=["events"],
    openapi_extra=body_of(shapes.NEW_EVENT),
)
async def trigger_event(request: Request, grant: Writer, device_id: DeviceId) -> Response:
    """Record an event of a device that happens now."""
    check_devices(grant, device_id)
    storage = storage_of(request)
    values = await read_object(request, shapes.NEW_EVENT)
    meter_id = values["meter_id"]
    if isinstance(meter_id, str):
        await check_meter(storage, grant, meter_id)
    arguments = (device_id, values["type"], values["value"], values["note"])
    with type_as_sent():
        event = await storage.call(
            Lane.WRITE, storage.pm.trigger_event, *arguments, meter_id=meter_id
        )
    return json_response(models.EVENT, event, 201)


@router.get(
    "/events", operation_id="followEvents", response_model=models.EventPage, tags=["events"]
)
async def follow_events(
    request: Request,
    grant: Reader,
    after: Annotated[int, Query(ge=0, le=2**63 - 1, description="a sequence number")] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    file_id: Annotated[
        str | None,
        Query(min_length=1, max_length=MAX_FILE_ID, description="that of an earlier page"),
    ] = None,
) -> Response:
    """Every device's events after a sequence number, oldest first, for clients that poll.

    `recovered` says whether every event after `after` follows. Where it is false, the file is
    another one or has lost events: fetch again what you show. Send the page's `file_id` with its
    `next_after`, as the same number is another event after a backup was restored.
    """
    storage = storage_of(request)
    found = await storage.call(Lane.READ, storage.source.events_since, after, limit=limit)
    # After the events, so that those of a backup that is being restored are not taken for others.
    bounds = await request.app.state.hub.bounds()
    begin, recovered = where_to_resume(Begin(after, file_id), bounds)
    found = [(sequence, event) for sequence, event in found if sequence > begin]
    events = [
        models.SequencedEvent(sequence, event)
        for sequence, event in found
        if grant.covers(event.device_id)
    ]
    next_after = found[-1][0] if found else begin
    page = models.EventPage(events, next_after, recovered, bounds.file_id)
    return json_response(models.EVENT_PAGE, page)


@router.post(
    "/stream/tickets",
    operation_id="createStreamTicket",
    response_model=models.StreamTicket,
    status_code=201,
    tags=["stream"],
)
async def create_stream_ticket(request: Request, grant: Reader) -> Response:
    """A one-use ticket for `WS /v1/stream?ticket=`, where no header or subprotocol can be sent."""
    tickets = request.app.state.gate.tickets
    return json_response(
        models.TICKET, models.StreamTicket(tickets.issue(grant), tickets.seconds), 201
    )


# --- Runtime, budget, report


@router.get(
    "/devices/{device_id}/runtime",
    operation_id="getRuntime",
    response_model=models.Runtime,
    tags=["reports"],
)
async def get_runtime(
    request: Request,
    grant: Reader,
    device_id: DeviceId,
    window_minutes: Annotated[
        float | None, Query(ge=0, le=1e6, description="by the mean watts of these last minutes")
    ] = None,
) -> Response:
    """Hours until the device's batteries are empty, by their present or their mean watts."""
    check_devices(grant, device_id)
    storage = storage_of(request)
    hours = await storage.call(
        Lane.READ, storage.source.estimate_runtime, device_id, window_minutes=window_minutes
    )
    return json_response(models.RUNTIME, models.Runtime(device_id, hours))


def _budget(source: Source, grant: Grant, device_ids: list[str]) -> dict[str, dict[str, Any]]:
    if not device_ids:
        device_ids = [device.id for device in source.list_devices() if grant.covers(device.id)]
    budgets = source.power_budget_check(device_ids)
    for device_id, budget in budgets.items():
        if "error" in budget:
            budget["error"] = unknown_id("device", device_id)
    return budgets


@router.get("/budget", operation_id="getBudget", response_model=models.Budget, tags=["reports"])
async def get_budget(
    request: Request,
    grant: Reader,
    device_id: Annotated[
        list[Annotated[str, Query(**ID_LIMITS)]],
        Query(max_length=100, description="a device's id; may be repeated (default: all)"),
    ] = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    """The power budget of each device, by id; `{"error": ...}` for one that is not registered."""
    check_devices(grant, *device_id)
    storage = storage_of(request)
    return json_response(
        models.BUDGET, await storage.call(Lane.READ, _budget, storage.source, grant, device_id)
    )


@router.get(
    "/devices/{device_id}/report",
    operation_id="getReport",
    response_model=models.Report,
    tags=["reports"],
)
async def get_report(
    request: Request, grant: Reader, device_id: DeviceId, days: ReportDays = 7.0
) -> Response:
    """The library's report of the device over the last days."""
    check_devices(grant, device_id)
    storage = storage_of(request)
    period = int(days) if days.is_integer() else days  # the library shows it as it is given
    text = await storage.call(Lane.READ, storage.source.export_report, device_id, period)
    return Response(text, media_type=JSON)


@router.get(
    "/sparklines",
    operation_id="getSparklines",
    response_model=models.Sparklines,
    tags=["reports"],
)
async def get_sparklines(
    request: Request,
    grant: Reader,
    device: Annotated[
        list[Annotated[str, Query(**ID_LIMITS)]],
        Query(min_length=1, max_length=100, description="a device's id; may be repeated"),
    ],
) -> Response:
    """Mean watts that devices used in each of the last 24 whole UTC hours; null: not known.

    They are the means of the readings of all meters that count in a device's consumption, out less
    in. An hour in which one of these meters measured nothing is not known.
    """
    check_devices(grant, *device)
    storage = storage_of(request)
    found = await storage.call(Lane.READ, sparklines, storage.source, device, storage.now_us())
    return json_response(models.SPARKLINES, found)
