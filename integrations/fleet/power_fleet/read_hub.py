"""The hub of this machine, as a source of a fleet sees it: its engine and its stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from power_fleet.discovery import NotRunning, find_hub
from power_fleet.errors import Refused
from power_fleet.stream import NATS_FAILURES, Nats, nats_of_hub
from power_fleet.subjects import DEAD_STREAM, STREAM
from power_manager import StorageError

_log = logging.getLogger("power_fleet")


def hub_urls() -> Sequence[str]:
    """The URLs of the hub's engine, which is elsewhere after each start. Raises Refused."""
    try:
        addresses = find_hub()
    except (NotRunning, StorageError) as error:
        raise Refused(f"--hub: {error}") from error
    if addresses is None:
        raise Refused("--hub: no hub was started here: start power-fleet hub, or name --fleet")
    return [addresses.clickhouse]


def stream_of(urls: Sequence[str]) -> Nats | None:
    """The stream of the hub whose engine is at these URLs; None unless it is this machine's."""
    try:
        hub = find_hub(wait=_do_not_wait)
    except (NotRunning, StorageError):
        return None
    if hub is None or [hub.clickhouse] != list(urls):
        return None
    return nats_of_hub(hub)


def count_messages(source: Nats | None) -> tuple[int | None, int | None]:
    """How many messages wait in the stream, and how many dead letters there are; None: unknown."""
    if source is None:
        return None, None
    try:
        return asyncio.run(_counts(source))
    except NATS_FAILURES as error:
        _log.warning("the fleet's stream: %s", error)
        return None, None


async def _counts(source: Nats) -> tuple[int, int]:
    connection = await source.connect("power-service")
    try:
        js = connection.jetstream()
        waiting = (await js.stream_info(STREAM)).state.messages
        return waiting, (await js.stream_info(DEAD_STREAM)).state.messages
    finally:
        await connection.close()


def _do_not_wait(_: float) -> None:
    raise NotRunning("the hub is starting")
