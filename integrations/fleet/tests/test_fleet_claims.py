"""A meter is the device's that named it first: a stolen device that knows its id does not take its
place.
"""

from __future__ import annotations

import pytest
from fleet_harness import NOW
from power_fleet.codec import Batch, Device, Meter, Reading
from power_fleet.engine import Engine
from power_fleet.read import FleetSource
from power_fleet.sink import rows_of, store

US = 1_000_000
AT = int((NOW - 60) * US)


def batch(device_id: str, sequence: int, volts: float) -> Batch:
    """A device with one meter, which has one reading; all name the meter alike."""
    line = sequence << 20
    found = Batch(device_id, 5400 * US, generation=line, sequence=sequence)
    found.devices = [Device(device_id, "", 10.0, None, None, None, 5400 * US, line)]
    found.meters = [
        Meter("m", 0, "main", None, 0.0, volts, 1.0, None, AT, True, True, "none", line)
    ]
    found.readings = [Reading("m", AT, volts, 1.0, None)]
    return found


@pytest.mark.parametrize("owner", ["edge-1", "edge-9"], ids=["by-name-too", "by-name-the-other"])
@pytest.mark.parametrize("is_owner_stored_first", [True, False])
def test_a_meter_is_the_first_ones(
    urls: list[str], owner: str, is_owner_stored_first: bool
) -> None:
    """By the place in the stream, whichever of them a sink stores first, and however often both
    come again.
    """
    engine = Engine(urls)
    batches = [batch(owner, 5, 12.0), batch("edge-5", 8, 230.0)]
    if not is_owner_stored_first:
        batches.reverse()
    for stored in batches:
        store(engine, rows_of([(stored, 1)], engine))
    store(engine, rows_of([(batch(owner, 20, 12.0), 2), (batch("edge-5", 21, 230.0), 2)], engine))
    source = FleetSource(lambda: urls, lambda: NOW, settle_seconds=0)
    assert [(meter.device_id, meter.voltage) for meter in source.list_meters()] == [(owner, 12.0)]
    assert source.get_meter("m").device_id == owner
    assert [reading.voltage for reading in source.iter_history("m")] == [12.0]
    assert [meter.voltage for meter in source.list_meters("edge-5")] == [230.0]


def test_claims_are_stored_once(urls: list[str]) -> None:
    """Not with every state of a meter."""
    engine = Engine(urls)
    rows = rows_of([(batch("edge-1", 5, 12.0), 1)], engine)
    claims = {claim for part in rows for claim in part.claims}
    assert claims == {("m", "edge-1")}
    again = rows_of([(batch("edge-1", 6, 13.0), 1)], engine, claims)
    assert not any(part.claims for part in again)
