"""One poller for the whole service, bounded queues, and the WebSocket /v1/stream.

An event reaches a client exactly once, in order of sequence. A client that connects with `after` first reads pages from
the file, until it stands where the poller stands; from there on the poller hands it every later event. The step from
one to the other has no await in it, so nothing falls between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from power_manager import PowerManagerError, PowerMeter, StorageError
from power_service.auth import Gate, check_devices
from power_service.metrics import Metrics
from power_service.models import EventMessage, HeartbeatMessage, HelloMessage
from power_service.problems import Code, Problem
from power_service.settings import Settings
from power_service.storage import Lane, Storage
from power_service.tokens import EVERYBODY, Grant, Scope
from power_service.watcher import Bounds, Changes, Frame, Replaced, Watcher, message_text

SUBPROTOCOL = "power.v1"
SLOW = (1013, "slow: reconnect with the last sequence as after")
_PAGE = 500  # events read at once for a client that catches up
_MAX_SEQUENCE = 2**63 - 1
_MAX_FILE_ID = 100  # characters
_log = logging.getLogger("power_service.stream")


# --- Clients


class Client:
    """One connection: what waits to be sent to it, and why it is to be closed."""

    def __init__(
        self, ws: WebSocket, grant: Grant, devices: frozenset[str] | None, queue: int
    ) -> None:
        self.ws, self.grant, self._devices, self._size = ws, grant, devices, queue
        self.cursor = 0  # every event up to it that concerns this client is sent or waits
        self.live = False  # the poller hands over what comes
        self.closing: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self.sending_since: float | None = None
        self._waiting: deque[str] = deque()
        self._latest: dict[str, str] = {}  # by key; of a meter or device only what is newest waits
        self._wake = asyncio.Event()

    def sees(self, device_id: str) -> bool:
        """Whether frames of that device are for this client."""
        return (self._devices is None or device_id in self._devices) and self.grant.covers(
            device_id
        )

    def offer(self, frame: Frame) -> None:
        """Let a frame wait, if it is for this client and new to it; a client whose queue is full is slow."""
        if not self.sees(frame.device_id):
            return
        for key in frame.forgets:
            self._latest.pop(key, None)
        if frame.key:
            self._latest[frame.key] = frame.text
        elif frame.sequence <= self.cursor:
            return
        else:
            self.cursor = frame.sequence
            self.push(frame.text)
        self._wake.set()

    def push(self, text: str) -> None:
        """Let a text wait, behind all others."""
        if len(self._waiting) >= self._size:
            self.close(*SLOW)
        else:
            self._waiting.append(text)
            self._wake.set()

    def close(self, code: int, reason: str) -> None:
        """Have the connection closed."""
        if not self.closing.done():
            self.closing.set_result((code, reason))

    async def send(self, text: str) -> None:
        """Send one frame; meanwhile the hub watches how long it takes."""
        self.sending_since = time.monotonic()
        await self.ws.send_text(text)
        self.sending_since = None

    async def send_waiting(self) -> None:
        """Send whatever comes to wait, until cancelled: events and heartbeats in order, then the latest of meters."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting or self._latest:
                if self._waiting:
                    await self.send(self._waiting.popleft())
                else:
                    await self.send(self._latest.pop(next(iter(self._latest))))

    async def receive(self) -> None:
        """Take in whatever the client says until it goes; it has nothing to say, and is closed if it says much."""
        said = 0
        with contextlib.suppress(WebSocketDisconnect):
            while said < 1000:
                await self.ws.receive()
                if self.ws.client_state is WebSocketState.DISCONNECTED:
                    return
                said += 1
            self.close(1008, "clients of the stream have nothing to say")


@dataclass
class Begin:
    """What a client had when it left off: the last sequence, and the line of history that it is of."""

    after: int | None
    file_id: str | None


