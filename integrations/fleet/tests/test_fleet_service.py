"""The service over a fleet: the routes answer as over the file that was carried into the engine,
and nothing writes.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from chaos_common import same
from fastapi import FastAPI
from fleet_harness import HOUR, NOW, Clock, carry, emptied, random_device
from hub_process import running_hub
from power_fleet.discovery import HUB_VARIABLE
from power_fleet.engine import Engine
from power_fleet.read import FleetSource, open_source
from power_fleet.read_hub import count_messages, stream_of
from power_service import cli
from power_service.app import create_app
from power_service.server import make_server
from power_service.settings import Refused, Settings
from power_service.tokens import Scope, TokenFile
from servers import SOON
from starlette.testclient import TestClient
from websockets.sync.client import connect

from power_manager import PowerManager, StorageError, from_microseconds

DEVICES = ["edge-1", "edge-2", "edge-3"]
CONTRACT = json.loads(
    (Path(__file__).parents[2] / "service" / "openapi.json").read_text(encoding="utf-8")
)
OPERATIONS = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, methods in CONTRACT["paths"].items()
    for method, operation in methods.items()
}
SENT = {
    "putDevice": {"name": "Other"},
    "updateDevice": {"name": "Other"},
    "addMeter": {"type": "main"},
    "updateMeter": {"name": "Other"},
    "postReadings": {"meter_id": "m", "voltage": 1, "current_draw": 1},
    "triggerEvent": {"type": "restore"},
}


@dataclass
class Pair:
    """A service over a file, and one over the fleet to which that file was sent."""

    file: TestClient
    fleet: TestClient
    fleet_tokens: TokenFile
    meters: list[str]

    def bearer(self, *scopes: Scope, devices: list[str] | None = None) -> dict[str, str]:
        """The header of a new token of the fleet's service."""
        token, _ = self.fleet_tokens.new("test", scopes or [Scope.READ], devices)
        return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, new_urls: list[str]) -> Iterator[Pair]:
    """Three devices in one file and in an engine, and a clock that stands."""
    directory = tmp_path_factory.mktemp("services")
    clock = Clock()
    db = directory / "power.db"
    for seed, device_id in enumerate(DEVICES):
        random_device(db, seed, device_id, clock).close()
    engine = Engine(emptied(new_urls))
    with PowerManager(db, clock=clock) as pm:
        carry(pm, engine, site="here")
        meters = [meter.id for meter in pm.list_meters()]
    engine.shards[0].insert(
        "power_fresh", {"name": "String", "fresh": "UInt64"}, [["stream", int(NOW * 1e6)]]
    )
    tokens = TokenFile(directory / "fleet.tokens.json")
    of_file = Settings(db=db, no_auth=True, rate=0)
    of_fleet = Settings(fleet=tuple(new_urls), tokens=tokens.path, rate=0)
    with (
        TestClient(service(of_file, clock), base_url="http://127.0.0.1") as file,
        TestClient(service(of_fleet, clock), base_url="http://127.0.0.1") as fleet,
    ):
        yield Pair(file, fleet, tokens, meters)


def service(settings: Settings, clock: Callable[[], float] = time.time) -> FastAPI:
    """The service as it would be started now."""
    return create_app(settings, clock)[1]


def since(hours: float) -> str:
    """So long ago."""
    return from_microseconds(int((NOW - hours * HOUR) * 1e6)).replace("+", "%2B")


READING = [
    "/v1/devices",
    "/v1/devices/edge-1",
    "/v1/devices/nobody",
    "/v1/meters",
    "/v1/meters?device_id=edge-2",
    "/v1/meters?device_id=nobody",
    "/v1/meters/{meter}",
    "/v1/meters/nobody",
    "/v1/meters/{meter}/readings",
    "/v1/meters/{meter}/readings?limit=7",
    f"/v1/meters/{{meter}}/readings?since={since(60)}&until={since(20)}",
    "/v1/meters/{meter}/readings?max_points=8",
    "/v1/meters/{meter}/series?max_points=16",
    "/v1/meters/nobody/readings",
    "/v1/meters/{meter}/statistics",
    "/v1/meters/{meter}/statistics?days=30&bucket=day",
    f"/v1/meters/{{meter}}/statistics?since={since(100)}&until={since(50)}",
    "/v1/meters/nobody/statistics",
    "/v1/devices/edge-3/events?limit=5",
    "/v1/devices/nobody/events",
    "/v1/devices/edge-1/runtime",
    "/v1/devices/edge-1/runtime?window_minutes=600",
    "/v1/devices/nobody/runtime",
    "/v1/devices/edge-1/report?days=3",
    "/v1/devices/nobody/report",
    "/v1/budget",
    "/v1/budget?device_id=edge-3&device_id=edge-1",
    "/v1/sparklines?device=edge-1&device=edge-2&device=nobody",
    "/v1/meters/{meter}/readings?limit=0",
    "/v1/meters/{meter}/statistics?days=-1",
]


