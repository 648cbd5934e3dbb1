"""A disk that is full for a moment, on a small disk in memory, where this user may mount one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import fill, small_disk
from power_fleet.backoff import Backoff
from power_fleet.dead import set_up_streams
from power_fleet.hub import ENOUGH_FREE, _watch_disk
from power_fleet.nats_server import NatsServer, await_answer
from power_fleet.stream import NATS_FAILURES, Nats
from power_fleet.subjects import SUBJECT
from servers import SOON, eventually


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 60 MB."""
    with small_disk(tmp_path / "disk", 60) as is_mounted:
        if not is_mounted:
            pytest.skip("this user may not mount")
        yield tmp_path / "disk"


async def is_taken(nats_: Nats, seconds: float = 1.0) -> bool:
    """Whether the stream takes in a message that is not small, within that time."""
    try:
        connection = await nats_.connect("test")
    except NATS_FAILURES:
        return False
    try:
        await connection.jetstream(timeout=SOON).publish(
            SUBJECT + "a", os.urandom(60_000), timeout=seconds
        )
    except NATS_FAILURES:
        return False
    finally:
        await connection.close()
    return True


def test_a_disk_full_between_two_looks_has_nats_started_anew(disk: Path) -> None:
    """The hub never sees that there is no room; NATS remembers that it could not write, and is
    asked.
    """

    async def run() -> None:
        server = NatsServer(disk / "nats", 0, 20_000_000)
        await server.start()
        source = Nats(server.url)
        keeping = asyncio.ensure_future(server.keep_running(Backoff()))
        try:
            await await_answer(source)
            await set_up_streams(source, 1, 10_000_000)
            assert await is_taken(source, SOON)
            assert not server.has_failed()
            fill(disk / "ballast")
            assert not await is_taken(source)
            (disk / "ballast").unlink()
            assert not await is_taken(source)  # not by itself
            eventually(server.has_failed)  # it answers nothing in time where the machine is busy
            watching = asyncio.ensure_future(
                _watch_disk(disk, server, lambda _: ENOUGH_FREE, seconds=0.05)
            )
            async with asyncio.timeout(SOON):
                while not await is_taken(source):
                    await asyncio.sleep(0.05)
            watching.cancel()
            assert not server.has_failed()
        finally:
            keeping.cancel()
            await server.stop()

    asyncio.run(run())
