"""The whole way from a file to an engine, inside the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from nats.js.api import StreamInfo
from nats.js.errors import NotFoundError
from power_fleet.backoff import Backoff
from power_fleet.dead import make_dead_stream
from power_fleet.engine import Engine
from power_fleet.forwarder import forward
from power_fleet.outbox import Outbox
from power_fleet.quota import Quota
from power_fleet.sink import Sink, Work
from power_fleet.stream import Nats, make_streams
from power_fleet.subjects import DEAD_STREAM, STREAM
from servers import SOON

from power_manager import PowerManager


async def until(check: Callable[[], object], seconds: float = SOON) -> None:
    """Return as soon as check is true."""
    async with asyncio.timeout(seconds):
        while not check():
            await asyncio.sleep(0.05)


async def streams(nats: Nats, max_bytes: int = 10_000_000) -> None:
    """Make the streams anew."""
    connection = await nats.connect("test")
    try:
        js = connection.jetstream(timeout=SOON)
        for name in (STREAM, DEAD_STREAM):
            with contextlib.suppress(NotFoundError):
                await js.delete_stream(name)
        await make_streams(js, 1, max_bytes)
        await make_dead_stream(js, 1, max_bytes // 10)
    finally:
        await connection.close()


async def info(nats: Nats, name: str = STREAM) -> StreamInfo:
    """What is in a stream."""
    connection = await nats.connect("test")
    try:
        return await connection.jetstream(timeout=SOON).stream_info(name)
    finally:
        await connection.close()


async def messages(nats: Nats, name: str = STREAM) -> int:
    """How many messages wait in a stream."""
    return (await info(nats, name)).state.messages


def quick() -> Backoff:
    """Waiting times for tests."""
    return Backoff(0.05, 0.3)


async def send(pm: PowerManager, nats: Nats) -> None:
    """Forward a file until nothing is left."""
    await asyncio.wait_for(forward(Outbox(pm), nats, 0.05, quick(), once=True), SOON)


@contextlib.asynccontextmanager
async def running_sink(
    engine: Engine,
    nats: Nats,
    quota: Quota | None = None,
    work: Work | None = None,
) -> AsyncIterator[None]:
    """A sink at work, which it notes in `work`."""
    sink = Sink(engine, nats, quick(), quota, work)
    task = asyncio.ensure_future(sink.run())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def drained(nats: Nats) -> None:
    """Wait until the stream is empty."""
    async with asyncio.timeout(SOON):
        while await messages(nats):
            await asyncio.sleep(0.05)
