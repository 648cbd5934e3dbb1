"""NATS: how to connect, and the stream and its consumer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)  # fmt: skip
from nats.js.errors import NotFoundError, ServerError

from power_fleet.errors import FleetError, Refused, WrongOptions
from power_fleet.keys import Key, read_key, warn_once
from power_fleet.limits import DEVICE_MESSAGES
from power_fleet.subjects import CONSUMER, STREAM, SUBJECT
from power_manager import open_secret

if TYPE_CHECKING:
    from power_fleet.discovery import Addresses

ANY_INBOX = "_INBOX"
CONNECT_SECONDS = 15.0  # for all of the servers together
ASKED_SECONDS = 20.0  # that a server may take for a request of an operator's, or of a hub's start
DUPLICATE_WINDOW = (
    120.0  # seconds in which the stream itself drops what is sent twice; the engine drops it always
)
ACK_WAIT = 30.0  # seconds a sink has for what it took before another one gets it
MAX_ACK_PENDING = 100_000  # messages that sinks have taken or put back for later, of all devices
MESSAGE_BYTES = 1024 * 1024  # of one message: a server's own limit, unless it was raised
# A stream that is made again begins at a multiple of it, beyond all lines that the engine knows: a
# forwarder that opened its line in another stream sees that by the number of any message.
EPOCH = 2**30
LEAST_NATS = (2, 12)  # from here on a server refuses requests that it does not wholly understand
_INVALID_JSON = 10025  # the server's number for a request with a field that it does not know
_NO_STORE = 10049  # the server's number for a stream of which it cannot make the files
REMOVED_SECONDS = 15.0  # that a server may take to remove the files of a deleted stream
# What goes wrong with a server, or on the way to it, and may be over at the next attempt.
NATS_FAILURES = (nats.errors.Error, OSError, asyncio.TimeoutError)
_OTHER_NUMBERS = (ssl.SSLError, socket.gaierror)  # whose errno is not the system's
_log = logging.getLogger("power_fleet")


def address(option: str, url: str, expected: str) -> SplitResult:
    """The parts of a URL with one of the schemes expected and a host.

    Raises Refused, which does not repeat it.
    """
    try:
        parts = urlsplit(url)
        known = (
            parts.scheme in re.findall(r"(\w+)://", expected) and parts.hostname and parts.port != 0
        )
    except ValueError:  # a port that is none
        known = False
    if not known:
        scheme = re.match("[a-z]*://", url)
        raise WrongOptions(f"{option}: expected {expected}, got {scheme[0] if scheme else ''}...")
    return parts


class LoginRefused(FleetError, ConnectionError):
    """The servers answer, and do not let this user, password or key in."""

    def __init__(self, urls: str, reasons: str) -> None:
        super().__init__(f"{urls}: the login is refused: {reasons}")


def _told(error: Exception) -> str:
    """An error of connecting as a person reads it: one of the system without its number."""
    if isinstance(error, OSError) and error.errno and not isinstance(error, _OTHER_NUMBERS):
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _is_login_refused(complaints: Iterable[str]) -> bool:
    """Whether NATS's client has said so; it raises something else, as it tries several times."""
    return any("authorization violation" in complaint.lower() for complaint in complaints)


