"""From messages to committed readings, and then to acknowledgements."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from power_manager import (
    LOW_BATTERY_THRESHOLD,
    SECOND_US,
    InvalidValue,
    NotFound,
    PowerManager,
    PowerMeter,
    from_microseconds,
    printable,
)
from power_mqtt.joining import Joiner, Message, Reading
from power_mqtt.mapping import Entry, Map, NoMeaning, Source
from power_mqtt.notices import Arrived, Receipt
from power_mqtt.payloads import WITH_CHARGE
from power_mqtt.place import check_place

MOST_METERS = 1000  # whoever may publish could fill the file with invented meters
MOST_WAITING = 50_000  # readings that are kept while the file cannot be written
_MOST_CUT_OFF = 10_000
_URGENT_PAUSE_S = 60.0  # between two commits because of a low charge
_log = logging.getLogger("power_mqtt")

_SCHEMA = """CREATE TABLE IF NOT EXISTS mqtt_sources (
    device_id TEXT NOT NULL,
    type TEXT NOT NULL,
    name TEXT NOT NULL,        -- as the map has it; the meter may have been renamed since
    meter_id TEXT NOT NULL,
    PRIMARY KEY (device_id, type, name)
) WITHOUT ROWID"""


class Intake:
    """Takes messages, keeps readings until commit(), and then acknowledges the messages."""

    def __init__(
        self,
        pm: PowerManager,
        maps: Sequence[Map],
        *,
        acknowledge: Callable[[Receipt], None],
        most_meters: int = MOST_METERS,
    ) -> None:
        self._pm = pm
        self._maps = maps
        self._joiner = Joiner(maps)
        self._acknowledge = acknowledge
        self._most_meters = most_meters
        self._meter_ids: dict[tuple[str, str, str], str] = {}
        self._readings: list[Reading] = []
        self._messages: deque[Message] = deque()
        # Unacknowledged messages of connections that have ended, by digest.
        self._cut_off: dict[int, deque[Message]] = {}
        self._charges: dict[Source, float] = {}
        self._said: set[str] = set()
        self._urgent_s = float("-inf")
        self.is_urgent = False  # a charge has become low: commit now
        self.counts: Counter[str] = Counter()
        with pm.connection() as conn:
            conn.execute(_SCHEMA)

    @property
    def unacknowledged_count(self) -> int:
        """Messages that the broker still keeps."""
        return sum(message.receipt is not None for message in self._messages)

    @property
    def waiting_count(self) -> int:
        """Readings that wait for a commit."""
        return len(self._readings)

    def take(self, arrived: Arrived, now_s: float, wall_us: int) -> None:
        """Take in one message that came now."""
        self.counts["messages"] += 1
        message = Message(arrived.receipt, hash((arrived.topic, arrived.payload)))
        if arrived.is_repeated and self._is_known(message):
            self.counts["repeated"] += 1
            return
        self._messages.append(message)
        entries = [entry for one in self._maps for entry in entries_for(one, arrived.topic)]
        if not entries:
            self.counts["of no map"] += 1  # a + in a filter matches more than the map means
        problems = []
        for entry in entries:
            try:
                measured = entry.measure(arrived.topic, arrived.payload, wall_us)
            except NoMeaning as error:
                problems.append(str(error))
                continue
            if measured is None:
                continue
            if arrived.is_retained and measured.at_us is None:
                self.counts["retained"] += 1  # its age is unknown
                continue
            for why in measured.left_out:
                self._leave_out("not plausible", arrived.topic, why)
            for reading in self._joiner.add(measured, message, now_s, wall_us):
                self._keep(reading, now_s)
        if problems:
            self._leave_out("not understood", arrived.topic, problems[0])

    def _is_known(self, again: Message) -> bool:
        """Whether a message has come before, by a connection that has ended.

        Then this connection acknowledges it.
        """
        same = self._cut_off.get(again.digest)
        if not same:
            return False
        message = same.popleft()
        if message.is_settled:
            self._messages.append(again)
        else:
            message.receipt = again.receipt
        return True

    def cut_off(self) -> None:
        """Note the end of a connection: its messages cannot be acknowledged, and may come again."""
        if sum(map(len, self._cut_off.values())) > _MOST_CUT_OFF:
            self._cut_off.clear()  # a broker that forgets its sessions sends nothing again
        for message in self._messages:
            if message.receipt is not None:
                message.receipt = None
                self._cut_off.setdefault(message.digest, deque()).append(message)

    def look(self, now_s: float, *, is_end: bool = False) -> None:
        """Make the readings whose window has ended, or all that wait."""
        for reading in list(self._joiner.due(now_s, is_end=is_end)):
            self._keep(reading, now_s)

    def next_due_s(self) -> float | None:
        """When look() has something to do next."""
        return self._joiner.next_due_s()

    def _keep(self, reading: Reading, now_s: float) -> None:
        if reading.has_watts_alone:
            why = "watts without volts: name the volts in the map, or give it a nominal_voltage"
            self._leave_out("watts alone", shown_source(reading.source), why)
        if reading.is_empty:
            self.counts["unknown"] += 1
            self._finish([reading])
            return
        if len(self._readings) >= MOST_WAITING:
            self._finish([self._readings.pop(0)])
            self._leave_out("dropped", "", "the file could not be written for too long")
        self._readings.append(reading)
        if reading.charge_pct is None:
            return
        before = self._charges.get(reading.source, 100.0)
        self._charges[reading.source] = reading.charge_pct
        is_low = reading.charge_pct <= LOW_BATTERY_THRESHOLD < before
        if is_low and now_s - self._urgent_s >= _URGENT_PAUSE_S:
            self._urgent_s = now_s
            self.is_urgent = True

    def commit(self) -> None:
        """Store what waits in one commit, then let the broker forget it.

        Raises StorageError; then all of it still waits.
        """
        self.is_urgent = False
        readings = self._readings
        if readings:
            refused: list[tuple[Reading, str]] = []
            try:
                count = self._store(readings, refused)
            except NotFound:  # a meter was deleted: it is registered again
                self._meter_ids.clear()
                refused.clear()
                count = self._store(readings, refused)
            self._readings = []
            self.counts["stored"] += count
            # Of the same meter and time as another: it came twice, or says something else.
            self.counts["of a time that is there"] += len(readings) - count - len(refused)
            for reading, why in refused:
                self._leave_out("refused", shown_source(reading.source), why)
            self._finish(readings)
        while self._messages and self._messages[0].is_done:
            message = self._messages.popleft()
            message.is_settled = True
            if message.receipt is not None:
                self._acknowledge(message.receipt)

    def check_file(self) -> None:
        """Raise MqttError if another file has taken the place of the one that is open."""
        check_place(self._pm)

    def _finish(self, readings: Iterable[Reading]) -> None:
        for reading in readings:
            for message in reading.messages:
                message.open_count -= 1

    def _store(self, readings: Sequence[Reading], refused: list[tuple[Reading, str]]) -> int:
        meter_ids = dict(self._meter_ids)
        count = 0
        with self._pm.transaction():
            for is_live in (True, False):
                rows = []
                for reading in readings:
                    if reading.is_live is is_live:
                        try:
                            meter_id = self._meter_id(reading.source, meter_ids)
                        except InvalidValue as error:
                            refused.append((reading, str(error)))
                            continue
                        rows.append((reading, _row(meter_id, reading)))
                count += self._log(rows, is_live, refused)
        self._meter_ids = meter_ids
        return count

    def _log(
        self,
        rows: Sequence[tuple[Reading, tuple[object, ...]]],
        is_live: bool,
        refused: list[tuple[Reading, str]],
    ) -> int:
        try:
            return self._pm.log_many([row for _, row in rows], live=is_live)
        except InvalidValue:
            pass  # one refused reading must not cost the others
        count = 0
        for reading, row in rows:
            try:
                count += self._pm.log_many([row], live=is_live)
            except InvalidValue as error:
                refused.append((reading, str(error)))
        return count

    def _meter_id(self, source: Source, known: dict[tuple[str, str, str], str]) -> str:
        """The meter of a source; device and meter are registered where they are new."""
        key = (source.device_id, str(source.type), source.name or "")
        if key in known:
            return known[key]
        with self._pm.connection() as conn:
            sql = "SELECT meter_id FROM mqtt_sources WHERE device_id = ? AND type = ? AND name = ?"
            found = [meter_id for (meter_id,) in conn.execute(sql, key)]
        present = {meter.id: meter for meter in self._meters_of(source)}
        same = [
            meter.id for meter in present.values() if (str(meter.type), meter.name or "") == key[1:]
        ]
        ids = [meter_id for meter_id in found if meter_id in present] or same
        meter_id = ids[0] if ids else self._register(source, known)
        with self._pm.connection() as conn:
            sql = """INSERT OR REPLACE INTO mqtt_sources (device_id, type, name, meter_id)
                VALUES (?, ?, ?, ?)"""
            conn.execute(sql, (*key, meter_id))
        known[key] = meter_id
        return meter_id

    def _meters_of(self, source: Source) -> Sequence[PowerMeter]:
        try:
            return self._pm.list_meters(source.device_id)
        except NotFound:
            return ()

    def _register(self, source: Source, known: dict[tuple[str, str, str], str]) -> str:
        if len(known) >= self._most_meters:
            raise InvalidValue(
                f"more than {self._most_meters} meters: raise --most-meters if all are yours"
            )
        try:
            self._pm.get_device(source.device_id)
        except NotFound:
            self._pm.register_device(source.device_id, source.device_name)
            _log.info("new device: %s", printable(source.device_id))
        # Unknown until a message says it; other types have none.
        charge_pct = None if source.type in WITH_CHARGE else 100.0
        meter = self._pm.add_meter(
            source.device_id,
            source.type,
            capacity_wh=source.capacity_wh,
            name=source.name,
            charge_pct=charge_pct,
        )
        _log.info("new meter: %s", shown_source(source))
        return meter.id

    def _leave_out(self, what: str, where: str, why: str) -> None:
        """Count what is not stored, and log it once for each place."""
        self.counts[what] += 1
        if len(self._said) < 1000 and f"{what} {where}" not in self._said:
            self._said.add(f"{what} {where}")
            _log.warning("%s: %s: %s", what, printable(where), printable(why)[:300])

    def summary(self) -> str:
        """What came and what became of it, in one line."""
        return ", ".join(f"{count} {what}" for what, count in self.counts.items() if count)


def entries_for(one: Map, topic: str) -> list[Entry]:
    """The entries of the map's first filter that a topic matches."""
    for entry in one.entries:
        if entry.parts(topic) is not None:
            return [other for other in one.entries if other.filter == entry.filter]
    return []


def _row(meter_id: str, reading: Reading) -> tuple[object, ...]:
    at = from_microseconds(reading.at_us)
    return (meter_id, reading.voltage, reading.current_draw, reading.charge_pct, at)


def shown_source(source: Source) -> str:
    """A source as messages name it: its device, meter type and name."""
    name = f" {source.name}" if source.name else ""
    return printable(f"{source.device_id}/{source.type}{name}")


def now_us(seconds: float) -> int:
    """Epoch seconds as microseconds."""
    return round(seconds * SECOND_US)
