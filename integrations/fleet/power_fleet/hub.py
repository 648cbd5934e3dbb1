"""A small fleet without a cluster.

NATS, the engine, a sink and the closing of hours in one process on one machine.

    DIR/lock      held while a hub runs
    DIR/hub.json  its addresses, while it is ready
    DIR/password  of the engine
    DIR/engine    chDB's files
    DIR/nats      of the NATS server: its configuration, its log, its streams
    DIR/devices.conf, DIR/hub.key    who may send, and the hub's own key, where others reach it
    DIR/tokens.json    who may read, where `power-service token new` has made it

The sink and the closing reach the engine as others do, over the front's port: that costs a
millisecond, and there is one way of asking.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from nats.js.errors import NotFoundError

from power_fleet import enroll, schema
from power_fleet.backoff import Backoff
from power_fleet.dead import set_up_streams
from power_fleet.discovery import LOOPBACK, USERS, Addresses, announced, locked
from power_fleet.engine import Engine
from power_fleet.errors import Refused, WrongOptions
from power_fleet.front import Front
from power_fleet.hours import Closed, keep_closing
from power_fleet.hub_pages import Pages
from power_fleet.keys import make_key, read_key, write_key
from power_fleet.life import highest_line
from power_fleet.limits import HUB_STREAM_BYTES
from power_fleet.metrics import close_metrics, registry_of, sink_metrics, with_metrics
from power_fleet.nats_server import NatsServer, Security, await_answer, check_port
from power_fleet.options import together
from power_fleet.quota import Quota
from power_fleet.sink import Sink
from power_fleet.stream import ASKED_SECONDS, NATS_FAILURES, Nats, left_behind, renew_consumer
from power_fleet.subjects import CONSUMER, STREAM
from power_fleet.watch import keep_watching
from power_manager import StorageError, replace_file

CLOSE_SECONDS = 60.0  # between two looks for hours to close
STREAM_SECONDS = 15.0  # between two looks for messages that stay in the stream
LOOK_SECONDS = 1.0  # between two looks at the disk
LEAST_FREE = 64 * 2**20  # bytes of the disk, below which it counts as full
ENOUGH_FREE = 96 * 2**20  # bytes with which it does not any more
MEMORY_SHARE = 0.5  # of the machine's, that the engine may take
LEAST_MEMORY = 512 * 2**20  # bytes: with less than that, questions about a small fleet fail already
_CACHE = 128 * 2**20  # bytes for the engine's marks; its own default is 5 GiB
_log = logging.getLogger("power_fleet")


@dataclass(frozen=True)
class HubOptions:
    """What a hub is told; sizes in bytes.

    Ports of 0 are free ones, memory of 0 is by the machine's.
    """

    data: Path
    nats_port: int
    listen: str = LOOPBACK
    certificate: Path | None = None
    key: Path | None = None
    engine_port: int = 0
    service_port: int | None = None  # of the pages; None: without them
    stream_bytes: int = HUB_STREAM_BYTES
    memory: int = 0
    metrics_file: Path | None = None  # for Prometheus


async def run(options: HubOptions, ready: Callable[[Addresses], None]) -> None:
    """Run a hub until cancelled; `ready` is called when everything is up.

    Raises Refused, StorageError, EngineError.
    """
    with locked(options.data):
        # What cannot be is said before anything is started.
        _check_space(options.data)
        security = _security(options)
        if options.nats_port:
            check_port(LOOPBACK if security is None else security.host, options.nats_port)
        async with contextlib.AsyncExitStack() as parts:
            front = await parts.enter_async_context(_engine(options))
            engine = Engine([front.url])
            await asyncio.to_thread(schema.create, engine)
            key_file = None if security is None else _hub_key(options.data, security.users)
            server = await parts.enter_async_context(_nats(options, security))
            certificate = None if security is None else security.certificate
            source = Nats(server.url, key_file=key_file, certificate=certificate)
            await await_answer(source)
            await _make_streams(source, engine, options.stream_bytes)
            addresses = Addresses(
                os.getpid(),
                server.url,
                front.url,
                await parts.enter_async_context(_pages(options, front.url, security)),
                key_file=str(source.key_file or ""),
                certificate=str(source.certificate or ""),
            )
            parts.enter_context(announced(options.data, addresses))
            ready(addresses)
            await _work(options, front.url, server, source)


async def _work(options: HubOptions, engine_url: str, server: NatsServer, source: Nats) -> None:
    """Store, close hours, look after devices, NATS and the disk until cancelled."""
    sink = Sink(Engine([engine_url]), source, Backoff(most=30.0), Quota())
    closing = Engine([engine_url])  # of its own: a long question of it does not hold up the sink
    closed = Closed()
    work = together(
        [
            server.keep_running(Backoff(most=30.0)),
            sink.run(),
            keep_closing(closing, CLOSE_SECONDS, Backoff(), closed=closed),
            keep_watching(closing, CLOSE_SECONDS, Backoff()),
            _watch_disk(options.data, server, _free_bytes),
            _watch_stream(source),
        ]
    )
    registry = registry_of(lambda: chain(sink_metrics(sink.work), close_metrics(closed)))
    await with_metrics(work, options.metrics_file, registry)


@contextlib.asynccontextmanager
async def _engine(options: HubOptions) -> AsyncIterator[Front]:
    """The engine, answering over HTTP."""
    directory = (options.data / "engine").absolute()
    if "?" in str(directory):
        raise WrongOptions(
            "--data: the engine cannot have a path with a question mark: name another one"
        )
    directory.mkdir(mode=0o700, exist_ok=True)
    memory = options.memory or _default_memory()
    path = f"{directory}?max_server_memory_usage={memory}&mark_cache_size={_CACHE}"
    try:
        front = Front(path, _password(options.data), options.engine_port)
    except RuntimeError as error:  # chDB's; the reason is in what it printed itself
        raise StorageError(directory, f"the engine does not start: {error}") from error
    except OSError as error:
        raise Refused(
            f"--engine-port: {options.engine_port} cannot be had ({error.strerror}): "
            "name another one"
        ) from error
    front.start()
    try:
        yield front
    finally:
        front.stop()


def _security(options: HubOptions) -> Security | None:
    """What a server needs that others reach; None where only this machine does. Raises Refused."""
    if (options.certificate is None) != (options.key is None):
        raise WrongOptions("--cert and --key go together: give both")
    if options.certificate is None or options.key is None:
        if not ipaddress.ip_address(options.listen).is_loopback:
            raise WrongOptions(f"--listen: others reach {options.listen}: give --cert and --key")
        return None
    for file in (options.certificate, options.key):
        if not os.access(file, os.R_OK):
            raise StorageError(file, "it cannot be read")
    users = options.data.absolute() / USERS
    enroll.make_file(users)
    return Security(options.listen, options.certificate.absolute(), options.key.absolute(), users)


def _hub_key(data: Path, users: Path) -> Path:
    """The key by which the hub and this machine's commands are known to NATS.

    It is made and enrolled once.
    """
    file = data.absolute() / "hub.key"
    if not file.exists():
        write_key(file, make_key(), "the hub")
    is_enrolled = any(user.role == enroll.HUB for user in enroll.users(users))
    public = read_key(file).public
    enroll.enroll(users, ["hub"], public, role=enroll.HUB, again=is_enrolled)
    return file


@contextlib.asynccontextmanager
async def _nats(options: HubOptions, security: Security | None) -> AsyncIterator[NatsServer]:
    """The NATS server, running."""
    # The dead letters have a tenth of the stream's bytes beside it.
    most = options.stream_bytes + options.stream_bytes // 10 + 1
    server = NatsServer(options.data / "nats", options.nats_port, most, security)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


async def _make_streams(source: Nats, engine: Engine, most_bytes: int) -> None:
    """Make the streams, or go on with those that are there.

    Raises Refused, NATS's errors, EngineError.
    """
    connection = await source.connect("power-fleet hub")
    try:
        # What a sink had taken when it was killed comes again at once, not after ACK_WAIT: this
        # hub's is the only one.
        with contextlib.suppress(NotFoundError):
            await connection.jetstream(timeout=ASKED_SECONDS).delete_consumer(STREAM, CONSUMER)
    finally:
        await connection.close()
    highest = await asyncio.to_thread(highest_line, engine)
    await set_up_streams(source, 1, most_bytes, highest_line=highest)


@contextlib.asynccontextmanager
async def _pages(
    options: HubOptions, engine_url: str, security: Security | None
) -> AsyncIterator[str]:
    """The pages' URL while they are served; "" where none are wanted."""
    if options.service_port is None:
        yield ""
        return
    pages = Pages(engine_url, options.data, options.service_port, security)
    await asyncio.to_thread(pages.start)
    try:
        yield pages.url
    finally:
        await asyncio.to_thread(pages.stop)


