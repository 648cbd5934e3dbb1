"""What the tests share: device files, and how they get into an engine without a network."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos_common import same
from power_fleet import cli, tables
from power_fleet.codec import Batch, encode
from power_fleet.decoding import decode
from power_fleet.engine import Engine, Shard
from power_fleet.outbox import Outbox
from power_fleet.sink import rows_of, store

from power_manager import PowerManager

NOW = 1_790_000_000.0  # 2026-09-21T14:13:20Z
HOUR = 3600.0
INTEGRATION = Path(__file__).resolve().parents[1]


class Clock:
    """A clock that stands until it is set."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        """Epoch seconds."""
        return self.now


FILLED = """SELECT DISTINCT table FROM system.parts
WHERE database = currentDatabase() AND active AND rows > 0"""


def emptied(urls: list[str]) -> list[str]:
    """The same engine, whose tables are there, with all but the number of its shard deleted."""
    for shard in Engine(urls).shards:
        filled = {row["table"] for row in shard.select(FILLED)}
        for name in filled & tables.TABLES.keys() - {"power_shard"}:
            shard.do(f"TRUNCATE TABLE {name}")
    return urls


SEQUENCES = itertools.count(
    1
)  # the places that the tests' stream gives to messages, over all of a run


def messages_of(outbox: Outbox) -> list[tuple[int, bytes]]:
    """Everything the file has not sent, each message with its place in the stream.

    The outbox notes it as sent.
    """
    found = []
    while (parcel := outbox.take()).batches:
        messages = [(next(SEQUENCES), encode(batch)[1]) for batch in parcel.batches]
        outbox.done(parcel, [sequence for sequence, _ in messages])
        found += messages
    return found


def batches_of(outbox: Outbox) -> list[Batch]:
    """Everything the file has not sent, as it comes out of the messages.

    The outbox notes it as sent.
    """
    return [decode(data, sequence) for sequence, data in messages_of(outbox)]


def carry(
    pm: PowerManager,
    engine: Engine,
    *,
    site: str = "",
    clock: Callable[[], float] = lambda: NOW,
    times: int = 1,
) -> None:
    """Store what a forwarder that starts now would send, `times` times over.

    `clock` is the stream's.
    """
    outbox = Outbox(pm, site)
    while (parcel := outbox.take()).batches:
        sequences = [next(SEQUENCES) for _ in parcel.batches]
        batches = [
            (decode(encode(batch)[1], sequence), int(clock() * 1e6))
            for batch, sequence in zip(parcel.batches, sequences)
        ]
        for _ in range(times):
            store(engine, rows_of(batches, engine))
        outbox.done(parcel, sequences)


def random_device(
    path: Path, seed: int, device_id: str, clock: Clock, count: int = 300, **options: Any
) -> PowerManager:
    """A file with a device of four meters, readings of ten days with gaps, and a few events.

    One reading in ten lacks its volts, its amperes or both; the solar meter's charge is not known
    until a reading brings one, and the ups meter's from the last day on.
    """
    chance = random.Random(seed)
    pm = PowerManager(path, durability="normal", clock=clock, **options)
    pm.register_device(device_id, f"Device {seed}", target_wh=chance.choice([None, 50.0]))
    meters = [
        pm.add_meter(device_id, kind, 40.0, kind, charge_pct=None if kind == "solar" else 100.0)
        for kind in ("battery", "solar", "main", "ups")
    ]
    at = NOW - 10 * 24 * HOUR
    rows = []
    for _ in range(count - 1):  # and one more below
        at += chance.choice([1.0, 60.0, 600.0, 3000.0, 3600.0, 4000.0]) * chance.random() * 3
        volts = None if chance.random() < 0.05 else chance.uniform(0, 20)
        amperes = None if chance.random() < 0.1 else chance.uniform(-3, 3)
        charge = chance.choice([None, chance.uniform(0, 100)])
        if volts is None and amperes is None and charge is None:  # it would say nothing
            charge = 50.0
        rows.append((chance.choice(meters).id, volts, amperes, charge, min(at, NOW)))
    solar, ups = meters[1].id, meters[3].id
    rows = [
        (meter, volts, amperes, None if meter == solar and volts is not None else charge, at)
        for meter, volts, amperes, charge, at in rows
    ]
    chance.shuffle(rows)
    pm.log_many(rows)
    pm.update_meter(ups, charge_pct=None)
    pm.log_power(ups, 12.0, 1.0)
    for number in range(30):
        clock.now = NOW - chance.random() * 12 * 24 * HOUR
        pm.trigger_event(device_id, "restore", number, note=chance.choice([None, "é'\\ 电"]))
    clock.now = NOW
    return pm


def run_command(*arguments: str) -> int:
    """Run `power-fleet`; return its exit code, that of wrong usage too."""
    try:
        return cli.main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


def queried(place: Engine | Shard, question: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """The rows of an answer as tuples, for comparing."""
    return [tuple(row.values()) for row in place.select(question, **parameters)]


def same_json(expected: str, actual: str) -> bool:
    """The same for JSON texts."""
    return same(json.loads(expected), json.loads(actual))
