"""One poller for the whole service, bounded queues, and the WebSocket /v1/stream.

An event reaches a client exactly once, in order of sequence. A client that connects with `after` first reads pages from
the file, until it stands where the poller stands; from there on the poller hands it every later event. The step from
one to the other has no await in it, so nothing falls between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from power_manager import (
    PowerEvent,
    PowerManager,
    PowerManagerError,
    PowerMeter,
    StorageError,
    from_microseconds,
    to_microseconds,
)
from power_service.auth import Gate, check_devices
from power_service.metrics import Metrics
from power_service.models import (
    MESSAGE,
    EventMessage,
    HeartbeatMessage,
    HelloMessage,
    MeterMessage,
    ReadingMessage,
    shown,
)
from power_service.problems import Code, Problem
from power_service.settings import Settings
from power_service.storage import Lane, Storage
from power_service.tokens import EVERYBODY, Grant, Scope

SUBPROTOCOL = "power.v1"
SLOW = (1013, "slow: reconnect with the last sequence as after")
_PAGE = 500  # events read at once for a client that catches up
_PAUSE_PER_LOOK = 4  # times as long as a look at all meters takes, the next one waits
_MAX_SEQUENCE = 2**63 - 1
_log = logging.getLogger("power_service.stream")


def _text(message: object) -> str:
    return MESSAGE.dump_json(message).decode()


@dataclass(frozen=True)
class Frame:
    """Text for clients that may see the device; `key` names what a later frame of the same key replaces."""

    device_id: str
    text: str
    sequence: int = 0
    key: str = ""


@dataclass
class Changes:
    """What one look at the file has found."""

    events: list[tuple[int, PowerEvent]] = field(default_factory=list)
    meters: list[PowerMeter] = field(default_factory=list)
    deleted_meter_ids: list[str] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)


# --- The poller


class Replaced(Exception):
    """Another file, or another content, has taken the database's place."""


