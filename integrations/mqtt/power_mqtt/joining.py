"""Messages that say one thing each become readings: volts here, amperes there, of one meter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from power_mqtt.connection import Receipt
from power_mqtt.mapping import Entry, Map, Measured, Source


@dataclass
class Message:
    """One message that came, until everything made of it is stored; then the broker may forget it."""

    receipt: Receipt | None
    digest: int = 0  # of topic and payload
    open_count: int = 0  # meters whose next reading it is in
    is_settled: bool = False  # everything made of it is stored

    @property
    def is_done(self) -> bool:
        """Whether it can be acknowledged."""
        return self.open_count == 0


@dataclass(frozen=True)
class Reading:
    """A reading that is to be stored, in V, A and %; None: unknown. `messages` are those that it was made of."""

    source: Source
    voltage: float | None
    current: float | None
    charge_pct: float | None
    at_us: int
    is_live: bool  # it has the time of its arrival
    messages: Sequence[Message] = ()
    has_watts_alone: bool = False  # without volts they cannot be stored

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing that can be stored."""
        return self.voltage is None and self.current is None and self.charge_pct is None


@dataclass
class _Pending:
    """What is known of one meter, and what waits for the rest."""

    source: Source
    entries: frozenset[Entry]  # of the map, that tell of this meter
    values: dict[str, tuple[float | None, float, float]] = field(default_factory=dict)
    reported: set[Entry] = field(default_factory=set)  # since the last reading
    messages: list[Message] = field(default_factory=list)
    due_s: float | None = None
    at_us: int | None = None  # the time that a message said
    arrived_us: int = 0
    nominal_voltage: float | None = None


class Joiner:
    """Joins messages by meter. Times in seconds are those of a clock that nobody can set."""

    def __init__(self, maps: Iterable[Map]) -> None:
        self._groups: dict[Entry, frozenset[Entry]] = {}
        for one in maps:
            for entry in one.entries:
                same = [other for other in one.entries if _meter_of(other) == _meter_of(entry)]
                self._groups[entry] = frozenset(same)
        self._pending: dict[tuple[str, str, str | None], _Pending] = {}

    def add(
        self, measured: Measured, message: Message, now_s: float, wall_us: int
    ) -> Iterator[Reading]:
        """Take in what a message says; yield the reading that it completes, if it does.

        A reading is complete once every entry of the map has told of its meter, or at the end of its window.
        """
        entry = measured.entry
        key = (measured.source.device_id, str(measured.source.type), measured.source.name)
        pending = self._pending.get(key)
        if pending is None:
            pending = _Pending(measured.source, self._groups[entry])
            self._pending[key] = pending
        if pending.at_us is not None and measured.at_us not in (None, pending.at_us):
            yield from self._make(pending, now_s)  # of another time: not one reading
        for name, value in measured.values.items():
            pending.values[name] = (value, now_s, entry.max_age_s)
        pending.reported.add(entry)
        pending.at_us = measured.at_us if measured.at_us is not None else pending.at_us
        pending.arrived_us = wall_us
        pending.nominal_voltage = entry.nominal_voltage or pending.nominal_voltage
        message.open_count += 1
        pending.messages.append(message)
        if not _untold(pending.entries, pending.reported):
            yield from self._make(pending, now_s)
        elif pending.due_s is None:
            pending.due_s = now_s + entry.join_s

    def due(self, now_s: float, *, is_end: bool = False) -> Iterator[Reading]:
        """The readings whose window has ended; with is_end all that wait."""
        for pending in self._pending.values():
            if pending.due_s is not None and (is_end or pending.due_s <= now_s):
                yield from self._make(pending, now_s)

    def next_due_s(self) -> float | None:
        """When the next window ends."""
        return min((p.due_s for p in self._pending.values() if p.due_s is not None), default=None)

    def _make(self, pending: _Pending, now_s: float) -> Iterator[Reading]:
        known = {
            name: value
            for name, (value, told_s, max_age_s) in pending.values.items()
            if value is not None and now_s - told_s <= max_age_s
        }
        voltage, current = _electrical(known, pending.nominal_voltage)
        charge_pct = known.get("charge")
        messages, pending.messages = pending.messages, []
        at_us, pending.at_us = pending.at_us, None
        pending.due_s = None
        pending.reported = set()
        yield Reading(
            source=pending.source,
            voltage=voltage,
            current=current,
            charge_pct=charge_pct,
            at_us=pending.arrived_us if at_us is None else at_us,
            is_live=at_us is None,
            messages=messages,
            has_watts_alone="power" in known and voltage is None,
        )


def _meter_of(entry: Entry) -> tuple[str, str, str]:
    return entry.device, str(entry.type), entry.name


def _untold(entries: Iterable[Entry], reported: Iterable[Entry]) -> set[str]:
    """The filters of a meter that have not told of it; of entries with one filter, one is enough."""
    return {entry.filter for entry in entries} - {entry.filter for entry in reported}


def _electrical(
    known: dict[str, float], nominal_voltage: float | None
) -> tuple[float | None, float | None]:
    """Volts and amperes, whose product is the watts where those were measured.

    Of alternating current volts times amperes are more than the watts.
    """
    voltage = known.get("voltage")
    power = known.get("power")
    if power is None:
        return voltage, known.get("current")
    if not voltage and nominal_voltage is not None:
        voltage = nominal_voltage
    if voltage:
        return voltage, power / voltage
    current = known.get("current")
    if current:
        return power / current, current
    return voltage, 0.0 if power == 0 else None
