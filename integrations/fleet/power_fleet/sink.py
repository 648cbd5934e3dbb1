"""From the stream into the engine: take, store on every shard concerned, acknowledge.

It keeps nothing itself.

Any number of copies share one durable consumer. What one of them took and did not acknowledge,
another one gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from nats.aio.client import Client
from nats.js import JetStreamContext

from power_fleet import dead, deletions, schema, tables
from power_fleet.backoff import Backoff
from power_fleet.codec import MAX_US, Batch, Deletion, Event, Poison
from power_fleet.complaints import Complaints
from power_fleet.decoding import decode
from power_fleet.engine import Engine, Shard, at_once
from power_fleet.intake import Intake, Message
from power_fleet.life import highest_line
from power_fleet.quota import Quota
from power_fleet.stream import NATS_FAILURES, Nats, check_sequence, check_server, stored_until
from power_fleet.subjects import device_of
from power_manager import DAY_US, HOUR_US

READINGS = 50_000  # stored together, and those of one message more: they take about 30 MB
DELETION_COST = 4  # messages that one deletion costs as much as: the engine looks for what it takes
USUAL_READINGS = 2500  # of a message; a larger one costs as much as several
USUAL_MONTHS = 6  # that the readings of a message are of: each has a part of the table to itself
MONTH_COST = 10  # messages that one more costs as much as
MONTH_US = 30 * DAY_US
LOOKED_AT = 100  # deletions that are looked at again, for the cost of a message
WAIT = 1.0  # seconds for a message to come
TOGETHER = 0.1  # seconds in which what comes is stored together
FRESH_EVERY = 10.0  # seconds between two notes of how fresh the engine is, where nothing comes
FRESH_SOON = 1.0  # the same where something comes
LAST_SECONDS = 1.0  # for what is being stored when the sink is told to end
BURIED = 100  # dead letters at a time
ACKNOWLEDGEMENT_BYTES = 1000  # one of the server's is shorter
MOST_CLAIMS = 200_000  # that a sink remembers: about 40 MB
_log = logging.getLogger("power_fleet")


@dataclass
class Rows:
    """What one shard gets, by table."""

    tables: dict[str, list[Sequence[Any]]] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)  # the lowest of each device
    touched: set[tuple[str, int]] = field(default_factory=set)  # hours of devices
    seen: dict[tuple[str, int], Sequence[Any]] = field(default_factory=dict)  # the latest of a line
    looked_at: dict[str, int] = field(default_factory=dict)  # deletions of each device, when stored
    claims: dict[tuple[str, str], int] = field(default_factory=dict)  # meter and device: its rank

    def add(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        """Add rows to a table's."""
        self.tables.setdefault(table, []).extend(rows)


# What may be stored at the same time, one after the other. Lines come before all that is said in
# them: a stream that was lost is made again beyond the lines that the engine knows. Deletions are
# looked for after all rows that they may be about, and hours are touched after their readings. A
# device comes after its meters: its line says which of them are present.
_LINES = {"power_lines": tables.LINES}
_FIRST = {
    "power_deletions": tables.DELETIONS,
    "power_readings": tables.READINGS,
    "power_events": tables.EVENTS,
    "power_meters": tables.METERS,
    "power_claims": tables.CLAIMS,
}
_SECOND = {"power_devices": tables.DEVICES}
_AFTERWARDS = {
    "power_touched": tables.TOUCHED,
    "power_seen": tables.SEEN,
}


def rows_of(
    batches: Iterable[tuple[Batch, int]],
    engine: Engine,
    claimed: Container[tuple[str, str]] = (),
) -> list[Rows]:
    """The rows of batches, each with when the stream took it in (microseconds), for each shard.

    claimed: meters and their devices that the engine has claims of already.
    """
    shards = [Rows() for _ in engine.shards]
    for batch, seen in batches:
        rows = shards[engine.shard_of(batch.device_id)]
        _add(rows, batch, seen)
        for meter in batch.meters:
            claim = (meter.id, batch.device_id)
            if claim not in claimed:
                rank = tables.FIRST_RANK - batch.sequence
                rows.claims[claim] = max(rows.claims.get(claim, 0), rank)
    return shards


