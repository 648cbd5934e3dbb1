"""Strict JSON and NDJSON as parameters of the library, which checks them; and records as JSON."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from power_manager import InvalidValue, NotFound, plausible_charge
from power_service.problems import Code, Problem, unknown_id
from power_service.shapes import MAX_BATCH, NEW_READING, Shape
from power_service.storage import Lane, Storage

JSON = "application/json"
NDJSON = "application/x-ndjson"
END_OF_LINE = b"\n"  # so that the prompt after curl's output begins a line

_LARGE = 65_536  # bytes; parsing them takes about a millisecond
_ROW_NUMBER = re.compile(r"row \d+: ")
_CURRENT = re.compile(r"\bcurrent\b")  # the library's parameter
_TYPE = re.compile(r"^(event|meter)_type: ")  # the library's parameters for the key `type`
LogRow = tuple[Any, Any, Any, Any, Any]  # meter id, V, A, %, time, as log_many takes them


def json_response(adapter: TypeAdapter[Any], value: object, status: int = 200) -> Response:
    """Records as they are sent."""
    return Response(adapter.dump_json(value) + END_OF_LINE, status, media_type=JSON)


def _not_json(constant: str) -> NoReturn:
    raise Problem(Code.INVALID_VALUE, f"JSON has no {constant}: expected a finite number, or null")


class _Twice(Exception):
    """A key that an object has twice: which of the values is meant cannot be known."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises _Twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return found


def parse(text: bytes | str, where: str = "") -> Any:
    """Strict JSON. Raises Problem 400, and 422 for NaN, Infinity and a key that comes twice."""
    try:
        return json.loads(text, parse_constant=_not_json, object_pairs_hook=_object)
    except _Twice as error:
        name = str(error)[:80]
        raise Problem(
            Code.INVALID_VALUE, f"{where}{name!r}: expected it once, got it twice"
        ) from error
    except (ValueError, RecursionError) as error:
        raise Problem(
            Code.MALFORMED_JSON, f"{where}expected JSON: {type(error).__name__}: {error}"
        ) from error


def fields(value: Any, shape: Shape, where: str = "") -> dict[str, Any]:
    """An object's values by key, with the shape's defaults. Raises Problem 422 for other keys."""
    if not isinstance(value, dict):
        raise Problem(Code.INVALID_VALUE, f"{where}expected an object, {shape.name}")
    missing = [name for name in shape.required if name not in value]
    unknown = [name for name in value if name not in shape.required and name not in shape.optional]
    if missing or unknown:
        what = f"{missing[0]}: expected a value, got none" if missing else ""
        what = what or f"{unknown[0][:80]!r}: unknown key"
        known = ", ".join([*shape.required, *shape.optional])
        raise Problem(Code.INVALID_VALUE, f"{where}{what}; {shape.name} has {known}")
    defaults = {
        name: schema["default"] for name, schema in shape.optional.items() if "default" in schema
    }
    return {**defaults, **value}


def _media_type(request: Request) -> str:
    """The content type of a body. Raises Problem 415 if the body is compressed."""
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        detail = f"expected a body without Content-Encoding, got {encoding[:80]!r}"
        raise Problem(Code.UNSUPPORTED_MEDIA_TYPE, detail, {"Accept-Encoding": "identity"})
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _unsupported(*expected: str) -> Problem:
    return Problem(
        Code.UNSUPPORTED_MEDIA_TYPE, f"expected the content type {' or '.join(expected)}"
    )


async def read_object(request: Request, shape: Shape) -> dict[str, Any]:
    """The values of a request's JSON object."""
    if _media_type(request) != JSON:
        raise _unsupported(JSON)
    return fields(parse(await request.body()), shape)


@dataclass
class Received:
    """The readings of a request, and whether they are a batch: an array or NDJSON.

    implausible_charges: how many of their charges no gauge means; they are None in `rows`.
    """

    rows: list[LogRow]
    is_batch: bool
    implausible_charges: int


async def read_readings(request: Request, storage: Storage) -> Received:
    """The readings of a request; large bodies are parsed off the event loop."""
    media_type = _media_type(request)
    if media_type not in (JSON, NDJSON):
        raise _unsupported(JSON, NDJSON)
    body = await request.body()
    if len(body) < _LARGE:
        return _rows(body, media_type)
    return await storage.call(Lane.READ, _rows, body, media_type)


def error_as_sent(error: InvalidValue | NotFound, batch: bool) -> InvalidValue | NotFound:
    """An error of log_many in the request's words: current_draw, and rows of a batch only."""
    row = ""
    text = str(error)
    numbered = _ROW_NUMBER.match(text)
    if numbered:
        row = numbered[0]
        text = text.removeprefix(row)
    if not batch:
        row = ""
    if isinstance(error, NotFound):
        return NotFound(f"{row}meter_id: {unknown_id(error.kind, error.id)}")
    what, got, value = text.rpartition(", got ")
    return InvalidValue(row + _CURRENT.sub("current_draw", what) + got + value)


@contextlib.contextmanager
def type_as_sent() -> Iterator[None]:
    """Let an error of the block about a type speak of the key `type`."""
    try:
        yield
    except InvalidValue as error:
        raise InvalidValue(_TYPE.sub("type: ", str(error))) from error


def _rows(body: bytes, media_type: str) -> Received:
    readings, is_batch = _readings(body, media_type)
    left_out = 0
    for reading in readings:
        if _is_implausible(reading["charge_pct"]):
            reading["charge_pct"] = None
            left_out += 1
    return Received(list(map(_row, readings)), is_batch, left_out)


def _readings(body: bytes, media_type: str) -> tuple[list[dict[str, Any]], bool]:
    """The readings of a body, and whether they are a batch."""
    if media_type == NDJSON:
        lines = [line for line in body.splitlines() if line.strip()]
        _check_count(len(lines))
        return [
            fields(parse(line, f"row {number}: "), NEW_READING, f"row {number}: ")
            for number, line in enumerate(lines, 1)
        ], True
    value = parse(body)
    if not isinstance(value, list):
        return [fields(value, NEW_READING)], False
    _check_count(len(value))
    return [
        fields(item, NEW_READING, f"row {number}: ") for number, item in enumerate(value, 1)
    ], True


def _is_implausible(charge: Any) -> bool:
    """Whether it is a number that no gauge means; what is none at all the library refuses."""
    is_number = type(charge) in (int, float) and abs(charge) <= sys.float_info.max
    return is_number and plausible_charge(charge) is None


def _check_count(count: int) -> None:
    if count > MAX_BATCH:
        raise Problem(Code.INVALID_VALUE, f"expected at most {MAX_BATCH} readings, got {count}")


def _row(reading: dict[str, Any]) -> LogRow:
    return (
        reading["meter_id"],
        reading["voltage"],
        reading["current_draw"],
        reading["charge_pct"],
        reading["timestamp"],
    )
