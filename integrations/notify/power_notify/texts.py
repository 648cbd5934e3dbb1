"""Messages: what a person needs to read at three in the morning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo

from power_manager import (
    SECOND_US,
    AlertLevel,
    MeterType,
    NotFound,
    PowerEventType,
    PowerManager,
    PowerMeter,
    printable,
    shown_duration,
    shown_number,
    shown_time,
    to_microseconds,
)
from power_notify.news import ALERT_LEVELS, BACK, DELETED, RECOVERED, SILENT, threshold_of
from power_notify.store import Item

CRITICAL, WARNING, GOOD, INFO = "critical", "warning", "good", "info"
_SEVERITIES = (CRITICAL, WARNING, GOOD, INFO)  # the worst first
_SEVERITY_OF = {
    PowerEventType.LOW_BATTERY: CRITICAL,
    PowerEventType.SHUTDOWN: CRITICAL,
    PowerEventType.DISCHARGE: WARNING,
    SILENT: WARNING,
    PowerEventType.RESTORE: GOOD,
    RECOVERED: GOOD,
    BACK: GOOD,
    DELETED: GOOD,
}
_EVENT_NAMES = {
    PowerEventType.CHARGE_START: "Charging",
    PowerEventType.DISCHARGE: "Discharge",
    PowerEventType.LOW_BATTERY: "Low battery",
    PowerEventType.SHUTDOWN: "Shutdown",
    PowerEventType.RESTORE: "Restore",
}
_MOST_IN_FULL = 3  # with up to so many items, each gets a paragraph, with more a line
_MOST_LINES = 20  # the items beyond are counted
_MOST_NOTE = 300  # characters of an event's note: text messages are short
_RUNTIME_WINDOW_MIN = 2.0  # a gauge's watts jump from sample to sample


@dataclass(frozen=True)
class Message:
    """What is sent: `severity` is that of its worst item, `last_sequence` its newest item."""

    title: str
    text: str
    severity: str
    last_sequence: int = 0


def worst_severity(items: Sequence[Item]) -> str:
    """The severity of the worst item: critical, warning, good or info."""
    over = _over(items)
    severities = [_severity_of(item, over) for item in items]
    return min(severities, key=_SEVERITIES.index)


def _severity_of(item: Item, over: set[int]) -> str:
    return INFO if item.sequence in over else _SEVERITY_OF.get(item.kind, INFO)


def _over(items: Sequence[Item]) -> set[int]:
    """The sequences of items whose end is among the items: nobody has to get up for them."""
    ends: dict[tuple[bool, str], int] = {}
    for item in items:
        if item.kind in (RECOVERED, DELETED):
            ends[True, item.meter_id or ""] = item.sequence
        elif item.kind == BACK:
            ends[False, item.device_id] = item.sequence
    over = set()
    for item in items:
        key = (False, item.device_id) if item.kind == SILENT else (True, item.meter_id or "")
        if item.kind in (SILENT, *ALERT_LEVELS) and ends.get(key, 0) > item.sequence:
            over.add(item.sequence)
    return over


def compose(pm: PowerManager, items: Sequence[Item], zone: tzinfo | None, now_s: float) -> Message:
    """One message about at least one item: the worst comes first, times are in `zone`.

    now_s: the time of the message, in epoch seconds.
    """
    last_sequence = max(item.sequence for item in items)
    over = _over(items)
    told = sorted(
        _without_old_reminders(items),
        key=lambda item: _SEVERITIES.index(_severity_of(item, over)),
    )
    titles = [f"{_title(item)} (over)" if item.sequence in over else _title(item) for item in told]
    title = titles[0]
    if len(told) == 1:
        text = _text(pm, told[0], zone, now_s)
    elif len(told) <= _MOST_IN_FULL:
        pairs = list(zip(titles, told))
        text = "\n\n".join(f"{head}\n{_text(pm, item, zone, now_s)}" for head, item in pairs)
    else:
        pairs = list(zip(titles, told))[:_MOST_LINES]
        lines = [f"{_minute(item.at, zone)}  {head}" for head, item in pairs]
        rest = len(told) - len(lines)
        if rest:
            lines.append(f"and {rest} more: `power-manager events DEVICE` lists them")
        text = "\n".join(lines)
    if len(told) > 1:
        title = f"{title}, and {len(told) - 1} more"
    return Message(title, text, _severity_of(told[0], over), last_sequence)


def _without_old_reminders(items: Sequence[Item]) -> list[Item]:
    """The items with only the newest reminder of an alert: they gather while a way is down."""
    newest = {item.meter_id: item.sequence for item in items if item.is_reminder}
    return [
        item for item in items if not item.is_reminder or newest[item.meter_id] == item.sequence
    ]


def _title(item: Item) -> str:
    device = printable(item.device_name)
    if item.kind == SILENT:
        return f"Silent: {device} - no reading for {shown_duration(item.value or 0.0)}"
    if item.kind == BACK:
        return f"Back: {device} - after {shown_duration(item.value or 0.0)}"
    if item.kind == DELETED:
        return f"Deleted: {device} - its alert is over"
    if item.meter_label is not None and _is_about_charge(item):
        kind = item.meter_label.partition(' "')[0]  # without the meter's name
        subject = f"{kind[0].upper()}{kind[1:]} {_level_word(item)}"
        return f"{subject}: {device} - {_left(item.value)}"
    name = _EVENT_NAMES[PowerEventType(item.kind)]
    if not item.note:
        return f"{name}: {device}"
    return f"{name}: {device} - {_cut(printable(item.note), 80)}"


def _is_about_charge(item: Item) -> bool:
    return item.kind == RECOVERED or item.kind in ALERT_LEVELS


def _level_word(item: Item) -> str:
    if item.kind == RECOVERED:
        return "recovered"
    level = str(ALERT_LEVELS[PowerEventType(item.kind)])
    return f"still {level}" if item.is_reminder else level


def _text(pm: PowerManager, item: Item, zone: tzinfo | None, now_s: float) -> str:
    """The device and meter, since when, how much is left, for how long, and the last reading."""
    meter = _present_meter(pm, item)
    lines = [_where(item), _when(item, meter, zone)]
    # The library's own note of an alert would only repeat the line above.
    if item.note and f"{item.value or 0.0:g} % charge, threshold" not in item.note:
        lines.append(f"Note: {_cut(printable(item.note), _MOST_NOTE)}")
    if item.kind in (SILENT, BACK, DELETED):
        return "\n".join(lines)
    if meter is not None:
        if _is_about_charge(item):
            lines.append(_what_is_left(pm, meter, now_s))
        lines.append(_last_reading(meter, zone))
    elif item.meter_id is not None:
        lines.append("The meter has been deleted since.")
    return "\n".join(lines)


def _where(item: Item) -> str:
    name = printable(item.device_name)
    device = name if item.device_name == item.device_id else f"{name} ({printable(item.device_id)})"
    return f"{device}, {printable(item.meter_label)}" if item.meter_label else device


def _when(item: Item, meter: PowerMeter | None, zone: tzinfo | None) -> str:
    at = _minute(item.at, zone)
    if item.kind == SILENT:
        return f"No reading since {at}."
    if item.kind == BACK:
        return f"Readings come again, the newest of {at}."
    if item.kind == DELETED:
        return f"It is no longer in the file; seen at {at}."
    if item.kind == RECOVERED:
        return f"{_charge(item.value)} at {at}."
    level = ALERT_LEVELS.get(PowerEventType(item.kind))
    if level is None or item.meter_label is None:
        return f"At {at}."
    if meter is None:
        return f"{_charge(item.value)}, {level} since {at}."
    limit = _percent(threshold_of(meter, AlertLevel(level)))
    return f"{_charge(item.value)}, {level} since {at} (at or below {limit})."


def _what_is_left(pm: PowerManager, meter: PowerMeter, now_s: float) -> str:
    left = f"Left: {_left(meter.charge_pct)}"
    if meter.capacity_wh > 0 and meter.charge_pct is not None:
        left_wh = meter.capacity_wh * meter.charge_pct / 100
        left += f", {shown_number(left_wh)} of {shown_number(meter.capacity_wh)} Wh"
    age_s = (
        0.0 if meter.updated_at is None else now_s - to_microseconds(meter.updated_at) / SECOND_US
    )
    if age_s > pm.max_gap:
        return f"{left}, as it was {shown_duration(age_s)} ago; how it is now is not known."
    watts = meter.wattage
    if watts is not None and watts < 0:
        return f"{left}; it is charging with {shown_number(-watts)} W."
    try:
        hours = pm.estimate_runtime(meter.device_id, window_minutes=_RUNTIME_WINDOW_MIN)
    except NotFound:  # it was deleted in this moment
        hours = None
    if hours is None:
        return f"{left}; for how long is not known."
    return f"{left}; the device's batteries last about {shown_duration(hours * 3600)} at this load."


def _last_reading(meter: PowerMeter, zone: tzinfo | None) -> str:
    if meter.updated_at is None:
        return "No reading so far."
    power = "volts or amperes not known"
    if meter.power_known:
        power = (
            f"{shown_number(meter.voltage)} V, {shown_number(meter.current_draw)} A, "
            f"{shown_number(meter.wattage)} W"
        )
    line = f"Last reading: {shown_time(meter.updated_at, zone)}, {power}"
    if meter.type in (MeterType.BATTERY, MeterType.UPS):
        line += f", {_left(meter.charge_pct)}"
    return f"{line}."


def _present_meter(pm: PowerManager, item: Item) -> PowerMeter | None:
    if item.meter_id is None:
        return None
    try:
        return pm.get_meter(item.meter_id)
    except NotFound:
        return None


def _charge(charge_pct: float | None) -> str:
    return "Charge not known" if charge_pct is None else f"{_percent(charge_pct)} charge"


def _left(charge_pct: float | None) -> str:
    return "charge not known" if charge_pct is None else _percent(charge_pct)


def _percent(value: float) -> str:
    return f"{value:.3g} %" if value < 100 else f"{value:.0f} %"


def _minute(at: str, zone: tzinfo | None) -> str:
    return shown_time(at, zone)[:-3]  # without its seconds


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
