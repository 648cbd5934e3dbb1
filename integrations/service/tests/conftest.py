"""A service for the tests of one module, and for those that end theirs one each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# The tests run from a checkout, installed or not.
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[3])]

import httpx2  # noqa: E402
from service_harness import COMMAND, Service  # noqa: E402 - it is found by the line above

Start = Callable[..., Service]


def pytest_configure(config: pytest.Config) -> None:
    """Say what the marker of these tests means."""
    config.addinivalue_line("markers", "slow: takes half a minute; CI runs it")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service without rate limits, shared by a module."""
    running = Service(tmp_path_factory.mktemp("service"), "--rate", "0", program=COMMAND)
    try:
        yield running.start()
    finally:
        running.stop()


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[Start]:
    """Make services of a test's own; they are not started yet."""
    made: list[Service] = []

    def make(*options: str, program: tuple[str, ...] = ()) -> Service:
        made.append(Service(tmp_path, *options, program=program))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[httpx2.Client]:
    """A client that may do everything."""
    with service.client(service.token("admin")) as client:
        yield client
