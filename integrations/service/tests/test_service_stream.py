"""The stream: nothing lost, nothing twice, whatever happens to the client or the service."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import Start
from power_service.presence import Changes
from power_service.server import LAST_SECONDS
from power_service.tokens import Scope
from power_service.watcher import Watcher
from service_harness import SOON, Service, eventually
from test_service_auth import quick
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from power_manager import PowerManager, StorageError

SLACK = 8.0  # seconds, on a machine that does other things too
# The service without the timer that ends it whatever still runs.
NO_LAST_SECOND = """
import sys
from power_service import cli, server
server.LAST_SECONDS = 600.0
sys.exit(cli.main())
"""
SAYS_WHEN_IT_WRITES = """
import logging, sys
from power_service import cli, storage
write = storage.PowerManager.register_device
def register_device(pm, device_id, *arguments, **options):
    logging.getLogger("test").warning("a writer begins with %s", device_id)
    return write(pm, device_id, *arguments, **options)
storage.PowerManager.register_device = register_device
sys.exit(cli.main())
"""


@pytest.fixture(scope="module")
def pm(service: Service) -> Iterator[PowerManager]:
    """The library on the service's file, as another process would have it open."""
    with PowerManager(service.db) as manager:
        manager.register_device("a", "A")
        manager.register_device("b", "B")
        yield manager


@pytest.fixture(scope="module")
def token(service: Service) -> str:
    """A token that may read everything."""
    return service.token("read")


@pytest.fixture
def cleanup() -> Iterator[contextlib.ExitStack]:
    """What a test opens and does not close."""
    with contextlib.ExitStack() as stack:
        yield stack


def follow(service: Service, token: str, query: str = "") -> ClientConnection:
    """A connection to the stream."""
    headers = {"Authorization": f"Bearer {token}"}
    return connect(
        f"{service.stream_url}?{query}", additional_headers=headers, proxy=None, open_timeout=SOON
    )


def receive(stream: ClientConnection, kind: str, **wanted: Any) -> dict[str, Any]:
    """The next message of that type with those values; others are passed over."""
    deadline = time.monotonic() + SOON
    while True:
        message: dict[str, Any] = json.loads(stream.recv(max(deadline - time.monotonic(), 0)))
        if message["type"] == kind and wanted.items() <= message.items():
            return message


def sequences(stream: ClientConnection, last: int) -> list[int]:
    """The sequences of the events that come, up to the last."""
    found: list[int] = []
    while not found or found[-1] != last:
        found.append(receive(stream, "event")["sequence"])
    return found


def latest(pm: PowerManager) -> int:
    """The sequence of an event that is made now."""
    pm.trigger_event("a", "restore")
    return pm.last_sequence()


def closed(stream: ClientConnection) -> tuple[int, str]:
    """The code and the reason with which the other side closes; fails if it does not."""
    deadline = time.monotonic() + SOON
    with contextlib.suppress(ConnectionClosed):
        while True:
            stream.recv(max(deadline - time.monotonic(), 0))
    assert stream.close_code is not None
    return stream.close_code, stream.close_reason or ""


