"""The service's routes under /v1/fleet: the answers of power_fleet, with the service's own tokens."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi import FastAPI
from fleet_harness import Clock, carry, emptied, random_device, same_json
from power_fleet.engine import Engine
from power_fleet.fleet import Fleet
from power_service.app import create_app
from power_service.fleet import NAME, THREADS
from power_service.settings import Refused, Settings
from power_service.tokens import Scope, TokenFile
from servers import eventually
from starlette.testclient import TestClient


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    """The service's tokens."""
    return TokenFile(Settings(db=tmp_path / "central.db").token_file)


@pytest.fixture
def client(
    old_urls: list[str], tmp_path: Path, tokens: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TestClient]:
    """A service with a fleet of two devices, whose files are elsewhere."""
    engine = Engine(emptied(old_urls))
    for seed in (1, 2):
        with random_device(tmp_path / f"{seed}.db", seed, f"edge-{seed}", Clock()) as pm:
            carry(pm, engine)
    engine.shards[0].insert(
        "power_fresh", {"name": "String", "fresh": "UInt64"}, [["stream", 1_790_000_000_000_000]]
    )
    engine.shards[1].insert(
        "power_fresh", {"name": "String", "fresh": "UInt64"}, [["stream", 1_790_000_001_000_000]]
    )
    monkeypatch.setenv(NAME, " ".join(old_urls))
    with TestClient(app(tmp_path), base_url="http://127.0.0.1") as found:
        yield found


def app(tmp_path: Path) -> FastAPI:
    """The service as it would be started now."""
    return create_app(Settings(db=tmp_path / "central.db"))[1]


def bearer(
    tokens: TokenFile, scope: Scope = Scope.READ, devices: list[str] | None = None
) -> dict[str, str]:
    """The header of a new token."""
    return {"Authorization": f"Bearer {tokens.new('test', [scope], devices)[0]}"}


def test_the_answers_are_those_of_the_fleet(
    client: TestClient, tokens: TokenFile, old_urls: list[str]
) -> None:
    """Same values, same report, and how fresh they are."""
    headers, fleet = bearer(tokens), Fleet(old_urls)
    budget = client.get("/v1/fleet/budget?device_id=edge-2&device_id=nobody", headers=headers)
    assert list(budget.json()) == ["edge-2", "nobody"]
    assert budget.headers["fresh-as-of"] == "2026-09-21T14:13:20.000000+00:00"
    assert list(client.get("/v1/fleet/budget", headers=headers).json()) == ["edge-1", "edge-2"]
    report = json.loads(
        client.get("/v1/fleet/devices/edge-1/report?days=400", headers=headers).text
    )
    expected = json.loads(fleet.report("edge-1", 400).value)
    assert same_json(
        json.dumps({**expected, "generated_at": ""}), json.dumps({**report, "generated_at": ""})
    )
    meters = client.get("/v1/fleet/meters", headers=headers).json()
    assert [meter["id"] for meter in meters] == [meter.id for meter in fleet.latest().value]
    assert set(meters[0]) >= {"wattage", "state", "updated_at"}
    assert (
        client.get("/v1/fleet/energy?days=400", headers=headers).json() == fleet.energy(400).value
    )
    assert {row["device_id"] for row in client.get("/v1/fleet/silent?minutes=0", headers=headers).json()} <= {
        "edge-1", "edge-2",
    }  # fmt: skip


def test_a_token_of_one_device_sees_that_device(client: TestClient, tokens: TokenFile) -> None:
    """Of budgets, meters and silent devices its own; others, and sums by site, are refused."""
    headers = bearer(tokens, devices=["edge-1"])
    assert list(client.get("/v1/fleet/budget", headers=headers).json()) == ["edge-1"]
    assert {
        meter["device_id"] for meter in client.get("/v1/fleet/meters", headers=headers).json()
    } == {"edge-1"}
    for path in (
        "budget?device_id=edge-2",
        "devices/edge-2/report",
        "meters?device_id=edge-2",
        "energy",
    ):
        assert client.get(f"/v1/fleet/{path}", headers=headers).status_code == 403


@pytest.mark.parametrize("path", ["budget", "devices/edge-1/report", "meters", "energy", "silent"])
def test_reading_needs_the_scope_read(client: TestClient, tokens: TokenFile, path: str) -> None:
    """No token is 401, one that may write only is 403."""
    assert client.get(f"/v1/fleet/{path}").status_code == 401
    assert client.get(f"/v1/fleet/{path}", headers=bearer(tokens, Scope.WRITE)).status_code == 403


def test_unknown_devices_and_wrong_values(client: TestClient, tokens: TokenFile) -> None:
    """As everywhere in the service: problem JSON that names them."""
    headers = bearer(tokens)
    found = client.get("/v1/fleet/devices/nobody/report", headers=headers)
    assert (found.status_code, found.json()["code"]) == (404, "not_found")
    assert client.get("/v1/fleet/energy?days=0", headers=headers).status_code == 422


def test_an_engine_that_is_gone_is_503(
    tmp_path: Path, tokens: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service starts and runs without it; the message tells nothing of where it is."""
    monkeypatch.setenv(NAME, "http://127.0.0.1:9")
    with TestClient(app(tmp_path), base_url="http://127.0.0.1") as client:
        found = client.get("/v1/fleet/budget", headers=bearer(tokens))
    assert (found.status_code, found.headers["retry-after"]) == (503, "5")
    assert "127.0.0.1" not in found.text


def test_an_engine_that_hangs_holds_up_no_reader_of_the_file(
    tmp_path: Path, tokens: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes connections and never answers: the service's own data is there at once, and too many are refused."""
    monkeypatch.setattr("power_service.fleet.WAITING", 1)
    headers = bearer(tokens)
    with (
        socket.create_server(("127.0.0.1", 0)) as hanging,
        ThreadPoolExecutor(THREADS + 1) as asking,
    ):
        monkeypatch.setenv(NAME, f"http://127.0.0.1:{hanging.getsockname()[1]}")
        service = app(tmp_path)
        with TestClient(service, base_url="http://127.0.0.1") as client:
            waiting = [
                asking.submit(client.get, "/v1/fleet/silent", headers=headers)
                for _ in range(THREADS + 1)
            ]
            try:
                eventually(lambda: service.state.fleet_threads.statistics().tasks_waiting == 1)
                assert client.get("/v1/devices", headers=headers).status_code == 200
                refused = client.get("/v1/fleet/silent", headers=headers)
                assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            finally:
                hanging.close()
                codes = [answer.result().status_code for answer in waiting]
            assert codes == [503] * (THREADS + 1)


def test_half_configured_it_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL that is none, and a client that is not installed."""
    monkeypatch.setenv(NAME, "clickhouse-1:8123")
    with pytest.raises(Refused, match=NAME):
        app(tmp_path)
    monkeypatch.setenv(NAME, "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "power_fleet.fleet", None)
    with pytest.raises(Refused, match="pip install"):
        app(tmp_path)


def test_without_a_fleet_there_are_no_routes(
    tmp_path: Path, tokens: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the contract never names them."""
    monkeypatch.delenv(NAME, raising=False)
    with TestClient(app(tmp_path), base_url="http://127.0.0.1") as client:
        assert client.get("/v1/fleet/budget", headers=bearer(tokens)).status_code == 404
        assert "/v1/fleet" not in client.get("/openapi.json").text
