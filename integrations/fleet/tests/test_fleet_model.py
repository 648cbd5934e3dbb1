"""A device's life of any kind: what the engine says is what a model of a few lines says, whatever
the order.

Files record, correct, delete, are restored, copied, exchanged and sent again, by forwarders that
end anywhere; sinks store the messages in any order, several at once, some of them twice. The model
knows nothing of tables: it keeps, of what all messages say, the highest version, unless a deletion
has a higher one.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fleet_harness import HOUR, NOW, SEQUENCES, Clock, emptied
from power_fleet.codec import Batch, Deletion, Meter, encode, version_of
from power_fleet.decoding import decode
from power_fleet.engine import Engine
from power_fleet.fleet import Fleet
from power_fleet.outbox import Outbox
from power_fleet.progress import resend
from power_fleet.sink import Rows, rows_of, store

from power_manager import PowerManager

ID = "edge-1"
MEMBERS = 3  # files of the device at once, at most


@dataclass
class Model:
    """What a fleet knows of one device."""

    batches: list[Batch] = field(default_factory=list)

    def _is_deleted(self, version: int, meter_id: str | None, at: int | None) -> bool:
        """Whether something of that version is deleted: a reading at that time, a meter (at None),
        or a device.
        """
        return any(
            version < deletion.revision and _covers(deletion, meter_id, at)
            for batch in self.batches
            for deletion in batch.deletions
        )

    def readings(self) -> dict[tuple[str, int], tuple[float | None, ...]]:
        """By meter and time, their values."""
        best: dict[tuple[str, int], tuple[int, tuple[float | None, ...]]] = {}
        for batch in self.batches:
            for reading in batch.readings:
                values = (reading.voltage, reading.current_draw, reading.charge_pct)
                key = (reading.meter_id, reading.at)
                if key not in best or best[key][0] < batch.generation:
                    best[key] = (batch.generation, values)
        return {
            (meter_id, at): values
            for (meter_id, at), (version, values) in best.items()
            if not self._is_deleted(version, meter_id, at)
        }

    def events(self) -> set[str]:
        """Their ids."""
        best: dict[str, int] = {}
        for batch in self.batches:
            for event in batch.events:
                best[event.id] = max(best.get(event.id, 0), batch.generation)
        return {id_ for id_, version in best.items() if not self._is_deleted(version, None, None)}

    def device_line(self) -> int | None:
        """The line of the present record; None where there is no device."""
        versions = [device.revision for batch in self.batches for device in batch.devices]
        newest = max(versions, default=0)
        if not versions or self._is_deleted(newest, None, None):
            return None
        return next(
            batch.line
            for batch in self.batches
            for device in batch.devices
            if device.revision == newest
        )

    def meters(self) -> dict[str, Meter]:
        """The present ones."""
        line = self.device_line()
        best: dict[str, Meter] = {}
        for batch in self.batches:
            for meter in batch.meters:
                if meter.id not in best or best[meter.id].revision < meter.revision:
                    best[meter.id] = meter
        return {
            meter.id: meter
            for meter in best.values()
            if line is not None
            and meter.revision >= version_of(line, 0)
            and not self._is_deleted(meter.revision, meter.id, None)
        }


def _covers(deletion: Deletion, meter_id: str | None, at: int | None) -> bool:
    if deletion.kind == "device":
        return True
    if meter_id is None or deletion.meter_id != meter_id:
        return False
    if deletion.kind == "meter":
        return True
    if at is None:
        return False
    since = deletion.since or 0
    return since <= at and (deletion.until is None or at < deletion.until)


class Lives:
    """Files of one device, their forwarders, and all that these have sent."""

    def __init__(self, home: Path, chance: random.Random) -> None:
        self.home = home
        self.chance = chance
        self.clock = Clock()
        self.files: list[PowerManager] = []
        self.boxes: list[Outbox] = []
        self.batches: list[Batch] = []
        self._count = 0

    def add(self, copy_of: PowerManager | None = None) -> None:
        """Another file of the device: a new one, or a copy by cp."""
        path = self.home / f"{self._count}.db"
        self._count += 1
        if copy_of is not None:
            copy_of.close()
            shutil.copy(copy_of.db_path, path)
            place = self.files.index(copy_of)
            self._open(place, Path(copy_of.db_path))
        self.files.append(self._opened(path))
        self.boxes.append(Outbox(self.files[-1]))

    def _opened(self, path: Path) -> PowerManager:
        pm = PowerManager(path, durability="normal", clock=self.clock)
        if not pm.list_devices():
            pm.register_device(ID, f"Device {self.chance.random()}")
        return pm

    def _open(self, place: int, path: Path) -> None:
        self.files[place] = self._opened(path)
        self.boxes[place] = Outbox(self.files[place])

    def step(self) -> None:
        """Something happens to one of the files; now and then a clock is wrong by years."""
        place = self.chance.randrange(len(self.files))
        pm = self.files[place]
        self.clock.now = NOW + self.chance.choice([0, 0, 0, -1e8, 1e8]) + self.chance.random()
        meters = [meter.id for meter in pm.list_meters()]
        action = self.chance.randrange(12)
        if not meters or action == 0:
            pm.add_meter(ID, "battery", 40.0)
        elif action <= 4:
            self._log(pm, self.chance.choice(meters))
        elif action == 5:
            start = NOW - self.chance.uniform(0, 10) * HOUR
            pm.delete_readings(self.chance.choice(meters), since=start, until=start + 3 * HOUR)
        elif action == 6 and self.chance.random() < 0.5:
            pm.delete_meter(self.chance.choice(meters))
        elif action == 7 and self.chance.random() < 0.3:
            pm.delete_device(ID)
            pm.register_device(ID, "Again")
        elif action == 8:
            resend(pm, NOW - self.chance.uniform(0, 10) * HOUR)
        elif action == 9 and len(self.files) < MEMBERS:
            self.add(copy_of=pm if self.chance.random() < 0.5 else None)
        elif action == 10:
            self._restore(place)
        elif action == 11:
            self.boxes[place] = Outbox(pm)  # the forwarder starts again

    def _log(self, pm: PowerManager, meter_id: str) -> None:
        pm.log_power(meter_id, self.chance.uniform(0, 20), 1.0, self.chance.uniform(0, 100))
        # Instants that are recorded and deleted again and again.
        times = [NOW - 600.0 * self.chance.randrange(60) for _ in range(4)]
        pm.log_many([(meter_id, self.chance.uniform(0, 20), 1.0, 50.0, at) for at in times])
        if self.chance.random() < 0.3:
            pm.trigger_event(ID, "restore", self.chance.random())

    def _restore(self, place: int) -> None:
        """The file becomes what it was at some time, by restore() under a forwarder that runs."""
        pm = self.files[place]
        backup = self.home / f"backup-{place}.db"
        if backup.exists() and self.chance.random() < 0.7:
            pm.restore(backup)
            backup.unlink()
        elif not backup.exists():
            pm.backup(backup)

    def send(self, place: int, ends_at: int) -> None:
        """The file's forwarder sends some parcels; the last of them it may not note."""
        for number in range(ends_at):
            parcel = self.boxes[place].take()
            if not parcel.batches:
                return
            sequences = [next(SEQUENCES) for _ in parcel.batches]
            self.batches += [
                decode(encode(batch)[1], sequence)
                for batch, sequence in zip(parcel.batches, sequences)
            ]
            if number < ends_at - 1:
                self.boxes[place].done(parcel, sequences)


