"""What one run does: hours, floors, revisions, windows, and what the file remembers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import power_billing
import pytest
from power_billing import BillingError, FindingKind
from power_billing import outbox as outbox_module
from power_billing.findings import Finding
from power_billing.hours import iso
from power_billing.links import links_of
from power_billing.outbox import Entry
from power_billing.sources import MeterUsage, source_of
from power_billing.tables import tables
from world import CUSTOMER, HOUR, NOW, World, outbox

from power_manager import InvalidValue, NotFound, PowerManager

THIS_HOUR = int(NOW // HOUR)


@pytest.fixture
def world(world_of_either: World) -> World:
    """Whatever billing reads, the bill is the same."""
    return world_of_either


def values(world: World) -> list[tuple[int, int]]:
    """Hours ago and watt-hours of what Stripe was sent, in order."""
    return [
        (THIS_HOUR - event["timestamp"] // 3600, event["value"]) for event in world.server.events
    ]


def test_a_closed_hour_becomes_one_event(world: World) -> None:
    """One event a customer and hour, in the hour, with an identifier made of both."""
    world.link()
    world.use(42.0, hours_ago=3)
    done = world.report()
    event = world.server.events[0]
    hour = THIS_HOUR - 3
    assert event == {
        "name": "power_watt_hours",
        "identifier": f"{CUSTOMER}:power_watt_hours:{iso(hour)}:0",
        "timestamp": hour * 3600,
        "customer": CUSTOMER,
        "value": 42,
    }
    assert done.complete
    assert len(done.sent) == 1


def test_a_second_run_sends_nothing(world: World) -> None:
    """What was sent is not sent again."""
    world.link()
    world.use(42.0, hours_ago=3)
    world.report()
    assert world.report().sent == []
    assert len(world.server.events) == 1


def test_the_present_hour_waits_until_it_is_over(world: World) -> None:
    """An hour that is not over is left out, and comes in the first run after its end."""
    world.link()
    world.use(7.0, hours_ago=0)
    assert world.report().sent == []
    world.now = world.true_now = NOW + HOUR
    world.report()
    assert values(world) == [(0, 7)]


def test_a_device_that_was_off_is_not_billed(world: World) -> None:
    """An hour of 100 W in a month is 100 Wh, not a month of 100 W."""
    world.link()
    world.use(100.0, hours_ago=200)
    world.report()
    assert world.billed() == 100


def test_hours_are_differences_of_floors_of_the_cumulative_total(world: World) -> None:
    """Ten hours of 0.7 Wh are 7 Wh: no hour's fraction is lost."""
    world.link()
    for hours_ago in range(10, 0, -1):
        world.use(0.7, hours_ago)
    world.report()
    assert world.billed() == 7
    assert [value for _, value in values(world)] == [1] * 7  # hours of nothing need no event


def test_devices_of_a_customer_are_one_event(world: World) -> None:
    """They share the customer's hour, which later events would overwrite."""
    world.add_device("other", "ups")
    world.link()
    world.link("other")
    world.use(10.5, 2)
    world.use(20.5, 2, "other")
    world.report()
    assert values(world) == [(2, 31)]


def test_only_the_meters_of_the_link_count(world: World) -> None:
    """Solar never counts, and a battery only if its link says so."""
    panel, battery = world.add_device("edge", "solar"), world.add_device("edge", "battery")
    world.meters = {"main": battery, "panel": panel}
    power_billing.link(
        world.devices,
        "edge",
        CUSTOMER,
        types=["main"],
        since=NOW - 9 * HOUR,
        clock=lambda: world.now,
    )
    world.use(5.0, 2, "main")
    world.use(6.0, 2, "panel")
    world.report()
    assert values(world) == []
    power_billing.unlink(world.devices, "edge", clock=lambda: world.now)
    assert links_of(world.devices)[0].types == ("main",)


def test_a_late_reading_makes_a_revision(world: World) -> None:
    """The hour is sent again with its new total, a new identifier and a later timestamp."""
    world.link()
    world.use(10.0, 5)
    world.report()
    begin = (THIS_HOUR - 5) * HOUR
    world.pm.log_power(world.meters["edge"], 25.0, 1.0, timestamp=begin + 2040 + 360)
    world.report()
    first, second = world.server.events
    assert second["identifier"] == first["identifier"][:-1] + "1"
    assert second["timestamp"] == first["timestamp"] + 1
    assert (second["value"], world.billed()) == (12, 12)


