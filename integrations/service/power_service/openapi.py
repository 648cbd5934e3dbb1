"""The contract: OpenAPI 3.1, made from the routes, the library's records and the tables below.

`python -m power_service.openapi FILE` writes it; `--check FILE` fails if the file differs.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from power_manager import run_program
from power_service.api import make_api
from power_service.backup import MEDIA_TYPE as BACKUP
from power_service.examples import REQUESTS, RESPONSES, STREAM
from power_service.models import StreamMessage
from power_service.problems import MEDIA_TYPE, STATUS, Code, Problem, ProblemDetails
from power_service.settings import Settings
from power_service.shapes import SHAPES

_REF = "#/components/schemas/{model}"
_DESCRIPTIONS = {
    400: "The body is not JSON.",
    401: "No token, or an unknown one.",
    403: "The token lacks the scope or is bound to other devices, or the page's origin is not "
    "allowed.",
    404: "No device or meter has that id; or the service serves no fleet.",
    408: "The body did not arrive in time.",
    409: "The request contradicts itself or the present state; or it needs a file, and the service "
    "serves a fleet.",
    413: "The body is too large.",
    415: "Another content type is expected.",
    421: "The service does not go by that host name.",
    422: "A parameter or a value is invalid; nothing was stored.",
    429: "Too many requests with this token, or too many failed ones from this address.",
    431: "Too many headers, or too large ones.",
    500: "An error of the service.",
    503: "The disk is full, another process holds the file, or the service is overloaded; nothing "
    "was stored.",
}
_EVERYWHERE = (421, 431, 500, 503)
_WITH_TOKEN = (401, 403, 422, 429)
_OF_A_FILE = (409,)  # of routes that write, or read the file itself: a fleet has none
_WITH_BODY = (400, 408, 413, 415, 422)
# The other errors of an operation.
_FURTHER = {
    "getDevice": (404,),
    "updateDevice": (404,),
    "deleteDevice": (404,),
    "addMeter": (404,),
    "getMeter": (404,),
    "updateMeter": (404,),
    "deleteMeter": (404,),
    "postReadings": (404,),
    "listReadings": (404,),
    "deleteReadings": (404,),
    "getSeries": (404,),
    "getStatistics": (404,),
    "listEvents": (404,),
    "triggerEvent": (404,),
    "getRuntime": (404,),
    "getReport": (404,),
    "signIn": (401, 409, 429),
    "getFleet": (404,),
    "listFleetDevices": (404,),
    "getFleetEnergy": (404,),
    "listSilentDevices": (404,),
}


def build(app: FastAPI) -> dict[str, Any]:
    """The document of an application's routes."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version="3.1.0",
        summary=app.summary,
        description=app.description,
        routes=app.routes,
    )
    schemas = {
        name: schema
        for name, schema in document["components"]["schemas"].items()
        if name not in ("HTTPValidationError", "ValidationError")
    }
    schemas |= _schemas(ProblemDetails) | _schemas(StreamMessage, "StreamMessage")
    schemas |= {shape.name: shape.schema() for shape in SHAPES}
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    document["components"]["responses"] = {
        f"Problem{status}": _error(status) for status in _DESCRIPTIONS
    }
    for operation in _operations(document):
        _complete(operation)
    document["webhooks"] = {"stream": {"post": _stream_operation()}}
    _clean(document)
    return document


def text(document: dict[str, Any]) -> str:
    """The document as it is committed and served."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _clean(value: Any) -> None:
    """Make each paragraph of a description one line: how a docstring is wrapped is no contract."""
    parts: Iterable[Any] = ()
    if isinstance(value, dict):
        if isinstance(value.get("description"), str):
            value["description"] = _unwrapped(value["description"])
        parts = value.values()
    elif isinstance(value, list):
        parts = value
    for part in parts:
        _clean(part)


def _unwrapped(text: str) -> str:
    """Without the examples of docstrings, which are Python's."""
    paragraphs = inspect.cleandoc(text).strip().split("\n\n")
    kept = [paragraph for paragraph in paragraphs if not paragraph.startswith(">>>")]
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in kept)


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document["paths"].values():
        yield from path.values()


