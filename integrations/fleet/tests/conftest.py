"""Servers for the tests of one run, and both engines for each test of an answer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The tests run from a checkout, installed or not.
FLEET = Path(__file__).resolve().parents[1]
sys.path[:0] = [
    str(FLEET),
    str(FLEET / "chaos"),
    str(FLEET.parent / "service"),
    str(FLEET.parents[1]),
]

from fleet_harness import emptied  # noqa: E402 - it is found by the line above
from hub_process import HubProcess, running_hub  # noqa: E402
from pipeline import streams  # noqa: E402
from power_fleet import schema  # noqa: E402
from power_fleet.engine import Engine  # noqa: E402
from power_fleet.stream import Nats  # noqa: E402
from servers import Server, Servers  # noqa: E402

# The same examples each time, however long the machine takes for them.
settings.register_profile(
    "fleet",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fleet")


@pytest.fixture(scope="session")
def old_urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Two shards of one ClickHouse 18 each."""
    with Servers(tmp_path_factory.mktemp("clickhouse")) as servers:
        servers.start_clickhouse(shards=2)
        schema.create(Engine(servers.clickhouse_urls))
        yield servers.clickhouse_urls


@pytest.fixture(scope="session")
def new_urls() -> Iterator[list[str]]:
    """ClickHouse 26, in this process; gone with its last client."""
    engine = Engine(["chdb://memory"])
    schema.create(engine)
    yield ["chdb://memory"]
    del engine


@pytest.fixture
def urls(new_urls: list[str]) -> list[str]:
    """An engine with empty tables."""
    return emptied(new_urls)


@pytest.fixture(params=["ClickHouse 26", "ClickHouse 18"])
def every_urls(request: pytest.FixtureRequest) -> list[str]:
    """The same, and an engine of the chaos programs, which is asked in another dialect."""
    fixture = "old_urls" if request.param == "ClickHouse 18" else "new_urls"
    found: list[str] = request.getfixturevalue(fixture)
    return emptied(found)


@pytest.fixture(scope="session")
def one_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """A hub for the tests that leave it as it is, and have devices of their own."""
    with running_hub(tmp_path_factory.mktemp("hub") / "fleet") as process:
        yield process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One NATS server for the module."""
    with Servers(tmp_path_factory.mktemp("nats")) as servers:
        servers.start_nats(1)
        yield servers.nats[0]


@pytest.fixture
def nats(server: Server) -> Nats:
    """Where it is, with empty streams."""
    if server.has_ended:  # a test that failed has left it so
        server.start()
    nats = Nats(server.url)
    asyncio.run(streams(nats))
    return nats