class TestHello:
    """Where a client begins."""

    @pytest.mark.parametrize(
        ("after", "back", "recovered"),
        [(None, 0, False), (0, 0, True), (-3, 3, True), (-0, 0, True), (10**9, 0, False)],
        ids=["none", "all", "some", "nothing-missed", "of-another-file"],
    )
    def test_a_client_is_told_where_it_begins(
        self,
        service: Service,
        pm: PowerManager,
        token: str,
        after: int | None,
        back: int,
        recovered: bool,
    ) -> None:
        """`recovered` says whether everything after `after` follows."""
        last = latest(pm)
        begin = last if after is None or after > last else (last - back if back else after or 0)
        query = "" if after is None else f"after={after if after > last else begin}"
        with follow(service, token, query) as stream:
            hello = receive(stream, "hello")
            assert hello == {
                "type": "hello",
                "resumed_from": begin,
                "oldest": 1,
                "latest": last,
                "recovered": recovered,
                "file_id": pm.file_id,
            }
            pm.trigger_event("a", "restore")
            assert sequences(stream, last + 1) == list(range(begin + 1, last + 2))

    def test_a_sequence_of_another_line_of_history_is_none(
        self, make_service: Start, tmp_path: Path
    ) -> None:
        """Where a backup has taken the file's place, its events count anew from the backup's on."""
        service = make_service("--no-auth")
        with PowerManager(service.db) as manager:
            manager.register_device("a", "A")
            add_events(manager, 10)
            manager.backup(tmp_path / "copy.db")
            add_events(manager, 5)
            before = manager.file_id
            service.start()
            with follow(service, "", f"after=10&file_id={before}") as stream:
                hello = receive(stream, "hello")
                assert (hello["recovered"], hello["file_id"]) == (True, before)
                assert sequences(stream, 15) == [11, 12, 13, 14, 15]
            service.end()
            manager.restore(tmp_path / "copy.db")
            add_events(manager, 8)
            service.start()
            for query in (f"after=15&file_id={before}", f"after=18&file_id={before}"):
                with follow(service, "", query) as stream:
                    hello = receive(stream, "hello")
                    assert (hello["resumed_from"], hello["latest"]) == (18, 18)
                    assert (hello["recovered"], hello["file_id"]) == (False, manager.file_id)
            with follow(service, "", f"after=15&file_id={manager.file_id}") as stream:
                assert receive(stream, "hello")["recovered"] is True
                assert sequences(stream, 18) == [16, 17, 18]

    def test_who_polls_is_told_the_same(self, make_service: Start, tmp_path: Path) -> None:
        """A place of another line, or beyond the last event, is told, and polling goes on after."""
        service = make_service("--no-auth")
        with PowerManager(service.db) as manager, service.client() as client:
            manager.register_device("a", "A")
            add_events(manager, 5)
            manager.backup(tmp_path / "copy.db")
            before = manager.file_id
            manager.restore(tmp_path / "copy.db")
            add_events(manager, 1)
            service.start()

            def page(**query: int | str) -> tuple[list[int], int, bool]:
                answer = client.get("/v1/events", params=query).json()
                assert answer["file_id"] == manager.file_id != before
                found = [event["sequence"] for event in answer["events"]]
                return found, answer["next_after"], answer["recovered"]

            assert page(after=3) == ([4, 5, 6], 6, True)
            assert page(after=3, file_id=manager.file_id) == ([4, 5, 6], 6, True)
            assert page(after=6) == ([], 6, True)
            assert page(after=3, limit=1) == ([4], 4, True)
            assert page(after=999_999) == ([], 6, False)
            assert page(after=5, file_id=before) == ([], 6, False)
            manager.register_device("b", "B")
            manager.trigger_event("b", "restore")
            manager.delete_device("a")
            assert page(after=3) == ([7], 7, False), "events are missing"
            assert page(after=6) == ([7], 7, True)

    def test_an_empty_file_begins_at_nothing(self, make_service: Start) -> None:
        """And its first event comes."""
        service = make_service("--no-auth").start()
        with follow(service, "") as stream, PowerManager(service.db) as manager:
            hello = receive(stream, "hello")
            assert (hello["oldest"], hello["latest"], hello["resumed_from"]) == (0, 0, 0)
            manager.register_device("a", "A")
            manager.trigger_event("a", "restore")
            assert receive(stream, "event")["sequence"] == 1