@dataclass(frozen=True)
class Nats:
    """Where the servers are and who we are to them.

    The password is read from its file at each connection.
    """

    urls: str
    user: str | None = None
    password_file: Path | None = field(default=None, repr=False)
    ca: Path | None = None  # a server that does not prove itself by it is refused
    inbox_prefix: str = (
        ANY_INBOX  # with a key file and nothing else given: the one that goes with the key
    )
    key_file: Path | None = field(default=None, repr=False)  # in place of a user and a password
    certificate: Path | None = None  # the server's own, which alone is trusted, whatever its name
    _said: set[str] = field(
        default_factory=set, init=False, repr=False, compare=False
    )  # since there was a connection last

    def __post_init__(self) -> None:
        if (self.user is None) != (self.password_file is None):
            raise WrongOptions("--user and --password-file go together: give both")
        if self.user is not None and self.key_file is not None:
            raise WrongOptions("--key-file: a key stands in place of --user and --password-file")
        parts = [
            address("--nats", url, "nats://host:4222 or tls://host:4222") for url in self.servers
        ]
        if any("@" in part.netloc for part in parts):
            raise WrongOptions(
                "--nats: give the user with --user, and the password with --password-file"
            )
        is_far = any(part.hostname != "127.0.0.1" for part in parts)
        is_open = is_far and self.ca is None and self.certificate is None
        if self.user is not None and is_open:
            raise WrongOptions(
                "--user: a password does not go over the network without TLS: give --ca"
            )
        if self.key_file is not None and is_open:
            raise WrongOptions("--key-file: without TLS others could use the connection: give --ca")

    @property
    def servers(self) -> list[str]:
        """The URLs one by one."""
        return [url.strip() for url in self.urls.split(",")]

    def password(self) -> str | None:
        """What the password's file holds now."""
        if self.password_file is None:
            return None
        with open_secret(self.password_file, warn_once) as file:
            return file.read().strip()

    def key(self) -> Key | None:
        """What the key's file holds now."""
        if self.key_file is None:
            return None
        return read_key(self.key_file)

    def tls(self) -> ssl.SSLContext | None:
        """How the servers have to prove themselves; None: they need not."""
        if self.certificate is not None:
            return _pinned(self.certificate)
        if self.ca is not None:
            return ssl.create_default_context(cafile=str(self.ca))
        return None

    def answers_to(self, key: Key | None) -> str:
        """The subject below which answers to us come; key: ours, if we have one."""
        if key is not None and self.inbox_prefix == ANY_INBOX:
            return key.inbox_prefix
        return self.inbox_prefix

    async def connect(self, name: str) -> Client:
        """A connection that reconnects by itself.

        Raises LoginRefused, and other errors where no server answers at first.
        """
        options: dict[str, Any] = {"user": self.user}
        key = self.key()
        if key is not None:
            options["nkeys_seed_str"] = key.seed
        if self.password_file is not None:
            options["password"] = self.password()
        context = self.tls()
        if context is not None:
            options["tls"] = context

        complaints: dict[str, None] = {}  # each once, in their order

        async def log_error(error: Exception) -> None:
            text = _told(error)
            complaints[text] = None
            level = logging.DEBUG if text in self._said else logging.WARNING
            _log.log(level, "%s: %s", self.urls, text)
            self._said.add(text)

        connection = Client()
        attempt = connection.connect(
            self.servers,
            name=name,
            inbox_prefix=self.answers_to(key),
            connect_timeout=5,
            max_reconnect_attempts=3,
            reconnect_time_wait=1,
            error_cb=log_error,
            pending_size=16 * 1024 * 1024,
            **options,
        )
        try:
            # The client goes on for ever with a server that takes the connection and proves itself
            # by a wrong certificate.
            await asyncio.wait_for(attempt, CONNECT_SECONDS)
        except BaseException as error:
            await connection.close()
            is_failure = isinstance(error, (asyncio.TimeoutError, nats.errors.Error))
            reasons = "; ".join(complaints) or "no answer"
            if is_failure and _is_login_refused(complaints):
                raise LoginRefused(self.urls, reasons) from error
            if isinstance(error, asyncio.TimeoutError):
                raise TimeoutError(f"no connection in {CONNECT_SECONDS:g} s: {reasons}") from error
            raise
        self._said.clear()
        return connection


def nats_of_hub(hub: Addresses) -> Nats:
    """The NATS server of this machine's hub."""
    return Nats(
        hub.nats,
        key_file=Path(hub.key_file) if hub.key_file else None,
        certificate=Path(hub.certificate) if hub.certificate else None,
    )


