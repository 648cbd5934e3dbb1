"""What cannot be billed, or stays billed without its readings: found and updated by each run."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from power_billing.counting import DeviceUsage
from power_billing.hours import iso


class FindingKind(str, Enum):
    """What is the matter."""

    LATE = "late"  # consumption that came to light when its hour was too old
    SENSOR = "sensor"  # an hour beyond all reason
    KEPT = "kept"  # billed of readings that are deleted now
    # More energy in an hour of which a meter was deleted, which alone could tell how much is new.
    UNCLEAR = "unclear"
    NO_ENERGY = "no_energy"  # readings that show power, and in most hours no energy
    SILENT = "silent"  # no readings at all
    DELETED = "deleted"  # readings that were deleted, with their meter, before they were counted


# What is lost unless a person acts. What stays billed is only listed.
LOST = (
    FindingKind.LATE,
    FindingKind.SENSOR,
    FindingKind.UNCLEAR,
    FindingKind.NO_ENERGY,
    FindingKind.SILENT,
    FindingKind.DELETED,
)
LOST_ENERGY = (FindingKind.LATE, FindingKind.UNCLEAR)  # of these the watt-hours are known
# Of these there are no watt-hours.
UNMEASURED = (FindingKind.NO_ENERGY, FindingKind.SILENT, FindingKind.DELETED)
SILENT_HOURS = 7 * 24  # a linked device without a reading for that long is listed
ENERGY_HOURS = 24  # and so is one with readings but without energy for that long


@dataclass(frozen=True)
class Finding:
    """Something about an hour of a device, or about the device from that hour on.

    watt_hours: what is not billed; negative: billed too much. For `kept`: how much less the file
    has than was billed. is_accepted: a person has accepted it.
    """

    kind: FindingKind
    customer: str
    device_id: str
    hour: int
    watt_hours: float
    is_accepted: bool = False

    @property
    def is_lost(self) -> bool:
        """Whether a person has to act: lost revenue that is not accepted yet."""
        return self.kind in LOST and not self.is_accepted

    def __str__(self) -> str:
        """A line for people."""
        where = f"{self.customer} {self.device_id}"
        if self.kind is FindingKind.LATE:
            text = f"{iso(self.hour)} {self.watt_hours:+.3f} Wh came to light too late"
            return f"cannot be billed: {where} {text}"
        if self.kind is FindingKind.SENSOR:
            text = f"{iso(self.hour)} {self.watt_hours:.3g} Wh in an hour: check the sensor"
            return f"not billed: {where} {text}"
        if self.kind is FindingKind.UNCLEAR:
            text = f"{iso(self.hour)} {self.watt_hours:+.3f} Wh"
            return f"not billed: {where} {text}, of an hour of which a meter was deleted"
        if self.kind is FindingKind.KEPT and self.watt_hours > 0:
            text = f"{iso(self.hour)} {self.watt_hours:+.3f} Wh"
            return f"not billed: {where} {text}, of an hour of which a part was deleted"
        if self.kind is FindingKind.KEPT:
            text = f"{iso(self.hour)} {-self.watt_hours:+.3f} Wh of readings that were deleted"
            return f"stays billed: {where} {text}"
        if self.kind is FindingKind.NO_ENERGY:
            text = "readings, but no energy in most hours: they are further apart than the file's"
            return f"not billed: {where} since {iso(self.hour)} {text} max_gap, or lack watts"
        if self.kind is FindingKind.DELETED:
            text = f"readings since {iso(self.hour)}, which were deleted before they were counted"
            return f"not billed: {where} {text}"
        return f"not billed: {where} no readings since {iso(self.hour)}"


def deleted_findings(
    customer: str, usage: DeviceUsage, covered: range, counted_until: int
) -> list[Finding]:
    """Whether a meter, or its device, was deleted with readings that no run had counted.

    covered: the link's hours. counted_until: the first hour that runs before this one left. A run
    knows each meter's newest hour, and so that one, the hour under way, is lost at least.
    """
    begins = [
        max(counted_until, covered.start, hours.start)
        for hours in usage.kept
        if max(counted_until, covered.start) < min(hours.stop, covered.stop)
    ]
    if not begins:
        return []
    return [Finding(FindingKind.DELETED, customer, usage.device_id, min(begins), 0.0)]


def device_findings(
    customer: str, usage: DeviceUsage, covered: range, now_hour: int
) -> list[Finding]:
    """Whether a linked device is silent, or has readings without energy.

    covered: the link's hours until now.
    """
    if now_hour - 1 not in covered:
        return []
    newest = usage.last_hour if usage.is_deleted else max(usage.by_hour, default=None)
    since = max(covered.start, now_hour - SILENT_HOURS)
    is_silent = newest is None or newest < since
    never_was = usage.is_deleted and newest is None  # what it had is not known, and does not come
    if is_silent and (now_hour - since >= ENERGY_HOURS or never_was):
        begin = covered.start if newest is None else newest + 1
        return [Finding(FindingKind.SILENT, customer, usage.device_id, begin, 0.0)]
    for hours in (ENERGY_HOURS, SILENT_HOURS):  # a device may be read every two days
        recent = [part for part in usage.parts if now_hour - hours <= part.hour < now_hour]
        readings = sum(part.reading_count for part in recent)
        powered = [part for part in recent if part.has_power]
        without = [part for part in powered if not part.energy_nwh]
        # Of a day most hours have to have energy; of a week one, so that what is mended is gone.
        most = len(powered) // 2 if hours == ENERGY_HOURS else len(powered) - 1
        if readings >= 2 and powered and len(without) > most:
            begin = min(part.hour for part in recent)
            return [Finding(FindingKind.NO_ENERGY, customer, usage.device_id, begin, 0.0)]
    return []


# --- Kept in the ledger

_FINDING = """SELECT kind, customer, device_id, hour, watt_hours, is_accepted
    FROM billing_findings"""
_IN_ORDER = "ORDER BY customer, device_id, hour, kind"


def keep_findings(
    conn: sqlite3.Connection, customer: str, found: Sequence[Finding], hours: range
) -> None:
    """Replace the customer's findings of those hours, and those about devices, by these.

    What a person has accepted stays accepted as long as it is the same. What was deleted before it
    was counted is found once only, and stays.
    """
    accepted = {_key(one) for one in findings(conn, customer) if one.is_accepted}
    conn.execute(
        """DELETE FROM billing_findings
        WHERE customer = ? AND kind != 'deleted'
            AND (hour >= ? AND hour < ? OR kind IN ('no_energy', 'silent'))""",
        (customer, hours.start, hours.stop),
    )
    for one in found:
        is_accepted = one.is_accepted or _key(one) in accepted
        conn.execute(
            "INSERT OR REPLACE INTO billing_findings VALUES (?, ?, ?, ?, ?, ?)",
            (one.customer, one.device_id, one.hour, one.kind.value, one.watt_hours, is_accepted),
        )


def _key(one: Finding) -> tuple[object, ...]:
    """What makes two findings the same; without energy, the hour does not count."""
    if one.kind is FindingKind.NO_ENERGY:
        return (one.kind, one.customer, one.device_id)
    return (one.kind, one.customer, one.device_id, one.hour, one.watt_hours)


def findings(conn: sqlite3.Connection, customer: str | None = None) -> list[Finding]:
    """A customer's, or all of them, by customer, device and hour."""
    if customer is None:
        rows = conn.execute(f"{_FINDING} {_IN_ORDER}")
    else:
        rows = conn.execute(f"{_FINDING} WHERE customer = ? {_IN_ORDER}", (customer,))
    return [
        Finding(FindingKind(kind), name, device_id, hour, watt_hours, bool(is_accepted))
        for kind, name, device_id, hour, watt_hours, is_accepted in rows
    ]


def accept_findings(conn: sqlite3.Connection, accepted: Iterable[Finding]) -> None:
    """Note that a person has accepted them."""
    sql = """UPDATE billing_findings SET is_accepted = 1
        WHERE customer = ? AND device_id = ? AND hour = ? AND kind = ?"""
    for one in accepted:
        conn.execute(sql, (one.customer, one.device_id, one.hour, one.kind.value))
