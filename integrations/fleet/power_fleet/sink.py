"""From the stream into the engine: take, store on every shard concerned, acknowledge. It keeps nothing itself.

Any number of copies share one durable consumer. What one of them took and did not acknowledge, another one gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from power_fleet import dead, deletions, schema
from power_fleet.codec import MAX_US, Batch, Poison
from power_fleet.complaints import Complaints
from power_fleet.decoding import decode
from power_fleet.engine import Engine, Shard
from power_fleet.life import highest_line
from power_fleet.quota import Quota
from power_fleet.stream import (
    CONSUMER,
    STREAM,
    Backoff,
    Nats,
    check_sequence,
    check_server,
    device_of,
    stored_until,
)
from power_manager import HOUR_US

MESSAGES = 200  # taken at once
WAIT = 1.0  # seconds for the first of them
FRESH_EVERY = 10.0  # seconds between two notes of how fresh the engine is, where nothing comes
ACKNOWLEDGEMENT_BYTES = 1000  # one of the server's is shorter
_FAILURES = (nats.errors.Error, OSError, asyncio.TimeoutError)
_log = logging.getLogger("power_fleet")


@dataclass
class Rows:
    """What one shard gets, by table."""

    tables: dict[str, list[Sequence[Any]]] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)  # the lowest of each device

    def add(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        """Add rows to a table's."""
        self.tables.setdefault(table, []).extend(rows)


# Deletions before what is deleted is looked for, which is after all rows that may be; then the touches of the hours.
_ORDER = {
    "power_deletions": schema.DELETIONS, "power_readings": schema.READINGS, "power_events": schema.EVENTS,
    # A device after its meters: its line says which of them are present.
    "power_meters": schema.METERS, "power_devices": schema.DEVICES,
}  # fmt: skip
_AFTERWARDS = {
    "power_touched": schema.TOUCHED, "power_lines": schema.LINES, "power_seen": schema.SEEN,
}  # fmt: skip


def rows_of(batches: Iterable[tuple[Batch, int]], engine: Engine) -> list[Rows]:
    """The rows of batches, each with when the stream took it in (microseconds), for each shard."""
    shards = [Rows() for _ in engine.shards]
    for batch, seen in batches:
        _add(shards[engine.shard_of(batch.device_id)], batch, seen)
    return shards


