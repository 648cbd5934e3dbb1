"""One poller for the whole service, and the clients to which it hands frames.

An event reaches a client exactly once, in order of sequence. A client that connects with `after`
first reads events from the file, page by page, up to the poller's position; from there on the
poller hands it every later event. There is no await between the two, so no event falls between
them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from starlette.websockets import WebSocketDisconnect

from power_manager import PowerManagerError, PowerMeter, StorageError
from power_service.auth import Gate
from power_service.clients import SLOW, Client, end
from power_service.metrics import Metrics
from power_service.models import EventMessage, HeartbeatMessage, HelloMessage
from power_service.presence import Bounds, Changes, Frame, Replaced, message_text
from power_service.problems import Code, Problem, retry_later
from power_service.settings import Settings
from power_service.storage import Lane, Storage
from power_service.tokens import EVERYBODY
from power_service.watcher import Watches

_PAGE = 500  # events read at once for a client that catches up
_log = logging.getLogger("power_service.stream")


@dataclass
class Begin:
    """Where a client left off: its last sequence, and the line of history it belongs to."""

    after: int | None
    file_id: str | None


class Hub:
    """The poller, and the clients to which it hands frames."""

    def __init__(self, settings: Settings, storage: Storage, gate: Gate, metrics: Metrics) -> None:
        self._settings = settings
        self._storage = storage
        self._gate = gate
        self._metrics = metrics
        self._clients: set[Client] = set()
        self._meters: dict[str, PowerMeter] = {}
        self._present: dict[str, Frame] = {}  # each meter's latest state
        self._watcher: Watches
        self._task: asyncio.Task[None] | None = None
        self._looked = 0.0
        self.position = 0  # every event up to it has been handed to the clients that are live
        self.stop_service = asyncio.Event()
        # Hundreds of clients may come back at once: they wait here, not in the lanes.
        self._catching_up = asyncio.Semaphore(8)

    # --- Lifecycle

    async def start(self) -> None:
        """Look once, then begin to poll. An engine that does not answer now may answer later."""
        self._watcher = await self._storage.call(Lane.POLL, self._storage.make_watcher)
        self.position = self._watcher.sequence
        try:
            await self._look()
        except StorageError:
            if not self._storage.is_fleet:
                raise
        self._metrics.watch_meters(lambda: list(self._meters.values()))
        self._task = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        """Close every client and stop polling."""
        self.close_all(1012, "the service restarts: reconnect with the last sequence as after")
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def bounds(self) -> Bounds:
        """The line of history, and its first and last sequence. Raises StorageError, Problem."""
        try:
            async with self._catching_up:
                return await self._storage.call(Lane.POLL, self._watcher.bounds)
        except Replaced:  # the next look ends the service
            detail = "the database was replaced; the service restarts"
            raise retry_later(Code.STORAGE_UNAVAILABLE, detail, 5) from None

    def close_all(self, code: int, reason: str) -> None:
        """Close every client."""
        for client in list(self._clients):
            client.close(code, reason)

    def ready(self) -> bool:
        """Whether the poller has read the file in the last 5 seconds."""
        return time.monotonic() - self._looked < 5 and not self._storage.replaced

    # --- Polling

    async def _poll(self) -> None:
        beat = housekeeping = time.monotonic()
        while True:
            pause = self._settings.poll_seconds
            try:
                await self._look()
                now = time.monotonic()
                if now - housekeeping >= 1:
                    housekeeping = now
                    await self._keep_house(now)
                if now - beat >= self._settings.heartbeat_seconds:
                    beat = now
                    self._heartbeat()
            except Replaced as error:
                _log.critical("%s: the service ends, to be started again on the new file", error)
                self._storage.replaced = True
                self.stop_service.set()
                return
            except (PowerManagerError, Problem) as error:
                _log.error("the stream cannot read the database: %s", error)
                pause = 1.0
            except Exception:  # noqa: BLE001 - every client depends on this task: it must not end
                _log.exception("the stream cannot hand out this change")
                # Some clients may have it and others not: each resumes from its own place.
                self.close_all(1011, Code.INTERNAL.value)
                pause = 1.0
            await asyncio.sleep(pause)

    async def _look(self) -> None:
        """Hand out what has changed; then raise the error that kept the watcher from the rest."""
        changes = await self._storage.call(Lane.POLL, self._watcher.look)
        if changes is not None:
            self._hand_out(changes)
            if changes.error is not None:
                raise changes.error
        self.position = max(self.position, self._watcher.sequence)
        self._looked = time.monotonic()

    def _hand_out(self, changes: Changes) -> None:
        for _, event in changes.events:
            self._metrics.event(event.type)
        for meter in changes.meters:
            self._meters[meter.id] = meter
        for meter_id in changes.deleted_meter_ids:
            self._meters.pop(meter_id, None)
            self._present.pop(f"meter {meter_id}", None)
        if changes.events:
            self.position = changes.events[-1][0]
        for frame in changes.frames:
            if frame.key.startswith("meter"):
                self._present[frame.key] = frame
        for client in self._clients:
            for frame in changes.frames:
                # A client that catches up reads events from the file, and gets all else here.
                if client.live or not frame.sequence:
                    client.offer(frame)

    def _heartbeat(self) -> None:
        text = message_text(
            HeartbeatMessage("heartbeat", self.position, datetime.now(timezone.utc).isoformat())
        )
        for client in self._clients:
            if client.live:
                client.push(text)

    async def _keep_house(self, now: float) -> None:
        """Close clients that take nothing in, and clients whose token was revoked."""
        await self._gate.refresh()
        for client in list(self._clients):
            if (
                client.sending_since is not None
                and now - client.sending_since > self._settings.stall_seconds
            ):
                client.close(*SLOW)
            elif client.grant is not EVERYBODY and not self._gate.tokens.knows(client.grant):
                client.close(4401, Code.UNAUTHORIZED.value)

    # --- Serving one client

    async def serve(self, client: Client, begin: Begin) -> None:
        """Send a client its frames until either side ends the connection."""
        self._clients.add(client)
        self._metrics.clients.inc()
        tasks = [
            asyncio.ensure_future(self._feed(client, begin)),
            asyncio.ensure_future(client.receive()),
        ]
        ends: list[asyncio.Future[Any]] = [*tasks, client.closing]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._clients.discard(client)
            self._metrics.clients.dec()
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        if client.closing.done():
            code, reason = client.closing.result()
            self._metrics.slow.inc(code == SLOW[0])
            await end(client.ws, code, reason)
            return
        for error in results:
            if isinstance(error, (StorageError, Problem)):
                await end(client.ws, 1011, Code.STORAGE_UNAVAILABLE.value)
            elif isinstance(error, Exception) and not isinstance(
                error, (WebSocketDisconnect, OSError)
            ):
                _log.error("a client of the stream failed", exc_info=error)
                await end(client.ws, 1011, Code.INTERNAL.value)

    async def _feed(self, client: Client, begin: Begin) -> None:
        """Send hello, the events that were missed, the meters' present state, then what comes."""
        hello = _hello(begin, await self.bounds())
        client.cursor = hello.resumed_from
        await client.send(message_text(hello))
        while client.cursor < self.position:  # no await from this check to client.live = True
            position = self.position
            async with self._catching_up:
                page = await self._storage.call(
                    Lane.READ, self._storage.source.events_since, client.cursor, limit=_PAGE
                )
            for sequence, event in page:
                client.cursor = sequence
                if client.sees(event.device_id):
                    await client.send(message_text(EventMessage("event", sequence, event)))
            if not page:  # not every sequence number has an event
                client.cursor = position
        client.live = True
        self._offer_present(client, self._present.values())
        await client.send_waiting()

    @staticmethod
    def _offer_present(client: Client, frames: Iterable[Frame]) -> None:
        for frame in frames:
            client.offer(frame)


def where_to_resume(begin: Begin, bounds: Bounds) -> tuple[int, bool]:
    """The sequence after which a client's events begin, and whether it misses none by that.

    It resumes where it left off, if the file still has that place.
    """
    same_line = begin.file_id is None or begin.file_id == bounds.file_id
    if begin.after is None or not same_line:  # a sequence of another line means nothing here
        return bounds.latest, False
    resumed_from = min(max(begin.after, bounds.oldest - 1, 0), bounds.latest)
    return resumed_from, resumed_from == begin.after


def _hello(begin: Begin, bounds: Bounds) -> HelloMessage:
    resumed_from, recovered = where_to_resume(begin, bounds)
    return HelloMessage(
        "hello",
        resumed_from,
        bounds.oldest,
        bounds.latest,
        recovered=recovered,
        file_id=bounds.file_id,
    )
