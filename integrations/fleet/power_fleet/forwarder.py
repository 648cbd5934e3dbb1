"""From a file's outbox into the stream: take, publish, wait for every acknowledgement, note it.

Then do the same with the next parcel.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import Header
from nats.js.errors import APIError

from power_fleet.aside import Aside
from power_fleet.backoff import Backoff
from power_fleet.codec import Batch, encode
from power_fleet.errors import FleetError
from power_fleet.limits import ONCE_SECONDS
from power_fleet.outbox import Outbox, Parcel
from power_fleet.stream import LoginRefused, Nats, is_other_stream
from power_fleet.subjects import STREAM, SUBJECT, token
from power_manager import PowerManager, StorageError

PUBLISH_SECONDS = 10.0  # to wait for an acknowledgement
# Between two parcels of a backlog. A sink stores no more than so many messages of one device, by
# its quota, and what is beyond waits in the stream: live readings would wait behind it.
BACKLOG_SECONDS = 0.1
MOST_WAITING = 10_000  # readings of a file that are counted
_FAILURES = (nats.errors.Error, OSError, asyncio.TimeoutError, StorageError)
_log = logging.getLogger("power_fleet")


@dataclass
class Sent:
    """What a forwarder has sent since it began."""

    messages: int = 0  # that the stream has acknowledged
    readings: int = 0
    failures: int = 0  # attempts that failed
    sent_at: float = 0.0  # when something was sent last, epoch seconds; 0.0: never
    line: int = 0  # of what was sent last; 0: none yet
    waiting: int = 0  # readings of the file that were not sent, when they were counted last
    file: PowerManager | None = None  # while it is open
    moved_at: float = 0.0  # when it began or something was sent last, by the clock
    failure: str = ""  # what the last attempt that failed said
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def note(self, parcel: Parcel, sequences: Sequence[int | None]) -> None:
        """Note the batches of a parcel that have a place in the stream: at least one.

        Those without a place are not acknowledged.
        """
        batches = [batch for batch, place in zip(parcel.batches, sequences) if place is not None]
        self.failures += len(parcel.batches) - len(batches)
        self.messages += len(batches)
        self.readings += sum(len(batch.readings) for batch in batches)
        self.sent_at = time.time()
        self.moved_at = self.clock()
        self.failure = ""
        self.line = max((batch.line for batch in batches), default=self.line)

    def note_failure(self, error: Exception) -> None:
        """Note an attempt that failed as a whole."""
        self.failures += 1
        self.failure = str(error) or type(error).__name__

    def count(self) -> int:
        """Count the readings that wait in the file, up to MOST_WAITING of them.

        Raises StorageError.
        """
        if self.file is not None:
            self.waiting = len(self.file.pending_readings(MOST_WAITING))
        return self.waiting


class Replaced(FleetError):
    """The file has gone, or another one has taken its place."""


class OtherStream(FleetError, ConnectionError):
    """The stream is not the one in which the lines were opened: it has been made again."""


class GaveUp(FleetError, ConnectionError):
    """Forwarding once ended, as nothing was acknowledged for ONCE_SECONDS."""


async def forward_file(
    db: Path,
    site: str,
    to: Nats,
    interval: float,
    backoff: Backoff,
    once: bool = False,
    sent: Sent | None = None,
) -> None:
    """Forward a file as forward() does; where another one has taken its place, go on with that one.

    A backup may be copied to a device while its forwarder runs. Raises StorageError where there is
    no file at first, and with once where there is none later.
    """
    sent = Sent() if sent is None else sent
    is_first = True
    while True:
        try:
            with open_file(db) as pm, _counted(sent, pm):
                outbox = Outbox(pm, site)
                if is_first:
                    _log.info("forwarding %s to %s", db, to.urls)
                is_first = False
                await forward(outbox, to, interval, backoff, once, sent)
                return
        except Replaced:
            _log.warning("%s: another file has taken its place: going on with that one", db)
        except StorageError as error:
            if is_first or once:
                raise
            await backoff.wait("nothing to send", error)


@contextlib.contextmanager
def _counted(sent: Sent, pm: PowerManager) -> Iterator[None]:
    """What waits in the file can be counted, and is at the end."""
    sent.file = pm
    try:
        yield
    finally:
        with contextlib.suppress(StorageError):
            sent.count()
        sent.file = None


def open_file(db: Path) -> PowerManager:
    """Open the file of a device.

    Raises StorageError where there is none: a new one would be empty.
    """
    if not db.exists():
        raise StorageError(db, "no such file: name with --db the one that the device writes")
    return PowerManager(db)


async def forward(
    outbox: Outbox,
    to: Nats,
    interval: float,
    backoff: Backoff,
    once: bool = False,
    sent: Sent | None = None,
) -> None:
    """Send what is there, then look again every `interval` seconds until cancelled.

    With once, until nothing is left.

    A failure does not end it: the file keeps everything, the connection is made again, and the
    wait grows. Raises Replaced where the path no longer names the file; with once LoginRefused too,
    and GaveUp where nothing is acknowledged for ONCE_SECONDS.
    """
    sent = Sent() if sent is None else sent
    work = _keep_forwarding(outbox, to, interval, backoff, once, sent)
    if once:
        await _while_it_moves(work, to, sent)
    else:
        await work


async def _while_it_moves(work: Coroutine[Any, Any, None], to: Nats, sent: Sent) -> None:
    """Do the work; end it and raise GaveUp where nothing is acknowledged for ONCE_SECONDS."""
    sent.moved_at = sent.clock()
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            left = sent.moved_at + ONCE_SECONDS - sent.clock()
            if left <= 0:
                raise GaveUp(
                    f"{to.urls}: nothing was acknowledged for {ONCE_SECONDS:g} s, "
                    f"and the file keeps what it has: {sent.failure or 'no answer'}"
                )
            await asyncio.wait([task], timeout=left)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    task.result()


async def _keep_forwarding(
    outbox: Outbox, to: Nats, interval: float, backoff: Backoff, once: bool, sent: Sent
) -> None:
    while True:
        try:
            connection = await to.connect("power-fleet forward")
            try:
                await _drain(connection, outbox, interval, backoff, once, sent)
                return
            finally:
                await _close(connection)
        except _FAILURES as error:
            if outbox.is_replaced():
                raise Replaced(str(error)) from error
            if once and isinstance(error, LoginRefused):
                raise  # it would be refused again
            sent.note_failure(error)
            await backoff.wait("not sent, kept in the file", error)


async def _drain(
    connection: Client,
    outbox: Outbox,
    interval: float,
    backoff: Backoff,
    once: bool,
    sent: Sent,
) -> None:
    js = connection.jetstream()
    aside = Aside()
    while True:
        parcel = await asyncio.to_thread(outbox.take, aside.names())
        if parcel.batches:
            try:
                results = await publish(js, parcel)
            except OtherStream:
                outbox.reopen()
                raise
            except APIError as error:  # the stream is full, or has enough of this device
                # The connection is good: it stays.
                sent.note_failure(error)
                await backoff.wait("not sent, kept in the file", error)
                continue
            sequences = [result if isinstance(result, int) else None for result in results]
            await asyncio.to_thread(outbox.done, parcel, sequences)
            sent.note(parcel, sequences)
            _leave_out(aside, parcel, results, sent)
            if parcel.is_full:
                await asyncio.sleep(BACKLOG_SECONDS)
        elif aside:
            await asyncio.sleep(min(interval, aside.seconds()))
        elif once:
            return
        else:
            await asyncio.sleep(interval)
        backoff.reset()


def _leave_out(
    aside: Aside, parcel: Parcel, results: Sequence[int | Exception], sent: Sent
) -> None:
    """Have the devices wait of which the stream has refused something."""
    refused = {
        batch.device_id: result
        for batch, result in zip(parcel.batches, results)
        if isinstance(result, Exception)
    }
    for device_id, error in refused.items():
        aside.put(device_id, error)
        sent.failure = f"device {device_id!r}: {str(error) or type(error).__name__}"
    for batch in parcel.batches:
        if batch.device_id not in refused:
            aside.take_back(batch.device_id)


async def publish(js: JetStreamContext, parcel: Parcel) -> list[int | Exception]:
    """Return each batch's place in the stream that has acknowledged it, or why it has not.

    Raises what happened where it has acknowledged none, and OtherStream where it is not the stream
    of the lines: then nothing is to be noted.
    """
    answers = await asyncio.gather(
        *(_send(js, batch) for batch in parcel.batches), return_exceptions=True
    )
    results: list[int | Exception] = []
    for batch, answer in zip(parcel.batches, answers):
        if isinstance(answer, int):
            if batch.opening is None and is_other_stream(batch.line, answer):
                raise OtherStream(f"the stream {STREAM} was made again: all of it is told again")
        elif not isinstance(answer, _FAILURES):
            raise answer
        results.append(answer)
    errors = [result for result in results if isinstance(result, Exception)]
    if errors and len(errors) == len(results):
        raise errors[0]
    return results


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
