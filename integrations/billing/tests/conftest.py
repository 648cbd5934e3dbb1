"""What the tests of billing share: a file with a clock of its own, a loopback Stripe, and clients of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The tests run from a checkout, installed or not.
_HERE = Path(__file__).resolve()
sys.path[:0] = [str(_HERE.parents[1]), str(_HERE.parents[2] / "service"), str(_HERE.parents[3])]

import stripe  # noqa: E402 - the path above comes first
from loopback import Loopback  # noqa: E402
from world import NOW, World  # noqa: E402


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's own retries come at once."""
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.0)
    monkeypatch.setattr(stripe.HTTPClient, "MAX_DELAY", 0.0)


@pytest.fixture
def server() -> Loopback:
    """A loopback Stripe whose clock is right."""
    return Loopback(lambda: NOW)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A device `edge` with a main meter in a file, a clock, and a loopback Stripe that follows the same clock."""
    made = World(tmp_path / "power.db")
    yield made
    made.pm.close()
