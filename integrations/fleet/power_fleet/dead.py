"""Dead letters: messages that can never be stored.

Sinks write them; an operator lists, reads, replays and drops them.

They are in a stream of their own, which drops its oldest ones: of each device beyond
LETTERS_A_DEVICE, and of all beyond the stream's size. Its subject holds a secret that the stream
alone keeps, for those who may ask for its settings: a device could otherwise have the server's
acknowledgements of its own messages sent there, as another's letters.
"""

from __future__ import annotations

import json
import re
import secrets
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timezone
from urllib.parse import unquote

from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RawStreamMsg, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from power_fleet.codec import MAX_BYTES
from power_fleet.errors import FleetError, Refused
from power_fleet.intake import Message
from power_fleet.limits import DEVICE_MESSAGES
from power_fleet.stream import (
    ASKED_SECONDS,
    Nats,
    check_server,
    least_sequence,
    make_streams,
    put_stream,
)
from power_fleet.subjects import DEAD_STREAM, DEAD_SUBJECT, STREAM, SUBJECT, device_of, token

LETTERS_A_DEVICE = 1000
LETTER_BYTES = 128 * 1024  # of a message are kept; the rest of a larger one is cut off
REASON = 500  # characters of a letter's
_GONE = (10037, 10043)  # the server's numbers for a message that is not there


class Unknown(FleetError):
    """There is no such dead letter; says which ones there are."""


@dataclass(frozen=True)
class Letter:
    """One dead letter: `number` is its place in the stream, `size` the message's bytes."""

    number: int
    device_id: str
    at: datetime  # when it was put there, by the stream's clock
    reason: str
    size: int
    data: bytes
    place: int = 0  # that the message had in the stream when it was sent; 0: not known

    @property
    def is_whole(self) -> bool:
        """Whether nothing was cut off: only then it can be replayed."""
        return len(self.data) == self.size