@pytest.mark.parametrize("path", READING)
def test_a_fleet_answers_as_its_files_do(pair: Pair, path: str) -> None:
    """The same status and content, floats to a millionth; problems by their codes."""
    headers = pair.bearer()
    for meter in pair.meters[:2] if "{meter}" in path else [""]:
        url = path.replace("{meter}", meter)
        expected = pair.file.get(url)
        found = pair.fleet.get(url, headers=headers)
        assert found.status_code == expected.status_code
        assert found.headers["content-type"] == expected.headers["content-type"]
        if expected.is_success:
            assert same(expected.json(), found.json())
        else:
            assert found.json()["code"] == expected.json()["code"]


def test_pages_of_readings_end_where_the_files_do(pair: Pair) -> None:
    """By cursors, page by page."""
    headers = pair.bearer()
    pages = []
    for client in (pair.file, pair.fleet):
        url = f"/v1/meters/{pair.meters[0]}/readings?limit=9"
        found: list[Any] = []
        page = client.get(url, headers=headers).json()
        while page["next_cursor"] is not None:
            found += page["readings"]
            page = client.get(f"{url}&cursor={page['next_cursor']}", headers=headers).json()
        pages.append(found + page["readings"])
    assert len(pages[0]) > 50
    assert pages[0] == pages[1]


def test_events_are_followed(pair: Pair) -> None:
    """Each of the files' events once, by numbers that rise."""
    headers = pair.bearer()
    expected = [one["event"]["id"] for one in pair.file.get("/v1/events").json()["events"]]
    found, after = [], 0
    while True:
        page = pair.fleet.get(f"/v1/events?after={after}&limit=8", headers=headers).json()
        if not page["events"]:
            break
        found += [one["event"]["id"] for one in page["events"]]
        assert page["next_after"] > after
        after = page["next_after"]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    "operation_id",
    [
        name
        for name, (_, _, operation) in OPERATIONS.items()
        if {"write", "admin"} & {s for one in operation.get("security", []) for s in one["bearer"]}
    ],
)
def test_what_writes_is_refused_by_name(pair: Pair, operation_id: str) -> None:
    """With what would do instead, whoever asks for it; and without the scope as everywhere."""
    method, path, operation = OPERATIONS[operation_id]
    assert "409" in operation["responses"]
    url = path.replace("{device_id}", "edge-1").replace("{meter_id}", pair.meters[0])
    sent = SENT.get(operation_id)
    found = pair.fleet.request(method, url, json=sent, headers=pair.bearer(Scope.ADMIN))
    assert (found.status_code, found.json()["code"]) == (409, "needs_a_file")
    assert "power-manager" in found.json()["detail"]
    refused = pair.fleet.request(method, url, json=sent, headers=pair.bearer())
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden_scope")


def test_the_page_learns_that_nothing_can_be_written(pair: Pair) -> None:
    """Of an admin's scopes reading is left; there is no file to name."""
    assert pair.fleet.get("/v1/me", headers=pair.bearer(Scope.ADMIN)).json() == {
        "name": "test",
        "scopes": ["read"],
        "devices": None,
        "database": None,
        "source": "fleet",
    }


class TestBoundTokens:
    """A token of one device sees that device, as over a file."""

    def test_lists_leave_the_others_out(self, pair: Pair) -> None:
        """Devices, meters, budgets, events, and what the fleet knows of each."""
        headers = pair.bearer(devices=["edge-1"])

        def get(path: str) -> Any:
            return pair.fleet.get(path, headers=headers).json()

        assert [device["id"] for device in get("/v1/devices")] == ["edge-1"]
        assert {meter["device_id"] for meter in get("/v1/meters")} == {"edge-1"}
        assert list(get("/v1/budget")) == ["edge-1"]
        events = get("/v1/events")["events"]
        assert {one["event"]["device_id"] for one in events} == {"edge-1"}
        assert [device["device_id"] for device in get("/v1/fleet/devices")] == ["edge-1"]
        assert {row["device_id"] for row in get("/v1/fleet/silent?minutes=0")} <= {"edge-1"}

    @pytest.mark.parametrize(
        "path",
        [
            "/v1/devices/edge-2",
            "/v1/devices/nobody",
            "/v1/devices/edge-2/events",
            "/v1/devices/edge-2/report",
            "/v1/devices/edge-2/runtime",
            "/v1/budget?device_id=edge-2",
            "/v1/meters?device_id=edge-2",
            "/v1/meters/{others}",
            "/v1/meters/nobody",
            "/v1/meters/{others}/readings",
            "/v1/meters/{others}/series",
            "/v1/meters/{others}/statistics",
            "/v1/sparklines?device=edge-2",
            "/v1/fleet",
            "/v1/fleet/energy",
            "/metrics",
        ],
    )
    def test_everything_else_is_forbidden(self, pair: Pair, path: str) -> None:
        """Whether it is there or not."""
        others = pair.meters[-1]
        url = path.replace("{others}", others)
        found = pair.fleet.get(url, headers=pair.bearer(devices=["edge-1"]))
        assert (found.status_code, found.json()["code"]) == (403, "forbidden_device")


