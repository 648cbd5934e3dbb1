"""Joins messages to readings: volts in one, amperes in another, of one meter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from power_mqtt.mapping import Entry, Map, Measured, Source
from power_mqtt.notices import Receipt


@dataclass
class Message:
    """A message that came; once everything made from it is stored, the broker may forget it."""

    receipt: Receipt | None
    digest: int = 0  # of topic and payload
    open_count: int = 0  # readings made from it that are not stored yet
    is_settled: bool = False  # everything made from it is stored

    @property
    def is_done(self) -> bool:
        """Whether it can be acknowledged."""
        return self.open_count == 0


@dataclass(frozen=True)
class Reading:
    """A reading to store, in V, A and %; None: unknown. `messages`: what it was made from."""

    source: Source
    voltage: float | None
    current_draw: float | None  # A, positive out of the source
    charge_pct: float | None
    at_us: int
    is_live: bool  # its time is that of its arrival
    messages: Sequence[Message] = ()
    has_watts_alone: bool = False  # watts without volts, which cannot be stored

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to store."""
        return self.voltage is None and self.current_draw is None and self.charge_pct is None


@dataclass
class _Pending:
    """What is known of one meter, and what waits for the rest."""

    source: Source
    entries: frozenset[Entry]  # the map's entries for this meter
    values: dict[str, tuple[float | None, float, float]] = field(default_factory=dict)
    reported: set[Entry] = field(default_factory=set)  # since the last reading
    messages: list[Message] = field(default_factory=list)
    due_s: float | None = None
    at_us: int | None = None  # the time that a message gave
    arrived_us: int = 0
    nominal_voltage: float | None = None


class Joiner:
    """Joins messages by meter. Times in seconds are those of a clock that cannot be set."""

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
        """Take in what a message says; yield the reading that it completes, if any.

        A reading is complete once each of its meter's topics has reported, or at the end of its
        window.
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
        voltage, current_draw = _electrical(known, pending.nominal_voltage)
        charge_pct = known.get("charge")
        messages, pending.messages = pending.messages, []
        at_us, pending.at_us = pending.at_us, None
        pending.due_s = None
        pending.reported = set()
        yield Reading(
            source=pending.source,
            voltage=voltage,
            current_draw=current_draw,
            charge_pct=charge_pct,
            at_us=pending.arrived_us if at_us is None else at_us,
            is_live=at_us is None,
            messages=messages,
            has_watts_alone="power" in known and voltage is None,
        )


def _meter_of(entry: Entry) -> tuple[str, str, str]:
    return entry.device, str(entry.type), entry.name


def _untold(entries: Iterable[Entry], reported: Iterable[Entry]) -> set[str]:
    """The filters that have not reported; of entries with the same filter, one is enough."""
    return {entry.filter for entry in entries} - {entry.filter for entry in reported}


def _electrical(
    known: dict[str, float], nominal_voltage: float | None
) -> tuple[float | None, float | None]:
    """Volts and amperes, whose product is the watts where those were measured.

    With alternating current, volts times amperes may be more than the watts.
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