class TestLive:
    """What any process writes."""

    def test_frames_are_compressed_for_who_takes_it(self, service: Service, token: str) -> None:
        """As browsers do; and not for others."""
        headers = {"Authorization": f"Bearer {token}"}
        for offered, taken in (("deflate", ["permessage-deflate"]), (None, [])):
            with connect(
                service.stream_url, additional_headers=headers, proxy=None, compression=offered
            ) as stream:
                receive(stream, "hello")
                assert [extension.name for extension in stream.protocol.extensions] == taken

    def test_events_readings_and_states_come_as_they_are_written(
        self, service: Service, pm: PowerManager, token: str
    ) -> None:
        """The library's records, name by name."""
        meter = pm.add_meter("a", "battery", 50.0, "Pack")
        with follow(service, token) as stream:
            receive(stream, "hello")
            assert receive_meter(stream, meter.id)["state"] == "charging", (
                "its present state comes first"
            )
            logged = pm.log_power(meter.id, 3.7, 0.5, 4.0)
            # A look reads events first: one that is written during it comes after its reading.
            found = receive_each(stream, "event", "reading", "meter")
            event = found["event"]["event"]
            assert (event["type"], event["value"], event["timestamp"]) == (
                "low_battery",
                4.0,
                logged.timestamp,
            )
            reading = found["reading"]["reading"]
            assert reading == {name: getattr(logged, name) for name in logged.__slots__}
            assert found["meter"]["meter"]["id"] == meter.id
            assert found["meter"]["meter"]["state"] == "critical"

    def test_a_new_meters_first_reading_comes(
        self, service: Service, pm: PowerManager, token: str
    ) -> None:
        """Also where both are written at once."""
        with follow(service, token) as stream:
            receive(stream, "hello")
            with pm.transaction():
                meter = pm.add_meter("a", "main")
                pm.log_power(meter.id, 5.0, 1.0)
            assert receive(stream, "reading")["reading"]["meter_id"] == meter.id

    def test_new_thresholds_are_a_new_state(
        self, service: Service, pm: PowerManager, token: str
    ) -> None:
        """A meter's state is more than its reading."""
        pm.register_device("threshold", "T")
        meter = pm.add_meter("threshold", "battery")
        pm.log_power(meter.id, 3.7, 0.1, 30.0)
        with follow(service, token, "device_id=threshold") as stream:
            # The service may have looked before the reading.
            while (state := receive_meter(stream, meter.id)["state"]) != "normal":
                assert state == "charging"
            pm.register_device("threshold", "T", low_battery_threshold=40.0)
            assert receive_meter(stream, meter.id)["state"] == "low"
        pm.register_device("threshold", "T")

    def test_a_meter_that_is_retired_is_a_new_state_and_one_that_is_deleted_is_forgotten(
        self, service: Service, pm: PowerManager, token: str
    ) -> None:
        """Who connects later is told of the meters that there are."""
        pm.register_device("retire", "R")
        kept = pm.add_meter("retire", "main")
        gone = pm.add_meter("retire", "solar")
        with follow(service, token, "device_id=retire") as stream:
            receive_meter(stream, gone.id)
            pm.update_meter(kept.id, active=False)
            while receive_meter(stream, kept.id)["active"]:
                pass
            pm.delete_meter(gone.id)
            pm.update_meter(kept.id, name="Supply")
            while receive_meter(stream, kept.id)["name"] != "Supply":
                pass
        with follow(service, token, "device_id=retire") as stream:
            receive(stream, "hello")
            pm.log_power(kept.id, 5.0, 1.0)
            seen = [receive(stream, "meter")["meter"]]
            while seen[-1]["voltage"] != 5.0:
                seen.append(receive(stream, "meter")["meter"])
            assert {meter["id"] for meter in seen} == {kept.id}
            assert seen[-1]["active"], "a reading that becomes its present state brings it back"

    def test_a_reading_without_watts_comes_as_it_is(
        self, service: Service, pm: PowerManager, token: str
    ) -> None:
        """Null is not 0."""
        meter = pm.add_meter("a", "ups")
        with follow(service, token) as stream:
            receive_meter(stream, meter.id)
            pm.log_power(meter.id, 230.0, None, 70.0)
            reading = receive(stream, "reading")["reading"]
            assert (reading["voltage"], reading["current_draw"]) == (230.0, None)
            assert (reading["wattage"], reading["charge_pct"]) == (None, 70.0)
            state = receive_meter(stream, meter.id)
            assert (state["wattage"], state["power_known"]) == (None, False)

    def test_a_reading_of_the_last_moment_of_all_stops_nothing(
        self, service: Service, pm: PowerManager, token: str
    ) -> None:
        """It comes, as what follows does: there is no time after it to look for."""
        first, second = pm.add_meter("a", "main"), pm.add_meter("a", "main")
        with follow(service, token) as stream:
            receive_meter(stream, second.id)
            last = "2200-12-31T23:59:59.999999+00:00"
            pm.log_power(first.id, 5.0, 1.0, timestamp=last)
            assert receive(stream, "reading")["reading"]["timestamp"] == last
            pm.log_power(second.id, 6.0, 1.0)
            assert receive(stream, "reading")["reading"]["voltage"] == 6.0

    def test_of_fast_readings_only_the_latest_come(
        self, service: Service, pm: PowerManager, token: str
    ) -> None:
        """At most one a meter each 250 ms, and always the last one."""
        meter = pm.add_meter("a", "main")
        with follow(service, token) as stream:
            receive(stream, "hello")
            begin = time.monotonic()
            for number in range(300):
                pm.log_power(meter.id, float(number), 1.0)
            writing = time.monotonic() - begin
            voltages: list[float] = []
            while not voltages or voltages[-1] != 299.0:
                voltages.append(receive(stream, "reading")["reading"]["voltage"])
        assert voltages == sorted(set(voltages))
        assert len(voltages) <= writing / 0.25 + 2

    def test_only_the_devices_that_are_asked_for(
        self, service: Service, pm: PowerManager, token: str
    ) -> None:
        """Several may be."""
        with follow(service, token, "device_id=b&device_id=c") as stream:
            receive(stream, "hello")
            pm.trigger_event("a", "shutdown")
            pm.trigger_event("b", "restore")
            assert receive(stream, "event")["event"]["device_id"] == "b"

    def test_a_bound_token_follows_its_own_device(self, service: Service, pm: PowerManager) -> None:
        """Others' events are not there, and cannot be asked for."""
        bound = service.token("read", devices=["b"])
        with follow(service, bound, "after=0") as stream:
            last = latest(pm)
            pm.trigger_event("b", "charge_start")
            found = [receive(stream, "event") for _ in range(len(pm.get_events("b", 10_000)))]
        assert {message["event"]["device_id"] for message in found} == {"b"}
        assert found[-1]["sequence"] == last + 1
        with follow(service, bound, "device_id=a") as stream:
            assert closed(stream) == (4403, "forbidden_device")

    def test_heartbeats_say_how_far_all_is_sent(self, make_service: Start) -> None:
        """Also for a client whose devices are silent, so that it can resume from there."""
        service = make_service("--no-auth", program=quick("heartbeat_seconds=0.2")).start()
        with PowerManager(service.db) as manager, follow(service, "", "device_id=silent") as stream:
            manager.register_device("a", "A")
            manager.trigger_event("a", "restore")
            assert receive(stream, "heartbeat", latest=1)["timestamp"].endswith("+00:00")


