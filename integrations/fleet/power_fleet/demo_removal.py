"""Takes what `power-fleet demo` has sent out of a fleet again."""

from __future__ import annotations

import asyncio
import re

from power_fleet.demo import SITES
from power_fleet.engine import Engine
from power_fleet.errors import FleetError
from power_fleet.life import FleetDevice, delete_devices, last_sequence, list_devices
from power_fleet.stream import ASKED_SECONDS, Nats
from power_fleet.subjects import STREAM, SUBJECT, device_of

STORED_SECONDS = 60.0  # to wait for sinks to store what the stream still has
LOOK_SECONDS = 0.5
_ID = re.compile(r"demo-(\d{4,})")


def made_up_devices(engine: Engine) -> list[str]:
    """The ids of the devices of an engine that a demo has made. Raises EngineError."""
    return [device.device_id for device in list_devices(engine) if _is_made_up(device)]


def _is_made_up(device: FleetDevice) -> bool:
    """Whether a demo has made it: a real device may well be called demo-0001, but not all of it."""
    match = _ID.fullmatch(device.device_id)
    return match is not None and device.name == f"Mast {int(match[1])}" and device.site in SITES


async def await_stored(source: Nats, seconds: float = STORED_SECONDS) -> None:
    """Return when no message waits in the stream that may be one of a demo.

    Raises FleetError where some still do after that time, and NATS's errors.
    """
    connection = await source.connect("power-fleet demo")
    try:
        js = connection.jetstream(timeout=ASKED_SECONDS)
        waiting = 0
        for _ in range(round(seconds / LOOK_SECONDS)):
            state = (await js.stream_info(STREAM, subjects_filter=f"{SUBJECT}*")).state
            subjects = state.subjects or {}
            waiting = sum(
                count for subject, count in subjects.items() if _ID.fullmatch(device_of(subject))
            )
            if not waiting:
                return
            await asyncio.sleep(LOOK_SECONDS)
    finally:
        await connection.close()
    raise FleetError(
        f"messages of made-up devices are not stored yet ({waiting}): "
        "end `power-fleet demo`, see that a sink is at work, and give the command again"
    )


def remove(engine: Engine, source: Nats, device_ids: list[str]) -> None:
    """Delete everything of these devices. Raises EngineError, NATS's errors."""
    delete_devices(engine, device_ids, asyncio.run(last_sequence(source)))