class Hub:
    """The poller, and the clients it hands frames to."""

    def __init__(self, settings: Settings, storage: Storage, gate: Gate, metrics: Metrics) -> None:
        self._settings, self._storage, self._gate, self._metrics = settings, storage, gate, metrics
        self._clients: set[Client] = set()
        self._meters: dict[str, PowerMeter] = {}
        self._present: dict[str, Frame] = {}  # each meter's latest state
        self._watcher: Watcher
        self._task: asyncio.Task[None] | None = None
        self._looked = 0.0
        self.position = 0  # every event up to it has been handed to the clients that are live
        self.stop_service = asyncio.Event()
        self._catching_up = asyncio.Semaphore(
            8
        )  # hundreds may come back at once: they wait here, not in the lanes

    # --- Lifecycle

    async def start(self) -> None:
        """Open the file, see what is there, and begin to poll."""
        arguments = (self._storage.pm, self._settings.db, self._settings.reading_seconds)
        self._watcher = await self._storage.call(Lane.POLL, Watcher, *arguments)
        self.position = self._watcher.sequence
        await self._look()
        self._metrics.watch_meters(lambda: list(self._meters.values()))
        self._task = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        """Close every client and end the polling."""
        self.close_all(1012, "the service restarts: reconnect with the last sequence as after")
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def close_all(self, code: int, reason: str) -> None:
        """Have every client closed."""
        for client in list(self._clients):
            client.close(code, reason)

    def ready(self) -> bool:
        """Whether the poller has seen the file lately."""
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
                _log.critical(
                    "%s: the service stops, so that it is started again on the new file", error
                )
                self._storage.replaced = True
                self.stop_service.set()
                return
            except (PowerManagerError, Problem) as error:
                _log.error("the stream cannot read the database: %s", error)
                pause = 1.0
            except Exception:  # noqa: BLE001 - the clients of the stream hang on this task: it must not end
                _log.exception("the stream cannot go on with this change")
                # Some of them may have been handed what others were not: each resumes from where it is.
                self.close_all(1011, Code.INTERNAL.value)
                pause = 1.0
            await asyncio.sleep(pause)

    async def _look(self) -> None:
        """Hand out what has changed; then raise what kept the watcher from seeing the rest, which it will see later."""
        changes = await self._storage.call(Lane.POLL, self._watcher.look)
        if changes is not None:
            self._hand_out(changes)
            if changes.error is not None:
                raise changes.error
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
                # Events that one who catches up has missed are read from the file; all else is told here alone.
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
        """Close clients that take nothing in, and those whose token was revoked."""
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
        """Send a client its frames until either side ends it; return when the connection is closed."""
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
            if isinstance(error, (StorageError, Problem, Replaced)):
                await end(client.ws, 1011, Code.STORAGE_UNAVAILABLE.value)
            elif isinstance(error, Exception) and not isinstance(
                error, (WebSocketDisconnect, OSError)
            ):
                _log.error("a client of the stream failed", exc_info=error)
                await end(client.ws, 1011, Code.INTERNAL.value)

    async def _feed(self, client: Client, begin: Begin) -> None:
        """Hello, what was missed, the present state of the meters, and then what comes."""
        async with self._catching_up:
            bounds = await self._storage.call(Lane.POLL, self._watcher.bounds)
        hello = _hello(begin, bounds)
        client.cursor = hello.resumed_from
        await client.send(message_text(hello))
        while client.cursor < self.position:  # no await between the last look at it and going live
            async with self._catching_up:
                page = await self._storage.call(
                    Lane.READ, self._storage.pm.events_since, client.cursor, limit=_PAGE
                )
            for sequence, event in page:
                client.cursor = sequence
                if client.sees(event.device_id):
                    await client.send(message_text(EventMessage("event", sequence, event)))
            if not page:
                break
        client.live = True
        self._offer_present(client, self._present.values())
        await client.send_waiting()

    @staticmethod
    def _offer_present(client: Client, frames: Iterable[Frame]) -> None:
        for frame in frames:
            client.offer(frame)


def _hello(begin: Begin, bounds: Bounds) -> HelloMessage:
    """Where a client begins: where it left off, if the file still knows that place."""
    same_line = begin.file_id is None or begin.file_id == bounds.file_id
    if begin.after is None or not same_line:  # a sequence of another line says nothing of this one
        resumed_from = bounds.latest
    else:
        resumed_from = min(max(begin.after, bounds.oldest - 1, 0), bounds.latest)
    return HelloMessage(
        "hello",
        resumed_from,
        bounds.oldest,
        bounds.latest,
        recovered=same_line and resumed_from == begin.after,
        file_id=bounds.file_id,
    )


async def end(ws: WebSocket, code: int, reason: str) -> None:
    """Close a connection, also one that takes nothing in: its transport is cut after a while."""
    close = ws.scope.get("extensions", {}).get("power_service.close")
    with contextlib.suppress(RuntimeError, OSError, WebSocketDisconnect):
        if close is not None:
            close(code, reason)
        else:
            await asyncio.wait_for(ws.close(code, reason), 5)


# --- The endpoint


async def _admit(ws: WebSocket, gate: Gate) -> Grant:
    """The grant behind a connection: a token as subprotocol or header, or a one-use ticket."""
    client = ws.client.host if ws.client else ""
    ticket = ws.query_params.get("ticket")
    if ticket is not None:
        return gate.admit_ticket(ticket, Scope.READ.value, client)
    offered = [text for text in ws.scope.get("subprotocols", []) if text.startswith("token.")]
    token = offered[0].removeprefix("token.") if offered else None
    scheme, _, credentials = ws.headers.get("authorization", "").partition(" ")
    if token is None and scheme.lower() == "bearer":
        token = credentials.strip()
    return await gate.admit(token, Scope.READ.value, client)


def _begin(ws: WebSocket) -> Begin:
    text = ws.query_params.get("after")
    file_id = ws.query_params.get("file_id")
    if file_id is not None and not 0 < len(file_id) <= _MAX_FILE_ID:
        raise Problem(Code.INVALID_VALUE, "file_id: expected that of an earlier hello")
    if text is None:
        return Begin(None, file_id)
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= _MAX_SEQUENCE):
        raise Problem(Code.INVALID_VALUE, "after: expected a sequence number")
    return Begin(int(text), file_id)


def _subprotocol(ws: WebSocket) -> str | None:
    """What to answer: a browser insists on one that it offered, and a token is better not sent back."""
    offered: list[str] = ws.scope.get("subprotocols", [])
    return SUBPROTOCOL if SUBPROTOCOL in offered else (offered[0] if offered else None)


async def stream(ws: WebSocket) -> None:
    """WS /v1/stream?device_id=&after=&file_id=&ticket=. Refusals close with 4000 + the problem's status."""
    state = ws.app.state
    hub: Hub = state.hub
    device_ids = ws.query_params.getlist("device_id")
    try:
        grant = await _admit(ws, state.gate)
        begin = _begin(ws)
        check_devices(grant, *device_ids)
    except Problem as problem:
        # Accepted first: a browser shows its page nothing of a refused handshake, and would try again forever.
        await ws.accept(subprotocol=_subprotocol(ws))
        await end(ws, 4000 + problem.status, problem.code.value)
        return
    await ws.accept(subprotocol=_subprotocol(ws))
    _log.info("stream begins token=%s", grant.id)
    client = Client(ws, grant, frozenset(device_ids) or None, state.settings.queue)
    await hub.serve(client, begin)
    _log.info("stream ends token=%s", grant.id)