def test_a_late_reading_can_lower_an_hour(world: World) -> None:
    """A reading between two others moves energy to the hour before: both are revised, nothing is
    billed twice.
    """
    world.link()
    meter, begin = world.meters["edge"], (THIS_HOUR - 5) * HOUR
    for second in (-700, 699):
        world.pm.log_power(meter, 100.0, 1.0, timestamp=begin + second)
    world.report()
    assert values(world) == [(5, 38)]
    world.pm.log_power(meter, 0.0, 1.0, timestamp=begin - 1)
    world.report()
    assert world.server.hours(CUSTOMER) == {THIS_HOUR - 6: 10, THIS_HOUR - 5: 9}


def test_a_revision_to_nothing_is_sent_as_nothing(world: World) -> None:
    """An hour that has been sent and turns out empty is overwritten with 0."""
    world.link()
    meter = world.meters["edge"]
    begin = (THIS_HOUR - 5) * HOUR
    for second in (-700, 700):
        world.pm.log_power(meter, 100.0, 1.0, timestamp=begin + second)
    world.report()
    assert values(world) == [(5, 38)]
    world.pm.log_power(meter, -100.0, 1.0, timestamp=begin)  # on either side the mean is 0 W
    world.report()
    assert (values(world)[-1], world.billed()) == ((5, 0), 0)


def test_a_deleted_device_stays_billed(world: World) -> None:
    """Its hours keep what was billed; another device of the customer goes on being billed, in these
    hours too.
    """
    world.add_device("other")
    world.link()
    world.link("other")
    world.use(9.0, 6)
    world.use(2.0, 6, "other")
    world.report()
    assert world.billed() == 11
    world.pm.delete_device("edge")
    assert world.report().sent == []
    world.use(3.0, 4, "other")
    world.report()
    done = world.report()
    assert (values(world)[-1], world.billed()) == ((4, 3), 14)
    assert done.complete
    assert done.kept == [Finding(FindingKind.KEPT, CUSTOMER, "edge", THIS_HOUR - 6, -9.0)]


def test_until_leaves_later_hours_for_later(world: World) -> None:
    """--until is an end: hours from it on wait."""
    world.link()
    world.use(1.0, 8)
    world.use(2.0, 2)
    world.report(until=NOW - 4 * HOUR)
    assert values(world) == [(8, 1)]
    world.report(until=iso(THIS_HOUR))
    assert values(world) == [(8, 1), (2, 2)]


def test_a_dry_run_sends_and_keeps_nothing(world: World) -> None:
    """It shows the rows that the next run sends."""
    world.link()
    world.use(4.0, 2)
    rows = world.usage.preview()
    assert [(row.event.hour, row.event.watt_hours) for row in rows] == [(THIS_HOUR - 2, 4)]
    assert outbox(world.devices) == []
    assert world.server.requests == []


def test_a_dry_run_makes_no_tables(world: World) -> None:
    """A file that nobody bills by stays as it is."""
    assert world.usage.preview() == []
    with world.pm.connection() as conn:
        names = "SELECT name FROM sqlite_master WHERE name LIKE 'billing%'"
        assert conn.execute(names).fetchall() == []


@pytest.mark.parametrize("world_of_either", ["file"], indirect=True)
def test_a_dry_run_holds_up_no_writer_while_it_looks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process logs a reading meanwhile; a large fleet's statistics take a while."""
    world.link()
    world.use(4.0, 2)
    listed, looked = world.pm.list_meters, []

    def write_meanwhile(device_id: str | None = None) -> object:
        with PowerManager(world.pm.db_path) as other, other.transaction():
            looked.append(device_id)
        return listed(device_id)

    monkeypatch.setattr(world.pm, "list_meters", write_meanwhile)
    assert len(world.usage.preview()) == 1
    assert set(looked) == {"edge"}