def _pinned(certificate: Path) -> ssl.SSLContext:
    """Trusts the holder of one certificate.

    The name in it, which is the public one, need not match.
    """
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not be an authority's
    return context


async def check_server(connection: Client) -> None:
    """Raise Refused for a server on which one device could harm others.

    An older server, or one that is told `jetstream { strict: false }`, takes any JSON for a
    request. A device could name such a request's subject as the reply to its own message; the
    server's acknowledgement then is the request, with the rights of the server.
    """
    version = connection.connected_server_version
    if (version.major, version.minor) < LEAST_NATS:
        least = ".".join(map(str, LEAST_NATS))
        found = f"{version.major}.{version.minor}.{version.patch}"
        raise Refused(f"the NATS server is of version {found}: it has to be {least} or later")
    answer = await connection.request(
        "$JS.API.STREAM.NAMES", b'{"lax": true}', timeout=ASKED_SECONDS
    )
    error = json.loads(answer.data).get("error", {})
    if not error:
        raise Refused(
            "the NATS server takes requests that it does not understand: "
            "remove `strict: false` from the section jetstream of its configuration"
        )
    if error.get("err_code") != _INVALID_JSON:
        raise ConnectionError(f"the NATS server: {error.get('description')}")


async def make_streams(
    js: JetStreamContext,
    replicas: int,
    max_bytes: int,
    device_messages: int = DEVICE_MESSAGES,
    first_sequence: int = 1,
) -> None:
    """Make the stream and its consumer, or bring them to these settings.

    What is acknowledged by a sink leaves the stream (work queue). A full stream refuses what is
    new, and so does it what a device sends that has device_messages waiting (at least 1): the
    devices keep it in their files.

    first_sequence: the least number of the messages to come; see next_sequence. A stream that is
    there and has not come so far is made again if nothing waits in it; otherwise this raises
    Refused.
    """
    await _make_room(js, first_sequence)
    config = StreamConfig(
        first_seq=first_sequence,
        name=STREAM,
        subjects=[SUBJECT + "*"],
        retention=RetentionPolicy.WORK_QUEUE,
        storage=StorageType.FILE,
        num_replicas=replicas,
        discard=DiscardPolicy.NEW,
        max_bytes=max_bytes,
        max_msg_size=MESSAGE_BYTES,
        max_msgs_per_subject=device_messages,
        discard_new_per_subject=True,
        duplicate_window=DUPLICATE_WINDOW,
        deny_delete=True,
        deny_purge=True,
    )
    await put_stream(js, config)
    await make_consumer(js)


async def make_consumer(js: JetStreamContext, ack_wait_s: float = ACK_WAIT) -> None:
    """Make the stream's consumer, or bring it to these settings."""
    consumer = ConsumerConfig(
        durable_name=CONSUMER,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait_s,
        max_deliver=-1,
        max_ack_pending=MAX_ACK_PENDING,
    )
    await js.add_consumer(STREAM, consumer)


async def renew_consumer(js: JetStreamContext) -> None:
    """Make the consumer again: all that the stream has comes once more, which is harmless."""
    with contextlib.suppress(NotFoundError):
        await js.delete_consumer(STREAM, CONSUMER)
    await make_consumer(js)


async def left_behind(js: JetStreamContext) -> int | None:
    """The oldest message of the stream, if its consumer counts it as acknowledged.

    None where it does not.

    An acknowledged message leaves the stream within moments. A server that was killed again and
    again while its disk was full has kept some for ever (seen with 2.15.1): they are delivered no
    more, and how fresh the engine is cannot be known. The consumer is asked first: what it
    acknowledges meanwhile is not taken for that.
    """
    consumer = await js.consumer_info(STREAM, CONSUMER)
    state = (await js.stream_info(STREAM)).state
    acknowledged = 0 if consumer.ack_floor is None else consumer.ack_floor.stream_seq
    return state.first_seq if state.messages and state.first_seq <= acknowledged else None


