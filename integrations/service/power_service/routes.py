"""The routes. Each checks the grant, makes one call of the library in its lane, and sends the records as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BeforeValidator
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Send
from starlette.types import Scope as ASGIScope

from power_manager import (
    DeviceRecord,
    InvalidValue,
    NotFound,
    PowerEvent,
    PowerReading,
    PowerStatistics,
    from_microseconds,
    to_microseconds,
)
from power_service import backup, models
from power_service.auth import (
    Admin,
    Anybody,
    Gate,
    Reader,
    Writer,
    check_devices,
    check_meter,
    forbidden_device,
)
from power_service.billing import billing_metrics
from power_service.bodies import (
    END_OF_LINE,
    JSON,
    NDJSON,
    error_as_sent,
    json_response,
    read_object,
    read_readings,
)
from power_service.charts import POINTS_A_SPAN, thin_out
from power_service.guard import path_text
from power_service.hours import sparklines, statistics_between
from power_service.metrics import Metrics
from power_service.models import Shape
from power_service.problems import Code, Problem, retry_later
from power_service.settings import Settings
from power_service.source import Source
from power_service.storage import Lane, Storage
from power_service.tokens import Grant

MAX_CHART_READINGS = 1_000_000  # that one request may go through
router = APIRouter(prefix="/v1")
plain = APIRouter()

ID_LIMITS: dict[str, Any] = {"min_length": 1, "max_length": 200, "pattern": models.TEXT_PATTERN}
DeviceId = Annotated[
    str, BeforeValidator(path_text), Path(description="the device's id", **ID_LIMITS)
]
MeterId = Annotated[
    str, BeforeValidator(path_text), Path(description="the meter's id", **ID_LIMITS)
]
# More than 0, and for a schema that keeps its word no less than a microsecond, which is the library's least.
LEAST_DAYS = 1e-9
ReportDays = Annotated[
    float, Query(ge=LEAST_DAYS, le=36_500, description="how far back, in days: more than 0")
]


def _storage(request: Request) -> Storage:
    storage: Storage = request.app.state.storage
    return storage


def _client(request: Request) -> str:
    return request.client.host if request.client else ""


def _body(shape: Shape) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{shape.name}"}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}


# --- Devices


@router.get(
    "/devices", operation_id="listDevices", response_model=list[DeviceRecord], tags=["devices"]
)
async def list_devices(request: Request, grant: Reader) -> Response:
    """List the devices, in order of registration."""
    storage = _storage(request)
    devices = await storage.call(Lane.READ, storage.source.list_devices)
    return json_response(models.DEVICES, [device for device in devices if grant.covers(device.id)])


@router.put(
    "/devices/{device_id}", operation_id="putDevice", response_model=DeviceRecord, tags=["devices"],
    openapi_extra=_body(models.DEVICE_SETTINGS),
)  # fmt: skip
async def put_device(request: Request, grant: Writer, device_id: DeviceId) -> Response:
    """Register a device, or give it exactly these values; its meters, readings and events stay."""
    check_devices(grant, device_id)
    storage, values = _storage(request), await read_object(request, models.DEVICE_SETTINGS)
    if values.pop("id", device_id) != device_id:
        raise Problem(Code.CONFLICT, "id: expected the id in the path, or none")
    return json_response(
        models.DEVICE,
        await storage.call(Lane.WRITE, storage.pm.register_device, device_id, **values),
    )


@router.get(
    "/devices/{device_id}", operation_id="getDevice", response_model=DeviceRecord, tags=["devices"]
)
async def get_device(request: Request, grant: Reader, device_id: DeviceId) -> Response:
    """Get a device."""
    check_devices(grant, device_id)
    storage = _storage(request)
    return json_response(
        models.DEVICE, await storage.call(Lane.READ, storage.source.get_device, device_id)
    )


@router.patch(
    "/devices/{device_id}", operation_id="updateDevice", response_model=DeviceRecord, tags=["devices"],
    openapi_extra=_body(models.DEVICE_CHANGES),
)  # fmt: skip
async def update_device(request: Request, grant: Writer, device_id: DeviceId) -> Response:
    """Change the values that are given of a device."""
    check_devices(grant, device_id)
    storage = _storage(request)
    changes = await read_object(request, models.DEVICE_CHANGES)
    device = await storage.call(Lane.WRITE, storage.pm.update_device, device_id, **changes)
    return json_response(models.DEVICE, device)


@router.delete(
    "/devices/{device_id}", operation_id="deleteDevice", status_code=204, tags=["devices"]
)
async def delete_device(request: Request, grant: Admin, device_id: DeviceId) -> Response:
    """Delete a device with its meters, readings, statistics and events, for good."""
    check_devices(grant, device_id)
    storage = _storage(request)
    await storage.call(Lane.WRITE, storage.pm.delete_device, device_id)
    return Response(status_code=204)


# --- Meters


@router.get(
    "/meters", operation_id="listMeters", response_model=list[models.PowerMeter], tags=["meters"]
)
async def list_meters(
    request: Request, grant: Reader, device_id: Annotated[str | None, Query(**ID_LIMITS)] = None
) -> Response:
    """List the meters with their present state, of one device or of all, in order of adding."""
    if device_id is not None:
        check_devices(grant, device_id)
    storage = _storage(request)
    meters = await storage.call(Lane.READ, storage.source.list_meters, device_id)
    return json_response(
        models.METERS, [models.shown(meter) for meter in meters if grant.covers(meter.device_id)]
    )


@router.post(
    "/devices/{device_id}/meters", operation_id="addMeter", response_model=models.PowerMeter, status_code=201,
    tags=["meters"], openapi_extra=_body(models.NEW_METER),
)  # fmt: skip
async def add_meter(request: Request, grant: Writer, device_id: DeviceId) -> Response:
    """Add a meter to a device: 0 V and 0 A until its first reading."""
    check_devices(grant, device_id)
    storage, values = _storage(request), await read_object(request, models.NEW_METER)
    meter = await storage.call(
        Lane.WRITE, storage.pm.add_meter, device_id, values["type"], values["capacity_wh"], values["name"],
        charge_pct=values["charge_pct"],
    )  # fmt: skip
    return json_response(models.METER, models.shown(meter), 201)


@router.get(
    "/meters/{meter_id}", operation_id="getMeter", response_model=models.PowerMeter, tags=["meters"]
)
async def get_meter(request: Request, grant: Reader, meter_id: MeterId) -> Response:
    """Get a meter in its present state."""
    storage = _storage(request)
    await check_meter(storage, grant, meter_id)
    return json_response(
        models.METER,
        models.shown(await storage.call(Lane.READ, storage.source.get_meter, meter_id)),
    )


@router.patch(
    "/meters/{meter_id}", operation_id="updateMeter", response_model=models.PowerMeter, tags=["meters"],
    openapi_extra=_body(models.METER_CHANGES),
)  # fmt: skip
async def update_meter(request: Request, grant: Writer, meter_id: MeterId) -> Response:
    """Change the values that are given of a meter; retire it with `active` false.

    `charge_pct` takes null alone, for a gauge that has gone: a charge comes by a reading.
    """
    storage = _storage(request)
    await check_meter(storage, grant, meter_id)
    changes = await read_object(request, models.METER_CHANGES)
    meter = await storage.call(Lane.WRITE, storage.pm.update_meter, meter_id, **changes)
    return json_response(models.METER, models.shown(meter))


@router.delete("/meters/{meter_id}", operation_id="deleteMeter", status_code=204, tags=["meters"])
async def delete_meter(request: Request, grant: Admin, meter_id: MeterId) -> Response:
    """Delete a meter with its readings and statistics, for good; events stay."""
    storage = _storage(request)
    await check_meter(storage, grant, meter_id)
    await storage.call(Lane.WRITE, storage.pm.delete_meter, meter_id)
    return Response(status_code=204)


# --- Readings

_READING: dict[str, Any] = {"$ref": "#/components/schemas/NewReading"}
_BATCH: dict[str, Any] = {"type": "array", "items": _READING, "maxItems": models.MAX_BATCH}
_READINGS_BODY = {
    "requestBody": {
        "required": True,
        "description": f"One reading, an array of up to {models.MAX_BATCH}, or as many lines of NDJSON. All or none.",
        "content": {
            JSON: {"schema": {"anyOf": [_READING, _BATCH]}},
            NDJSON: {"schema": {**_BATCH, "description": "one a line"}},
        },
    }
}


@router.post(
    "/readings", operation_id="postReadings", response_model=models.IngestResult, tags=["readings"],
    openapi_extra=_READINGS_BODY,
)  # fmt: skip
async def post_readings(request: Request, grant: Writer) -> Response:
    """Store one reading or many, all or none. One with a timestamp may be sent again: it is stored once."""
    storage = _storage(request)
    rows, batch = await read_readings(request, storage)
    for meter_id in (
        {row[0] for row in rows if isinstance(row[0], str)} if grant.devices is not None else ()
    ):
        await check_meter(storage, grant, meter_id)
    try:
        stored = await storage.call(Lane.WRITE, storage.pm.log_many, rows)
    except (InvalidValue, NotFound) as error:
        raise error_as_sent(error, batch) from error
    metrics: Metrics = request.app.state.metrics
    metrics.readings.inc(stored)
    return json_response(models.INGEST, models.IngestResult(len(rows), stored))


_MOMENT: Any = Query(
    description="ISO 8601 with an offset, 1970 to 2200", json_schema_extra={"format": "date-time"}
)
Moment = Annotated[str | None, _MOMENT]
WantedMoment = Annotated[str, _MOMENT]  # where a window that was forgotten would do harm


# A little more than there are times: what is beyond the last one is the end, too.
_CURSOR = "^(0[0-9a-f]|1[0-9])[0-9a-f]{12}$"
_THIN = "thin the whole window out for a chart, in place of pages"


@dataclass
class Window:
    """Which readings, and how many of them."""

    since: Moment = None
    until: Moment = None
    limit: Annotated[int, Query(ge=1, le=10_000, description="readings on a page")] = 1000
    cursor: Annotated[
        str | None, Query(pattern=_CURSOR, description="next_cursor of the page before")
    ] = None
    max_points: Annotated[int | None, Query(ge=POINTS_A_SPAN, le=10_000, description=_THIN)] = None


@router.get(
    "/meters/{meter_id}/readings",
    operation_id="listReadings",
    response_model=models.ReadingPage,
    tags=["readings"],
)
async def list_readings(
    request: Request, grant: Reader, meter_id: MeterId, window: Annotated[Window, Depends()]
) -> Response:
    """Readings from `since` on and before `until`, oldest first, page by page.

    With `max_points` all of them at once, thinned out: of equal spans of time the readings with the least and the
    greatest voltage, current_draw, wattage and charge_pct stay.
    """
    storage = _storage(request)
    await check_meter(storage, grant, meter_id)
    since = _moment(window.since)
    if window.cursor:
        since = from_microseconds(min(int(window.cursor, 16), models.LAST_US))
    arguments = (storage.source, meter_id, since, _moment(window.until))
    if window.max_points is not None:
        return Response(
            await storage.call(Lane.READ, _chart, *arguments, window.max_points), media_type=JSON
        )
    return Response(await storage.call(Lane.READ, _page, *arguments, window.limit), media_type=JSON)


@router.delete(
    "/meters/{meter_id}/readings",
    operation_id="deleteReadings",
    response_model=models.Deleted,
    tags=["readings"],
)
async def delete_readings(
    request: Request,
    grant: Admin,
    meter_id: MeterId,
    since: WantedMoment,
    until: Moment = None,
) -> Response:
    """Delete the readings from `since` on and before `until`, for good; all of them: since 1970-01-01T00:00:00Z.

    Statistics are computed anew. An hour that was pruned goes whole, and a range that cuts one is refused.
    """
    storage = _storage(request)
    await check_meter(storage, grant, meter_id)
    window = {"since": _moment(since), "until": _moment(until)}
    count = await storage.call(Lane.WRITE, storage.pm.delete_readings, meter_id, **window)
    return json_response(models.DELETED, models.Deleted(count))


def _moment(text: str | None) -> str | None:
    """A time in a query as it was meant: a + that was not encoded has become a space."""
    return text if text is None else text.replace(" ", "+") if text[-6:-5] == " " else text


def _page(source: Source, meter_id: str, since: Any, until: Any, limit: int) -> bytes:
    readings = list(islice(source.iter_history(meter_id, since=since, until=until), limit + 1))
    cursor = None
    if len(readings) > limit:
        cursor = f"{to_microseconds(readings[limit].timestamp):014x}"
    return models.PAGE.dump_json(models.ReadingPage(readings[:limit], cursor)) + END_OF_LINE


def _chart(source: Source, meter_id: str, since: Any, until: Any, max_points: int) -> bytes:
    points, _ = _points(source, meter_id, since, until, max_points)
    return models.PAGE.dump_json(models.ReadingPage(points, None)) + END_OF_LINE


def _series(source: Source, meter_id: str, since: Any, until: Any, max_points: int) -> bytes:
    points, reading_count = _points(source, meter_id, since, until, max_points)
    return models.SERIES.dump_json(models.series_of(meter_id, reading_count, points)) + END_OF_LINE


def _points(
    source: Source, meter_id: str, since: Any, until: Any, max_points: int
) -> tuple[list[PowerReading], int]:
    """The readings of a window, thinned out, and how many there are. Raises Problem 422 for too many."""
    every = source.iter_history(meter_id, since=since, until=until)
    reading_count = 0

    def readings() -> Iterator[PowerReading]:
        nonlocal reading_count
        for reading in islice(every, MAX_CHART_READINGS):
            reading_count += 1
            yield reading

    points = thin_out(readings(), max_points)
    if next(every, None) is not None:
        raise Problem(
            Code.INVALID_VALUE,
            f"since: this window has more than {MAX_CHART_READINGS} readings: take a shorter one, or the statistics",
        )
    return points, reading_count


@dataclass
class SeriesWindow:
    """Which readings, and at most how many points of them."""

    since: Moment = None
    until: Moment = None
    max_points: Annotated[
        int, Query(ge=POINTS_A_SPAN, le=10_000, description="beyond it they are thinned out")
    ] = 2000


@router.get(
    "/meters/{meter_id}/series",
    operation_id="getSeries",
    response_model=models.Series,
    tags=["readings"],
)
async def get_series(
    request: Request, grant: Reader, meter_id: MeterId, window: Annotated[SeriesWindow, Depends()]
) -> Response:
    """Readings from `since` on and before `until` as one array for each field, oldest first: for charts.

    Thinned out like the readings with `max_points`; the same points in a fraction of the bytes.
    """
    storage = _storage(request)
    await check_meter(storage, grant, meter_id)
    arguments = (storage.source, meter_id, _moment(window.since), _moment(window.until))
    return Response(
        await storage.call(Lane.READ, _series, *arguments, window.max_points), media_type=JSON
    )


_DEFAULT_DAYS = 7.0


@dataclass
class StatisticsWindow:
    """Which hours or days."""

    days: Annotated[
        float | None,
        Query(ge=0, le=36_500, description="how far back, in days; 7 where nothing is said"),
    ] = None
    since: Moment = None
    until: Moment = None


@router.get(
    "/meters/{meter_id}/statistics", operation_id="getStatistics", response_model=list[PowerStatistics],
    tags=["readings"],
)  # fmt: skip
async def get_statistics(
    request: Request,
    grant: Reader,
    meter_id: MeterId,
    window: Annotated[StatisticsWindow, Depends()],
    bucket: Literal["hour", "day"] = "hour",
) -> Response:
    """Statistics by UTC hour or day, oldest first; empty ones are left out.

    Of the last `days`, 7 where nothing is said, or from `since` on and before `until`. The hour or day in which that
    begins is whole.
    """
    storage = _storage(request)
    await check_meter(storage, grant, meter_id)
    since, until = _moment(window.since), _moment(window.until)
    if since is None and until is None:
        days = _DEFAULT_DAYS if window.days is None else window.days
        call = storage.call(
            Lane.READ, storage.source.get_statistics, meter_id, days=days, bucket=bucket
        )
    elif window.days is None:
        arguments = (storage.source, meter_id, since, until, bucket, storage.now_us())
        call = storage.call(Lane.READ, statistics_between, *arguments)
    else:
        raise Problem(Code.INVALID_VALUE, "days: it does not go with since and until: leave it out")
    return json_response(models.STATISTICS, await call)


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
    storage = _storage(request)
    return json_response(
        models.EVENTS, await storage.call(Lane.READ, storage.source.get_events, device_id, limit)
    )


@router.post(
    "/devices/{device_id}/events", operation_id="triggerEvent", response_model=PowerEvent, status_code=201,
    tags=["events"], openapi_extra=_body(models.NEW_EVENT),
)  # fmt: skip
async def trigger_event(request: Request, grant: Writer, device_id: DeviceId) -> Response:
    """Record an event of a device, now."""
    check_devices(grant, device_id)
    storage, values = _storage(request), await read_object(request, models.NEW_EVENT)
    meter_id = values["meter_id"]
    if isinstance(meter_id, str):
        await check_meter(storage, grant, meter_id)
    arguments = (device_id, values["type"], values["value"], values["note"])
    event = await storage.call(Lane.WRITE, storage.pm.trigger_event, *arguments, meter_id=meter_id)
    return json_response(models.EVENT, event, 201)


@router.get(
    "/events", operation_id="followEvents", response_model=models.EventPage, tags=["events"]
)
async def follow_events(
    request: Request,
    grant: Reader,
    after: Annotated[int, Query(ge=0, le=2**63 - 1, description="a sequence number")] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Response:
    """Every device's events after a sequence number, oldest first: what the stream sends, for asking."""
    storage = _storage(request)
    found = await storage.call(Lane.READ, storage.source.events_since, after, limit=limit)
    events = [
        models.SequencedEvent(sequence, event)
        for sequence, event in found
        if grant.covers(event.device_id)
    ]
    return json_response(
        models.EVENT_PAGE, models.EventPage(events, found[-1][0] if found else after)
    )


