"""Errors as RFC 9457 problem JSON with a stable `code`; also those of the library."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from power_manager import InvalidValue, NotFound, PowerManagerError, StorageError
from power_service.errors import ServiceError

MEDIA_TYPE = "application/problem+json"


class Code(str, Enum):
    """What went wrong, for programs; these values do not change."""

    MALFORMED_JSON = "malformed_json"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN_SCOPE = "forbidden_scope"
    FORBIDDEN_DEVICE = "forbidden_device"
    FORBIDDEN_ORIGIN = "forbidden_origin"
    NOT_FOUND = "not_found"
    ROUTE_NOT_FOUND = "route_not_found"
    NO_FLEET = "no_fleet"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    CONFLICT = "conflict"
    NEEDS_A_FILE = "needs_a_file"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    HOST_NOT_ALLOWED = "host_not_allowed"
    INVALID_VALUE = "invalid_value"
    UPGRADE_REQUIRED = "upgrade_required"
    RATE_LIMITED = "rate_limited"
    HEADERS_TOO_LARGE = "headers_too_large"
    INTERNAL = "internal"
    STORAGE_FULL = "storage_full"
    STORAGE_LOCKED = "storage_locked"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    OVERLOADED = "overloaded"
    NOT_READY = "not_ready"


STATUS = {
    Code.MALFORMED_JSON: 400,
    Code.UNAUTHORIZED: 401,
    Code.FORBIDDEN_SCOPE: 403,
    Code.FORBIDDEN_DEVICE: 403,
    Code.FORBIDDEN_ORIGIN: 403,
    Code.NOT_FOUND: 404,
    Code.ROUTE_NOT_FOUND: 404,
    Code.NO_FLEET: 404,
    Code.METHOD_NOT_ALLOWED: 405,
    Code.REQUEST_TIMEOUT: 408,
    Code.CONFLICT: 409,
    Code.NEEDS_A_FILE: 409,
    Code.BODY_TOO_LARGE: 413,
    Code.UNSUPPORTED_MEDIA_TYPE: 415,
    Code.HOST_NOT_ALLOWED: 421,
    Code.INVALID_VALUE: 422,
    Code.UPGRADE_REQUIRED: 426,
    Code.RATE_LIMITED: 429,
    Code.HEADERS_TOO_LARGE: 431,
    Code.INTERNAL: 500,
    Code.STORAGE_FULL: 503,
    Code.STORAGE_LOCKED: 503,
    Code.STORAGE_UNAVAILABLE: 503,
    Code.OVERLOADED: 503,
    Code.NOT_READY: 503,
}


# RFC 9110's names; older Pythons have older ones.
_TITLES = {
    413: "Content Too Large",
    422: "Unprocessable Content",
}


@dataclass
class ProblemDetails:
    """RFC 9457. `code` is for programs; `title` and `detail` are for people and may change."""

    type: str
    title: str
    status: int
    code: Code
    detail: str


@dataclass
class Problem(ServiceError):
    """An error that is answered to the client."""

    code: Code
    detail: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """The HTTP status of its code."""
        return STATUS[self.code]

    def body(self) -> dict[str, Any]:
        """The members of ProblemDetails."""
        return {
            "type": f"tag:blackroad.io,2026:power-service/{self.code.value}",
            "title": _TITLES.get(self.status) or HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code.value,
            "detail": self.detail,
        }

    def response(self) -> Response:
        """The answer; where the request was not read to its end, the connection is closed."""
        headers = dict(self.headers)
        if self.status in (408, 413, 431):
            headers["Connection"] = "close"
        return Response(json.dumps(self.body()) + "\n", self.status, headers, MEDIA_TYPE)


def retry_later(code: Code, detail: str, seconds: int) -> Problem:
    """A problem that the client may try again after that many seconds."""
    return Problem(code, detail, {"Retry-After": str(seconds)})


def unknown_id(kind: str, id_: str) -> str:
    """What is said of a device or meter that is not there; the library speaks of its functions."""
    return f"no {kind} has the id {id_!r}: GET /v1/{kind}s lists them"


def of_library_error(error: PowerManagerError) -> Problem:
    """An error of the library as a problem. It never names a path: paths are for the log."""
    if isinstance(error, NotFound):
        has_id = bool(error.kind)
        text = f"{error.kind}_id: {unknown_id(error.kind, error.id)}" if has_id else str(error)
        return Problem(Code.NOT_FOUND, text)
    if isinstance(error, InvalidValue):
        return Problem(Code.INVALID_VALUE, str(error))
    if not isinstance(error, StorageError):
        return Problem(Code.CONFLICT, str(error))
    name = error.sqlite_errorname  # empty on Python 3.10, which does not give it
    if name.startswith("SQLITE_FULL"):
        return retry_later(Code.STORAGE_FULL, "the disk is full; nothing was stored", 30)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return retry_later(
            Code.STORAGE_LOCKED, "another process holds the database; nothing was stored", 1
        )
    return retry_later(
        Code.STORAGE_UNAVAILABLE, "the database cannot be used now; nothing was stored", 5
    )