@pytest.fixture
def lives(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lives]:
    """One file to begin with."""
    found = Lives(tmp_path, random.Random(request.param))
    found.add()
    yield found
    for pm in found.files:
        pm.close()


def stored_by_sinks(engine: Engine, batches: list[Batch], chance: random.Random) -> None:
    """Store them in any order, some of them twice, a few at a time."""
    waiting = batches + chance.sample(batches, len(batches) // 3)
    chance.shuffle(waiting)
    while waiting:
        count = chance.randint(len(batches) // 5, len(batches) // 2) + 1
        taken, waiting = waiting[:count], waiting[count:]
        rows: Iterable[Rows] = rows_of([(batch, int(NOW * 1e6)) for batch in taken], engine)
        store(engine, list(rows))


@pytest.mark.slow
@pytest.mark.parametrize("lives", range(3), indirect=True)
def test_any_life_ends_as_the_model_says(lives: Lives, new_urls: list[str]) -> None:
    """Readings, events, the device and its present meters, to the last value."""
    engine = Engine(emptied(new_urls))
    fleet = Fleet(new_urls, clock=Clock())
    model = Model(lives.batches)
    done = 0
    for number in range(60):
        lives.step()
        if lives.chance.random() < 0.5:
            lives.send(lives.chance.randrange(len(lives.files)), lives.chance.randint(1, 6))
        if number % 30 == 29:
            stored_by_sinks(engine, lives.batches[done:], lives.chance)
            done = len(lives.batches)
            assert_as_modelled(engine, fleet, model)


def assert_as_modelled(engine: Engine, fleet: Fleet, model: Model) -> None:
    """The engine is what the model says."""
    rows = engine.select(
        "SELECT meter_id, at, voltage, current_draw, charge_pct "
        "FROM power_readings FINAL WHERE deleted = 0"
    )
    assert {
        (row["meter_id"], row["at"]): (row["voltage"], row["current_draw"], row["charge_pct"])
        for row in rows
    } == model.readings()
    events = engine.select("SELECT id FROM power_events FINAL WHERE deleted = 0")
    assert {row["id"] for row in events} == model.events()
    assert (list(fleet.budget().value) == [ID]) is (model.device_line() is not None)
    present = {meter.id: meter for meter in fleet.latest().value}
    expected = model.meters()
    assert present.keys() == expected.keys()
    for id_, meter in expected.items():
        state = (meter.voltage, meter.current_draw, meter.charge_pct)
        assert (present[id_].voltage, present[id_].current_draw, present[id_].charge_pct) == state