class TestALookThatFails:
    """The file cannot be read for a while: whatever was written comes all the same, once."""

    def test_events_come_while_the_meters_cannot_be_read(self, make_service: Start) -> None:
        """And the meters when they can be read again; meanwhile the log says what is wrong."""
        service = make_service("--no-auth").start()
        with PowerManager(service.db) as manager, follow(service, "", "after=0") as stream:
            manager.register_device("a", "A")
            meter = manager.add_meter("a", "main")
            receive_meter(stream, meter.id)
            with manager.connection() as conn:
                add_events(manager, 2)
                conn.execute("UPDATE power_meters SET state_us = 9223372036854775807")
            assert sequences(stream, 2) == [1, 2]
            eventually(lambda: "cannot read the database" in service.log.read_text())
            add_events(manager, 1)
            assert sequences(stream, 3) == [3]
            with manager.connection() as conn:
                conn.execute("UPDATE power_meters SET state_us = NULL")
                add_events(manager, 1)
            manager.update_meter(meter.id, name="Mended")
            while receive_meter(stream, meter.id)["name"] != "Mended":
                pass
        with follow(service, "", "after=0") as stream:
            assert sequences(stream, 4) == [1, 2, 3, 4]

    @pytest.mark.parametrize(
        "part",
        [
            "events_since",
            "list_meters",
            "iter_history",
            "file_id",
            "list_devices",
            "pending_deletions",
        ],
    )
    @pytest.mark.parametrize("error", [MemoryError(), StorageError("p.db", "x", "SQLITE_IOERR")])
    def test_each_part_of_a_look_that_fails_is_made_up_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, error: Exception
    ) -> None:
        """Whichever library call fails, nothing is missing afterwards, nothing comes twice."""
        path = tmp_path / "p.db"
        with PowerManager(path) as writer, PowerManager(path) as pm:
            writer.register_device("a", "A")
            meter = writer.add_meter("a", "main")
            # A look takes no time by that clock, so that the next one need not wait.
            watcher = Watcher(pm, path, reading_seconds=0.0, clock=lambda: 0.0)
            watcher.look()
            writer.log_power(meter.id, 5.0, 1.0)
            add_events(writer, 2)
            with monkeypatch.context() as patch:
                patch.setattr(PowerManager, part, failing(error, as_property=part == "file_id"))
                first = look(watcher)
            add_events(writer, 1)
            second = look(watcher)
        assert (first.error, second.error) == (error, None)
        frames = first.frames + second.frames
        assert [frame.sequence for frame in frames if frame.sequence] == [1, 2, 3]
        assert len([frame for frame in frames if frame.key.startswith("reading")]) == 1
        assert len([frame for frame in frames if frame.key.startswith("meter")]) == 1

    def test_a_change_that_cannot_be_handed_out_closes_the_clients(
        self, make_service: Start
    ) -> None:
        """Some may have it: each comes back with its last sequence, and then nothing is missing."""
        service = make_service("--no-auth", program=("-c", FAILS_TO_HAND_OUT_ONCE)).start()
        with PowerManager(service.db) as manager:
            manager.register_device("a", "A")
            add_events(manager, 1)
            with follow(service, "", "after=0") as stream:
                assert sequences(stream, 1) == [1]
                add_events(manager, 2)
                assert closed(stream)[0] == 1011
            with follow(service, "", "after=1") as stream:
                add_events(manager, 1)
                assert sequences(stream, 4) == [2, 3, 4]


