"""From a file's outbox into the stream: take, publish, wait for every acknowledgement, note it; then the next."""

from __future__ import annotations

import asyncio
import logging

import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import Header
from nats.js.errors import APIError

from power_fleet.codec import Batch, encode
from power_fleet.outbox import Outbox, Parcel
from power_fleet.stream import STREAM, SUBJECT, Backoff, Nats, is_other_stream, token
from power_manager import StorageError

PUBLISH_SECONDS = 10.0  # to wait for an acknowledgement
# Between two parcels of a backlog. A sink stores no more than so many messages of one device, by its quota, and what is
# beyond waits in the stream: live readings would wait behind it.
BACKLOG_SECONDS = 0.1
_FAILURES = (nats.errors.Error, OSError, asyncio.TimeoutError, StorageError)
_log = logging.getLogger("power_fleet")


class OtherStream(ConnectionError):
    """The stream is not the one in which the lines were opened: it has been made anew."""


async def forward(
    outbox: Outbox, to: Nats, interval: float, backoff: Backoff, once: bool = False
) -> None:
    """Send what is there, then look again every `interval` seconds, for ever; with once, until nothing is left.

    A failure never ends it: the file keeps everything, the connection is made anew, and the wait grows.
    """
    while True:
        try:
            connection = await to.connect("power-fleet forward")
            try:
                await _drain(connection, outbox, interval, backoff, once)
                return
            finally:
                await _close(connection)
        except _FAILURES as error:
            await backoff.wait("not sent, kept in the file", error)


async def _drain(
    connection: Client, outbox: Outbox, interval: float, backoff: Backoff, once: bool
) -> None:
    js = connection.jetstream()
    while True:
        parcel = await asyncio.to_thread(outbox.take)
        if parcel.batches:
            try:
                sequences = await publish(js, parcel)
            except OtherStream:
                outbox.reopen()
                raise
            except (
                APIError
            ) as error:  # the stream is full, or has enough of this device: the connection is good
                await backoff.wait("not sent, kept in the file", error)
                continue
            await asyncio.to_thread(outbox.done, parcel, sequences)
            if parcel.is_full:
                await asyncio.sleep(BACKLOG_SECONDS)
        elif once:
            return
        else:
            await asyncio.sleep(interval)
        backoff.reset()


async def publish(js: JetStreamContext, parcel: Parcel) -> list[int]:
    """Return the places that the stream has given to the batches, when it has acknowledged all of them.

    Any failure raises, and then nothing is noted: OtherStream where the stream is not that of the lines.
    """
    results = await asyncio.gather(
        *(_send(js, batch) for batch in parcel.batches), return_exceptions=True
    )
    sequences = []
    for batch, result in zip(parcel.batches, results):
        if isinstance(result, BaseException):
            raise result
        if batch.opening is None and is_other_stream(batch.line, result):
            raise OtherStream(f"the stream {STREAM} was made anew: everything of it is told again")
        sequences.append(result)
    return sequences


async def _send(js: JetStreamContext, batch: Batch) -> int:
    message_id, data = encode(batch)
    acknowledgement = await js.publish(
        SUBJECT + token(batch.device_id),
        data,
        timeout=PUBLISH_SECONDS,
        stream=STREAM,
        headers={Header.MSG_ID.value: message_id},
    )
    return acknowledgement.seq


async def _close(connection: Client) -> None:
    try:
        await asyncio.wait_for(connection.close(), 5)
    except _FAILURES as error:
        _log.debug("closing: %s", error)