@router.post(
    "/stream/tickets", operation_id="createStreamTicket", response_model=models.StreamTicket, status_code=201,
    tags=["stream"],
)  # fmt: skip
async def create_stream_ticket(request: Request, grant: Reader) -> Response:
    """A one-use pass to `WS /v1/stream?ticket=`, for clients that can send neither header nor subprotocol."""
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
        float | None, Query(ge=0, le=1e6, description="mean watts of so many minutes")
    ] = None,
) -> Response:
    """Hours until the device's batteries are empty, by their present watts or by a window's mean."""
    check_devices(grant, device_id)
    storage = _storage(request)
    hours = await storage.call(
        Lane.READ, storage.source.estimate_runtime, device_id, window_minutes=window_minutes
    )
    return json_response(models.RUNTIME, models.Runtime(device_id, hours))


def _budget(source: Source, grant: Grant, device_ids: list[str]) -> dict[str, dict[str, Any]]:
    if not device_ids:
        device_ids = [device.id for device in source.list_devices() if grant.covers(device.id)]
    return source.power_budget_check(device_ids)


@router.get("/budget", operation_id="getBudget", response_model=models.Budget, tags=["reports"])
async def get_budget(
    request: Request,
    grant: Reader,
    device_id: Annotated[
        list[Annotated[str, Query(**ID_LIMITS)]], Query(max_length=100, description="none: all")
    ] = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    """The power budget of each device, by its id; `{"error": ...}` for an unknown one."""
    check_devices(grant, *device_id)
    storage = _storage(request)
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
    """The device's report over the last days, the library's text as it is."""
    check_devices(grant, device_id)
    storage = _storage(request)
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
    """What devices used in the last 24 whole UTC hours, as mean watts of each; null: not known.

    The means are those of the meters that count in a device's consumption, out less in, and of their readings. An hour
    in which one of them measured nothing is not known.
    """
    check_devices(grant, *device)
    storage = _storage(request)
    found = await storage.call(Lane.READ, sparklines, storage.source, device, storage.now_us())
    return json_response(models.SPARKLINES, found)


# --- Signing in


@router.get(
    "/sign-in", operation_id="getSignIn", response_model=models.SignInNeeds, tags=["service"]
)
async def get_sign_in(request: Request) -> Response:
    """Whether this service asks for a token: for pages, before they ask for anything else. No token is needed."""
    gate: Gate = request.app.state.gate
    command = gate.token_command(_client(request)) if gate.settings.auth else None
    return json_response(models.SIGN_IN_NEEDS, models.SignInNeeds(gate.settings.auth, command))


@router.post(
    "/sign-in", operation_id="signIn", response_model=models.SignedIn, tags=["service"],
    openapi_extra=_body(models.SIGN_IN),
)  # fmt: skip
async def sign_in(request: Request) -> Response:
    """Make a token for the ticket of a one-time link, as `power-service --open` prints it. The ticket is used up."""
    gate: Gate = request.app.state.gate
    ticket = (await read_object(request, models.SIGN_IN))["ticket"]
    if not isinstance(ticket, str) or not 0 < len(ticket) <= models.MAX_ID:
        raise Problem(Code.INVALID_VALUE, "ticket: expected the text of a link")
    token, grant = await gate.sign_in(ticket, _client(request))
    return json_response(
        models.SIGNED_IN, models.SignedIn(token, grant.name, models.scopes_of(grant))
    )


# --- The service itself


@router.get("/me", operation_id="getMe", response_model=models.Me, tags=["service"])
async def get_me(request: Request, grant: Anybody) -> Response:
    """Who is asking, and what the token may do; for a token with any scope."""
    settings: Settings = request.app.state.settings
    scopes = models.scopes_of(grant)
    database = str(settings.db.absolute()) if grant.devices is None else None
    if settings.is_fleet:
        scopes = [scope for scope in scopes if scope == "read"]
        database = None
    me = models.Me(
        name=grant.name,
        scopes=scopes,
        devices=None if grant.devices is None else list(grant.devices),
        database=database,
        source="fleet" if settings.is_fleet else "file",
    )
    return json_response(models.ME, me)


class _BackupResponse(StreamingResponse):
    """A copy of the database, which ends also where its client goes."""

    def __init__(self, sending: backup.Sending) -> None:
        headers = {
            "Content-Length": str(sending.size),
            "Content-Disposition": 'attachment; filename="power_manager.db"',
        }
        super().__init__(sending.chunks(), headers=headers, media_type=backup.MEDIA_TYPE)
        self._sending = sending

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._sending.end()


@router.get(
    "/backup",
    operation_id="getBackup",
    tags=["service"],
)
async def get_backup(request: Request, grant: Admin) -> Response:
    """A consistent copy of the database, made while others read and write; for a token that is not bound to devices.

    `power-manager restore` puts it back. One at a time: others are told to come later.
    """
    if grant.devices is not None:
        raise forbidden_device()
    storage = _storage(request)
    place: backup.OneAtATime = request.app.state.backups
    if not place.take():
        raise retry_later(Code.OVERLOADED, "another backup is under way", 10)
    try:
        file = await storage.call(Lane.BACKUP, backup.copy, storage.pm)
    except BaseException:
        place.give_back()
        raise
    return _BackupResponse(backup.Sending(file, place))


@plain.get("/healthz", operation_id="getHealth", response_model=models.Health, tags=["service"])
async def get_health() -> Response:
    """The process answers."""
    return json_response(models.HEALTH, models.Health("ok"))


@plain.get("/readyz", operation_id="getReadiness", response_model=models.Health, tags=["service"])
async def get_readiness(request: Request) -> Response:
    """The database can be read, and the stream follows it."""
    if not request.app.state.hub.ready():
        raise retry_later(Code.NOT_READY, "the database cannot be read now", 1)
    return json_response(models.HEALTH, models.Health("ready"))


@plain.get("/metrics", operation_id="getMetrics", tags=["service"])
async def get_metrics(request: Request, grant: Reader) -> Response:
    """What Prometheus scrapes; for a token that is not bound to devices."""
    if grant.devices is not None:
        raise forbidden_device()
    metrics: Metrics = request.app.state.metrics
    storage = _storage(request)
    text = await storage.call(Lane.READ, metrics.text, storage.source)
    text += await billing_metrics(request.app, storage)
    if storage.is_fleet:
        text += await storage.call(Lane.READ, storage.fleet.metrics_text)
    return Response(text, media_type=metrics.content_type)
