"""What a fleet has and a file has not: sites, versions, alarms, energy by site. Where a file is served each is 404."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from power_service import models
from power_service.auth import Reader, forbidden_device
from power_service.bodies import json_response
from power_service.storage import Lane, Storage
from power_service.tokens import Grant

router = APIRouter(prefix="/v1/fleet", tags=["fleet"])
Days = Annotated[int, Query(ge=1, le=36_500, description="UTC days, today's included")]
Minutes = Annotated[float, Query(ge=0, le=1e6, description="for so long nothing came")]


def _storage(request: Request) -> Storage:
    storage: Storage = request.app.state.storage
    return storage


def _covered(grant: Grant, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of devices that the grant covers."""
    return [row for row in rows if grant.covers(row["device_id"])]


@router.get("", operation_id="getFleet", response_model=models.FleetState)
async def get_fleet(request: Request, grant: Reader) -> Response:
    """How far the engine is; not for tokens bound to devices, as the stream is everybody's."""
    if grant.devices is not None:
        raise forbidden_device()
    storage = _storage(request)
    return json_response(
        models.FLEET_STATE, await storage.call(Lane.READ, storage.fleet.fleet_state)
    )


@router.get("/devices", operation_id="listFleetDevices", response_model=list[models.FleetDevice])
async def list_fleet_devices(request: Request, grant: Reader) -> Response:
    """Site, version, last message and alarms of every device."""
    storage = _storage(request)
    rows = await storage.call(Lane.READ, storage.fleet.fleet_devices)
    return json_response(models.FLEET_DEVICES, _covered(grant, rows))


@router.get("/energy", operation_id="getFleetEnergy", response_model=list[models.SiteEnergy])
async def get_energy(request: Request, grant: Reader, days: Days = 7) -> Response:
    """Energy by day, site and meter type; not for tokens bound to devices, which are of no whole site."""
    if grant.devices is not None:
        raise forbidden_device()
    storage = _storage(request)
    rows = await storage.call(Lane.READ, storage.fleet.energy, days)
    return json_response(models.SITE_ENERGIES, rows)


@router.get("/silent", operation_id="listSilentDevices", response_model=list[models.SilentDevice])
async def list_silent(request: Request, grant: Reader, minutes: Minutes = 60.0) -> Response:
    """Devices that the stream has had nothing from for so long, longest first."""
    storage = _storage(request)
    rows = await storage.call(Lane.READ, storage.fleet.silent, minutes)
    return json_response(models.SILENT_DEVICES, _covered(grant, rows))
