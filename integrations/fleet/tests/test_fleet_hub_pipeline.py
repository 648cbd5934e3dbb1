"""The tests from end to end once more, with the engine of a hub, over its front."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from front_process import running_front
from power_fleet import schema
from power_fleet.engine import Engine
from test_fleet_pipeline import *  # noqa: F403 - all of them, and their fixtures

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def old_urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """A hub's engine, in place of ClickHouse's servers."""
    with running_front(tmp_path_factory.mktemp("engine") / "engine") as url:
        schema.create(Engine([url]))
        yield [url]