def _password(data: Path) -> str:
    """The engine's password: made once, and only for who may read the directory."""
    file = data / "password"
    with contextlib.suppress(FileNotFoundError):
        return file.read_text(encoding="ascii").strip()
    with replace_file(file, 0o600) as new:
        new.write(secrets.token_urlsafe(24).encode())
    return _password(data)


def _default_memory() -> int:
    """Bytes that the engine may take."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(int(machine * MEMORY_SHARE), LEAST_MEMORY)


# --- A full disk


def _check_space(data: Path) -> None:
    free = _free_bytes(data)
    if free < LEAST_FREE:
        raise StorageError(
            data,
            f"the disk is full: {free // 2**20} MiB are free, a hub needs {LEAST_FREE // 2**20}",
        )


async def _watch_disk(
    data: Path, server: NatsServer, free_bytes: Callable[[Path], int], seconds: float = LOOK_SECONDS
) -> None:
    """Say when the disk is full and when there is room again; then restart NATS.

    A stream of NATS that could not write once takes in nothing any more, whatever room there is
    (seen with 2.15.1); not even where the disk was full for a moment between two looks, so that
    NATS itself is asked too. Nothing is lost meanwhile: devices keep what is not acknowledged.
    """
    is_full = False
    while True:
        await asyncio.sleep(seconds)
        free = free_bytes(data)
        if free < LEAST_FREE and not is_full:
            is_full = True
            _log.error(
                "the disk of %s is full, %d MiB are free: "
                "devices keep what they have until there is room",
                data,
                free // 2**20,
            )
        elif free >= ENOUGH_FREE and is_full:
            is_full = False
            _log.warning("there is room again on the disk of %s", data)
            server.restart()
        elif not is_full and await asyncio.to_thread(server.has_failed):
            _log.warning("NATS could not write, and takes in nothing any more: it is restarted")
            server.restart()


def _free_bytes(data: Path) -> int:
    return shutil.disk_usage(data).free


async def _watch_stream(source: Nats, seconds: float = STREAM_SECONDS) -> None:
    """Have messages delivered again that stay in the stream although they are acknowledged."""
    before: int | None = None
    while True:
        await asyncio.sleep(seconds)
        try:
            before = await _look_at_stream(source, before)
        except NATS_FAILURES as error:
            _log.debug("the stream: %s", error or type(error).__name__)
            before = None


async def _look_at_stream(source: Nats, before: int | None) -> int | None:
    """Return the message that stays behind, if any.

    If it is the same as before, make the consumer again.
    """
    connection = await source.connect("power-fleet hub")
    try:
        js = connection.jetstream()
        behind = await left_behind(js)
        if behind is None or behind != before:
            return behind
        _log.warning(
            "messages that were acknowledged stay in the stream: they are stored once more"
        )
        await renew_consumer(js)
        return None
    finally:
        await connection.close()
