"""Old hours: closed once a month, never billed again, looked at all the same; and status that does
not grow.
"""

from __future__ import annotations

from power_billing import FindingKind, Status, status
from power_billing.closing import KEPT_HOURS, closed_before
from power_billing.ledger import counted_by_day
from power_billing.reconcile import reconcile
from power_billing.sources import NANO
from power_billing.tables import tables
from world import CUSTOMER, HOUR, NOW, World, outbox

THIS_HOUR = int(NOW // HOUR)
DAY_HOURS = 24


def go_to(world: World, days: float) -> None:
    """So many days after NOW."""
    world.now = world.true_now = NOW + days * DAY_HOURS * HOUR


def old_world(world: World) -> World:
    """Used 10.5 Wh in four hours of one day, 1 Wh in every ten days since, for 200 days, with a
    report each time.
    """
    world.link()
    for hours_ago in (9, 8, 7, 6):
        world.use(10.5, hours_ago)
    world.report()
    for day in range(10, 201, 10):
        go_to(world, day)
        world.use(1.0, -24 * day + 3)
        world.report()
    return world


def now_of(world: World) -> Status:
    """What status says."""
    return status(world.pm, clock=lambda: world.now)


def test_old_hours_are_summed_by_day(world: World) -> None:
    """Sums and counts stay what they were; the rows of hours are gone."""
    old_world(world)
    with tables(world.pm) as conn:
        before = closed_before(conn)
        (first_hour,) = conn.execute("SELECT min(hour) FROM billing_hours").fetchone()
        sql = "SELECT sum(whole_wh), sum(sent_wh) FROM billing_customer_days"
        whole_wh, sent_wh = conn.execute(sql).fetchone()
    assert THIS_HOUR + (200 - 31) * 24 - KEPT_HOURS <= before <= THIS_HOUR + 200 * 24 - KEPT_HOURS
    assert first_hour >= before
    assert whole_wh == sent_wh
    (customer,) = now_of(world).customers
    assert customer.billed_wh == world.billed() == 62
    assert sum(customer.counts.values()) == 24
    assert min(row.event.hour for row in outbox(world.pm)) >= before


def test_a_closed_hour_is_never_billed_again(world: World) -> None:
    """Not by a clock that is set back to when it could be."""
    old_world(world)
    sent = len(world.server.events)
    for day in (1, 20, 100):
        world.now = NOW + day * DAY_HOURS * HOUR
        world.report()
    assert len(world.server.events) == sent
    go_to(world, 200)
    assert world.report().complete
    assert world.billed() == 62


def test_a_clock_that_is_years_ahead_closes_nothing(world: World) -> None:
    """The newest hour that Stripe has taken says how late it is."""
    world.link()
    world.use(10.0, 5)
    world.report()
    world.now = NOW + 900 * DAY_HOURS * HOUR
    world.report()
    with tables(world.pm) as conn:
        assert closed_before(conn) <= THIS_HOUR - KEPT_HOURS
    world.now = NOW
    world.use(4.0, 3)
    assert world.report().complete
    assert world.billed() == 14


def test_what_comes_to_light_of_closed_days_is_found(world: World) -> None:
    """In the first run of a month, and kept until somebody accepts it."""
    old_world(world)
    world.use(5.0, 3)
    assert world.report().complete, "the usual runs do not look that far back"
    go_to(world, 232)
    world.use(1.0, -24 * 232 + 3)
    done = world.report()
    assert [(one.kind, one.hour // 24, one.watt_hours) for one in done.lost] == [
        (FindingKind.LATE, (THIS_HOUR - 3) // 24, 5.0)
    ]
    assert now_of(world).lost_wh == 5.0
    assert len(world.report().lost) == 1


def test_a_broken_sensor_of_a_closed_day_is_no_late_consumption(world: World) -> None:
    """It is said in its own words for ever, and what is lost is not counted by it."""
    world.link()
    begin = (THIS_HOUR - 5) * HOUR
    for second in (600.0, 2040.0):
        world.pm.log_power(world.meters["edge"], 1e6, 1e4, timestamp=begin + second)
    for day in range(0, 181, 10):
        go_to(world, day)
        world.use(1.0, -24 * day + 3)
        done = world.report()
    with tables(world.pm) as conn:
        assert closed_before(conn) > THIS_HOUR
    assert [(one.kind, one.hour) for one in done.lost] == [(FindingKind.SENSOR, THIS_HOUR - 5)]
    assert now_of(world).lost_wh == 0.0


def test_the_largest_hours_of_many_devices_are_closed_and_listed(world: World) -> None:
    """What fits no integer of SQLite's is a broken sensor's: it is listed, and stops no bill."""
    hours = range(THIS_HOUR - 40, THIS_HOUR - 5)
    for number in range(95):
        world.add_device(f"big{number}")
        world.link(f"big{number}")
        for hour in hours if number == 0 else hours[:1]:
            for second in (600.0, 2040.0):
                at = hour * HOUR + second
                world.pm.log_power(world.meters[f"big{number}"], 1e6, 249.0, timestamp=at)
        if number in (0, 50, 94):  # a day of one device, and an hour of many
            done = world.report()
    assert {one.kind for one in done.lost} == {FindingKind.SENSOR}
    listed = sum(round(one.watt_hours) for one in done.lost)
    assert world.billed() + listed == 99_600_000 * (94 + len(hours))
    for day in range(60, 181, 30):
        go_to(world, day)
        world.use(1.0, -24 * day + 3, "big1")
        world.report()
    with tables(world.pm) as conn:
        assert closed_before(conn) > THIS_HOUR
        counted = counted_by_day(conn, CUSTOMER, range(THIS_HOUR - 72, THIS_HOUR + 24))
    assert sum(counted["big0"].values()) == 99_600_000 * NANO * len(hours)


def test_closed_days_are_compared_by_day(world: World) -> None:
    """Of their hours only the sum is known."""
    old_world(world)
    hours = range(THIS_HOUR - 48, THIS_HOUR + 24)
    assert reconcile(world.pm, world.sink(), hours, world.now).is_clean
    world.server.events.pop(0)
    (found,) = reconcile(world.pm, world.sink(), hours, world.now).differences
    assert (found.customer, len(found.hours), found.ours_wh - found.theirs_wh) == (CUSTOMER, 24, 10)


def test_status_remembers_the_last_good_run(world: World) -> None:
    """A run that leaves something is none."""
    assert now_of(world).last_run is None
    world.link()
    world.use(3.0, 5)
    world.report()
    world.use(3.0, 2)
    world.server.faults.append("400-before")
    world.now += 60
    world.report()
    now = now_of(world)
    assert (now.last_good_run, now.last_run) == (NOW, NOW + 60)
