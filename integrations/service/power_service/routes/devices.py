"""Devices and their meters."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from power_manager import (
    DeviceRecord,
)
from power_service import models, shapes
from power_service.auth import (
    Admin,
    Reader,
    Writer,
    check_devices,
    check_meter,
)
from power_service.bodies import (
    json_response,
    read_object,
    type_as_sent,
)
from power_service.problems import Code, Problem
from power_service.routes.parameters import ID_LIMITS, DeviceId, MeterId, body_of
from power_service.storage import Lane, storage_of

router = APIRouter(prefix="/v1")

# --- Devices


@router.get(
    "/devices", operation_id="listDevices", response_model=list[DeviceRecord], tags=["devices"]
)
async def list_devices(request: Request, grant: Reader) -> Response:
    """List the devices, in order of registration."""
    storage = storage_of(request)
    devices = await storage.call(Lane.READ, storage.source.list_devices)
    return json_response(models.DEVICES, [device for device in devices if grant.covers(device.id)])


@router.put(
    "/devices/{device_id}",
    operation_id="putDevice",
    response_model=DeviceRecord,
    tags=["devices"],
    openapi_extra=body_of(shapes.DEVICE_SETTINGS),
)
async def put_device(request: Request, grant: Writer, device_id: DeviceId) -> Response:
    """Register a device, or set all of its values; its meters, readings and events stay."""
    check_devices(grant, device_id)
    storage = storage_of(request)
    values = await read_object(request, shapes.DEVICE_SETTINGS)
    if values.pop("id", device_id) != device_id:
        raise Problem(Code.CONFLICT, "id: expected the id of the path, or no id")
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
    storage = storage_of(request)
    return json_response(
        models.DEVICE, await storage.call(Lane.READ, storage.source.get_device, device_id)
    )


@router.patch(
    "/devices/{device_id}",
    operation_id="updateDevice",
    response_model=DeviceRecord,
    tags=["devices"],
    openapi_extra=body_of(shapes.DEVICE_CHANGES),
)
async def update_device(request: Request, grant: Writer, device_id: DeviceId) -> Response:
    """Change the given values of a device."""
    check_devices(grant, device_id)
    storage = storage_of(request)
    changes = await read_object(request, shapes.DEVICE_CHANGES)
    device = await storage.call(Lane.WRITE, storage.pm.update_device, device_id, **changes)
    return json_response(models.DEVICE, device)


@router.delete(
    "/devices/{device_id}", operation_id="deleteDevice", status_code=204, tags=["devices"]
)
async def delete_device(request: Request, grant: Admin, device_id: DeviceId) -> Response:
    """Delete a device with its meters, readings, statistics and events, for good."""
    check_devices(grant, device_id)
    storage = storage_of(request)
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
    storage = storage_of(request)
    meters = await storage.call(Lane.READ, storage.source.list_meters, device_id)
    return json_response(
        models.METERS, [models.shown(meter) for meter in meters if grant.covers(meter.device_id)]
    )


@router.post(
    "/devices/{device_id}/meters",
    operation_id="addMeter",
    response_model=models.PowerMeter,
    status_code=201,
    tags=["meters"],
    openapi_extra=body_of(shapes.NEW_METER),
)
async def add_meter(request: Request, grant: Writer, device_id: DeviceId) -> Response:
    """Add a meter to a device. It shows 0 V and 0 A until its first reading."""
    check_devices(grant, device_id)
    storage = storage_of(request)
    values = await read_object(request, shapes.NEW_METER)
    with type_as_sent():
        meter = await storage.call(
            Lane.WRITE,
            storage.pm.add_meter,
            device_id,
            values["type"],
            values["capacity_wh"],
            values["name"],
            charge_pct=values["charge_pct"],
        )
    return json_response(models.METER, models.shown(meter), 201)


@router.get(
    "/meters/{meter_id}", operation_id="getMeter", response_model=models.PowerMeter, tags=["meters"]
)
async def get_meter(request: Request, grant: Reader, meter_id: MeterId) -> Response:
    """Get a meter with its present state."""
    storage = storage_of(request)
    await check_meter(storage, grant, meter_id)
    return json_response(
        models.METER,
        models.shown(await storage.call(Lane.READ, storage.source.get_meter, meter_id)),
    )


@router.patch(
    "/meters/{meter_id}",
    operation_id="updateMeter",
    response_model=models.PowerMeter,
    tags=["meters"],
    openapi_extra=body_of(shapes.METER_CHANGES),
)
async def update_meter(request: Request, grant: Writer, meter_id: MeterId) -> Response:
    """Change the given values of a meter; `active` false retires it.

    `charge_pct` takes only null, for a gauge that is gone: a charge comes with a reading.
    """
    storage = storage_of(request)
    await check_meter(storage, grant, meter_id)
    changes = await read_object(request, shapes.METER_CHANGES)
    meter = await storage.call(Lane.WRITE, storage.pm.update_meter, meter_id, **changes)
    return json_response(models.METER, models.shown(meter))


@router.delete("/meters/{meter_id}", operation_id="deleteMeter", status_code=204, tags=["meters"])
async def delete_meter(request: Request, grant: Admin, meter_id: MeterId) -> Response:
    """Delete a meter with its readings and statistics, for good. Events stay."""
    storage = storage_of(request)
    await check_meter(storage, grant, meter_id)
    await storage.call(Lane.WRITE, storage.pm.delete_meter, meter_id)
    return Response(status_code=204)
