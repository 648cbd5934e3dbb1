"""Play the edge: write devices, meters, readings and events to a file that the service has open.

show   a dozen devices in every state, the first with a month of history
crowd  many devices with three meters each
day    one device with four meters and a reading of each in every minute of the last day
sites  three places with eight devices each, and a day of history
live   writes live readings until its standard input ends
obey   makes the library's calls that it reads as lines of JSON, and prints their results
"""

from __future__ import annotations

import argparse
import json
import math
import random
import select
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from typing import Any

from power_manager import PowerManager, PowerMeter

DAY = 86_400.0
DAY_MINUTES = 1440
STEP = 300.0  # seconds between recorded readings
SITES = [
    "Harbour gate", "North mast", "Quarry pump", "Weir sensor", "Orchard relay", "Hilltop repeater",
    "Tunnel fan", "Lighthouse", "Bridge camera", "Glasshouse 2", "Depot kiosk", "Ferry landing",
]  # fmt: skip


def sun(moment: float) -> float:
    """The height of the sun, 0 to 1, that many seconds after a midnight, with some clouds."""
    height = math.sin((moment % DAY / DAY - 0.25) * 2 * math.pi)
    cloud = 0.65 + 0.35 * math.sin(moment / 5200) * math.sin(moment / 1700)
    return max(0.0, height) * cloud


def load(moment: float, chance: random.Random) -> float:
    """Watts that a device takes: a floor, a working day, and noise."""
    busy = 4.0 if 7 <= moment % DAY / 3600 < 19 else 0.0
    return 6.0 + busy + 1.2 * math.sin(moment / 900) + chance.uniform(-0.4, 0.4)


def site_readings(
    meters: list[PowerMeter], begin: float, end: float, charge: float, chance: random.Random
) -> Iterator[tuple[str, float, float, float | None, float]]:
    """Readings of a site's panel, pack and supply from begin to end.

    The pack takes what the panel and the supply leave over, and gives what they lack. The end is
    always at half past ten in the morning of the site's sun.
    """
    panel, pack, supply = (meter.id for meter in meters)
    moment, level = begin, charge
    while moment < end:
        here = moment - end + 400 * DAY + 10.5 * 3600
        made, taken = 34.0 * sun(here), load(here, chance)
        grid = 0.35 * taken
        drain = taken - grid - made
        if (level >= 98 and drain < 0) or (level <= 22 and drain > 0):
            drain *= 0.04
        level = min(100.0, max(0.0, level - 100 * drain * STEP / 3600 / 220.0))
        voltage = 11.4 + 1.9 * level / 100 - 0.015 * drain
        yield panel, 17.2 + 1.4 * sun(here), made / (17.2 + 1.4 * sun(here)), None, moment
        yield pack, voltage, drain / voltage, level, moment
        yield supply, 24.0 + chance.uniform(-0.05, 0.05), grid / 24.0, None, moment
        moment += STEP


def add_site(
    pm: PowerManager, device_id: str, name: str, target_wh: float | None
) -> list[PowerMeter]:
    """A device with a panel, a pack and a supply."""
    pm.register_device(device_id, name, target_wh=target_wh)
    return [
        pm.add_meter(device_id, "solar", name="Panel"),
        pm.add_meter(device_id, "battery", capacity_wh=220.0, name="Pack"),
        pm.add_meter(device_id, "main", name="Supply"),
    ]


def show(pm: PowerManager, _: argparse.Namespace) -> None:
    """Twelve sites: most are fine, some are not."""
    chance, now = random.Random(6), time.time()
    ends = {"Tunnel fan": now - 45 * 60, "Bridge camera": now - 3 * DAY}
    charges = {"Quarry pump": 3.6, "Weir sensor": 14.0, "Depot kiosk": 18.5, "Glasshouse 2": 100.0}
    for number, name in enumerate(SITES, 1):
        meters = add_site(pm, f"edge-{number:03}", name, (240.0, 400.0, None)[number % 3])
        if name == "Ferry landing":  # nothing has come from it yet
            continue
        days = 30 if number == 1 else 2
        end = ends.get(name, now)
        pm.log_many(site_readings(meters, end - days * DAY, end, 74.0, chance))
        if name in charges:
            pm.log_power(meters[1].id, 11.6, 0.9, charges[name])
        if name not in ends:
            drift(pm, [pm.get_meter(meter.id) for meter in meters], chance)
    for kind, note in (
        ("shutdown", "firmware 4.2"),
        ("restore", "firmware 4.2"),
        ("charge_start", "panel cleaned"),
    ):
        pm.trigger_event("edge-001", kind, note=note)


def drift(pm: PowerManager, meters: list[PowerMeter], chance: random.Random) -> None:
    """A live reading of each meter, a little different from its reading in `meters`."""
    for meter in meters:
        volts, amperes = (
            meter.voltage * chance.uniform(0.998, 1.002),
            meter.current_draw * chance.uniform(0.96, 1.04),
        )
        pm.log_power(meter.id, volts, amperes)


