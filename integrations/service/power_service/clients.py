"""One client of the stream: the frames that wait for it, and how its connection ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from power_service.presence import Frame
from power_service.tokens import Grant

SLOW = (1013, "slow: reconnect with the last sequence as after")
_MOST_SAID = 1000  # messages that a client may send; the stream needs none


class Client:
    """One connection: the frames that wait for it, and why it is to be closed."""

    def __init__(
        self, ws: WebSocket, grant: Grant, devices: frozenset[str] | None, queue: int
    ) -> None:
        self.ws = ws
        self.grant = grant
        self._devices = devices
        self._size = queue
        self.cursor = 0  # every event up to it that concerns this client is sent or waits
        self.live = False  # whether the poller hands it new events
        self.closing: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self.sending_since: float | None = None
        self._waiting: deque[str] = deque()
        self._latest: dict[str, str] = {}  # by key: of a meter or device only the newest waits
        self._wake = asyncio.Event()

    def sees(self, device_id: str) -> bool:
        """Whether this client gets frames of that device."""
        return (self._devices is None or device_id in self._devices) and self.grant.covers(
            device_id
        )

    def offer(self, frame: Frame) -> None:
        """Queue a frame, if it is for this client and new to it; a full queue closes it."""
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
        """Queue a text behind all others."""
        if len(self._waiting) >= self._size:
            self.close(*SLOW)
        else:
            self._waiting.append(text)
            self._wake.set()

    def close(self, code: int, reason: str) -> None:
        """Ask the hub to close the connection."""
        if not self.closing.done():
            self.closing.set_result((code, reason))

    async def send(self, text: str) -> None:
        """Send one frame; the hub watches how long it takes."""
        self.sending_since = time.monotonic()
        await self.ws.send_text(text)
        self.sending_since = None

    async def send_waiting(self) -> None:
        """Send what waits, until cancelled: events and heartbeats in order, then latest states."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting or self._latest:
                if self._waiting:
                    await self.send(self._waiting.popleft())
                else:
                    await self.send(self._latest.pop(next(iter(self._latest))))

    async def receive(self) -> None:
        """Read and drop what the client sends until it disconnects or sends too much."""
        said = 0
        with contextlib.suppress(WebSocketDisconnect):
            while said < _MOST_SAID:
                await self.ws.receive()
                if self.ws.client_state is WebSocketState.DISCONNECTED:
                    return
                said += 1
            self.close(1008, "too many messages: the stream takes none")


async def end(ws: WebSocket, code: int, reason: str) -> None:
    """Close a connection; one that takes nothing in is cut after a while."""
    close = ws.scope.get("extensions", {}).get("power_service.close")
    with contextlib.suppress(RuntimeError, OSError, WebSocketDisconnect):
        if close is not None:
            close(code, reason)
        else:
            await asyncio.wait_for(ws.close(code, reason), 5)