def test_a_dry_run_leaves_out_what_a_run_does_not_send(world: World) -> None:
    """What was refused, unless it is asked for, and what is too old."""
    world.link()
    world.use(4.0, 2)
    world.server.faults.append("400-before")
    world.report()
    assert world.usage.preview() == []
    assert [(row.event.revision, row.state) for row in world.usage.preview(retry_refused=True)] == [
        (1, "queued")
    ]
    world.server.faults.extend(["lost-before"] * 12)
    world.report(retry_refused=True)
    assert len(world.usage.preview()) == 1
    world.now = world.true_now = NOW + 36 * 24 * HOUR
    assert world.usage.preview() == []


def test_hours_before_the_link_and_after_its_end_are_not_billed(world: World) -> None:
    """A link begins and ends on full hours; a device that changes hands is billed without gap or
    overlap.
    """
    world.link(hours_ago=5)
    ended = power_billing.unlink(world.devices, "edge", clock=lambda: NOW - 2 * HOUR)
    begun = power_billing.link(
        world.devices, "edge", "cus_Next", since=iso(THIS_HOUR - 1), clock=lambda: world.now
    )
    assert (ended.until_hour, begun.from_hour) == (THIS_HOUR - 1, THIS_HOUR - 1)
    for hours_ago in (6, 5, 2, 1):
        world.use(10.0 + hours_ago, hours_ago)
    world.report()
    assert world.server.hours(CUSTOMER) == {THIS_HOUR - 5: 15, THIS_HOUR - 2: 12}
    assert world.server.hours("cus_Next") == {THIS_HOUR - 1: 11}


def test_hours_older_than_35_days_are_listed_not_billed(world: World) -> None:
    """What came to light too late is named, hour by hour; the fraction it had is not billed
    elsewhere.
    """
    world.link(hours_ago=34 * 24)
    world.now = world.true_now = NOW + 10 * 24 * HOUR
    world.use(8.5, 30 * 24)  # 40 days ago by now
    world.use(2.75, 20 * 24)
    done = world.report()
    assert values(world) == [(20 * 24, 2)]
    assert not done.complete
    late = Finding(FindingKind.LATE, CUSTOMER, "edge", THIS_HOUR - 30 * 24, 8.5)
    assert [one for one in done.lost if one.kind is FindingKind.LATE] == [late]


def test_what_waited_too_long_is_listed_not_sent(world: World) -> None:
    """An event that could not be sent within 35 days stays in the outbox, and goes nowhere."""
    world.link()
    world.use(3.0, 2)
    world.server.faults.extend(["lost-before"] * 12)
    assert not world.report().complete
    world.now = world.true_now = NOW + 36 * 24 * HOUR
    done = world.report()
    assert not done.complete
    assert [entry.event.watt_hours for entry in done.too_old] == [3]
    assert done.open == [], "nothing that a timer could still do"
    assert world.server.events == []
    assert [(row.state, row.event.watt_hours) for row in outbox(world.devices)] == [("queued", 3)]


def test_an_hour_beyond_all_reason_is_listed_not_billed(world: World) -> None:
    """A broken sensor's terawatts are not sent, nor do they stop the other hours."""
    world.link()
    for second in (600.0, 2040.0):
        world.pm.log_power(
            world.meters["edge"], 1e6, 1e6, timestamp=(THIS_HOUR - 3) * HOUR + second
        )
    world.use(5.0, 7)
    done = world.report()
    assert values(world) == [(7, 5)]
    assert not done.complete
    assert [(one.kind, one.hour) for one in done.lost] == [(FindingKind.SENSOR, THIS_HOUR - 3)]
    assert "in an hour: check the sensor" in str(done.lost[0])


def test_a_file_has_one_biller(world: World, tmp_path: Path) -> None:
    """Hours that went to Stripe do not go to a CSV file as well."""
    world.link()
    world.use(3.0, 2)
    world.report()
    with pytest.raises(
        BillingError,
        match=r"its usage goes to stripe:mtr_test_1, so it cannot go to csv:.*usage\.csv as well",
    ):
        world.usage.report(power_billing.CsvSink(tmp_path / "usage.csv"))
    assert not (tmp_path / "usage.csv").exists()