class TestGettingIn:
    """Tokens by subprotocol, header or ticket."""

    def test_a_token_as_subprotocol(self, service: Service, token: str) -> None:
        """The answer names the other one, and the token only where nothing else was offered."""
        for offered, chosen in (
            (["power.v1", f"token.{token}"], "power.v1"),
            ([f"token.{token}"], f"token.{token}"),
        ):
            with connect(
                service.stream_url, subprotocols=list(map(Subprotocol, offered)), proxy=None
            ) as stream:
                assert stream.subprotocol == chosen
                receive(stream, "hello")

    def test_a_ticket_once(self, service: Service, token: str) -> None:
        """Asked for with the token, then used up."""
        with service.client(token) as client:
            ticket = client.post("/v1/stream/tickets").json()["ticket"]
        with connect(f"{service.stream_url}?ticket={ticket}", proxy=None) as stream:
            receive(stream, "hello")
        with connect(f"{service.stream_url}?ticket={ticket}", proxy=None) as stream:
            assert closed(stream) == (4401, "unauthorized")

    @pytest.mark.parametrize(
        ("query", "scope", "expected"),
        [
            ("", None, (4401, "unauthorized")),
            ("", "write", (4403, "forbidden_scope")),
            ("after=x", "read", (4422, "invalid_value")),
            ("after=-1", "read", (4422, "invalid_value")),
            ("after=99999999999999999999", "read", (4422, "invalid_value")),
            ("ticket=x", "read", (4401, "unauthorized")),
            ("device=a", "read", (4422, "invalid_value")),
            ("after=5&after=0", "read", (4422, "invalid_value")),
        ],
    )
    def test_refusals_are_close_codes_that_a_browser_can_see(
        self, service: Service, query: str, scope: str | None, expected: tuple[int, str]
    ) -> None:
        """4000 + the status, with the problem's code."""
        with follow(service, service.token(scope) if scope else "wrong", query) as stream:
            assert closed(stream) == expected

    def test_a_revoked_token_ends_its_streams(self, service: Service) -> None:
        """Within a second or so."""
        text, grant = service.tokens.new("x", [Scope.READ])
        with follow(service, text) as stream:
            receive(stream, "hello")
            service.tokens.revoke(grant.id)
            assert closed(stream) == (4401, "unauthorized")

    def test_a_client_has_nothing_to_say(self, service: Service, token: str) -> None:
        """A little is ignored; much, or a long message, ends the connection."""
        with follow(service, token) as stream:
            stream.send("x" * 5000)
            assert closed(stream)[0] == 1009
        with follow(service, token) as stream:
            for _ in range(1000):
                stream.send("hello?")
            assert closed(stream)[0] == 1008


