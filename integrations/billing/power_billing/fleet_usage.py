"""A fleet's engine as the source of usage: one ledger bills devices that log into many files.

power_fleet answers. Nothing goes the other way: the engine carries no event to a device, so the
report names the devices that a person has to shut down.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from power_fleet.engine import EngineError
from power_fleet.fleet import Fleet
from power_fleet.usage import HourEnergy, MeterEnergy

from power_billing.errors import BillingError
from power_billing.hours import DAY
from power_billing.ledger import LOOK_BACK_DAYS
from power_billing.sources import NANO, HourUsage, MeterUsage
from power_billing.tables import Place
from power_manager import DeviceRecord, NotFound, PowerEventType, PowerMeter

# The most device-days of one question: 50 devices for the six weeks that every run looks at.
AT_ONCE_DAYS = 50 * LOOK_BACK_DAYS


class FleetDevices:
    """The devices of a fleet, as billing asks about them: who they are, and what they used.

    urls: as for power-fleet's --clickhouse. ledger: where the billing tables are, which an engine
    cannot hold. Raises power_fleet's Refused for a URL that is not an engine's; all methods raise
    BillingError if the engine does not answer.
    """

    def __init__(
        self, urls: Sequence[str], ledger: Place, clock: Callable[[], float] = time.time
    ) -> None:
        self._fleet = Fleet(urls, clock)
        self._ledger, self._clock = ledger, clock
        self._next: list[str] = []  # see expect(); from `_at` on they have not been asked about
        self._at = 0
        self._days = 0.0
        self._found: dict[str, list[MeterEnergy] | None] = {}  # of the last question about those

    # --- Where the ledger is

    @property
    def db_path(self) -> Path | str:
        """The ledger's file."""
        return self._ledger.db_path

    def connection(self) -> AbstractContextManager[sqlite3.Connection]:
        """The connection to the ledger, in one transaction."""
        return self._ledger.connection()

    # --- Who they are

    def list_devices(self) -> list[DeviceRecord]:
        """Every device, by id."""
        with _said():
            return self._fleet.devices().value

    def get_device(self, device_id: str) -> DeviceRecord:
        """The device with that id. Raises NotFound."""
        with _said():
            found = self._fleet.devices([device_id]).value
        if not found:
            raise NotFound(f"device_id: no device {device_id!r} in the fleet", "device", device_id)
        return found[0]

    def list_meters(self, device_id: str) -> list[PowerMeter]:
        """The meters of a device in their present state."""
        with _said():
            return self._fleet.latest([device_id]).value

    def trigger_event(
        self,
        device_id: str,
        event_type: PowerEventType | str,
        value: float = 0.0,
        note: str | None = None,
    ) -> None:
        """Do nothing, as no event reaches a device: the report names those to shut down."""

    # --- What they used

    def expect(self, device_ids: Sequence[str], days: float) -> None:
        """Announce what usage() will be asked about next, in this order: one question for many."""
        self._next = list(device_ids)
        self._at = 0
        self._days = days
        self._found = {}

    def usage(self, device_id: str, days: float) -> list[MeterUsage] | None:
        """Each meter of a device over the last `days`, oldest first; None: no such device."""
        is_expected = device_id in self._next[self._at :]
        if days == self._days and device_id not in self._found and is_expected:
            begin = self._next.index(device_id, self._at)
            self._at = begin + max(int(AT_ONCE_DAYS / days), 1)
            self._found = self._ask(self._next[begin : self._at], days)
        if days == self._days and device_id in self._found:
            meters = self._found[device_id]
        else:
            meters = self._ask([device_id], days)[device_id]
        if meters is None:
            return None
        return [_meter_usage(device_id, meter) for meter in meters]

    def _ask(self, device_ids: Sequence[str], days: float) -> dict[str, list[MeterEnergy] | None]:
        since = max(self._clock() - days * DAY, 0.0)
        with _said():
            answer = self._fleet.hour_energies(device_ids, since)
        if answer.kept_since is not None and days <= LOOK_BACK_DAYS:
            # What the engine has let go would look like something that a person deleted.
            raise BillingError(
                f"the fleet's engine keeps hours since {answer.kept_since} only, and billing looks "
                f"back {days:g} days: power-fleet schema --keep-hours 110"
            )
        return {id_: answer.value.get(id_) for id_ in device_ids}


def _meter_usage(device_id: str, meter: MeterEnergy) -> MeterUsage:
    # Of a meter billing asks what it is and what it measured, never its present state.
    of_meter = PowerMeter(meter.meter_id, device_id, meter.type, 0.0, 0.0, 0.0, None, meter.name)
    return MeterUsage(of_meter, [_hour_usage(one) for one in meter.hours])


def _hour_usage(one: HourEnergy) -> HourUsage:
    is_idle = one.least_wattage == 0 and one.most_wattage == 0
    energy_nwh = round(one.energy_out_wh * NANO) - round(one.energy_in_wh * NANO)
    return HourUsage(one.hour, energy_nwh, one.reading_count, not is_idle)


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """Turn the engine's errors into this package's."""
    try:
        yield
    except EngineError as error:
        raise BillingError(f"the fleet's engine does not answer: {error}") from error
