"""Parameters and bodies that several routes have."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Request
from pydantic import BeforeValidator

from power_service.bodies import JSON
from power_service.guard import path_text
from power_service.shapes import MAX_ID, TEXT_PATTERN, Shape

ID_LIMITS: dict[str, Any] = {"min_length": 1, "max_length": MAX_ID, "pattern": TEXT_PATTERN}
DeviceId = Annotated[
    str, BeforeValidator(path_text), Path(description="the device's id", **ID_LIMITS)
]
MeterId = Annotated[
    str, BeforeValidator(path_text), Path(description="the meter's id", **ID_LIMITS)
]


def client_of(request: Request) -> str:
    """The address of a request's client; "" if it is not known."""
    return request.client.host if request.client else ""


def body_of(shape: Shape) -> dict[str, Any]:
    """What OpenAPI says of a route whose body has that shape."""
    schema = {"$ref": f"#/components/schemas/{shape.name}"}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}