class TestSlowClients:
    """A client that does not keep up is closed, and loses nothing."""

    def test_a_slow_client_is_closed_with_1013_and_resumes(
        self, make_service: Start, cleanup: contextlib.ExitStack
    ) -> None:
        """Its queue is bounded; after it comes everything else, once."""
        service = make_service("--no-auth", program=quick("queue=50")).start()
        with PowerManager(service.db, durability="normal") as manager, service.client() as client:
            manager.register_device("a", "A")
            slow, rounds = cleanup.enter_context(SlowClient(service.port)), 0
            while "power_service_slow_clients_total 1.0" not in client.get("/metrics").text:
                with manager.transaction():
                    for _ in range(100):
                        manager.trigger_event("a", "restore", note="x" * 10_000)
                rounds += 1
                assert rounds < 100, "the queue is not bounded"
                # One round after the other: the service may be slower than this writer.
                wait_until_handed_out(client, rounds * 100)
            got, code = slow.read_all()
            assert code == 1013
            assert got == list(range(1, len(got) + 1))
            total = rounds * 100
            assert len(got) < total
            with follow(service, "", f"after={got[-1]}") as stream:
                assert receive(stream, "hello")["recovered"] is True
                assert sequences(stream, total) == list(range(got[-1] + 1, total + 1))

    def test_a_client_that_takes_in_nothing_is_cut(
        self, make_service: Start, cleanup: contextlib.ExitStack
    ) -> None:
        """Even where it never answers the close frame."""
        service = make_service(
            "--no-auth", program=quick("queue=10_000, stall_seconds=0.5")
        ).start()
        with PowerManager(service.db, durability="normal") as manager, service.client() as client:
            manager.register_device("a", "A")
            with manager.transaction():
                for _ in range(1500):
                    manager.trigger_event("a", "restore", note="x" * 10_000)
            slow = cleanup.enter_context(SlowClient(service.port, "after=0"))
            eventually(
                lambda: "power_service_slow_clients_total 1.0" in client.get("/metrics").text
            )
            eventually(lambda: "power_service_stream_clients 0.0" in client.get("/metrics").text)
            eventually(lambda: not established(service.pid, slow.port))