async def make_dead_stream(js: JetStreamContext, replicas: int, max_bytes: int) -> None:
    """Make the stream of dead letters, or bring it to these settings.

    It keeps the secret that it has.
    """
    try:
        subject = await dead_subject(js)
    except (NotFoundError, Refused):  # of a version before there was a secret
        subject = f"{DEAD_SUBJECT}{secrets.token_hex(16)}."
    config = StreamConfig(
        name=DEAD_STREAM,
        subjects=[subject + "*"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        num_replicas=replicas,
        discard=DiscardPolicy.OLD,
        max_bytes=max_bytes,
        max_msgs_per_subject=LETTERS_A_DEVICE,
        deny_purge=True,
    )
    await put_stream(js, config)


async def set_up_streams(
    to: Nats,
    replicas: int,
    max_bytes: int,
    device_messages: int = DEVICE_MESSAGES,
    first_sequence: int = 1,
    highest_line: int = 0,
) -> None:
    """Make the stream and that of dead letters, or bring them to these settings.

    Raises Refused, NATS's errors.

    first_sequence: the least number of the messages to come. highest_line: the highest that the
    engine knows; a stream that has not come so far was lost, and is made again beyond it.
    """
    connection = await to.connect("power-fleet stream")
    try:
        await check_server(connection)
        js = connection.jetstream(timeout=ASKED_SECONDS)
        first = max(first_sequence, await least_sequence(js, highest_line))
        await make_streams(js, replicas, max_bytes, device_messages, first)
        await make_dead_stream(js, replicas, max(max_bytes // 10, 1))
    finally:
        await connection.close()


async def dead_subject(js: JetStreamContext) -> str:
    """The subject of dead letters up to the device's id.

    Raises Refused where `power-fleet stream` has to run first.
    """
    config = (await js.stream_info(DEAD_STREAM)).config
    subject = (config.subjects or [""])[0]
    if not re.fullmatch(r"power\.dead\.[0-9a-f]{32}\.\*", subject):
        raise Refused(f"the stream {DEAD_STREAM} is of an older version: run power-fleet stream")
    return subject.removesuffix("*")


async def bury(js: JetStreamContext, subject: str, message: Message, reason: str) -> None:
    """Put a message among the dead letters; its own stream can drop it then."""
    device_id = device_of(message.subject)
    headers = {
        "Reason": reason[:REASON].replace("\r", " ").replace("\n", " "),
        "Bytes": str(len(message.data)),
        "Nats-Msg-Id": str(message.sequence),
    }
    await js.publish(
        subject + token(device_id),
        message.data[:LETTER_BYTES],
        stream=DEAD_STREAM,
        headers=headers,
    )


async def letters(js: JetStreamContext, device_id: str | None = None) -> AsyncIterator[Letter]:
    """The dead letters, oldest first; of one device, or of all."""
    subject = await dead_subject(js)
    number = 1
    while True:
        try:
            found = await js.get_msg(
                DEAD_STREAM,
                seq=number,
                subject=subject + ("*" if device_id is None else token(device_id)),
                next=True,
            )
        except NotFoundError:
            return
        letter = _letter(found, subject)
        yield letter
        number = letter.number + 1


async def letter(js: JetStreamContext, number: int) -> Letter:
    """The dead letter of that number. Raises Unknown."""
    subject = await dead_subject(js)
    try:
        return _letter(await js.get_msg(DEAD_STREAM, seq=number), subject)
    except NotFoundError:
        state = (await js.stream_info(DEAD_STREAM)).state
        there = f"{state.first_seq} to {state.last_seq}" if state.messages else "none"
        raise Unknown(f"no dead letter has the number {number}; there are: {there}") from None


async def replay(js: JetStreamContext, letter: Letter) -> None:
    """Send a letter once more under its device's subject, then drop it.

    A sink stores it, or buries it again.

    Raises Unknown for one that was cut off. Replayed twice within two minutes it is in the stream
    once.
    """
    check_whole(letter)
    headers = {"Nats-Msg-Id": f"dead-{letter.number}"}
    data = with_line(letter.data, letter.place)
    await js.publish(SUBJECT + token(letter.device_id), data, stream=STREAM, headers=headers)
    await drop(js, letter)


def with_line(data: bytes, place: int) -> bytes:
    """A message as it is sent once more: an opening has the line that it opened at first.

    What followed it in the stream names that line. By its new place it would open another one, of
    which nothing else comes, and how far the file had come by the real one would not be known: that
    it went back later, or has a copy at work, would not be noticed.
    """
    try:
        message = json.loads(zlib.decompressobj().decompress(data, MAX_BYTES))
    except (zlib.error, ValueError, RecursionError):
        return data
    if place == 0 or not isinstance(message, dict):
        return data
    if message.get("line") != 0 or "opening" not in message:
        return data
    return zlib.compress(json.dumps(message | {"line": place}, separators=(",", ":")).encode(), 9)


def check_whole(letter: Letter) -> None:
    """Raise Unknown for a letter that was cut off: it cannot be replayed."""
    if not letter.is_whole:
        raise Unknown(
            f"dead letter {letter.number} holds {len(letter.data)} of {letter.size} bytes: "
            "it can be read or dropped, not replayed"
        )


async def drop(js: JetStreamContext, letter: Letter) -> None:
    """Delete a letter for good; one that has gone meanwhile is as good."""
    try:
        await js.delete_msg(DEAD_STREAM, letter.number)
    except APIError as error:
        if error.err_code not in _GONE:
            raise


def _letter(found: RawStreamMsg, subject: str) -> Letter:
    headers = found.headers or {}
    data = found.data or b""
    return Letter(
        number=found.seq or 0,
        device_id=unquote((found.subject or "").removeprefix(subject)),
        at=_when(found),
        reason=headers.get("Reason", ""),
        size=int(headers.get("Bytes", len(data))),
        data=data,
        place=int(headers.get("Nats-Msg-Id", 0)),
    )


def _when(found: RawStreamMsg) -> datetime:
    if isinstance(found.time, datetime):
        return found.time
    return datetime.fromtimestamp(0, timezone.utc)
