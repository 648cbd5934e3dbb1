"""The routes of a fleet alone: sites, versions, alarms, energy by site. Of a file each is 404."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from power_service import models
from power_service.auth import Reader, forbidden_device
from power_service.bodies import json_response
from power_service.storage import Lane, storage_of
from power_service.tokens import Grant

router = APIRouter(prefix="/v1/fleet", tags=["fleet"])
Days = Annotated[int, Query(ge=1, le=36_500, description="UTC days, today's included")]
Minutes = Annotated[float, Query(ge=0, le=1e6, description="minutes without a message")]


def _covered(grant: Grant, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of devices that the grant covers."""
    return [row for row in rows if grant.covers(row["device_id"])]


@router.get("", operation_id="getFleet", response_model=models.FleetState)
async def get_fleet(request: Request, grant: Reader) -> Response:
    """How fresh the answers are; not for tokens bound to devices: they are about all of them."""
    if grant.devices is not None:
        raise forbidden_device()
    storage = storage_of(request)
    return json_response(
        models.FLEET_STATE, await storage.call(Lane.READ, storage.fleet.fleet_state)
    )


@router.get("/devices", operation_id="listFleetDevices", response_model=list[models.FleetDevice])
async def list_fleet_devices(request: Request, grant: Reader) -> Response:
    """Every device's site, version, last message and alarms."""
    storage = storage_of(request)
    rows = await storage.call(Lane.READ, storage.fleet.fleet_devices)
    return json_response(models.FLEET_DEVICES, _covered(grant, rows))


@router.get("/energy", operation_id="getFleetEnergy", response_model=list[models.SiteEnergy])
async def get_energy(request: Request, grant: Reader, days: Days = 7) -> Response:
    """Energy by UTC day, site and meter type; not for tokens bound to devices."""
    if grant.devices is not None:
        raise forbidden_device()
    storage = storage_of(request)
    rows = await storage.call(Lane.READ, storage.fleet.energy, days)
    return json_response(models.SITE_ENERGIES, rows)


@router.get("/silent", operation_id="listSilentDevices", response_model=list[models.SilentDevice])
async def list_silent(request: Request, grant: Reader, minutes: Minutes = 60.0) -> Response:
    """Devices that have sent nothing for so many minutes, the longest silent first."""
    storage = storage_of(request)
    rows = await storage.call(Lane.READ, storage.fleet.silent, minutes)
    return json_response(models.SILENT_DEVICES, _covered(grant, rows))
