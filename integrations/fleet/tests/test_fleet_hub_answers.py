"""The tests of the answers once more, on the engine of a hub, over its front."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fleet_harness import emptied
from front_process import running_front
from power_fleet import schema
from power_fleet.engine import Engine
from test_fleet_answers import *  # noqa: F403 - all of them, and their fixtures

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub_urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """A hub's engine."""
    with running_front(tmp_path_factory.mktemp("engine") / "engine") as url:
        schema.create(Engine([url]))
        yield [url]


@pytest.fixture
def urls(hub_urls: list[str]) -> list[str]:
    """The same with empty tables, in place of ClickHouse 26 in the tests' process."""
    return emptied(hub_urls)


@pytest.fixture
def every_urls(hub_urls: list[str]) -> list[str]:
    """The same, in place of both engines."""
    return emptied(hub_urls)
