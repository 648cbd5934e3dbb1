"""What has happened since the last look: events, alerts that end or stand, silent devices."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from power_manager import (
    ALERT_HYSTERESIS,
    CRITICAL_BATTERY_THRESHOLD,
    LOW_BATTERY_THRESHOLD,
    SECOND_US,
    AlertLevel,
    DeviceRecord,
    MeterType,
    PowerEvent,
    PowerEventType,
    PowerManager,
    PowerMeter,
    from_microseconds,
    to_microseconds,
    unknown_id,
)
from power_notify.errors import NotifyError
from power_notify.store import Item, Silence, Standing, State, Store

# Kinds of items beside the types of events.
RECOVERED, SILENT, BACK, DELETED = "recovered", "silent", "back", "deleted"
ALERT_LEVELS = {
    PowerEventType.DISCHARGE: AlertLevel.LOW,
    PowerEventType.LOW_BATTERY: AlertLevel.CRITICAL,
}
ALERT_KINDS = {level: kind for kind, level in ALERT_LEVELS.items()}
# A charger that starts is no reason to wake anybody.
DEFAULT_EVENTS = frozenset(PowerEventType) - {PowerEventType.CHARGE_START}

_MOST_EVENTS = 1000  # in one transaction
_RANKS = list(AlertLevel)
_TYPE_NAMES = {
    MeterType.MAIN: "main meter",
    MeterType.BATTERY: "battery",
    MeterType.SOLAR: "solar meter",
    MeterType.UPS: "UPS",
}
_log = logging.getLogger("power_notify")


@dataclass(frozen=True)
class Rules:
    """What people are told.

    devices: None: of all. silent_s: seconds without a reading after which a device is silent.
    repeat_s: seconds after which an alert that still stands is told again. None: never.
    """

    events: frozenset[PowerEventType] = DEFAULT_EVENTS
    devices: frozenset[str] | None = None
    silent_s: float | None = None
    repeat_s: float | None = None

    def include(self, device_id: str) -> bool:
        """Whether people are told of that device."""
        return self.devices is None or device_id in self.devices


@dataclass(frozen=True)
class Clocks:
    """The clocks: the time of day in epoch seconds, and a clock that cannot be set."""

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic


@dataclass
class _Changes:
    """What a look has found, and the state after it."""

    state: State
    items: list[Item] = field(default_factory=list)
    last_sequence: int | None = None  # of the library's events
    is_cut: bool = False  # there may be more events


class Watch:
    """Turns what happens in a file into items of a store, each once."""

    def __init__(self, pm: PowerManager, store: Store, rules: Rules, clocks: Clocks) -> None:
        self._pm = pm
        self._store = store
        self._rules = rules
        self._clocks = clocks
        self._file_id = pm.file_id
        # By device: the times of its meters' states, and when they changed, by the steady clock.
        self._heard: dict[str, tuple[str, float]] = {}
        is_other_line = store.open(self._file_id)
        self._follower = pm.event_follower(f"power-notify {store.follower}")
        if is_other_line:
            self._begin_anew()
        self._state = store.load()

    def look(self) -> bool:
        """Store what has happened since the last look; return whether there is something to tell.

        Raises NotifyError if another file has taken this one's place: nothing more would happen in
        the file that is open.
        """
        if self._pm.is_replaced():
            raise NotifyError(
                f"{self._pm.db_path}: this file was deleted or replaced: start power-notify again"
            )
        if self._pm.file_id != self._file_id:
            self._file_id = self._pm.file_id
            self._store.open(self._file_id)
            self._begin_anew()
            self._state = self._store.load()
        is_news = False
        while True:
            if not self._is_changed(self._find()):
                return is_news
            with self._pm.transaction():
                changes = self._find()  # again: in the transaction nothing comes between
                self._store.add(changes.items, changes.state)
                if changes.last_sequence is not None:
                    self._follower.acknowledge(changes.last_sequence)
            self._state = changes.state
            is_news = is_news or bool(changes.items)
            if not changes.is_cut:
                return is_news

    def _begin_anew(self) -> None:
        """Drop what waits after a restore: it was told long ago, or is no longer true."""
        with self._pm.transaction():
            dropped = self._store.skip_all()
            self._follower.acknowledge(self._pm.last_sequence())
        _log.warning(
            "the file was restored from a backup: only new events are told; %d that waited are "
            "dropped",
            dropped,
        )

    def _is_changed(self, changes: _Changes) -> bool:
        return changes.last_sequence is not None or changes.state != self._state

    def _find(self) -> _Changes:
        """What is new, in the order in which it is told; it changes nothing in the file."""
        state = State(dict(self._state.alerts), dict(self._state.silent))
        changes = _Changes(state)
        devices = {device.id: device for device in self._pm.list_devices()}
        every = {meter.id: meter for meter in self._pm.list_meters()}
        meters = {
            meter.id: meter
            for meter in every.values()
            # One of a device that was registered in between is seen at the next look.
            if meter.device_id in devices and self._rules.include(meter.device_id)
        }
        events = self._follower.pending(_MOST_EVENTS)
        changes.is_cut = len(events) == _MOST_EVENTS
        for sequence, event in events:
            changes.last_sequence = sequence
            if self._rules.include(event.device_id):
                self._add_event(changes, event, devices.get(event.device_id), meters)
        if changes.is_cut:
            return changes  # the meters' states come after events that are not read yet
        for meter in meters.values():
            if meter.active:
                self._compare_level(changes, meter, devices[meter.device_id])
        for meter_id in set(state.alerts) - set(meters):
            standing = state.alerts.pop(meter_id)  # deleted, or its device is left out
            if standing.is_told and meter_id not in every:
                changes.items.append(self._deleted(standing, meter_id))
        if self._rules.silent_s is not None:
            self._look_for_silence(changes, devices, meters.values())
        return changes

    # --- Events and alerts

    def _add_event(
        self,
        changes: _Changes,
        event: PowerEvent,
        device: DeviceRecord | None,
        meters: dict[str, PowerMeter],
    ) -> None:
        meter = meters.get(event.meter_id or "")
        is_told = event.type in self._rules.events
        level = ALERT_LEVELS.get(event.type)
        if level is not None and meter is not None:
            before = changes.state.alerts.get(meter.id)
            if before is not None and self._is_repeated(before, level, event, meter):
                changes.state.alerts[meter.id] = dataclasses.replace(before, seen=event.timestamp)
                return
            changes.state.alerts[meter.id] = Standing(
                level=level,
                since=event.timestamp,
                seen=event.timestamp,
                is_told=is_told or (before is not None and before.is_told),
                told_at=self._clocks.wall(),
                device_id=event.device_id,
                device_name=event.device_id if device is None else device.name,
                meter_label=meter_label(meter),
            )
        if is_told:
            changes.items.append(
                Item(
                    kind=str(event.type),
                    device_id=event.device_id,
                    device_name=event.device_id if device is None else device.name,
                    at=event.timestamp,
                    value=event.value,
                    meter_id=event.meter_id,
                    meter_label=None if meter is None else meter_label(meter),
                    note=event.note,
                )
            )

    def _is_repeated(
        self, before: Standing, level: AlertLevel, event: PowerEvent, meter: PowerMeter
    ) -> bool:
        """Whether an event only repeats an alert that stands (alert_repeat of a writer).

        It does not if the charge had recovered in between.
        """
        if _RANKS.index(level) > _RANKS.index(before.level):
            return False
        end_pct = threshold_of(meter, level) + ALERT_HYSTERESIS
        is_known = False  # without readings, as after a prune, it is told to be safe
        for reading in self._pm.iter_history(meter.id, since=before.seen, until=event.timestamp):
            if reading.charge_pct is not None and reading.charge_pct >= end_pct:
                return False
            is_known = True
        return is_known

    def _compare_level(self, changes: _Changes, meter: PowerMeter, device: DeviceRecord) -> None:
        """Add an alert that has ended, stood before the first look, or is due to be told again."""
        alerts = changes.state.alerts
        standing = alerts.get(meter.id)
        if meter.alert_level == AlertLevel.NONE:
            if standing is not None:
                del alerts[meter.id]
                if standing.is_told:
                    changes.items.append(_item_of(RECOVERED, meter, device))
            return
        now_s = self._clocks.wall()
        kind = ALERT_KINDS[meter.alert_level]
        is_told = kind in self._rules.events
        at = meter.updated_at or ""
        if standing is None:
            alerts[meter.id] = Standing(
                level=meter.alert_level,
                since=at,
                seen=at,
                is_told=is_told,
                told_at=now_s,
                device_id=device.id,
                device_name=device.name,
                meter_label=meter_label(meter),
            )
            if is_told:
                changes.items.append(_item_of(kind, meter, device))
            return
        if standing.level != meter.alert_level:
            standing = dataclasses.replace(standing, level=meter.alert_level, since=at, seen=at)
        # Its absolute value: a clock that was set back must not silence the alert for years.
        is_due = self._rules.repeat_s is not None and (
            abs(now_s - standing.told_at) >= self._rules.repeat_s
        )
        if is_due and is_told:
            reminder = dataclasses.replace(
                _item_of(kind, meter, device), at=standing.since, is_reminder=True
            )
            changes.items.append(reminder)
            standing = dataclasses.replace(standing, told_at=now_s)
        alerts[meter.id] = standing

    def _deleted(self, standing: Standing, meter_id: str) -> Item:
        """An item about a meter that was deleted while its alert stood."""
        return Item(
            DELETED,
            standing.device_id,
            standing.device_name,
            at=from_microseconds(round(self._clocks.wall() * SECOND_US)),
            value=None,
            meter_id=meter_id,
            meter_label=standing.meter_label,
        )

    # --- Silence

    def _look_for_silence(
        self, changes: _Changes, devices: dict[str, DeviceRecord], meters: Iterable[PowerMeter]
    ) -> None:
        times: dict[str, list[str]] = {}
        for meter in meters:
            if meter.active and meter.updated_at is not None:
                times.setdefault(meter.device_id, []).append(meter.updated_at)
        for device_id in set(changes.state.silent) - set(times):
            del changes.state.silent[device_id]  # deleted, or without an active meter
        for device_id, device_times in times.items():
            self._compare_silence(changes, devices[device_id], sorted(device_times))

    def _compare_silence(
        self, changes: _Changes, device: DeviceRecord, times: Sequence[str]
    ) -> None:
        """Add a device that is silent, or back: it is heard when its meters' states change.

        So its own clock does not matter.
        """
        heard = " ".join(times)
        newest = times[-1]
        age_s = max(self._clocks.wall() - to_microseconds(newest) / SECOND_US, 0.0)
        now_s = self._clocks.steady()
        before = self._heard.get(device.id)
        if before is None:
            self._heard[device.id] = (heard, now_s - age_s)
        elif before[0] != heard:
            self._heard[device.id] = (heard, now_s)
        _, heard_s = self._heard[device.id]
        silence = changes.state.silent.get(device.id)
        if silence is not None and silence.heard != heard:
            del changes.state.silent[device.id]
            away_s = to_microseconds(newest) - to_microseconds(silence.since)
            changes.items.append(
                Item(BACK, device.id, device.name, newest, max(away_s / SECOND_US, 0.0))
            )
        elif silence is None and now_s - heard_s >= (self._rules.silent_s or 0.0):
            changes.state.silent[device.id] = Silence(heard, newest)
            changes.items.append(Item(SILENT, device.id, device.name, newest, now_s - heard_s))


def threshold_of(meter: PowerMeter, level: AlertLevel) -> float:
    """The charge, in %, at or below which a meter's alert has that level."""
    if level == AlertLevel.CRITICAL:
        threshold, default = meter.critical_battery_threshold, CRITICAL_BATTERY_THRESHOLD
    else:
        threshold, default = meter.low_battery_threshold, LOW_BATTERY_THRESHOLD
    return default if threshold is None else threshold


def meter_label(meter: PowerMeter) -> str:
    """A meter's type, and its name if it has one."""
    kind = _TYPE_NAMES[meter.type]
    return f'{kind} "{meter.name}"' if meter.name else kind


def check_devices(pm: PowerManager, device_ids: Iterable[str]) -> None:
    """Raise NotFound for an id that no device has: a mistyped one would never be told of."""
    known = [device.id for device in pm.list_devices()]
    for device_id in device_ids:
        if device_id not in known:
            raise unknown_id("device", device_id, known, ": name one that the file has")


def _item_of(kind: str, meter: PowerMeter, device: DeviceRecord) -> Item:
    """An item about the present state of a meter."""
    return Item(
        kind=str(kind),
        device_id=device.id,
        device_name=device.name,
        at=meter.updated_at or "",
        value=meter.charge_pct,
        meter_id=meter.id,
        meter_label=meter_label(meter),
    )
