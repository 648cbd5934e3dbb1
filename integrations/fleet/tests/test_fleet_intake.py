"""How a sink takes messages: over a connection of its own, which no device can end by what it
sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from fleet_harness import emptied, queried
from pipeline import drained, info, running_sink, until
from power_fleet import intake as intake_module
from power_fleet.codec import Batch, Deletion, Reading, encode
from power_fleet.engine import Engine
from power_fleet.intake import Intake, Message
from power_fleet.quota import Quota
from power_fleet.sink import Work
from power_fleet.stream import Nats, make_consumer
from power_fleet.subjects import CONSUMER, DEAD_STREAM, STREAM, SUBJECT
from power_fleet.wire import Delivery, Wire, open_wire
from servers import SOON, Server

# What a stolen device may send as the headers of a message: any bytes are headers to the server.
HEADERS = [
    b"NATS/1.0",
    b"NATS/1.0\r\n",
    b"NATS/1.0 \xff\xff\xff\r\n\r\n",
    b"NATS/1.0 100 \xff\r\n\r\n",
    b"NATS/1.0 404 No Messages\r\n\r\n",
    b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    b"NATS/1.0\r\nA\xff: \xff\r\n\r\n",
    b"NATS/1.0\r\nStatus: 408\r\n\r\n",
    b"MSG a 1 2\r\n\r\n",
    b"\r\n",
]


async def publish(nats: Nats, count: int, device_id: str = "edge-1") -> None:
    """Put messages of one byte each into the stream."""
    connection = await nats.connect("test")
    js = connection.jetstream(timeout=SOON)
    for number in range(count):
        await js.publish(SUBJECT + device_id, bytes([number % 256]), stream=STREAM)
    await connection.close()


async def publish_raw(nats: Nats, subject: bytes, headers: list[bytes]) -> None:
    """Publish a message with each of these bytes as its headers, as no client would."""
    host, _, port = nats.urls.removeprefix("nats://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    await reader.readline()
    writer.write(b'CONNECT {"verbose":true,"headers":true}\r\n')
    assert await reader.readline() == b"+OK\r\n"
    for content in headers:
        writer.write(
            b"HPUB %s %d %d\r\n%sxx\r\n" % (subject, len(content), len(content) + 2, content)
        )
        assert await reader.readline() == b"+OK\r\n"
    writer.close()
    await writer.wait_closed()


async def taken(intake: Intake, count: int) -> list[Message]:
    """So many messages, or TimeoutError."""
    found: list[Message] = []
    async with asyncio.timeout(SOON):
        while len(found) < count:
            await intake.wait(0.05)
            found += intake.take()
    return found


def test_a_stolen_device_cannot_stop_a_sink_by_its_headers(nats: Nats, old_urls: list[str]) -> None:
    """What another device sends behind it is stored, and its own messages are dead letters, every
    one of them.
    """
    engine = Engine(emptied(old_urls))
    good = encode(Batch("edge-2", 1, 0, [Reading("m", 1, 1.0, 1.0, 1.0)]))[1]

    async def run() -> None:
        await publish_raw(nats, b"power.fleet.stolen", HEADERS)
        await publish_raw(nats, b"power.fleet.\xff\xfe", [b"NATS/1.0\r\n\r\n"])
        connection = await nats.connect("test")
        await connection.jetstream(timeout=SOON).publish(SUBJECT + "edge-2", good, stream=STREAM)
        await connection.close()
        async with running_sink(engine, nats):
            await drained(nats)
        assert (await info(nats, DEAD_STREAM)).state.messages == len(HEADERS) + 1

    asyncio.run(run())
    assert queried(engine, "SELECT device_id, at FROM power_readings") == [("edge-2", 1)]


def test_a_device_pays_for_what_it_deletes(nats: Nats, old_urls: list[str]) -> None:
    """The engine looks for what each deletion takes: a hundred of them are more than a share of
    fifty messages.
    """
    engine = Engine(emptied(old_urls))
    batch = Batch("stolen", 1, 0, [])
    batch.deletions = [Deletion(n, "readings", "m", n, n + 1) for n in range(100)]
    work = Work()

    async def run() -> None:
        connection = await nats.connect("test")
        js = connection.jetstream(timeout=SOON)
        await js.publish(
            SUBJECT + "edge-2", b"the line is not the first message", headers={"a": "b"}
        )
        await js.publish(SUBJECT + "stolen", encode(batch)[1], headers={"a": "b"})
        async with running_sink(engine, nats, Quota(messages=50, size=1e9), work=work):
            await drained(nats)
            assert work.postponed == 0
            for device_id in ("stolen", "edge-2"):
                await js.publish(SUBJECT + device_id, b"more", headers={"a": "b"})
            await until(lambda: work.postponed and work.dead == 2)
        await connection.close()

    asyncio.run(run())
    assert work.postponed == 1


def test_messages_come_once_and_in_order(nats: Nats) -> None:
    """More of them than are asked for at once; when all are acknowledged the stream is empty."""

    async def run() -> None:
        await publish(nats, 60)
        intake = Intake(nats, messages=7)
        await intake.start()
        found: list[Message] = []
        while len(found) < 60:
            some = await taken(intake, 1)
            intake.acknowledge(some)
            found += some
        assert [message.data[0] for message in found] == list(range(60))
        numbers = [message.sequence for message in found]
        assert numbers == list(range(numbers[0], numbers[0] + 60))
        assert all(abs(message.taken_at / 1e6 - time.time()) < 600 for message in found)
        await drained(nats)
        assert not await intake.wait(0.01)
        await intake.close()

    asyncio.run(run())


def test_no_more_wait_in_memory_than_are_asked_for(nats: Nats) -> None:
    """A sink that is slow holds one question's messages, not the whole stream."""

    async def run() -> None:
        await publish(nats, 40)
        intake = Intake(nats, messages=10)
        await intake.start()
        await until(lambda: len(intake._waiting) >= 10)
        await publish(nats, 1)  # by then anything else would have come
        assert len(intake._waiting) == 10
        await intake.close()

    asyncio.run(run())


