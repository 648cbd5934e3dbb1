"""What the tests share: a file with a clock of its own, and a loopback Stripe with its clients."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The tests run from a checkout, installed or not.
_HERE = Path(__file__).resolve()
_FLEET = _HERE.parents[2] / "fleet"
sys.path[:0] = [str(_HERE.parents[1]), str(_HERE.parents[2] / "service"), str(_HERE.parents[3])]
sys.path += [str(_FLEET), str(_FLEET / "tests"), str(_FLEET / "chaos")]

import stripe  # noqa: E402 - the path above comes first
from loopback import Loopback  # noqa: E402
from shop import Shop, at_stripe  # noqa: E402
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
def shop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Shop]:
    """The command line in front of a Stripe that knows its customers; nothing is set up yet."""
    with at_stripe(Loopback(lambda: NOW, knows_customers=True), monkeypatch) as stripe_server:
        yield Shop(tmp_path / "power.db", stripe_server, capsys)


@pytest.fixture(scope="session")
def engine() -> object:
    """A fleet's engine in this process, which is gone with its last client."""
    pytest.importorskip("chdb", reason="chdb is for Python 3.11 and later here")
    from power_fleet import schema
    from power_fleet.engine import Engine

    made = Engine(["chdb://memory"])
    schema.create(made)
    return made


@pytest.fixture(params=["file", "fleet"])
def world_of_either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """The same world twice: billing reads the device's file, or the engine it is forwarded to."""
    if request.param == "file":
        made = World(tmp_path / "power.db")
    else:
        request.getfixturevalue("engine")
        from fleet_world import FleetWorld

        made = FleetWorld(tmp_path / "power.db")
    yield made
    made.pm.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A device `edge` with a main meter in a file, and a loopback Stripe with the same clock."""
    made = World(tmp_path / "power.db")
    yield made
    made.pm.close()