async def put_stream(js: JetStreamContext, config: StreamConfig) -> None:
    """Make a stream, or bring it to these settings.

    The number of its first message stays what it was.
    """
    try:
        present = (await js.stream_info(config.name or "")).config
        await js.update_stream(config, first_seq=present.first_seq)
    except NotFoundError:
        await _add_stream(js, config)


async def _add_stream(js: JetStreamContext, config: StreamConfig) -> None:
    """Make a stream.

    A server answers a deletion before it has removed the stream's files, and until then makes no
    other one of that name (seen with 2.15.1).
    """
    deadline = time.monotonic() + REMOVED_SECONDS
    while True:
        try:
            await js.add_stream(config)
            return
        except ServerError as error:
            if error.err_code != _NO_STORE or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)


async def _make_room(js: JetStreamContext, first_sequence: int) -> None:
    """Delete an empty stream whose next message would have a lower number than that."""
    try:
        state = (await js.stream_info(STREAM)).state
    except NotFoundError:
        return
    if state.last_seq + 1 >= first_sequence:
        return
    if state.messages:
        raise WrongOptions(
            f"--first-sequence: {state.messages} messages wait in the stream {STREAM}, which has "
            f"come to number {state.last_seq}: delete the stream with NATS's own tool, make it "
            "again, and send what waited once more with power-fleet resend on the devices"
        )
    await js.delete_stream(STREAM)


def next_sequence(highest_line: int) -> int:
    """The number with which a stream has to begin for an engine that knows lines up to that.

    0: it knows none.

    >>> next_sequence(0), next_sequence(17) == EPOCH, next_sequence(EPOCH) == 2 * EPOCH
    (1, True, True)
    """
    if highest_line == 0:
        return 1
    return (highest_line // EPOCH + 1) * EPOCH


async def least_sequence(js: JetStreamContext, highest_line: int) -> int:
    """The least number that the next message may have, if the engine knows lines up to that."""
    try:
        last = (await js.stream_info(STREAM)).state.last_seq
    except NotFoundError:
        last = 0
    return 1 if last >= highest_line else next_sequence(highest_line)


def is_other_stream(line: int, sequence: int) -> bool:
    """Whether another stream than that of the line gave a message this number."""
    return sequence <= line or sequence // EPOCH != line // EPOCH


async def check_sequence(js: JetStreamContext, highest_line: int) -> None:
    """Raise Refused for a stream that was made again.

    What comes from it would lose against what the engine knows.
    """
    last = (await js.stream_info(STREAM)).state.last_seq
    if last < highest_line:
        raise Refused(
            f"the stream {STREAM} has come to message {last}, "
            f"but the engine knows line {highest_line}: the stream was made again; "
            "run power-fleet stream --first-sequence "
            f"{next_sequence(highest_line)}, then start the sink again"
        )


async def stored_until(connection: Client) -> tuple[float, float]:
    """Up to when everything is stored, and now, by the stream's clock (epoch seconds).

    The former is when the stream took in the oldest message that no sink has stored yet, or now if
    there is none.
    """
    answer = json.loads((await connection.request(f"$JS.API.STREAM.INFO.{STREAM}", timeout=5)).data)
    if "error" in answer:
        raise ConnectionError(f"the stream {STREAM}: {answer['error'].get('description')}")
    state = answer["state"]
    now = seconds(str(answer["ts"]))
    return (seconds(str(state["first_ts"])) if state["messages"] else now), now


def seconds(timestamp: str) -> float:
    """Epoch seconds of one of the server's times, whole microseconds of it.

    >>> seconds("2023-11-14T22:13:20.123456789Z")
    1700000000.123456
    """
    whole, _, fraction = timestamp.rstrip("Z").partition(".")
    moment = datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}+00:00")
    return moment.timestamp()