@pytest.mark.parametrize("asked", [20, 100], ids=["question answered", "question open"])
def test_what_a_sink_did_not_take_another_one_has_at_once(nats: Nats, asked: int) -> None:
    """One that ends gives it back: nobody waits for the end of its time, which is an hour here."""

    async def run() -> None:
        connection = await nats.connect("test")
        await make_consumer(connection.jetstream(timeout=SOON), 3600.0)
        await connection.close()
        await publish(nats, 30)
        first = Intake(nats, messages=asked)
        await first.start()
        assert await first.wait(SOON)
        await first.close()
        second = Intake(nats)
        await second.start()
        found: set[int] = set()
        while len(found) < 30:  # some may come twice
            found |= {message.sequence for message in await taken(second, 1)}
        await second.close()

    asyncio.run(run())


def test_a_stream_that_is_gone_is_said(nats: Nats) -> None:
    """With what the server says: a sink must not wait for ever for messages that cannot come."""

    async def run() -> None:
        intake = Intake(nats)
        await intake.start()
        connection = await nats.connect("test")
        js = connection.jetstream(timeout=SOON)
        async with asyncio.timeout(SOON):
            while not (await js.consumer_info(STREAM, CONSUMER)).num_waiting:  # for the question
                await asyncio.sleep(0.01)
        await js.delete_stream(STREAM)
        await connection.close()
        with pytest.raises(ConnectionError, match=f"the stream {STREAM} gives nothing: 4"):
            await taken(intake, 1)
        await intake.close()
        intake = Intake(nats)
        await intake.start()
        with pytest.raises(ConnectionError, match=f"the stream {STREAM} gives nothing: 503"):
            await taken(intake, 1)
        await intake.close()

    asyncio.run(run())


def test_a_server_that_ends_is_said(nats: Nats, server: Server) -> None:
    """The next call raises, whether it waits for messages or sends acknowledgements."""

    async def run() -> None:
        await publish(nats, 1)
        intake = Intake(nats)
        await intake.start()
        (message,) = await taken(intake, 1)
        server.kill()
        with pytest.raises(ConnectionError, match="ended the connection"):
            await intake.wait(SOON)
        with pytest.raises(ConnectionError, match="ended the connection"):
            intake.acknowledge([message])
        await intake.close()

    asyncio.run(run())


@contextlib.asynccontextmanager
async def serving(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Nats]:
    """A server of our own on a free port; all that it said is said when this ends."""
    ended: list[asyncio.Event] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(asyncio.Event())
        with contextlib.suppress(OSError):
            await talk(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        ended[-1].set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield Nats(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        for event in ended:
            await event.wait()


def test_a_server_that_falls_silent_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the question and answers nothing: after the time for it, the sink looks for another
    one.
    """
    monkeypatch.setattr(intake_module, "ASKED_SECONDS", 0.01)
    monkeypatch.setattr(intake_module, "LATE_SECONDS", 0.02)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO {}\r\n")
        while line := await reader.readline():
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")

    async def run() -> None:
        async with serving(silent) as nats:
            intake = Intake(nats)
            await intake.start()
            with pytest.raises(ConnectionError, match="nothing is heard of the stream"):
                await taken(intake, 1)
            await intake.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"INFO {}\r\n-ERR 'Authorization Violation'\r\n", "Authorization Violation"),
        (b"HTTP/1.1 400 Bad Request\r\n", "not understood"),
        (b'INFO {"tls_required": true}\r\n', "give --ca"),
        (b"x" * 70_000, "a line that does not end"),
    ],
    ids=["refused", "no NATS", "TLS", "garbage"],
)
def test_a_server_that_refuses_is_said(said: bytes, message: str) -> None:
    """In its own words, where it has some."""

    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await reader.read()

    async def run() -> None:
        async with serving(refusing) as nats:
            with pytest.raises(OSError, match=message):
                await open_wire(nats, "test", lambda _: None, lambda _: None)

    asyncio.run(run())


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_bytes_are_understood_however_they_come(size: int) -> None:
    """One at a time or all at once; with headers, without a reply, empty, and with line ends in the
    data.
    """
    found: list[Delivery] = []
    text = (
        b"INFO {}\r\n+OK\r\nMSG a 1 3\r\nabc\r\nMSG a.b 1 r.e 0\r\n\r\n"
        b"HMSG c 1 r 12 16\r\nNATS/1.0\r\n\r\n\r\n\r\n\r\nHMSG d 1 4 4\r\nabcd\r\n"
    )

    async def run() -> None:
        wire = Wire(found.append, lambda error: pytest.fail(str(error)))
        for first in range(0, len(text), size):
            wire.data_received(text[first : first + size])

    asyncio.run(run())
    assert found == [
        Delivery("a", "", b"", b"abc"),
        Delivery("a.b", "r.e", b"", b""),
        Delivery("c", "r", b"NATS/1.0\r\n\r\n", b"\r\n\r\n"),
        Delivery("d", "", b"abcd", b""),
    ]
