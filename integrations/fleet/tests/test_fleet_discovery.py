"""How commands find a hub: the one started last, one that starts, and one that has ended."""

from __future__ import annotations

import dataclasses
import fcntl
import json
from pathlib import Path

import pytest
from power_fleet.discovery import (
    HUB_VARIABLE,
    Addresses,
    NotRunning,
    announced,
    find_hub,
    is_running,
    locked,
)

from power_manager import StorageError

ADDRESSES = Addresses(1, "nats://127.0.0.1:1", "http://127.0.0.1:2")


def test_where_there_never_was_a_hub(tmp_path: Path) -> None:
    """There is none."""
    assert find_hub({"HOME": str(tmp_path)}) is None


def test_the_hub_that_was_started_last_is_found(tmp_path: Path) -> None:
    """Of two hubs of one user it is the later one; the variable names any."""
    environ = {"HOME": str(tmp_path)}
    first, second = tmp_path / "first", tmp_path / "second"
    other = dataclasses.replace(ADDRESSES, process=2)
    with locked(first), announced(first, ADDRESSES, environ):
        with locked(second), announced(second, other, environ):
            assert find_hub(environ) == other
            assert find_hub({**environ, HUB_VARIABLE: str(first)}) == ADDRESSES
        with pytest.raises(NotRunning, match="second is not running"):
            find_hub(environ)
    assert not (first / "hub.json").exists()


@pytest.mark.parametrize("left", ["a file of addresses", "nothing"])
def test_a_hub_that_has_ended_is_said_to_have(tmp_path: Path, left: str) -> None:
    """Whatever kill -9 left of it."""
    environ = {"HOME": str(tmp_path)}
    with locked(tmp_path / "fleet"), announced(tmp_path / "fleet", ADDRESSES, environ):
        pass
    if left == "nothing":
        (tmp_path / "fleet").rename(tmp_path / "elsewhere")
    else:
        (tmp_path / "fleet" / "hub.json").write_text("{}")
    with pytest.raises(NotRunning, match=r"`power-fleet hub --data .*/fleet` starts it"):
        find_hub(environ)


def test_addresses_that_a_killed_hub_left_are_not_taken_for_the_next_one_s(tmp_path: Path) -> None:
    """They go when the lock is taken."""
    (tmp_path / "hub.json").write_text("{}")
    with locked(tmp_path):
        assert not (tmp_path / "hub.json").exists()


def test_a_hub_that_starts_is_waited_for(tmp_path: Path) -> None:
    """Until it has said its addresses, or for as long as it may take."""
    environ = {HUB_VARIABLE: str(tmp_path)}
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            (tmp_path / "hub.json").write_text(json.dumps(dataclasses.asdict(ADDRESSES)))

    with locked(tmp_path):
        assert find_hub(environ, wait=wait) == ADDRESSES
        (tmp_path / "hub.json").unlink()
        with pytest.raises(NotRunning, match="is not ready after 60 s"):
            find_hub(environ, wait=lambda _: None)


def test_a_command_that_looks_for_a_hub_keeps_none_from_starting(tmp_path: Path) -> None:
    """It shares the lock for a moment, which is waited for; another hub is refused at once."""
    waits: list[float] = []
    with locked(tmp_path):
        pass
    with (tmp_path / "lock").open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)

        def wait(seconds: float) -> None:
            waits.append(seconds)
            fcntl.flock(looking, fcntl.LOCK_UN)

        with locked(tmp_path, wait):
            assert is_running(tmp_path)
            with pytest.raises(StorageError, match="another hub"), locked(tmp_path, wait):
                pass
    assert len(waits) == 1
    assert not is_running(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"nats": 1}', "\x00"])
def test_addresses_that_are_none(tmp_path: Path, text: str) -> None:
    """The file is named."""
    with locked(tmp_path):
        (tmp_path / "hub.json").write_text(text)
        with pytest.raises(StorageError, match=r"hub.json.*not the addresses of a hub"):
            find_hub({HUB_VARIABLE: str(tmp_path)})


def test_a_home_that_cannot_be_written_hides_no_hub(tmp_path: Path) -> None:
    """The variable still finds it."""
    (tmp_path / "file").write_text("")
    environ = {"XDG_STATE_HOME": str(tmp_path / "file"), HUB_VARIABLE: str(tmp_path)}
    with locked(tmp_path), announced(tmp_path, ADDRESSES, environ):
        assert find_hub(environ) == ADDRESSES