def _add(rows: Rows, batch: Batch, seen: int) -> None:
    id_ = batch.device_id
    generation = batch.generation
    rows.generations[id_] = min(rows.generations.get(id_, generation), generation)
    _note_seen(rows, batch, seen)
    if batch.readings:
        rows.add(
            "power_readings",
            [(id_, *reading, batch.max_gap, generation, 0) for reading in batch.readings],
        )
        rows.touched.update((id_, reading.at // HOUR_US) for reading in batch.readings)
    if batch.meters:
        rows.add("power_meters", [(id_, *meter, 0) for meter in batch.meters])
    if batch.devices:
        rows.add("power_devices", [(id_, *device, 0) for device in batch.devices])
    if batch.events:
        rows.add("power_events", [_event_row(batch, event) for event in batch.events])
    if batch.deletions:
        rows.add("power_deletions", [_deletion_row(id_, one) for one in batch.deletions])
    if batch.opening is not None:
        version, site, _ = batch.opening
        rows.add(
            "power_lines",
            [(id_, batch.line, batch.file_id, seen, batch.number, version, site)],
        )


def _event_row(batch: Batch, event: Event) -> Sequence[Any]:
    return (
        batch.device_id,
        event.at,
        event.id,
        event.sequence,
        event.type,
        event.value,
        event.note,
        event.meter_id,
        batch.sequence,
        batch.generation,
        0,
    )


def _deletion_row(device_id: str, deletion: Deletion) -> Sequence[Any]:
    return (
        device_id,
        deletion.revision,
        deletion.kind,
        deletion.meter_id or "",
        deletion.since or 0,
        MAX_US if deletion.until is None else deletion.until,
    )


def _note_seen(rows: Rows, batch: Batch, seen: int) -> None:
    """Of all batches of a line only the latest is noted."""
    key = (batch.device_id, batch.line)
    before = rows.seen.get(key)
    if before is None or (before[-1], before[-2]) < (seen, batch.number):
        rows.seen[key] = (batch.device_id, batch.line, batch.file_id, batch.number, seen)


def store(engine: Engine, shards: Sequence[Rows]) -> int:
    """Insert all of it, one insert a table and shard; return how many inserts there were.

    Raises EngineError; then some of it may be there, harmlessly.
    """
    work = [(shard, rows) for shard, rows in zip(engine.shards, shards) if rows.generations]
    return sum(at_once(lambda place: _store(*place), work))


def _store(shard: Shard, rows: Rows) -> int:
    rows.add("power_touched", [(*touched, 1) for touched in sorted(rows.touched)])
    rows.add("power_seen", rows.seen.values())
    rows.add("power_claims", [(*claim, rank) for claim, rank in rows.claims.items()])
    inserts = _insert(shard, rows, _LINES)
    inserts += _insert(shard, rows, _FIRST)
    inserts += _insert(shard, rows, _SECOND)
    rows.looked_at = deletions.apply(shard, rows.generations, rows.tables)
    return inserts + _insert(shard, rows, _AFTERWARDS)


def _insert(shard: Shard, rows: Rows, tables: Mapping[str, dict[str, str]]) -> int:
    """Insert into all of these tables at the same time; return how many of them have rows."""
    filled = [name for name in tables if rows.tables.get(name)]

    def insert(name: str) -> None:
        shard.insert_columns(name, tables[name], list(zip(*rows.tables[name])))

    at_once(insert, filled)
    return len(filled)


@dataclass
class Work:
    """What a sink has done since it began."""

    messages: int = 0  # stored
    readings: int = 0
    inserts: int = 0
    dead: int = 0  # dead letters
    postponed: int = 0  # messages beyond their device's quota, each time that they came
    dropped: int = 0  # that no device sent
    failures: int = 0  # attempts that failed
    stored_at: float = 0.0  # when something was stored last, epoch seconds; 0.0: never
    lag: float = 0.0  # seconds that the oldest message had waited in the stream, at the last look


@dataclass
class _Portion:
    """Messages that are stored together."""

    good: list[tuple[Message, Batch]] = field(default_factory=list)
    readings: int = 0


class Sink:
    """One copy of the sink.

    `quota`: how much of its time a device may take. `work`: where it notes what it does.
    """

    def __init__(
        self,
        engine: Engine,
        source: Nats,
        backoff: Backoff,
        quota: Quota | None = None,
        work: Work | None = None,
    ) -> None:
        self._engine = engine
        self._source = source
        self._backoff = backoff
        self._quota = Quota() if quota is None else quota
        self._claimed: set[tuple[str, str]] = set()  # meters and their devices
        self._complaints = Complaints()
        self._fresh_at = -FRESH_EVERY  # when it was noted last, by the monotonic clock
        self._is_fresh = False  # whether nothing has been stored since
        self.work = Work() if work is None else work

    async def run(self) -> None:
        """Work until cancelled; what fails is tried again, over a new connection, after a wait."""
        while True:
            try:
                await asyncio.to_thread(schema.check_all, self._engine)
                connection = await self._source.connect("power-fleet sink")
                try:
                    await self._work(connection)
                finally:
                    with contextlib.suppress(*NATS_FAILURES):
                        await asyncio.wait_for(connection.close(), 5)
            except NATS_FAILURES as error:  # EngineError is one of them
                self.work.failures += 1
                await self._backoff.wait("not stored, kept in the stream", error)

    async def _work(self, connection: Client) -> None:
        await check_server(connection)
        js = connection.jetstream()
        await check_sequence(js, await asyncio.to_thread(highest_line, self._engine))
        dead_subject = await dead.dead_subject(js)
        intake = Intake(self._source)
        await intake.start()
        try:
            while True:
                began_at = time.monotonic()
                if await intake.wait(WAIT):
                    await self._take(intake, js, dead_subject)
                if self._needs_freshening():
                    await self._freshen(connection)
                self._backoff.reset()
                if not intake.is_full:
                    # Each store makes parts of tables, which the engine has to merge.
                    await asyncio.sleep(began_at + TOGETHER - time.monotonic())
        finally:
            await intake.close()

    async def _take(self, intake: Intake, js: JetStreamContext, dead_subject: str) -> None:
        """Store what has come, and have the stream drop it."""
        messages = self._allowed(intake, intake.take())
        poison: list[tuple[Message, str]] = []
        left = iter(messages)
        while portion := await asyncio.to_thread(_portion, left, poison):
            await self._store(intake, portion, left)
        for message, reason in poison:
            self._complaints.say(device_of(message.subject), f"a dead letter: {reason}")
        await self._bury(intake, js, dead_subject, poison)

    def _allowed(self, intake: Intake, messages: list[Message]) -> list[Message]:
        """Those of the messages that are within their device's quota.

        The others come again when they are.

        What no device sent is dropped: the server's acknowledgement of another device's message,
        which that device has had sent here.
        """
        allowed = []
        for message in messages:
            device_id = device_of(message.subject)
            if _is_acknowledgement(message):
                self._complaints.say(
                    device_id, "dropped what another device had the server send under its subject"
                )
                self.work.dropped += 1
                intake.drop(message)
                continue
            wait = self._quota.wait_for(device_id, len(message.data))
            if wait == 0.0:
                allowed.append(message)
            else:
                self._complaints.say(device_id, "it sends more than its quota: the rest waits")
                self.work.postponed += 1
                intake.give_back(message, wait)
        return allowed

    async def _store(self, intake: Intake, portion: _Portion, left: Iterable[Message]) -> None:
        """Store messages and acknowledge them.

        On a failure they go back with those left, for any sink to try again.
        """
        batches = [(batch, message.taken_at) for message, batch in portion.good]
        shards: list[Rows] = []

        def work() -> int:
            shards.extend(rows_of(batches, self._engine, self._claimed))
            return store(self._engine, shards)

        storing = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            await asyncio.shield(storing)
        except asyncio.CancelledError:
            await self._finish(intake, portion, storing)
            raise
        except NATS_FAILURES:
            for message in chain((message for message, _ in portion.good), left):
                with contextlib.suppress(*NATS_FAILURES):
                    intake.give_back(message, 1.0)
            raise
        inserts = storing.result()
        self._charge(portion, shards)
        self._note_claims(shards)
        intake.acknowledge(message for message, _ in portion.good)
        self.work.messages += len(portion.good)
        self.work.readings += portion.readings
        self.work.inserts += inserts
        self.work.stored_at = time.time()
        self._is_fresh = False

    def _note_claims(self, shards: Iterable[Rows]) -> None:
        """Remember the claims that the engine has, so that they are not stored with every state."""
        if len(self._claimed) > MOST_CLAIMS:
            self._claimed.clear()
        for rows in shards:
            self._claimed.update(rows.claims)

    def _charge(self, portion: _Portion, shards: Iterable[Rows]) -> None:
        """Take off the devices' shares what cost more than a message does."""
        for _, batch in portion.good:
            cost = cost_of(batch)
            if cost:
                self._quota.charge(batch.device_id, cost)
        for rows in shards:
            for device_id, count in rows.looked_at.items():
                self._quota.charge(device_id, count / LOOKED_AT)

    async def _finish(
        self, intake: Intake, portion: _Portion, storing: asyncio.Future[int]
    ) -> None:
        """Acknowledge what is being stored when the sink is told to end, if that is done soon."""
        await asyncio.wait({storing}, timeout=LAST_SECONDS)
        if storing.done() and not storing.cancelled() and storing.exception() is None:
            with contextlib.suppress(*NATS_FAILURES):
                intake.acknowledge(message for message, _ in portion.good)

    async def _bury(
        self,
        intake: Intake,
        js: JetStreamContext,
        dead_subject: str,
        poison: Sequence[tuple[Message, str]],
    ) -> None:
        """Make dead letters of messages, BURIED at a time.

        One that fails comes again, and nothing waits for it.
        """

        async def bury(message: Message, reason: str) -> None:
            try:
                await dead.bury(js, dead_subject, message, reason)
                intake.drop(message)
                self.work.dead += 1
            except NATS_FAILURES as error:
                _log.error("left in the stream: %s", error or type(error).__name__)

        for first in range(0, len(poison), BURIED):
            await asyncio.gather(*(bury(*one) for one in poison[first : first + BURIED]))

    def _needs_freshening(self) -> bool:
        """Whether it is time to note how fresh the engine is.

        It is soon after something was stored, and otherwise now and then.
        """
        age = time.monotonic() - self._fresh_at
        return age >= FRESH_EVERY or (not self._is_fresh and age >= FRESH_SOON)

    async def _freshen(self, connection: Client) -> None:
        """Say on every shard how fresh the engine is."""
        fresh, now = await stored_until(connection)
        self.work.lag = max(now - fresh, 0.0)
        row = ["stream", int(fresh * 1e6)]
        await asyncio.to_thread(
            at_once,
            lambda shard: shard.insert("power_fresh", tables.FRESH, [row]),
            self._engine.shards,
        )
        self._fresh_at = time.monotonic()
        self._is_fresh = True


def cost_of(batch: Batch) -> int:
    """What a batch costs beyond one usual message: as much as so many of those."""
    months = len({reading.at // MONTH_US for reading in batch.readings})
    return (
        len(batch.deletions) * DELETION_COST
        + len(batch.readings) // USUAL_READINGS
        + max(months - USUAL_MONTHS, 0) * MONTH_COST
    )


def _portion(messages: Iterator[Message], poison: list[tuple[Message, str]]) -> _Portion | None:
    """The next messages that are stored together; None where there are none.

    What is wrong is added to poison.
    """
    portion = _Portion()
    for message in messages:
        try:
            batch = _decoded(message)
        except Poison as reason:
            poison.append((message, str(reason)))
            continue
        portion.good.append((message, batch))
        portion.readings += len(batch.readings)
        if portion.readings >= READINGS:
            break
    return portion if portion.good else None


def _decoded(message: Message) -> Batch:
    batch = decode(message.data, message.sequence)
    owner = device_of(message.subject)
    if batch.device_id != owner:
        raise Poison(f"the subject is that of {owner!r}, the batch that of {batch.device_id!r}")
    return batch


def _is_acknowledgement(message: Message) -> bool:
    """Whether the server itself made this message.

    It then is an answer to a publisher, and names the stream or an error.
    """
    if message.has_headers or len(message.data) > ACKNOWLEDGEMENT_BYTES:
        return False
    if not message.data.startswith(b"{"):
        return False
    try:
        content = json.loads(message.data)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and bool({"stream", "error"} & content.keys())
