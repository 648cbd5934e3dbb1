"""The stream tells which devices and meters come, change and go, and which readings."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from power_service import watcher as watcher_module
from power_service.clients import Client
from power_service.hub import Begin, Hub
from power_service.metrics import Metrics
from power_service.presence import Bounds, Changes
from power_service.storage import Lane
from power_service.tokens import EVERYBODY
from power_service.watcher import Watcher
from service_harness import Service
from test_service_stream import follow, look, receive, receive_meter
from websockets.sync.client import ClientConnection

from power_manager import PowerEvent, PowerEventType, PowerManager


@pytest.fixture(scope="module")
def pm(service: Service) -> Iterator[PowerManager]:
    """The library on the service's file, as another process would have it open."""
    with PowerManager(service.db) as manager:
        manager.register_device("a", "A")
        yield manager


@pytest.fixture(scope="module")
def token(service: Service) -> str:
    """A token that may read everything."""
    return service.token("read")


def receive_device(stream: ClientConnection, device_id: str) -> dict[str, Any]:
    """The next message of that device."""
    while True:
        device: dict[str, Any] = receive(stream, "device")["device"]
        if device["id"] == device_id:
            return device


def stands_still() -> float:
    """A clock by which looking takes no time, so that the next look may come at once."""
    return 0.0


def describe(message: dict[str, Any]) -> str:
    """A message in a few words."""
    if message["type"] == "hello":
        return "hello"
    if message["type"] == "deleted":
        return f"deleted {message['kind']}"
    record = message[message["type"]]
    return f"{message['type']} {record.get('name') or record.get('type', '')}"