def test_one_run_at_a_time(world: World) -> None:
    """A run that finds another one under way says so, and does nothing."""
    world.link()
    sink = world.sink()

    class Nested(power_billing.CsvSink):
        def send(self, events: object) -> list[power_billing.Receipt]:
            with pytest.raises(BillingError, match="another run is under way"):
                world.usage.report(sink)
            return [power_billing.Receipt(power_billing.Outcome.SENT)]

    world.use(3.0, 2)
    assert world.usage.report(Nested("unused.csv")).complete


def test_a_run_reads_no_more_of_the_outbox_than_is_open(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Years of hours that were sent are left alone, also where one of long ago was refused for
    good.
    """
    world.link()
    sink = world.sink()
    with tables(world.devices) as conn:
        sql = """INSERT INTO billing_outbox (customer, hour, revision, value_wh, state)
            VALUES (?, ?, 0, 5, ?)"""
        rows = [
            (CUSTOMER, THIS_HOUR - back, "sent" if back < 3000 else "refused")
            for back in range(1, 3001)
        ]
        conn.executemany(sql, rows)
    read: list[Entry] = []

    def entry(*parts: Any) -> Entry:
        read.append(Entry(*parts))
        return read[-1]

    monkeypatch.setattr(outbox_module, "Entry", entry)
    assert world.usage.report(sink).sent == []
    assert len(read) < 10


def test_a_clock_that_is_set_meanwhile_stops_the_run(world: World) -> None:
    """Statistics are asked for by age: if the clock is set by days between, nothing is decided."""
    world.link()
    world.use(3.0, 2)
    whole = source_of(world.devices)

    class Jump:
        """A source during whose answers the clock is set."""

        def usage(self, device_id: str, days: float) -> list[MeterUsage] | None:
            world.now += 90 * 24 * HOUR
            return whole.usage(device_id, days)

    with pytest.raises(BillingError, match="the clock was set"):
        replace(world.usage, source=Jump()).report(world.sink())
    assert world.server.events == []


# --- create_usage_record


def test_create_usage_record_reports_the_hours_inside(world: World) -> None:
    """Only whole hours from start to end, and of the customer of that device."""
    world.add_device("other")
    world.link()
    world.link("other", "cus_Other")
    for hours_ago in (5, 4, 3, 2):
        world.use(hours_ago, hours_ago)
        world.use(50.0, hours_ago, "other")
    done = world.usage.create_usage_record(world.sink(), "edge", NOW - 5 * HOUR, iso(THIS_HOUR - 2))
    assert [row.event.watt_hours for row in done.sent] == [4, 3]
    assert values(world) == [(4, 4), (3, 3)]
    world.report()
    assert (world.billed(), world.billed("cus_Other")) == (14, 200)
    assert len(world.server.events) == 2 + 2 + 4


def test_create_usage_record_leaves_out_what_is_not_over(world: World) -> None:
    """The end may be in the future: hours that are not closed wait."""
    world.link()
    world.use(6.0, 1)
    world.use(7.0, 0)
    sink = world.sink()
    assert (
        len(world.usage.create_usage_record(sink, "edge", NOW - 9 * HOUR, NOW + 9 * HOUR).sent) == 1
    )
    assert world.usage.create_usage_record(sink, "edge", NOW + 2 * HOUR, NOW + 9 * HOUR).sent == []
    assert world.billed() == 6


def test_create_usage_record_names_what_is_wrong(world: World) -> None:
    """Unknown and unlinked devices, and times the wrong way round."""
    sink = world.sink()
    with pytest.raises(NotFound, match="nobody"):
        world.usage.create_usage_record(sink, "nobody", 0, NOW)
    with pytest.raises(BillingError, match="edge: not linked"):
        world.usage.create_usage_record(sink, "edge", 0, NOW)
    with pytest.raises(InvalidValue, match="end: expected a time after start"):
        world.usage.create_usage_record(sink, "edge", NOW, NOW - 1)
    with pytest.raises(InvalidValue, match=r"start: expected an aware datetime.*'2026-11-23'"):
        world.usage.create_usage_record(sink, "edge", "2026-11-23", NOW)
