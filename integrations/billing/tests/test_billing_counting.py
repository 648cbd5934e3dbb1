"""Which meters count and with which sign; what stays billed when it is deleted; and what is not
measured at all.
"""

from __future__ import annotations

import pytest
from power_billing import FindingKind, HourUsage, MeterUsage, Run, link, status, unlink
from power_billing.counting import known_meters
from power_billing.decisions import keep_theirs, undecided
from power_billing.hours import iso, oldest_billable
from power_billing.tables import tables
from world import CUSTOMER, HOUR, NOW, World

from power_manager import PowerMeter

THIS_HOUR = int(NOW // HOUR)


@pytest.fixture
def world(world_of_either: World) -> World:
    """Whatever billing reads, the bill is the same."""
    return world_of_either


def add_meter(world: World, kind: str, device_id: str = "edge") -> str:
    """One more meter of a device, known to the world by its type."""
    world.meters[kind] = world.pm.add_meter(device_id, kind).id
    return world.meters[kind]


# --- The rule


def test_a_ups_in_line_with_main_is_not_billed_twice(world: World) -> None:
    """Both measure the same watts: main counts."""
    add_meter(world, "ups")
    world.link()
    world.use(120.0, 3)
    world.use(118.0, 3, "ups")
    world.report()
    assert world.billed() == 120


def test_a_ups_alone_is_billed(world: World) -> None:
    """There is no main meter that would measure the same."""
    world.add_device("desk", "ups")
    world.link("desk")
    world.use(50.0, 3, "desk")
    world.report()
    assert world.billed() == 50


def test_a_battery_that_is_charged_takes_back_what_it_gives_later(world: World) -> None:
    """Main 100 Wh, of which 40 go into the battery, then 38 Wh out of it: 100 + 38 - 40."""
    add_meter(world, "battery")
    world.link()
    world.use(100.0, 5)
    world.use(-40.0, 5, "battery")
    world.use(38.0, 3, "battery")
    world.report()
    assert world.server.hours(CUSTOMER) == {THIS_HOUR - 5: 60, THIS_HOUR - 3: 38}


def test_what_a_panel_gives_is_used(world: World) -> None:
    """Into the battery, which counts the other way round."""
    add_meter(world, "solar")
    add_meter(world, "battery")
    world.link()
    world.use(70.0, 5, "solar")
    world.use(-50.0, 5, "battery")
    world.report()
    assert world.billed() == 20


def test_types_choose_and_have_the_same_sign(world: World) -> None:
    """Whoever says battery alone bills what it gave less what it took."""
    add_meter(world, "battery")
    add_meter(world, "ups")
    link(
        world.devices,
        "edge",
        CUSTOMER,
        types=["battery", "ups"],
        since=NOW - 9 * HOUR,
        clock=lambda: NOW,
    )
    world.use(500.0, 5)
    world.use(30.0, 5, "battery")
    world.use(-10.0, 4, "battery")
    world.use(7.0, 3, "ups")
    world.report()
    assert world.billed() == 27


def test_a_main_meter_that_comes_later_takes_nothing_back(world: World) -> None:
    """The ups was billed while it was alone; from main's first hour on, main is."""
    world.add_device("desk", "ups")
    world.meters["desk ups"] = world.meters["desk"]
    world.link("desk")
    for hours_ago in (9, 8, 7):
        world.use(50.0, hours_ago, "desk ups")
    world.report()
    add_meter(world, "main", "desk")
    for hours_ago in (5, 4):
        world.use(50.0, hours_ago, "desk ups")
        world.use(60.0, hours_ago, "main")
    world.report()
    assert world.billed() == 3 * 50 + 2 * 60


def test_a_ups_counts_until_the_first_hour_of_main(world: World) -> None:
    """Also where nobody has reported in between."""
    world.add_device("desk", "ups")
    world.meters["desk ups"] = world.meters["desk"]
    world.link("desk")
    add_meter(world, "main", "desk")
    for hours_ago in (9, 8, 5, 4):
        world.use(50.0, hours_ago, "desk ups")
    for hours_ago in (5, 4):
        world.use(60.0, hours_ago, "main")
    world.report()
    assert world.billed() == 2 * 50 + 2 * 60


# --- What is deleted later


def test_readings_that_are_deleted_stay_billed(world: World) -> None:
    """Also if the hour after them loses the energy between the two; it is listed, and no error."""
    world.link()
    meter, begin = world.meters["edge"], (THIS_HOUR - 5) * HOUR
    for second in range(0, 7200, 1200):
        world.pm.log_power(meter, 60.0, 1.0, timestamp=begin + second)
    world.report()
    before = world.billed()
    assert before == 100
    world.pm.delete_readings(meter, since=begin + 1200, until=begin + 3600)
    done = world.report()
    assert (world.billed(), done.complete) == (before, True)
    assert [one.kind for one in done.kept] == [FindingKind.KEPT]
    assert done.kept[0].watt_hours == pytest.approx(-60.0)
    assert "stays billed" in str(done.kept[0])


def test_readings_that_come_back_are_not_billed_twice(world: World) -> None:
    """Deleted, and imported again."""
    world.link()
    world.use(10.0, 5)
    world.report()
    begin = (THIS_HOUR - 5) * HOUR
    world.pm.delete_readings(world.meters["edge"], since=begin, until=begin + HOUR)
    assert world.report().sent == []
    world.use(10.0, 5)
    done = world.report()
    assert (done.sent, done.kept, world.billed()) == ([], [], 10)


def test_a_meter_that_is_deleted_stays_billed(world: World) -> None:
    """The ups beside it does not take its place in the hours that were billed, and does from then
    on.
    """
    add_meter(world, "ups")
    world.link()
    for hours_ago in (6, 5):
        world.use(100.0, hours_ago)
        world.use(30.0, hours_ago, "ups")
    world.report()
    world.pm.delete_meter(world.meters["edge"])
    world.use(30.0, 3, "ups")
    done = world.report()
    assert world.server.hours(CUSTOMER) == {
        THIS_HOUR - 6: 100,
        THIS_HOUR - 5: 100,
        THIS_HOUR - 3: 30,
    }
    assert {one.kind for one in done.kept} == {FindingKind.KEPT}


def test_a_meter_that_never_counted_may_be_deleted(world: World) -> None:
    """A ups in line with main, and a panel of which --types knows nothing: hours of theirs go on
    being corrected.
    """
    add_meter(world, "ups")
    world.add_device("roof")
    world.meters["roof main"] = world.meters["roof"]
    add_meter(world, "solar", "roof")
    world.link()
    link(world.devices, "roof", "cus_Roof", types=["main"], since=NOW - 9 * HOUR, clock=lambda: NOW)
    for name in ("edge", "ups", "roof main", "solar"):
        world.use(10.0, 5, name)
    world.report()
    for name in ("ups", "solar"):
        world.pm.delete_meter(world.meters[name])
    for name in ("edge", "roof main"):
        at = (THIS_HOUR - 5) * HOUR + 2400
        world.pm.log_power(world.meters[name], 25.0, 1.0, timestamp=at)
    done = world.report()
    assert (world.billed(), world.billed("cus_Roof"), done.kept) == (12, 12, [])


def test_late_readings_beside_a_deleted_meter_are_listed(world: World) -> None:
    """Nobody can tell what the hour is without the meter that is gone."""
    add_meter(world, "battery")
    world.link()
    world.use(10.0, 5)
    world.use(4.0, 5, "battery")
    world.report()
    world.pm.delete_meter(world.meters["battery"])
    world.pm.log_power(world.meters["edge"], 75.0, 1.0, timestamp=(THIS_HOUR - 5) * HOUR + 2400)
    done = world.report()
    assert world.billed() == 14
    assert (done.complete, done.kept) == (False, [])
    (lost,) = done.lost
    assert lost.kind is FindingKind.UNCLEAR
    assert "not billed: " in str(lost)
    assert lost.watt_hours > 0
    assert status(world.devices, clock=lambda: NOW).lost_wh == lost.watt_hours


def test_what_comes_beside_a_deleted_meter_is_not_hidden_by_what_stays_billed(
    world: World,
) -> None:
    """Of one day: more of an hour, and less of another, are two lines."""
    world.link()
    world.use(500.0, 8)
    world.use(10.0, 5)
    world.report()
    world.pm.delete_meter(world.meters["edge"])
    add_meter(world, "solar")
    world.meters["edge"] = world.meters["solar"]
    world.use(100.0, 5)
    done = world.report()
    assert [one.watt_hours for one in done.lost] == [pytest.approx(90.0)]
    assert [one.watt_hours for one in done.kept] == [pytest.approx(-500.0)]


def test_a_device_that_is_registered_again_is_not_billed_twice(world: World) -> None:
    """With its readings imported into a new meter."""
    world.link()
    world.use(10.0, 5)
    world.report()
    world.pm.delete_device("edge")
    world.report()
    world.add_device("edge")
    world.use(10.0, 5)
    world.use(4.0, 2)
    world.report()
    assert world.server.hours(CUSTOMER) == {THIS_HOUR - 5: 10, THIS_HOUR - 2: 4}


def test_a_reading_late_after_a_deletion_counts(world: World) -> None:
    """Of an hour of which nothing was deleted."""
    world.link()
    world.use(10.0, 9)
    world.use(10.0, 5)
    world.report()
    begin = (THIS_HOUR - 9) * HOUR
    world.pm.delete_readings(world.meters["edge"], since=begin, until=begin + HOUR)
    world.pm.log_power(world.meters["edge"], 25.0, 1.0, timestamp=(THIS_HOUR - 5) * HOUR + 2400)
    world.report()
    assert world.billed() == 22


def test_a_moved_device_is_billed_where_it_was(world: World) -> None:
    """Its meter is known to the device, not to the customer."""
    world.link(hours_ago=9)
    unlink(world.devices, "edge", clock=lambda: NOW - 5 * HOUR)
    link(world.devices, "edge", "cus_Next", since=NOW - 4 * HOUR, clock=lambda: NOW)
    world.use(10.0, 6)
    world.use(20.0, 3)
    world.report()
    assert (world.billed(), world.billed("cus_Next")) == (10, 20)
    with tables(world.devices) as conn:
        (known,) = known_meters(conn, "edge").values()
    assert (known.first_hour, known.last_hour) == (THIS_HOUR - 6, THIS_HOUR - 3)


# --- What is not measured


def test_a_device_whose_readings_are_too_far_apart_is_said(world: World) -> None:
    """Every 61 minutes with max_gap below that: watts, and no energy; until it is mended."""
    world.link()
    for minute in range(0, 1500, 61):
        at = NOW - 1500 * 60 + minute * 60
        world.pm.log_power(world.meters["edge"], 100.0, 1.0, timestamp=at)
    done = world.report()
    assert not done.complete
    assert [(one.kind, one.device_id) for one in done.lost] == [(FindingKind.NO_ENERGY, "edge")]
    assert "readings, but no energy" in str(done.lost[0])
    world.use(5.0, 2)
    assert not world.report().complete, "one good hour a day is lost revenue, too"
    for back in range(1, 20):
        world.use(5.0, back)
    assert world.report().complete


def test_a_device_with_a_reading_in_more_than_a_day_is_said(world: World) -> None:
    """It is not silent, and never has two readings in a day."""
    world.link()
    for back in range(20, 0, -1):
        at = NOW - back * 30 * HOUR - 60
        world.pm.log_power(world.meters["edge"], 100.0, 1.0, timestamp=at)
    done = world.report()
    assert [one.kind for one in done.lost] == [FindingKind.NO_ENERGY]


def test_what_is_deleted_before_it_is_counted_is_said(world: World) -> None:
    """A meter with its readings, of hours that no run has looked at: until a person accepts it."""
    world.link(hours_ago=20)
    world.use(10.0, 5)
    world.use(10.0, 2)
    sink = world.sink()
    assert world.usage.report(sink, until=(THIS_HOUR - 4) * HOUR).complete
    world.pm.delete_meter(world.meters["edge"])
    for _ in range(2):
        done = world.usage.report(sink)
        assert not done.complete
        assert [(one.kind, one.hour) for one in done.lost] == [(FindingKind.DELETED, THIS_HOUR - 4)]
    (lost,) = done.lost
    assert str(lost) == (
        f"not billed: {CUSTOMER} edge readings since {iso(THIS_HOUR - 4)}, which were deleted "
        "before they were counted"
    )
    keep_theirs(world.devices, undecided(world.devices, oldest_billable(world.now)))
    assert world.usage.report(sink).complete
    assert world.billed() == 10


def test_a_device_that_is_deleted_before_it_is_counted_is_said(world: World) -> None:
    """At once, with what is known of it: its newest hour, or that it was linked."""
    world.add_device("twin")
    world.link(hours_ago=20)
    world.link("twin", hours_ago=20)
    world.use(10.0, 5)
    sink = world.sink()
    world.usage.report(sink, until=(THIS_HOUR - 6) * HOUR)
    world.pm.delete_device("edge")
    assert [(one.kind, one.device_id) for one in world.usage.report(sink).lost] == [
        (FindingKind.DELETED, "edge")
    ]
    world.pm.delete_device("twin")
    assert [(one.kind, one.device_id) for one in world.usage.report(sink).lost] == [
        (FindingKind.DELETED, "edge"),
        (FindingKind.SILENT, "twin"),
    ]


def test_what_was_counted_may_be_deleted(world: World) -> None:
    """A meter without a reading since the last run."""
    world.link(hours_ago=20)
    world.use(10.0, 5)
    assert world.report().complete
    world.pm.delete_meter(world.meters["edge"])
    assert world.report().complete


def test_a_device_that_is_deleted_and_still_linked_is_said(world: World) -> None:
    """After a week, as one that is silent is, until it is unlinked."""
    world.link()
    world.use(10.0, 5)
    world.report()
    world.pm.delete_device("edge")
    world.now = world.true_now = NOW + 6 * 24 * HOUR
    assert world.report().complete
    world.now = world.true_now = NOW + 8 * 24 * HOUR
    done = world.report()
    assert [(one.kind, one.hour) for one in done.lost] == [(FindingKind.SILENT, THIS_HOUR - 4)]
    unlink(world.devices, "edge", clock=lambda: world.now)
    world.now = world.true_now = NOW + 9 * 24 * HOUR
    assert world.report().complete


def test_a_device_at_rest_is_not_said(world: World) -> None:
    """0 W is a measurement."""
    world.link()
    for minute in range(0, 1500, 10):
        world.pm.log_power(world.meters["edge"], 12.0, 0.0, timestamp=NOW - (1500 - minute) * 60)
    assert world.report().complete


def test_a_device_without_a_single_reading_is_said(world: World) -> None:
    """From a day after its link on, and after a week of silence."""
    world.link(hours_ago=20)
    assert world.report().complete
    world.now = world.true_now = NOW + 5 * HOUR
    done = world.report()
    assert [(one.kind, one.hour) for one in done.lost] == [(FindingKind.SILENT, THIS_HOUR - 20)]
    assert "no readings since" in str(done.lost[0])
    world.use(5.0, 2)
    assert world.report().complete
    world.now = world.true_now = NOW + 6 * 24 * HOUR
    assert world.report().complete
    world.now = world.true_now = NOW + 8 * 24 * HOUR
    assert [(one.kind, one.hour) for one in world.report().lost] == [
        (FindingKind.SILENT, THIS_HOUR - 1)
    ]
    unlink(world.devices, "edge", clock=lambda: world.now)
    world.now = world.true_now = NOW + 9 * 24 * HOUR
    assert world.report().complete, "nobody is billed for it any more"


def test_an_hour_beyond_reason_that_is_mended_is_billed(world: World) -> None:
    """Its readings are deleted, others come: the finding goes, and the hour is billed."""
    world.link()
    begin = (THIS_HOUR - 3) * HOUR
    for second in (600.0, 2040.0):
        world.pm.log_power(world.meters["edge"], 1e6, 1e6, timestamp=begin + second)
    assert [one.kind for one in world.report().lost] == [FindingKind.SENSOR]
    world.pm.delete_readings(world.meters["edge"], since=begin, until=begin + HOUR)
    world.use(10.0, 3)
    assert world.report().complete
    assert world.billed() == 10


# --- Another source


class Engine:
    """A fleet's engine, which knows a meter that no file here has."""

    def __init__(self, meter: PowerMeter) -> None:
        self.hours = [
            HourUsage(THIS_HOUR - 4, 12_500_000_000, 6),
            HourUsage(THIS_HOUR - 3, 10**9, 6),
        ]
        self.meter = meter

    def usage(self, device_id: str, days: float) -> list[MeterUsage] | None:
        """Of one device."""
        return [MeterUsage(self.meter, self.hours)] if device_id == "edge" else None


def test_usage_may_come_from_elsewhere(world: World) -> None:
    """Whatever has the one method of UsageSource; late changes and deletions are seen in the same
    way.
    """
    world.link()
    world.use(500.0, 6)  # of the file, which is not asked
    (meter,) = world.pm.list_meters("edge")
    engine = Engine(meter)
    run = Run(world.devices, clock=lambda: world.now, source=engine)
    assert run.report(world.sink()).complete
    assert world.server.hours(CUSTOMER) == {THIS_HOUR - 4: 12, THIS_HOUR - 3: 1}
    engine.hours = [HourUsage(THIS_HOUR - 4, 14_000_000_000, 7)]
    done = run.report(world.sink())
    assert world.server.hours(CUSTOMER) == {THIS_HOUR - 4: 14, THIS_HOUR - 3: 1}
    assert [(one.kind, one.hour) for one in done.kept] == [(FindingKind.KEPT, THIS_HOUR - 3)]