def crowd(pm: PowerManager, options: argparse.Namespace) -> None:
    """Many sites with a live reading of each meter."""
    chance = random.Random(6)
    with pm.transaction():
        for number in range(1, options.devices + 1):
            device_id = f"node-{number:04}"
            if options.sites:
                site = 1 + (number - 1) * options.sites // options.devices
                device_id = f"site-{site:02}/{device_id}"
            meters = add_site(pm, device_id, f"Node {number:04}", 300.0)
            amperes = [
                chance.uniform(0.0, 1.4),
                chance.uniform(-0.8, 1.1),
                chance.uniform(0.1, 0.3),
            ]
            charge = round(chance.uniform(4.0, 100.0), 1)
            pm.log_power(meters[0].id, 18.0, round(amperes[0], 3))
            pm.log_power(meters[1].id, 12.6, round(amperes[1], 3), charge)
            pm.log_power(meters[2].id, 24.0, round(amperes[2], 3))


def day(pm: PowerManager, _: argparse.Namespace) -> None:
    """A hut with mains, panel, pack and UPS, and a reading of each in every minute of a day."""
    chance, now = random.Random(6), time.time()
    pm.register_device("hut", "Mountain hut", target_wh=400.0)
    panel = pm.add_meter("hut", "solar", name="Roof").id
    pack = pm.add_meter("hut", "battery", capacity_wh=600.0, name="Pack").id
    supply = pm.add_meter("hut", "main", name="Supply").id
    ups = pm.add_meter("hut", "ups", name="UPS").id

    def about(least: float, most: float, digits: int) -> float:
        """A value between the two, with that many digits."""
        return round(chance.uniform(least, most), digits)

    readings: list[tuple[str, float, float, float | None, float]] = []
    for minute in range(DAY_MINUTES, 0, -1):
        moment = now - 60.0 * minute
        shine = 2.0 * sun(moment)
        readings += [
            (panel, about(18, 19, 2), about(shine, shine + 0.05, 3), None, moment),
            (pack, about(12, 13, 2), about(-1, 1, 3), about(55, 60, 0), moment),
            (supply, about(229, 231, 1), about(0.02, 0.05, 3), None, moment),
            (ups, about(229, 231, 1), about(0.02, 0.03, 3), about(97, 99, 0), moment),
        ]
    pm.log_many(readings)


def sites(pm: PowerManager, _: argparse.Namespace) -> None:
    """Three places with eight devices each, and a day of history; ids begin with the place."""
    chance, now = random.Random(6), time.time()
    for place in ("harbour", "north", "quarry"):
        for number in range(1, 9):
            name = f"{place.title()} gate {number}"
            meters = add_site(pm, f"{place}/gate-{number}", name, 300.0)
            end = now - DAY / 24 if (place, number) == ("north", 5) else now
            charge = chance.uniform(40.0, 90.0)
            pm.log_many(site_readings(meters, end - 1.2 * DAY, end, charge, chance))
            if (place, number) == ("quarry", 3):
                pm.log_power(meters[1].id, 11.6, 0.9, 14.0)


def live(pm: PowerManager, options: argparse.Namespace) -> None:
    """Write live readings of some devices in turn, until standard input ends."""
    chance = random.Random(6)
    sites: dict[str, list[PowerMeter]] = {}
    for meter in pm.list_meters():
        sites.setdefault(meter.device_id, []).append(meter)
    lately = datetime.fromtimestamp(time.time() - 300, timezone.utc).isoformat()
    heard = [
        meters
        for meters in sites.values()
        if any((meter.updated_at or "") > lately for meter in meters)
    ]
    place = 0
    print("writing", flush=True)
    while not select.select([sys.stdin], [], [], options.every)[0]:
        with pm.transaction():
            for _ in range(min(options.at_once, len(heard))):
                drift(pm, heard[place % len(heard)], chance)
                place += 1


def obey(pm: PowerManager, _: argparse.Namespace) -> None:
    """Each line is a call: {"call": "log_power", "args": [...], "kwargs": {...}}."""
    for line in sys.stdin:
        order = json.loads(line)
        result = getattr(pm, order["call"])(*order.get("args", []), **order.get("kwargs", {}))
        print(json.dumps(result, default=plain), flush=True)


def plain(value: Any) -> Any:
    """A record as a JSON object."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{value!r} has no JSON form here")


PARTS = {"show": show, "crowd": crowd, "day": day, "sites": sites, "live": live, "obey": obey}


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("db", help="the database file")
    parser.add_argument("--devices", type=int, default=1000, help="of a crowd (default: 1000)")
    parser.add_argument(
        "--sites", type=int, default=0, help="of a crowd, in their ids (default: none)"
    )
    parser.add_argument(
        "--every", type=float, default=1.0, help="seconds between live writes (default: 1)"
    )
    parser.add_argument(
        "--at-once", type=int, default=3, help="devices written each time (default: 3)"
    )
    options = parser.parse_args()
    with PowerManager(options.db, durability="normal") as pm:
        PARTS[options.part](pm, options)


if __name__ == "__main__":
    main()