def _add(rows: Rows, batch: Batch, seen: int) -> None:
    id_ = batch.device_id
    generation = batch.generation
    rows.generations[id_] = min(rows.generations.get(id_, generation), generation)
    rows.add(
        "power_deletions",
        (
            (
                id_,
                d.revision,
                d.kind,
                d.meter_id or "",
                d.since or 0,
                MAX_US if d.until is None else d.until,
            )
            for d in batch.deletions
        ),
    )
    rows.add(
        "power_readings",
        ((id_, *reading, batch.max_gap, generation, 0) for reading in batch.readings),
    )
    rows.add(
        "power_touched",
        ((id_, hour, 1) for hour in sorted({r.at // HOUR_US for r in batch.readings})),
    )
    rows.add(
        "power_events",
        (
            (
                id_,
                e.at,
                e.id,
                e.sequence,
                e.type,
                e.value,
                e.note,
                e.meter_id,
                batch.sequence,
                generation,
                0,
            )
            for e in batch.events
        ),
    )
    rows.add("power_devices", ((id_, *device, 0) for device in batch.devices))
    rows.add("power_meters", ((id_, *meter, 0) for meter in batch.meters))
    if batch.opening is not None:
        version, site, _ = batch.opening
        rows.add(
            "power_lines",
            [(id_, batch.line, batch.file_id, seen, batch.number, version, site)],
        )
    rows.add("power_seen", [(id_, batch.line, batch.file_id, batch.number, seen)])


def store(engine: Engine, shards: Sequence[Rows]) -> None:
    """Insert all of it, one insert a table and shard. Raises EngineError; then some of it may be there, harmlessly."""
    for shard, rows in zip(engine.shards, shards):
        _insert(shard, rows, _ORDER)
        deletions.apply(shard, rows.generations, rows.tables.get("power_deletions", ()))
        _insert(shard, rows, _AFTERWARDS)


def _insert(shard: Shard, rows: Rows, tables: dict[str, dict[str, str]]) -> None:
    for table, columns in tables.items():
        if rows.tables.get(table):
            shard.insert(table, columns, rows.tables[table])


class Sink:
    """One copy of the sink. `quota` is how much of its time a device may take."""

    def __init__(
        self,
        engine: Engine,
        source: Nats,
        backoff: Backoff,
        quota: Quota | None = None,
    ) -> None:
        self._engine = engine
        self._source = source
        self._backoff = backoff
        self._quota = Quota() if quota is None else quota
        self._complaints = Complaints()
        self._fresh_at = -FRESH_EVERY  # when it was noted last, by the monotonic clock

    async def run(self) -> None:
        """Work for ever: whatever fails is tried again, over a new connection, after a growing wait."""
        while True:
            try:
                await asyncio.to_thread(schema.check_all, self._engine)
                connection = await self._source.connect("power-fleet sink")
                try:
                    await self._work(connection)
                finally:
                    with contextlib.suppress(*_FAILURES):
                        await asyncio.wait_for(connection.close(), 5)
            except _FAILURES as error:  # EngineError is one of them
                await self._backoff.wait("not stored, kept in the stream", error)

    async def _work(self, connection: Client) -> None:
        await check_server(connection)
        js = connection.jetstream()
        await check_sequence(js, await asyncio.to_thread(highest_line, self._engine))
        dead_subject = await dead.dead_subject(js)
        subscription = await js.pull_subscribe_bind(CONSUMER, STREAM)
        while True:
            messages = []
            with contextlib.suppress(nats.errors.TimeoutError):
                messages = await subscription.fetch(MESSAGES, timeout=WAIT)
            poison = await self._take(await self._allowed(messages))
            for message, reason in poison:
                self._complaints.say(device_of(message.subject), f"a dead letter: {reason}")
                try:
                    await dead.bury(js, dead_subject, message, reason)
                except _FAILURES as error:  # it comes again; the readings behind it need not wait
                    _log.error("left in the stream: %s", error or type(error).__name__)
            if messages or time.monotonic() - self._fresh_at >= FRESH_EVERY:
                fresh = int(await stored_until(connection) * 1e6)
                await asyncio.to_thread(self._note_fresh, fresh)
            self._backoff.reset()

    async def _allowed(self, messages: list[Msg]) -> list[Msg]:
        """Those of the messages that are within their device's quota; the others come again when they are.

        What no device sent is dropped: the server's acknowledgement of another device's message, which that device
        has had sent here.
        """
        allowed = []
        for message in messages:
            device_id = device_of(message.subject)
            if _is_acknowledgement(message):
                self._complaints.say(
                    device_id, "dropped what another device had the server send under its subject"
                )
                await message.term()
                continue
            wait = self._quota.wait_for(device_id, len(message.data))
            if wait == 0.0:
                allowed.append(message)
            else:
                self._complaints.say(device_id, "it sends more than its quota: the rest waits")
                await message.nak(delay=wait)
        return allowed

    async def _take(self, messages: list[Msg]) -> list[tuple[Msg, str]]:
        """Store the messages and acknowledge them; return those that can never be stored, with the reasons.

        On a failure the others go back, for any sink to try again.
        """
        good, poison = [], []
        for message in messages:
            try:
                good.append((message, _decoded(message)))
            except Poison as reason:
                poison.append((message, str(reason)))
        try:
            rows = rows_of(((batch, _seen(message)) for message, batch in good), self._engine)
            await asyncio.to_thread(store, self._engine, rows)
        except _FAILURES:
            for message, _ in good:
                with contextlib.suppress(*_FAILURES):
                    await message.nak(delay=1)
            raise
        for message, _ in good:
            await message.ack()
        return poison

    def _note_fresh(self, fresh: int) -> None:
        """Say how fresh the engine is, on every shard."""
        for shard in self._engine.shards:
            shard.insert("power_fresh", schema.FRESH, [["stream", fresh]])
        self._fresh_at = time.monotonic()


def _decoded(message: Msg) -> Batch:
    batch = decode(message.data, message.metadata.sequence.stream)
    owner = device_of(message.subject)
    if batch.device_id != owner:
        raise Poison(f"the subject is that of {owner!r}, the batch that of {batch.device_id!r}")
    return batch


def _is_acknowledgement(message: Msg) -> bool:
    """Whether the server itself made this message: an answer to a publisher, which names the stream or an error."""
    if message.headers or len(message.data) > ACKNOWLEDGEMENT_BYTES:
        return False
    try:
        content = json.loads(message.data)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and bool({"stream", "error"} & content.keys())


def _seen(message: Msg) -> int:
    return int(message.metadata.timestamp.timestamp() * 1e6)