class TestWhatIsThere:
    """Devices and meters that come, change and go, and deleted readings, by any process."""

    def test_a_device_comes_changes_and_goes(
        self, service: Service, pm: PowerManager, token: str
    ) -> None:
        """Each as it happens, with the meters that go with it; what stays as it was is not told."""
        with follow(service, token) as stream:
            receive(stream, "hello")
            pm.register_device("new", "New", target_wh=9.0)
            assert receive_device(stream, "new") == dataclasses.asdict(pm.get_device("new"))
            pm.register_device("new", "New", target_wh=9.0)
            pm.update_device("new", name="Renamed")
            assert receive_device(stream, "new")["name"] == "Renamed"
            meter = pm.add_meter("new", "main")
            receive_meter(stream, meter.id)
            pm.delete_device("new")
            gone = [receive(stream, "deleted") for _ in range(2)]
        nothing = {"type": "deleted", "since": None, "until": None, "device_id": "new"}
        assert gone == [
            {**nothing, "kind": "device", "meter_id": None},
            {**nothing, "kind": "meter", "meter_id": meter.id},
        ]

    def test_what_a_route_deletes_is_told_like_what_others_delete(
        self, service: Service, pm: PowerManager, token: str
    ) -> None:
        """A range of readings with its limits, and then the meter."""
        meter = pm.add_meter("a", "battery")
        pm.log_power(meter.id, 12.0, 1.0, 50.0, timestamp="2026-03-01T10:30:00Z")
        with (
            follow(service, token) as stream,
            service.client(service.token("admin")) as client,
        ):
            receive_meter(stream, meter.id)
            url = f"/v1/meters/{meter.id}"
            since = "2026-03-01T10:00:00Z"
            assert client.delete(f"{url}/readings", params={"since": since}).status_code == 200
            message = {"type": "deleted", "device_id": "a", "meter_id": meter.id, "until": None}
            expected = {**message, "kind": "readings", "since": "2026-03-01T10:00:00.000000+00:00"}
            assert receive(stream, "deleted") == expected
            pm.delete_readings(meter.id, until="2026-03-02T00:00:00Z")
            until = "2026-03-02T00:00:00.000000+00:00"
            expected = {**message, "kind": "readings", "since": None, "until": until}
            assert receive(stream, "deleted") == expected
            assert client.delete(url).status_code == 204
            assert receive(stream, "deleted") == {**message, "kind": "meter", "since": None}
        assert pm.pending_deletions(10_000)[-1].meter_id == meter.id, "they wait to be sent still"

    def test_a_bound_token_is_told_of_its_own_devices(
        self, service: Service, pm: PowerManager
    ) -> None:
        """Also of one that is gone, and not of others."""
        pm.register_device("mine", "Mine")
        bound = service.token("read", devices=["mine"])
        with follow(service, bound) as stream:
            receive(stream, "hello")
            pm.register_device("others", "Others")
            pm.delete_device("others")
            pm.update_device("mine", name="My own")
            assert receive_device(stream, "mine")["name"] == "My own"
            pm.delete_device("mine")
            assert receive(stream, "deleted")["device_id"] == "mine"

    def test_who_is_catching_up_is_told_too(self, tmp_path: Path) -> None:
        """From the hello on nothing is missed, and what is gone does not come after it is gone."""

        async def told() -> list[str]:
            client = Client(object(), EVERYBODY, None, queue=10)  # type: ignore[arg-type]
            hub = Hub.__new__(Hub)
            hub._clients, hub._meters, hub._present, hub.position = {client}, {}, {}, 0
            with PowerManager(tmp_path / "p.db") as pm:
                watcher = Watcher(pm, tmp_path / "p.db", 0.0, clock=stands_still)
                hub._hand_out(look(watcher))
                pm.register_device("a", "A")
                meter = pm.add_meter("a", "main")
                pm.log_power(meter.id, 5.0, 1.0)
                hub._hand_out(look(watcher))
                assert len(client._latest) == 3
                pm.delete_device("a")
                pm.register_device("a", "Another")
                hub._hand_out(look(watcher))
                return [describe(json.loads(text)) for text in client._latest.values()]

        assert asyncio.run(told()) == ["device Another", "deleted meter"]

    def test_an_event_between_two_pages_is_not_missed(self) -> None:
        """One that is handed out while an empty page is on its way: the client was not live yet."""
        event = PowerEvent(
            "e", "a", PowerEventType.RESTORE, 0.0, "2026-03-01T00:00:00.000000+00:00", None
        )
        client = None

        class Socket:
            sent: ClassVar[list[str]] = []

            async def send_text(self, text: str) -> None:
                self.sent.append(describe(json.loads(text)))

        class Between:
            """A storage in which the event is stored, and handed out, while a page is read."""

            pages = 0

            source = SimpleNamespace(events_since=None)

            async def call(self, lane: Lane, function: object, *_: object, **__: object) -> object:
                if lane is Lane.POLL:
                    return Bounds("fleet", 1, 10)
                self.pages += 1
                if self.pages > 1:
                    return [(20, event)]
                changes = Changes()
                changes.add_events([(20, event)])
                hub._hand_out(changes)
                return []

        hub = Hub.__new__(Hub)
        hub._metrics = Metrics()
        hub._meters, hub._present, hub.position = {}, {}, 15

        async def feed() -> None:
            nonlocal client
            client = Client(Socket(), EVERYBODY, None, queue=10)  # type: ignore[arg-type]
            hub._clients = {client}
            hub._storage = Between()  # type: ignore[assignment]
            hub._watcher = SimpleNamespace(bounds=None)
            hub._catching_up = asyncio.Semaphore(1)
            feeding = asyncio.ensure_future(hub._feed(client, Begin(9, None)))
            while not client.live:
                await asyncio.sleep(0)
            feeding.cancel()

        asyncio.run(feed())
        assert Socket.sent == ["hello", "event restore"]

    def test_a_device_that_is_gone_is_not_shown_again(self, tmp_path: Path) -> None:
        """A device came and went while a client took nothing in: only its end is sent."""

        async def told() -> list[str]:
            client = Client(object(), EVERYBODY, None, queue=1)  # type: ignore[arg-type]
            with PowerManager(tmp_path / "p.db") as pm:
                watcher = Watcher(pm, tmp_path / "p.db", 0.0, clock=stands_still)
                watcher.look()
                for _ in range(3):
                    pm.register_device("a", "A")
                    meters = [pm.add_meter("a", "main") for _ in range(5)]
                    pm.log_many([(meter.id, 5.0, 1.0) for meter in meters])
                    for frame in look(watcher).frames:
                        client.offer(frame)
                    pm.delete_device("a")
                    for frame in look(watcher).frames:
                        client.offer(frame)
                assert not client.closing.done(), "however much goes, it is not slow by that"
                return [describe(json.loads(text)) for text in client._latest.values()]

        assert asyncio.run(told()) == ["deleted device", *["deleted meter"] * 15]

    def test_deletions_that_wait_already_are_no_news(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However many wait, and whether or not they are sent on: the next one is told, once."""
        monkeypatch.setattr(watcher_module, "_DELETIONS_A_READ", 3)
        with PowerManager(tmp_path / "p.db") as pm:
            pm.register_device("a", "A")
            meter = pm.add_meter("a", "main")
            for day in range(1, 20):
                pm.delete_readings(meter.id, until=f"2026-03-{day:02}T00:00:00Z")
            watcher = Watcher(pm, tmp_path / "p.db", 0.0, clock=stands_still)
            assert [describe(json.loads(f.text)) for f in look(watcher).frames] == ["meter main"]
            for day in range(1, 30):
                pm.delete_readings(meter.id, until=f"2026-04-{day:02}T00:00:00Z")
                (frame,) = look(watcher).frames
                if day % 7 == 0:
                    pm.acknowledge(pm.pending_deletions(20))
                assert json.loads(frame.text)["until"].startswith(f"2026-04-{day:02}")
            pm.acknowledge(pm.pending_deletions(1000))
            assert look(watcher).frames == []
