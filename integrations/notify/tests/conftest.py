"""The tests run from a checkout, installed or not; and servers that listen."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_NOTIFY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_NOTIFY), str(_NOTIFY / "tests")]
if importlib.util.find_spec("power_manager") is None:
    sys.path.insert(0, str(_NOTIFY.parents[1]))

from ends import HttpEnd, MailEnd  # noqa: E402 - found by the lines above
from world import World  # noqa: E402

# On a busy machine any example may take long.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture
def http() -> Iterator[HttpEnd]:
    """An HTTP server that keeps what is posted to it."""
    with HttpEnd() as end:
        yield end


@pytest.fixture
def other_http() -> Iterator[HttpEnd]:
    """A second one."""
    with HttpEnd() as end:
        yield end


@pytest.fixture
def mail() -> Iterator[MailEnd]:
    """A mail server that keeps what is sent to it."""
    with MailEnd() as end:
        yield end


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A file with devices, and a clock that only tests move."""
    with World(tmp_path / "power.db") as made:
        yield made