class TestWhatAFleetHas:
    """/v1/fleet."""

    def test_how_far_it_is(self, pair: Pair) -> None:
        """By the stream's clock."""
        found = pair.fleet.get("/v1/fleet", headers=pair.bearer()).json()
        assert found["fresh_as_of"] == "2026-09-21T14:13:20.000000+00:00"

    def test_its_devices(self, pair: Pair) -> None:
        """Site, version, when they were heard of; no alarms."""
        found = pair.fleet.get("/v1/fleet/devices", headers=pair.bearer()).json()
        assert [device["device_id"] for device in found] == DEVICES
        for device in found:
            assert device["site"] == "here"
            assert device["last_seen"]
            assert device["alarms"] == []

    def test_an_alarm_stands_until_it_is_cleared(self, pair: Pair, new_urls: list[str]) -> None:
        """With since when, and why."""
        from power_fleet import tables

        engine = Engine(new_urls)
        at = int(NOW * 1e6)
        alarm = ["edge-2", "silent", at, "nothing for 60 min", 0]
        engine.shards[0].insert("power_alarms", tables.ALARMS, [alarm])
        (device,) = (
            one
            for one in pair.fleet.get("/v1/fleet/devices", headers=pair.bearer()).json()
            if one["alarms"]
        )
        assert (device["device_id"], device["alarms"]) == (
            "edge-2",
            [{"kind": "silent", "since": from_microseconds(at), "note": "nothing for 60 min"}],
        )
        engine.shards[0].insert("power_alarms", tables.ALARMS, [[*alarm[:4], at + 1]])
        found = pair.fleet.get("/v1/fleet/devices", headers=pair.bearer()).json()
        assert not any(one["alarms"] for one in found)

    def test_energy_and_silence(self, pair: Pair, new_urls: list[str]) -> None:
        """As the fleet itself says."""
        source = FleetSource(lambda: new_urls, Clock())
        energy = pair.fleet.get("/v1/fleet/energy?days=400", headers=pair.bearer()).json()
        assert energy == source.energy(400)
        assert energy
        silent = pair.fleet.get("/v1/fleet/silent?minutes=0", headers=pair.bearer()).json()
        assert silent == source.silent(0)

    @pytest.mark.parametrize("path", ["", "/devices", "/energy", "/silent"])
    def test_a_file_has_none_of_it(self, pair: Pair, path: str) -> None:
        """404, and how a fleet is served."""
        found = pair.file.get(f"/v1/fleet{path}")
        assert (found.status_code, found.json()["code"]) == (404, "no_fleet")
        assert "--fleet" in found.json()["detail"]


class TestMetrics:
    """/metrics over a fleet."""

    def test_meters_are_there(self, pair: Pair) -> None:
        """Present values and energies of the meters."""
        text = pair.fleet.get("/metrics", headers=pair.bearer()).text
        assert f'meter_id="{pair.meters[0]}"' in text
        assert "power_meter_energy_out_wh_total" in text
        assert "power_fleet_engine_up 1.0" in text
        assert "power_fleet_devices 3.0" in text

    def test_the_engine_is_there(self, pair: Pair) -> None:
        """How fresh it is, and what is noticed about devices; of a file's service nothing of
        that.
        """
        text = pair.fleet.get("/metrics", headers=pair.bearer()).text
        assert "power_fleet_engine_up 1.0" in text
        assert f"power_fleet_devices {len(DEVICES)}.0" in text
        assert 'power_fleet_alarms{kind="silent"}' in text
        assert "power_fleet" not in pair.file.get("/metrics").text