class Watcher:
    """Sees what any process writes to the file, by the library's data_version; lives in the poller's thread.

    data_version costs some microseconds and tells nothing of a file that was moved away, so the inode is compared too.
    A restored backup keeps the inode and has another file_id.
    """

    def __init__(self, pm: PowerManager, path: Path, reading_seconds: float) -> None:
        self._pm = pm
        self._path = path.absolute()
        self._reading_seconds = reading_seconds
        self._inode = os.stat(self._path).st_ino
        self._file_id = pm.file_id
        self._version: int | None = None
        self._states: dict[str, PowerMeter] = {}
        self._next_meters = 0.0  # when to look at the meters again, if there is news
        self._meters_due = True
        self._more = True
        self._begun = False  # the first look finds every meter, and no reading of it is news
        self.sequence = pm.last_sequence()  # every event up to it has been seen

    def bounds(self) -> tuple[int, int]:
        """The first and the last sequence in the file; 0 and 0 without events."""
        latest = self._pm.last_sequence()
        for sequence, _ in self._pm.events_since(0, limit=1):
            return sequence, latest
        return 0, latest

    def look(self) -> Changes | None:
        """What has changed since the last look, or None."""
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self._path).st_ino == self._inode:
                return self._look()
        raise Replaced(f"{self._path} was moved, deleted or replaced")

    def _look(self) -> Changes | None:
        version = self._pm.data_version()
        changed = version != self._version
        if changed and self._pm.file_id != self._file_id:
            raise Replaced(f"a backup was restored into {self._path}")
        self._meters_due |= changed
        begin = time.monotonic()
        meters_due = self._meters_due and begin >= self._next_meters
        if not (changed or self._more or meters_due):
            return None
        found = Changes()
        if changed or self._more:
            found.events = self._pm.events_since(self.sequence, limit=1000)
            self._version = version
            self._more = len(found.events) == 1000
            for sequence, event in found.events:
                text = _text(EventMessage("event", sequence, event))
                found.frames.append(Frame(event.device_id, text, sequence))
                self.sequence = sequence
        if meters_due:
            self._look_at_meters(found)
            self._meters_due = False
            self._begun = True
            # Thousands of meters take a while: looking at them is a fraction of the time, for requests need it too.
            pause = max(self._reading_seconds, (time.monotonic() - begin) * _PAUSE_PER_LOOK)
            self._next_meters = begin + pause
        return found

    def _look_at_meters(self, found: Changes) -> None:
        """Add the meters whose state is another one than at the last look, their frames, and those that are gone."""
        before = self._states
        present = {meter.id: meter for meter in self._pm.list_meters()}
        for meter_id, meter in present.items():
            earlier = before.get(meter_id)
            if meter == earlier:
                continue
            found.meters.append(meter)
            if self._begun and (earlier is None or meter.updated_at != earlier.updated_at):
                found.frames += self._reading_frames(meter)
            text = _text(MeterMessage("meter", shown(meter)))
            found.frames.append(Frame(meter.device_id, text, key=f"meter {meter_id}"))
        found.deleted_meter_ids = [meter_id for meter_id in before if meter_id not in present]
        self._states = present

    def _reading_frames(self, meter: PowerMeter) -> Iterator[Frame]:
        """The meter's latest reading, if it has one."""
        if meter.updated_at is None:
            return
        end = from_microseconds(to_microseconds(meter.updated_at) + 1)
        for reading in self._pm.iter_history(meter.id, since=meter.updated_at, until=end):
            text = _text(ReadingMessage("reading", meter.device_id, reading))
            yield Frame(meter.device_id, text, key=f"reading {meter.id}")


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
        self._latest: dict[str, str] = {}  # by key; of a meter only what is newest waits
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
        self._hand_out(await self._storage.call(Lane.POLL, self._watcher.look))
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
                self._hand_out(await self._storage.call(Lane.POLL, self._watcher.look))
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
                pause = 1.0
            now = time.monotonic()
            if now - housekeeping >= 1:
                housekeeping = now
                await self._keep_house(now)
            if now - beat >= self._settings.heartbeat_seconds:
                beat = now
                self._heartbeat()
            await asyncio.sleep(pause)

    def _hand_out(self, changes: Changes | None) -> None:
        self._looked = time.monotonic()
        if changes is None:
            return
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
            if client.live:
                for frame in changes.frames:
                    client.offer(frame)

    def _heartbeat(self) -> None:
        text = _text(
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

    async def serve(self, client: Client, after: int | None) -> None:
        """Send a client its frames until either side ends it; return when the connection is closed."""
        self._clients.add(client)
        self._metrics.clients.inc()
        tasks = [
            asyncio.ensure_future(self._feed(client, after)),
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

    async def _feed(self, client: Client, after: int | None) -> None:
        """Hello, what was missed, the present state of the meters, and then what comes."""
        async with self._catching_up:
            oldest, latest = await self._storage.call(Lane.POLL, self._watcher.bounds)
        hello = _hello(after, oldest, latest)
        client.cursor = hello.resumed_from
        await client.send(_text(hello))
        while client.cursor < self.position:  # no await between the last look at it and going live
            async with self._catching_up:
                page = await self._storage.call(
                    Lane.READ, self._storage.pm.events_since, client.cursor, limit=_PAGE
                )
            for sequence, event in page:
                client.cursor = sequence
                if client.sees(event.device_id):
                    await client.send(_text(EventMessage("event", sequence, event)))
            if not page:
                break
        client.live = True
        self._offer_present(client, self._present.values())
        await client.send_waiting()

    @staticmethod
    def _offer_present(client: Client, frames: Iterable[Frame]) -> None:
        for frame in frames:
            client.offer(frame)


def _hello(after: int | None, oldest: int, latest: int) -> HelloMessage:
    """Where a client begins: where it left off, if the file still knows that place."""
    if after is None:
        return HelloMessage("hello", latest, oldest, latest, recovered=False)
    begin = min(max(after, oldest - 1, 0), latest)
    return HelloMessage("hello", begin, oldest, latest, recovered=begin == after)


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


def _after(ws: WebSocket) -> int | None:
    text = ws.query_params.get("after")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= _MAX_SEQUENCE):
        raise Problem(Code.INVALID_VALUE, "after: expected a sequence number")
    return int(text)


def _subprotocol(ws: WebSocket) -> str | None:
    """What to answer: a browser insists on one that it offered, and a token is better not sent back."""
    offered: list[str] = ws.scope.get("subprotocols", [])
    return SUBPROTOCOL if SUBPROTOCOL in offered else (offered[0] if offered else None)


async def stream(ws: WebSocket) -> None:
    """WS /v1/stream?device_id=&after=&ticket=. Refusals close with 4000 + the problem's status."""
    state = ws.app.state
    hub: Hub = state.hub
    device_ids = ws.query_params.getlist("device_id")
    try:
        grant, after = await _admit(ws, state.gate), _after(ws)
        check_devices(grant, *device_ids)
    except Problem as problem:
        # Accepted first: a browser shows its page nothing of a refused handshake, and would try again forever.
        await ws.accept(subprotocol=_subprotocol(ws))
        await end(ws, 4000 + problem.status, problem.code.value)
        return
    await ws.accept(subprotocol=_subprotocol(ws))
    _log.info("stream begins token=%s", grant.id)
    client = Client(ws, grant, frozenset(device_ids) or None, state.settings.queue)
    await hub.serve(client, after)
    _log.info("stream ends token=%s", grant.id)