def _schemas(model: Any, name: str | None = None) -> dict[str, Any]:
    """A model's schema and those that it refers to, by name."""
    schema = TypeAdapter(model).json_schema(mode="serialization", ref_template=_REF)
    found: dict[str, Any] = schema.pop("$defs", {})
    return found | {name or schema["title"]: schema}


def _error(status: int) -> dict[str, Any]:
    codes = [code for code in Code if STATUS[code] == status]
    response: dict[str, Any] = {
        "description": f"{_DESCRIPTIONS[status]} Codes: {', '.join(code.value for code in codes)}.",
        "content": {
            MEDIA_TYPE: {
                "schema": {"$ref": _REF.format(model="ProblemDetails")},
                "example": Problem(codes[0], _DESCRIPTIONS[status]).body(),
            }
        },
    }
    if status in (429, 503):
        schema = {"type": "integer", "minimum": 1}
        response["headers"] = {
            "Retry-After": {"description": "seconds", "schema": schema, "required": True}
        }
    return response


def _complete(operation: dict[str, Any]) -> None:
    """Add the errors and the examples of an operation."""
    name, responses = operation["operationId"], operation["responses"]
    statuses = {*_EVERYWHERE, *_FURTHER.get(name, ())}
    statuses.update(_WITH_TOKEN if "security" in operation else ())
    statuses.update(_OF_A_FILE if _scopes(operation) & {"write", "admin"} else ())
    statuses.update(_WITH_BODY if "requestBody" in operation else ())
    responses.pop("422", None)
    for status in sorted(statuses):
        responses[str(status)] = {"$ref": f"#/components/responses/Problem{status}"}
    success = next(response for status, response in responses.items() if status.startswith("2"))
    if name == "getMetrics":
        success["content"] = {"text/plain": {"schema": {"type": "string"}}}
    if name == "getBackup":
        success["content"] = {BACKUP: {"schema": {"type": "string", "format": "binary"}}}
    for media_type, content in success.get("content", {}).items():
        content["example"] = RESPONSES[name]
        content["schema"].pop("title", None)
        assert media_type
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        content["examples"] = {
            key: {"value": value} for key, value in REQUESTS[name][media_type].items()
        }


def _scopes(operation: dict[str, Any]) -> set[str]:
    """The scopes that a token needs for an operation."""
    return {
        scope
        for scheme in operation.get("security", ())
        for scopes in scheme.values()
        for scope in scopes
    }


def _stream_operation() -> dict[str, Any]:
    return {
        "operationId": "streamMessage",
        "tags": ["stream"],
        "summary": "Messages of the stream",
        "description": "What the WebSocket /v1/stream sends, one JSON object a text frame: hello, "
        "the events after `after`, each meter's present state, then events, readings, meters and "
        "devices as any process writes or deletes them, and heartbeats. What was registered, "
        "changed or deleted while a client was away is not sent again: fetch the lists after each "
        "hello; every later change follows. Clients send nothing.",
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": _REF.format(model="StreamMessage")},
                    "examples": {message["type"]: {"value": message} for message in STREAM},
                }
            },
        },
        "responses": {"204": {"description": "There is no answer."}},
        "security": [{"bearer": ["read"]}],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the contract to a file, or compare it with one."""
    parser = argparse.ArgumentParser(
        prog="power_service.openapi", description="Write the service's OpenAPI document."
    )
    parser.add_argument(
        "--check", action="store_true", help="compare only: 1 if the file is out of date"
    )
    parser.add_argument("file", type=Path, help="such as integrations/service/openapi.json")
    options = parser.parse_args(argv)
    present = text(build(make_api(Settings(db=Path("power_manager.db"), no_auth=True))))
    if options.check:
        if options.file.read_text(encoding="utf-8") == present:
            return 0
        print(
            f"{options.file} is out of date: python3 -m power_service.openapi {options.file}",
            file=sys.stderr,
        )
        return 1
    options.file.write_text(present, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main, "power_service.openapi"))
