"""`power-fleet forward --once` ends: where everything is sent, or where nothing can be."""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest
from fleet_harness import run_command
from pipeline import quick, streams
from power_fleet import cli, forwarder, stream
from power_fleet.forwarder import GaveUp, OtherStream, Sent, forward, forward_file
from power_fleet.limits import ONCE_SECONDS
from power_fleet.outbox import Outbox
from power_fleet.stream import Nats

from power_manager import PowerManager, StorageError

TO_NOBODY = Nats("nats://127.0.0.1:9")


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A file with 3,000 readings, more than one message holds, which pack badly."""
    path = tmp_path / "a.db"
    chance = random.Random(1)
    with PowerManager(path) as pm:
        pm.register_device("a", "A")
        meter = pm.add_meter("a", "main")
        rows = [(meter.id, chance.random(), 1.0, None, 1.8e9 + second) for second in range(3000)]
        pm.log_many(rows)
    return path


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives up soon."""
    monkeypatch.setattr(forwarder, "ONCE_SECONDS", 0.5)


@contextlib.contextmanager
def server_that_says_nothing() -> Iterator[str]:
    """The address of one that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"nats://127.0.0.1:{listening.getsockname()[1]}"


class Patient(Sent):
    """Its time begins with the first failure, however slow the machine is."""

    @property
    def moved_at(self) -> float:
        """When that was; until then now."""
        return self._moved_at if self.failure else time.monotonic()

    @moved_at.setter
    def moved_at(self, moved_at: float) -> None:
        self._moved_at = moved_at


def waiting(db: Path) -> int:
    """How many readings of the file are not sent."""
    with PowerManager(db) as pm:
        return len(pm.pending_readings(10_000))


@pytest.mark.usefixtures("short")
def test_once_ends_where_nobody_answers(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last line names the address; the exit code is 1, and the file keeps everything."""
    assert run_command("forward", "--once", "--db", str(db), "--nats", TO_NOBODY.urls) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith(
        "power-fleet: nats://127.0.0.1:9: nothing was acknowledged for 0.5 s, "
        "and the file keeps what it has: "
    )
    assert waiting(db) == 3000


@pytest.mark.usefixtures("short")
def test_once_ends_where_a_server_says_nothing(
    db: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It waits for no attempt that is under way."""
    monkeypatch.setattr(stream, "CONNECT_SECONDS", 3600.0)
    with server_that_says_nothing() as url:
        assert run_command("forward", "--once", "--db", str(db), "--nats", url) == 1
        assert capsys.readouterr().err.endswith(
            f"power-fleet: {url}: nothing was acknowledged for 0.5 s, "
            "and the file keeps what it has: no answer\n"
        )


@pytest.mark.usefixtures("short")
def test_once_says_why_nothing_was_sent(db: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By what the last attempt said; the log has the system's word for it, without a number."""
    with PowerManager(db) as pm:
        sending = forward(Outbox(pm), TO_NOBODY, 0.05, quick(), once=True, sent=Patient())
        with pytest.raises(GaveUp, match="no servers available for connection"):
            asyncio.run(sending)
    assert "nats://127.0.0.1:9: Connection refused" in caplog.messages


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("most_bytes", [1, 20_000], ids=["nothing", "a-part"])
def test_once_ends_where_the_stream_is_full(db: Path, nats: Nats, most_bytes: int) -> None:
    """With no sink to make room it says what the stream says; what was taken is not sent again."""

    async def work(pm: PowerManager) -> None:
        await streams(nats, max_bytes=most_bytes)
        await forward(Outbox(pm), nats, 0.05, quick(), once=True, sent=Patient())

    with PowerManager(db) as pm, pytest.raises(GaveUp, match="maximum bytes exceeded"):
        asyncio.run(work(pm))
    assert (waiting(db) < 3000) == (most_bytes > 1)


class Leaping(selectors.DefaultSelector):
    """Time for an event loop without input: it leaps to what is due next, and does not pass."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Nothing comes; the time of waiting is over at once."""
        assert timeout is not None, "it would wait for ever"
        self.now += timeout
        return super().select(0)


def run_leaping(work: Callable[[Sent], Coroutine[None, None, None]]) -> float:
    """Do the work as forwarding once does; return how many seconds it took, none of them real."""
    time = Leaping()
    loop = asyncio.SelectorEventLoop(time)
    loop.time = lambda: time.now  # type: ignore[method-assign]
    sent = Sent(clock=loop.time)
    with contextlib.closing(loop):
        loop.run_until_complete(forwarder._while_it_moves(work(sent), TO_NOBODY, sent))
    return time.now


def test_once_goes_on_as_long_as_something_is_acknowledged() -> None:
    """However long it takes in all; the limit is of the time without any progress."""

    async def steps(sent: Sent) -> None:
        for _ in range(5):
            await asyncio.sleep(0.9 * ONCE_SECONDS)
            sent.moved_at = sent.clock()

    async def stands_still(sent: Sent) -> None:
        await steps(sent)
        await asyncio.sleep(1.1 * ONCE_SECONDS)

    assert run_leaping(steps) == pytest.approx(4.5 * ONCE_SECONDS)
    with pytest.raises(GaveUp, match=r"^nats://127.0.0.1:9: .*: no answer$"):
        run_leaping(stands_still)


def test_once_ends_as_its_work_does() -> None:
    """What that raises is raised, at once."""

    async def fails() -> None:
        raise OtherStream("made again")

    with pytest.raises(OtherStream, match="made again"):
        asyncio.run(forwarder._while_it_moves(fails(), TO_NOBODY, Sent()))


def test_once_ends_where_the_file_has_gone(db: Path) -> None:
    """While it ran; without an end it would wait for the file's return."""

    async def work() -> None:
        sent = Sent()
        backoff = quick()
        sending = forward_file(db, "", TO_NOBODY, 0.05, backoff, once=True, sent=sent)
        task = asyncio.ensure_future(sending)
        while not sent.failures:
            await asyncio.sleep(0.01)
        for file in db.parent.glob("a.db*"):
            file.unlink()
        await task

    with pytest.raises(StorageError, match="no such file"):
        asyncio.run(work())


def test_the_help_says_for_how_long_it_tries() -> None:
    """By the number that the program goes by."""
    parser = cli.make_parser()
    for name in ("forward", "demo"):
        text = " ".join(parser.commands[name].format_help().split())
        assert f"after {ONCE_SECONDS:g} s in which nothing could be sent" in text
