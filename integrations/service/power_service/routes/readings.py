"""Readings and statistics of a meter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from power_manager import (
    InvalidValue,
    NotFound,
    PowerReading,
    PowerStatistics,
    from_microseconds,
    to_microseconds,
)
from power_service import models, shapes
from power_service.auth import (
    Admin,
    Reader,
    Writer,
    check_meter,
)
from power_service.bodies import (
    END_OF_LINE,
    JSON,
    NDJSON,
    error_as_sent,
    json_response,
    read_readings,
)
from power_service.charts import POINTS_A_SPAN, thin_out
from power_service.hours import statistics_between
from power_service.metrics import Metrics
from power_service.problems import Code, Problem
from power_service.routes.parameters import MeterId
from power_service.source import Source
from power_service.storage import Lane, storage_of

MAX_CHART_READINGS = 1_000_000  # that one request may read
router = APIRouter(prefix="/v1")
_READING: dict[str, Any] = {"$ref": "#/components/schemas/NewReading"}
_BATCH: dict[str, Any] = {"type": "array", "items": _READING, "maxItems": shapes.MAX_BATCH}
_READINGS_BODY = {
    "requestBody": {
        "required": True,
        "description": f"One reading, an array of up to {shapes.MAX_BATCH}, or as many lines of "
        "NDJSON. All are stored, or none.",
        "content": {
            JSON: {"schema": {"anyOf": [_READING, _BATCH]}},
            NDJSON: {"schema": {**_BATCH, "description": "one reading a line"}},
        },
    }
}


@router.post(
    "/readings",
    operation_id="postReadings",
    response_model=models.IngestResult,
    tags=["readings"],
    openapi_extra=_READINGS_BODY,
)
async def post_readings(request: Request, grant: Writer) -> Response:
    """Store readings, all or none. One with a timestamp is safe to send again."""
    storage = storage_of(request)
    received = await read_readings(request, storage)
    rows = received.rows
    for meter_id in (
        {row[0] for row in rows if isinstance(row[0], str)} if grant.devices is not None else ()
    ):
        await check_meter(storage, grant, meter_id)
    try:
        stored = await storage.call(Lane.WRITE, storage.pm.log_many, rows)
    except (InvalidValue, NotFound) as error:
        raise error_as_sent(error, received.is_batch) from error
    metrics: Metrics = request.app.state.metrics
    metrics.readings.inc(stored)
    result = models.IngestResult(len(rows), stored, received.implausible_charges)
    return json_response(models.INGEST, result)


_MOMENT: Any = Query(
    description="ISO 8601 with an offset, 1970 to 2200", json_schema_extra={"format": "date-time"}
)
Moment = Annotated[str | None, _MOMENT]
WantedMoment = Annotated[str, _MOMENT]  # required: a forgotten one would delete everything


# Somewhat more than there are times: what lies beyond the last time is the end, too.
_CURSOR = "^(0[0-9a-f]|1[0-9])[0-9a-f]{12}$"
_THIN = "reduce the whole window to at most this many points, for a chart"


@dataclass
class Window:
    """The readings that are wanted, and how many of them."""

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

    With `max_points`, the whole window in one answer, reduced to the readings with the least and
    the greatest voltage, current_draw, wattage and charge_pct of equal spans of time.
    """
    storage = storage_of(request)
    await check_meter(storage, grant, meter_id)
    since = _moment(window.since)
    if window.cursor:
        since = from_microseconds(min(int(window.cursor, 16), shapes.LAST_US))
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
    """Delete the readings from `since` on and before `until`, for good.

    All of them: `since=1970-01-01T00:00:00Z`. Statistics are computed anew. An hour that was
    pruned is deleted whole; a range that cuts one is refused.
    """
    storage = storage_of(request)
    await check_meter(storage, grant, meter_id)
    window = {"since": _moment(since), "until": _moment(until)}
    count = await storage.call(Lane.WRITE, storage.pm.delete_readings, meter_id, **window)
    return json_response(models.DELETED, models.Deleted(count))


def _moment(text: str | None) -> str | None:
    """A time in a query as it was meant: a + that was not encoded arrives as a space."""
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
    """A window's readings, thinned out, and how many it has. Raises Problem 422 for too many."""
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
            f"since: this window has more than {MAX_CHART_READINGS} readings: "
            "take a shorter one, or the statistics",
        )
    return points, reading_count


@dataclass
class SeriesWindow:
    """The readings that are wanted, and at most how many points."""

    since: Moment = None
    until: Moment = None
    max_points: Annotated[
        int,
        Query(
            ge=POINTS_A_SPAN, le=10_000, description="at most so many; more readings are reduced"
        ),
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
    """Readings from `since` on and before `until`, for charts: an array for each field.

    Oldest first, reduced like `readings` with `max_points`: the same points in fewer bytes.
    """
    storage = storage_of(request)
    await check_meter(storage, grant, meter_id)
    arguments = (storage.source, meter_id, _moment(window.since), _moment(window.until))
    return Response(
        await storage.call(Lane.READ, _series, *arguments, window.max_points), media_type=JSON
    )


_DEFAULT_DAYS = 7.0


@dataclass
class StatisticsWindow:
    """The hours or days that are wanted."""

    days: Annotated[
        float | None,
        Query(ge=0, le=36_500, description="how far back, in days (default: 7)"),
    ] = None
    since: Moment = None
    until: Moment = None


@router.get(
    "/meters/{meter_id}/statistics",
    operation_id="getStatistics",
    response_model=list[PowerStatistics],
    tags=["readings"],
)
async def get_statistics(
    request: Request,
    grant: Reader,
    meter_id: MeterId,
    window: Annotated[StatisticsWindow, Depends()],
    bucket: Literal["hour", "day"] = "hour",
) -> Response:
    """Statistics by UTC hour or day, oldest first; hours and days without readings are left out.

    Of the last `days`, by default 7, or from `since` on and before `until`. The first hour or day
    is always whole.
    """
    storage = storage_of(request)
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
        raise Problem(Code.INVALID_VALUE, "days: not together with since and until: leave one out")
    return json_response(models.STATISTICS, await call)