@pytest.fixture
def stream_url(pair: Pair, new_urls: list[str], tmp_path: Path) -> Iterator[str]:
    """A server of the same fleet: what TestClient has for a WebSocket cannot be ended by it."""
    settings = Settings(fleet=tuple(new_urls), tokens=pair.fleet_tokens.path, port=0)
    guarded, app = create_app(settings)
    listening: queue.Queue[str] = queue.Queue()
    server = make_server(settings, guarded, app, listening.put)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield f"{listening.get(timeout=SOON)}v1/stream".replace("http", "ws")
    finally:
        server.should_exit = True
        thread.join()


class TestStream:
    """The stream over a fleet."""

    def test_it_begins_with_hello_and_the_meters(self, pair: Pair, stream_url: str) -> None:
        """After a number of an event the events that follow; of a bound token's own devices
        alone.
        """
        headers = pair.bearer(devices=["edge-1"])
        every = pair.fleet.get("/v1/events?limit=1000", headers=headers).json()["events"]
        after = every[-21]["sequence"]
        url = f"{stream_url}?after={after}&file_id=fleet"
        with connect(url, additional_headers=headers, proxy=None, open_timeout=SOON) as stream:
            hello = json.loads(stream.recv())
            assert (hello["type"], hello["file_id"], hello["recovered"]) == ("hello", "fleet", True)
            found = [json.loads(stream.recv()) for _ in range(20 + 4)]
        assert [one["sequence"] for one in found[:20]] == [one["sequence"] for one in every[-20:]]
        assert [one["type"] for one in found[20:]] == ["meter"] * 4
        assert {one["meter"]["device_id"] for one in found[20:]} == {"edge-1"}


def test_an_engine_that_comes_late(tmp_path: Path) -> None:
    """The service starts without it and answers 503; nothing says where it would be."""
    settings = Settings(
        fleet=("http://127.0.0.1:9",), tokens=tmp_path / "t.json", no_auth=True, rate=0
    )
    with TestClient(service(settings), base_url="http://127.0.0.1") as client:
        for path in ("/v1/devices", "/v1/fleet", "/v1/budget"):
            found = client.get(path)
            assert (found.status_code, found.json()["code"]) == (503, "storage_unavailable")
            assert "127.0.0.1" not in found.text
            assert found.headers["retry-after"]
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503


@pytest.mark.slow
def test_a_hub_that_was_started_anew_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its engine has another port then; and how much waits in its stream is known."""
    monkeypatch.setattr("power_fleet.read.LOOK_SECONDS", 0.0)
    with running_hub(tmp_path / "fleet") as hub:
        monkeypatch.setenv("XDG_STATE_HOME", hub.environment["XDG_STATE_HOME"])
        monkeypatch.delenv(HUB_VARIABLE, raising=False)
        source = open_source((), hub=True)
        state = source.fleet_state()
        assert (state["waiting_messages"], state["dead_letters"]) == (0, 0)
        assert b"power_fleet_stream_up 1.0" in source.metrics_text()
        before = hub.addresses.clickhouse
        hub.end()
        with socket.socket() as old:  # its port stays taken, and nobody listens there
            old.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            old.bind(("127.0.0.1", int(before.rpartition(":")[2])))
            with pytest.raises(StorageError, match="engine"):
                source.list_devices()
            assert count_messages(stream_of([before])) == (None, None)
            hub.start()
            assert hub.addresses.clickhouse != before
            with contextlib.suppress(StorageError):  # the first question learns where it is now
                source.list_devices()
            assert source.list_devices() == []


class TestStart:
    """What the service does not begin with."""

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            (["--fleet", "clickhouse-1:8123"], "http://host:8123"),
            (["--fleet", "http://127.0.0.1:9", "--db", "p.db"], "--db"),
            (["--fleet", "http://127.0.0.1:9", "--hub"], "name one of them"),
            (["--fleet", "http://127.0.0.1:9", "--demo"], "--demo"),
        ],
    )
    def test_what_goes_ill_together(
        self, options: list[str], why: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Usage, in one line."""
        assert cli.main(["--no-auth", *options]) == 2
        assert why in capsys.readouterr().err

    def test_without_the_extra(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It says what to install."""
        monkeypatch.setitem(sys.modules, "power_fleet.read", None)
        with pytest.raises(Refused, match="pip install"):
            service(Settings(fleet=("http://127.0.0.1:9",), tokens=tmp_path / "t.json"))

    def test_stripes_webhook_needs_a_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its events would have nowhere to go."""
        monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_x")
        with pytest.raises(Refused, match="STRIPE_WEBHOOK_SECRET"):
            service(Settings(fleet=("http://127.0.0.1:9",), tokens=tmp_path / "t.json"))