class TestTheEnd:
    """The service ends, or its file does."""

    @pytest.mark.parametrize(("sig", "expected"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
    @pytest.mark.parametrize("program", [(), ("-c", NO_LAST_SECOND)], ids=["as-it-is", "slow"])
    def test_it_ends_within_two_seconds_with_clients_connected(
        self,
        make_service: Start,
        cleanup: contextlib.ExitStack,
        program: tuple[str, ...],
        sig: int,
        expected: int,
    ) -> None:
        """Clients are told that it restarts; one that does not listen does not hold it up.

        On a machine on which that takes seconds, it ends without a word: so who is told what is
        asked of a service that takes its time.
        """
        service = make_service("--no-auth", program=program).start()
        with PowerManager(service.db, durability="normal") as manager:
            manager.register_device("a", "A")
            with manager.transaction():
                for _ in range(1000):
                    manager.trigger_event("a", "restore", note="x" * 10_000)
        cleanup.enter_context(SlowClient(service.port, "after=0"))
        streams = [cleanup.enter_context(follow(service, "")) for _ in range(20)]
        for stream in streams:
            receive(stream, "hello")
        with socket.create_connection(("127.0.0.1", service.port)) as idle:
            idle.sendall(
                b"POST /v1/readings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n"
            )
            code, seconds = service.end(sig)
        assert (code, seconds < 2 + SLACK) == (expected, True), seconds
        if program:
            assert {closed(stream)[0] for stream in streams} == {1012}

    def test_it_ends_within_two_seconds_while_a_call_hangs(self, make_service: Start) -> None:
        """A writer that waits for a locked file is left behind: its client got no answer."""
        service = make_service("--no-auth", program=("-c", SAYS_WHEN_IT_WRITES)).start()
        with PowerManager(service.db) as manager, service.client() as client:
            client.put("/v1/devices/a", json={"name": "A"})
            with manager.transaction():
                manager.trigger_event("a", "restore")
                waiting = threading.Thread(target=put_in_vain, args=(service, "/v1/devices/b"))
                waiting.start()
                eventually(lambda: "a writer begins with b" in service.log.read_text())
                assert client.get("/healthz").status_code == 200
                code, seconds = service.end()
                waiting.join()
        assert (code, seconds < 2 + SLACK) == (0, True), seconds
        assert LAST_SECONDS < 2

    def test_a_replaced_file_ends_the_service(self, make_service: Start, tmp_path: Path) -> None:
        """So that whoever looks after it starts it on the new one."""
        service = make_service("--no-auth").start()
        with PowerManager(tmp_path / "other.db") as other:
            other.register_device("new", "New")
            other.backup(tmp_path / "copy.db")
        (tmp_path / "copy.db").replace(service.db)
        for suffix in ("-wal", "-shm"):
            service.db.with_name(service.db.name + suffix).unlink(missing_ok=True)
        assert service.wait() == 1
        assert "replaced" in service.log.read_text()

    def test_a_backup_that_is_restored_under_it_ends_the_service(
        self, make_service: Start, tmp_path: Path
    ) -> None:
        """Its content is another line of history: clients are told to come back and begin on it."""
        service = make_service("--no-auth").start()
        with PowerManager(service.db) as manager:
            manager.register_device("a", "A")
            manager.trigger_event("a", "restore")
            manager.backup(tmp_path / "copy.db")
            manager.trigger_event("a", "restore")
            with follow(service, "", "after=0") as stream:
                assert sequences(stream, 2) == [1, 2]
                manager.restore(tmp_path / "copy.db")
                assert closed(stream)[0] == 1012
            assert service.wait() == 1
            assert "restored" in service.log.read_text()
            service.start()
            with follow(service, "", "after=2") as stream:
                hello = receive(stream, "hello")
                assert (hello["latest"], hello["recovered"]) == (1, False)

    def test_clients_resume_after_a_restart(self, make_service: Start) -> None:
        """Events that were written meanwhile come, once."""
        service = make_service("--no-auth").start()
        with PowerManager(service.db) as manager:
            manager.register_device("a", "A")
            manager.trigger_event("a", "restore")
            with follow(service, "", "after=0") as stream:
                assert sequences(stream, 1) == [1]
                service.end(signal.SIGKILL)
            manager.trigger_event("a", "restore")
            service.start()
            with follow(service, "", "after=1") as stream:
                assert receive(stream, "hello")["recovered"] is True
                manager.trigger_event("a", "restore")
                assert sequences(stream, 3) == [2, 3]


def add_events(pm: PowerManager, count: int) -> None:
    """Record so many events of the device a."""
    for _ in range(count):
        pm.trigger_event("a", "restore")


def wait_until_handed_out(client: httpx2.Client, count: int) -> None:
    """Wait until the stream has handed out so many restore events."""
    line = f'power_events_total{{type="restore"}} {count}.0'
    eventually(lambda: line in client.get("/metrics").text)


def failing(error: Exception, as_property: bool) -> Any:
    """A method, or a property, that raises."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return property(fail) if as_property else fail


def look(watcher: Watcher) -> Changes:
    """What a look finds, also where all of it fails."""
    try:
        return watcher.look() or Changes()
    except (MemoryError, StorageError) as error:
        return Changes(error=error)


FAILS_TO_HAND_OUT_ONCE = """
import sys
from power_service import cli, clients
offer = clients.Client.offer
failed = []
def offer_or_fail(client, frame):
    if frame.sequence == 2 and not failed:
        failed.append(True)
        raise MemoryError
    offer(client, frame)
clients.Client.offer = offer_or_fail
sys.exit(cli.main())
"""


def receive_meter(stream: ClientConnection, meter_id: str) -> dict[str, Any]:
    """The next state of that meter."""
    while True:
        meter: dict[str, Any] = receive(stream, "meter")["meter"]
        if meter["id"] == meter_id:
            return meter


def receive_each(stream: ClientConnection, *kinds: str) -> dict[str, dict[str, Any]]:
    """The next message of each of these types, by type, in whichever order they come."""
    found: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + SOON
    while found.keys() != set(kinds):
        message: dict[str, Any] = json.loads(stream.recv(max(deadline - time.monotonic(), 0)))
        if message["type"] in kinds:
            found.setdefault(message["type"], message)
    return found


def put_in_vain(service: Service, url: str) -> None:
    """Make a request whose server goes away."""
    with contextlib.suppress(httpx2.HTTPError), service.client() as client:
        client.put(url, json={"name": "B"})


def established(pid: int, port: int) -> bool:
    """Whether a process has a connection to that port of this machine."""
    wanted = f":{port:04X}"
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[2].endswith(wanted) and line.split()[3] == "01" for line in lines)


class SlowClient:
    """A WebSocket client that reads nothing until it is told to, with a small buffer."""

    def __init__(self, port: int, query: str = "") -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(SOON)
        self._socket.connect(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        head = f"GET /v1/stream?{query} HTTP/1.1\r\nHost: localhost\r\n"
        head += "Upgrade: websocket\r\nConnection: Upgrade\r\n"
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        self._socket.sendall((head + key).encode())
        self._file = self._socket.makefile("rb")
        assert b"101" in self._file.readline()
        while self._file.readline() != b"\r\n":
            pass

    def read_all(self) -> tuple[list[int], int]:
        """The sequences of all events up to the close frame, and its code."""
        found: list[int] = []
        while True:
            opcode, payload = self._frame()
            if opcode == 8:
                return found, struct.unpack("!H", payload[:2])[0]
            if opcode == 1 and (message := json.loads(payload))["type"] == "event":
                found.append(message["sequence"])

    def _frame(self) -> tuple[int, bytes]:
        first, length = self._file.read(2)
        if length > 125:
            size = 2 if length == 126 else 8
            length = int.from_bytes(self._file.read(size), "big")
        return first & 15, self._file.read(length)

    def __enter__(self) -> SlowClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()
        self._socket.close()
