"""Hours of a tariff on their way to Stripe: each on the meter of its period, whatever comes late,
fails, or changes.
"""

from __future__ import annotations

import shutil
import zoneinfo
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from loopback import KEY, Loopback
from power_billing import BillingError, CsvSink, LedgerFile, link, unlink
from power_billing.closing import closed_before
from power_billing.decisions import send_ours, undecided
from power_billing.hours import oldest_billable
from power_billing.keys import API_KEY, Secret
from power_billing.periods import event_name_of, hour_periods, ledger_meters, tariff_of
from power_billing.reconcile import Reconciliation, reconcile, repair
from power_billing.stripe_client import make_client
from power_billing.stripe_setup import setup, setup_tariff
from power_billing.stripe_sinks import open_sink
from power_billing.tables import forget_customer, tables
from power_billing.tariff_file import LONGEST_NAME, parse_tariff
from power_billing.usage import Run
from tariffs import OFF_PEAK, PEAK, TWO, at, go_to, set_tariff, use_in
from world import CUSTOMER, HOUR, World

from power_manager import InvalidValue

NIGHT = TWO.replace("07:00-22:00", "02:00-03:00").replace("mon-fri", "sun")


@pytest.fixture
def berlin(world: World) -> World:
    """A tariff of Berlin, at noon of 27 October 2026; the night of 25 October had 02:00 twice."""
    go_to(world, "2026-10-27T12:00")
    set_tariff(world)
    world.link(hours_ago=24 * 4)
    return world


def compare(world: World, hours: range | None = None) -> Reconciliation:
    """The ledger beside Stripe; by default for the hours that can be billed."""
    hours = hours or range(oldest_billable(world.now), int(world.now // HOUR))
    return reconcile(world.pm, world.sink(), hours, world.now)


def later(world: World, hours: float = 2) -> World:
    """Some hours have passed, so that everything can be compared."""
    world.now = world.true_now = world.now + hours * HOUR
    return world


class TestMeters:
    """An hour is on one meter."""

    def test_every_hour_is_on_the_meter_of_its_period(self, berlin: World) -> None:
        """Over a weekend on which the clocks are put back: both hours of 02:00 are at night, and
        none is lost.
        """
        hours = range(at("2026-10-24T00:00"), at("2026-10-27T12:00"))
        for number, hour in enumerate(hours):
            use_in(berlin, hour, 10.0 + number)
        assert berlin.report().complete
        peak = [*range(at("2026-10-26T06:00"), at("2026-10-26T21:00"))]
        peak += range(at("2026-10-27T06:00"), hours.stop)
        expected = {hour: 10 + number for number, hour in enumerate(hours)}
        assert berlin.server.meter_hours(CUSTOMER) == {
            PEAK: {hour: expected[hour] for hour in peak},
            OFF_PEAK: {hour: expected[hour] for hour in hours if hour not in peak},
        }
        assert berlin.billed() == sum(expected.values())

    @pytest.mark.parametrize("stream", [False, True])
    def test_the_hour_that_comes_twice_is_two_hours_of_its_period(
        self, world: World, stream: bool
    ) -> None:
        """New York puts its clocks back on 1 November 2026, at two: 01:00 is there twice, by UTC
        05:00 and 06:00.
        """
        go_to(world, "2026-11-02T12:00")
        text = NIGHT.replace("Europe/Berlin", "America/New_York").replace(
            "02:00-03:00", "01:00-02:00"
        )
        set_tariff(world, text)
        world.link(hours_ago=24 * 3)
        first = at("2026-11-01T04:00")
        for hour in range(first, first + 4):
            use_in(world, hour, 5.0)
        assert world.usage.report(world.sink(stream=stream)).complete
        on_meters = world.server.meter_hours(CUSTOMER)
        assert on_meters[PEAK] == {first + 1: 5, first + 2: 5}
        assert on_meters[OFF_PEAK] == {first: 5, first + 3: 5}

    def test_in_spring_no_hour_is_left_out(self, world: World) -> None:
        """On 28 March 2027 Berlin has no 02:00, so that its period has nothing that day."""
        go_to(world, "2027-03-28T12:00")
        set_tariff(world, NIGHT)
        world.link(hours_ago=24)
        for hour in range(at("2027-03-27T23:00"), at("2027-03-28T03:00")):
            use_in(world, hour, 5.0)
        assert world.report().complete
        assert list(world.server.meter_hours(CUSTOMER)) == [OFF_PEAK]
        assert world.billed() == 20

    def test_create_usage_record_knows_the_periods(self, berlin: World) -> None:
        """It is the same ledger."""
        border = at("2026-10-26T06:00")
        for hour in (border - 1, border):
            use_in(berlin, hour, 7.0)
        done = berlin.usage.create_usage_record(
            berlin.sink(), "edge", (border - 1) * HOUR, (border + 1) * HOUR
        )
        assert done.complete
        assert berlin.server.meter_hours(CUSTOMER) == {OFF_PEAK: {border - 1: 7}, PEAK: {border: 7}}

    def test_trying_it_out_keeps_and_sends_nothing(self, berlin: World) -> None:
        """A preview notes no period, either."""
        use_in(berlin, at("2026-10-26T06:00"), 7.0)
        assert len(berlin.usage.preview()) == 1
        with tables(berlin.pm) as conn:
            assert conn.execute("SELECT count(*) FROM billing_hour_periods").fetchone() == (0,)
        assert berlin.server.events == []

    def test_another_biller_gets_hours(self, berlin: World, tmp_path: Path) -> None:
        """A CSV file has no periods: its hours are there to tell them by."""
        border = at("2026-10-26T06:00")
        for hour in (border - 1, border):
            use_in(berlin, hour, 7.0)
        sink = CsvSink(tmp_path / "usage.csv")
        assert berlin.usage.report(sink, compare=True).complete
        assert sink.recorded(CUSTOMER, range(border - 1, border + 1)) == {border - 1: 7, border: 7}


class TestLate:
    """What comes late, or fails, stays on its hour's meter."""

    def test_late_readings_over_a_border_revise_both_meters(self, berlin: World) -> None:
        """A reading in the hour before changes that hour and the energy at the begin of the next
        one.
        """
        border = at("2026-10-26T06:00")
        for second in (border * HOUR - 300, border * HOUR + 600, border * HOUR + 900):
            berlin.pm.log_power(berlin.meters["edge"], 100.0, 1.0, timestamp=second)
        berlin.report()
        before = berlin.server.meter_hours(CUSTOMER)
        assert before == {PEAK: {border: 33}}
        berlin.pm.log_power(berlin.meters["edge"], 100.0, 1.0, timestamp=border * HOUR - 1500)
        berlin.pm.log_power(berlin.meters["edge"], 400.0, 1.0, timestamp=border * HOUR + 1500)
        assert berlin.report().complete
        assert berlin.server.meter_hours(CUSTOMER) == {
            OFF_PEAK: {border - 1: 33},
            PEAK: {border: 75},
        }
        assert berlin.billed() == 108

    @pytest.mark.parametrize("fault", ["lost-after", "lost-before", "500-after"])
    def test_a_lost_answer_bills_no_meter_twice(self, berlin: World, fault: str) -> None:
        """The event goes out again, to the same meter, and Stripe knows it."""
        hour = at("2026-10-26T06:00")
        use_in(berlin, hour, 7.0)
        berlin.server.faults.extend([fault] * 2)
        assert berlin.report().complete
        assert berlin.server.meter_hours(CUSTOMER) == {PEAK: {hour: 7}}

    def test_an_hour_stays_on_its_meter_when_the_rules_of_the_zone_change(
        self, berlin: World, tmp_path: Path
    ) -> None:
        """Berlin ends its winter time: counted hours stay, new ones follow the new rules."""
        counted, following = at("2026-10-26T06:00"), at("2026-10-27T06:00")
        use_in(berlin, counted, 7.0)
        berlin.report()
        with _berlin_is(tmp_path, "UTC"):
            use_in(berlin, counted, 7.0 + 2.0)
            berlin.pm.log_power(berlin.meters["edge"], 50.0, 1.0, timestamp=counted * HOUR + 2400)
            use_in(berlin, following, 4.0)
            assert berlin.report().complete
            on_meters = berlin.server.meter_hours(CUSTOMER)
            assert list(on_meters[PEAK]) == [counted]
            assert on_meters[PEAK][counted] > 7
            assert on_meters[OFF_PEAK] == {following: 4}
            assert compare(later(berlin)).is_clean


@contextmanager
def _berlin_is(folder: Path, other: str) -> Iterator[None]:
    """Let the time zone database say that Berlin has another zone's rules."""
    source = next(Path(root, other) for root in zoneinfo.TZPATH if Path(root, other).exists())
    target = folder / "Europe" / "Berlin"
    target.parent.mkdir()
    shutil.copy(source, target)
    zoneinfo.reset_tzpath([str(folder)])
    zoneinfo.ZoneInfo.clear_cache()
    try:
        yield
    finally:
        zoneinfo.reset_tzpath()
        zoneinfo.ZoneInfo.clear_cache()


class TestReconcile:
    """What Stripe has is compared by customer, day and period."""

    @pytest.fixture
    def used(self, berlin: World) -> World:
        """Two hours on each side of a border, sent two hours ago."""
        border = at("2026-10-26T06:00")
        for number, hour in enumerate(range(border - 2, border + 2)):
            use_in(berlin, hour, 10.0 + number)
        berlin.report()
        return later(berlin)

    def test_all_meters_are_asked(self, used: World) -> None:
        """What each has is what was sent."""
        assert compare(used).is_clean
        assert used.billed() == 46

    def test_what_one_meter_has_lost_is_found_and_repaired(self, used: World) -> None:
        """On its own meter, by a revision."""
        border = at("2026-10-26T06:00")
        used.server.events = [
            event for event in used.server.events if event["timestamp"] // 3600 != border - 1
        ]
        (found,) = compare(used).differences
        assert (found.hours.start, found.period, found.ours_wh, found.theirs_wh) == (
            border - 1,
            "off_peak",
            11,
            0,
        )
        assert repair(used.pm, [found], oldest_billable(used.now)) == 1
        assert used.report().complete
        assert used.server.meter_hours(CUSTOMER)[OFF_PEAK][border - 1] == 11
        assert compare(later(used)).is_clean

    def test_usage_on_another_periods_meter_is_found_and_never_called_repaired(
        self, used: World
    ) -> None:
        """No event of ours replaces it: somebody has to cancel it at Stripe, or to credit it."""
        border = at("2026-10-26T06:00")
        _put(used.server, OFF_PEAK, border, 50)
        (found,) = compare(used).differences
        assert (found.ours_wh, found.theirs_wh, found.misplaced_wh) == (12, 62, 50)
        assert repair(used.pm, [found], oldest_billable(used.now)) == 0
        assert len(compare(used).differences) == 1

    def test_usage_that_only_changed_its_meter_is_found(self, used: World) -> None:
        """The sum of the hour is right, and its price is not."""
        border = at("2026-10-26T06:00")
        for event in used.server.events:
            if event["timestamp"] // 3600 == border:
                event["name"] = OFF_PEAK
        (found,) = compare(used).differences
        assert (found.ours_wh, found.theirs_wh, found.misplaced_wh) == (12, 12, 12)

    def test_what_is_there_before_the_first_event_is_a_conflict(self, berlin: World) -> None:
        """Of whichever meter: somebody else has billed the hour."""
        hour = at("2026-10-26T05:00")
        _put(berlin.server, PEAK, hour, 50)
        use_in(berlin, hour, 7.0)
        done = berlin.report()
        assert [(one.state.value, one.theirs_wh) for one in done.open] == [("conflict", 50)]
        listed = undecided(berlin.pm, oldest_billable(berlin.now))
        send_ours(berlin.pm, listed.conflicts)
        assert berlin.report().complete
        (found,) = compare(later(berlin)).differences
        assert (found.ours_wh, found.theirs_wh, found.misplaced_wh) == (7, 57, 50)

    def test_an_hour_that_is_somebody_elses_gets_a_period_too(self, used: World) -> None:
        """A repair makes a conflict of it, and what is decided goes to the meter of the hour."""
        hour = at("2026-10-26T09:00")
        _put(used.server, PEAK, hour, 5)
        (found,) = compare(used).differences
        assert (found.is_foreign, found.period) == (True, "peak")
        repair(used.pm, [found], oldest_billable(used.now))
        with tables(used.pm) as conn:
            assert hour_periods(conn, range(hour, hour + 1)).noted == {hour: "peak"}
        send_ours(used.pm, undecided(used.pm, oldest_billable(used.now)).conflicts)
        assert used.report().complete
        assert used.server.meter_hours(CUSTOMER)[PEAK][hour] == 0

    def test_closed_days_are_compared_by_period(self, used: World) -> None:
        """After the hours are summed: what one period has lost does not hide in the other."""
        month = range(at("2026-10-01T00:00"), at("2026-11-01T00:00"))
        for text in ("2026-12-01T12:00", "2027-01-20T12:00", "2027-02-20T12:00"):
            go_to(used, text)
            use_in(used, int(used.now // HOUR) - 3, 1.0)
            used.report()
        with tables(used.pm) as conn:
            assert closed_before(conn) > month.stop
        assert compare(used, month).is_clean
        border = at("2026-10-26T06:00")
        for event in used.server.events:
            if event["timestamp"] // 3600 == border:
                event["value"] += 3
            if event["timestamp"] // 3600 == border - 1:
                event["value"] -= 3
        differences = compare(used, month).differences
        assert [(one.period, one.ours_wh, one.theirs_wh) for one in differences] == [
            ("off_peak", 21, 18),
            ("peak", 25, 28),
        ]

    def test_closed_days_do_not_follow_new_rules_of_the_zone(
        self, used: World, tmp_path: Path
    ) -> None:
        """Their hours' periods stay noted."""
        month = range(at("2026-10-01T00:00"), at("2026-11-01T00:00"))
        for text in ("2026-12-01T12:00", "2027-01-20T12:00", "2027-02-20T12:00"):
            go_to(used, text)
            use_in(used, int(used.now // HOUR) - 3, 1.0)
            used.report()
        with _berlin_is(tmp_path, "UTC"):
            assert compare(used, month).is_clean


def _put(server: Loopback, event_name: str, hour: int, value: int) -> None:
    """Let Stripe have an event from elsewhere."""
    server.events.append(
        {
            "name": event_name,
            "identifier": f"elsewhere {event_name} {hour}",
            "timestamp": hour * 3600 + 5,
            "customer": CUSTOMER,
            "value": value,
        }
    )


def _posts(server: Loopback) -> int:
    """How many requests would have made something."""
    return sum(method == "POST" for method, _ in server.requests)


class TestChanges:
    """A tariff is the ledger's as soon as an hour is counted; its prices may change."""

    def test_prices_may_change(self, berlin: World) -> None:
        """New subscriptions get the new ones; meters and hours stay."""
        use_in(berlin, at("2026-10-26T06:00"), 7.0)
        berlin.report()
        with tables(berlin.pm) as conn:
            before = ledger_meters(conn)
        set_tariff(berlin, TWO.replace("0.34", "0.40"))
        with tables(berlin.pm) as conn:
            after = ledger_meters(conn)
            assert tariff_of(conn) == parse_tariff(TWO.replace("0.34", "0.40"))
        assert [one.meter_id for one in before] == [one.meter_id for one in after]
        (old_peak, old_off_peak), (peak, off_peak) = before, after
        assert old_peak.price_id != peak.price_id
        assert old_off_peak == off_peak

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("07:00", "08:00"),
            ("Berlin", "London"),
            ("[peak]", "[high]"),
        ],
    )
    def test_other_hours_are_refused_once_an_hour_is_counted(
        self, berlin: World, old: str, new: str
    ) -> None:
        """Before, they take the place of what there was; nothing at Stripe is made in vain."""
        changed = TWO.replace(old, new)
        set_tariff(berlin, changed)
        set_tariff(berlin)
        use_in(berlin, at("2026-10-26T06:00"), 7.0)
        berlin.report()
        before = _posts(berlin.server)
        with pytest.raises(BillingError, match=r"each stays on its meter: prices may change, but"):
            set_tariff(berlin, changed.replace("0.34", "0.99"))
        assert _posts(berlin.server) == before
        with tables(berlin.pm) as conn:
            assert tariff_of(conn) == parse_tariff(TWO)

    def test_a_ledger_with_hours_and_no_tariff_gets_none(self, world: World) -> None:
        """They are on the plain meter, and stay."""
        world.link()
        world.use(3.0, 2)
        world.report()
        with pytest.raises(
            BillingError, match=r"counted for the meter power_watt_hours, .*--ledger"
        ):
            set_tariff(world)

    def test_a_ledger_without_hours_may_get_one(self, world: World) -> None:
        """What setup made before is left at Stripe, and not used."""
        go_to(world, "2026-10-27T12:00")
        world.sink()
        set_tariff(world)
        world.link()
        use_in(world, at("2026-10-26T06:00"), 3.0)
        assert world.report().complete
        assert list(world.server.meter_hours(CUSTOMER)) == [PEAK]
        assert world.sink().account == "stripe:mtr_test_2+mtr_test_3"

    def test_periods_of_a_forgotten_customer_are_forgotten_with_its_tariff(
        self, berlin: World
    ) -> None:
        """When no hour is counted any more, another tariff may divide the same hours otherwise."""
        hour = at("2026-10-26T06:00")
        use_in(berlin, hour, 7.0)
        berlin.report()
        with tables(berlin.pm) as conn:
            forget_customer(conn, CUSTOMER)
        set_tariff(berlin, TWO.replace("07:00", "08:00"))
        with tables(berlin.pm) as conn:
            assert hour_periods(conn, range(hour, hour + 1)).of(hour) == "off_peak"

    def test_the_order_of_the_file_does_not_matter(self, berlin: World) -> None:
        """The ledger's account is the same."""
        use_in(berlin, at("2026-10-26T06:00"), 7.0)
        berlin.report()
        head, _, tables_text = TWO.partition("[peak]")
        peak, _, off_peak = tables_text.partition("[off_peak]")
        set_tariff(berlin, f"{head}[off_peak]{off_peak}[peak]{peak}")
        use_in(berlin, at("2026-10-26T07:00"), 7.0)
        assert berlin.report().complete
        assert berlin.billed() == 14


class TestLedgers:
    """A customer of two ledgers: one bills its meters, or each has meters of its own."""

    @pytest.fixture
    def second(self, berlin: World, tmp_path: Path) -> Iterator[World]:
        """Another file, whose device has used as much in the same hours of the same customer."""
        made = World(tmp_path / "second.db")
        made.server = berlin.server
        berlin.server.clock = lambda: berlin.true_now
        made.now = made.true_now = berlin.now
        made.link(hours_ago=24 * 4)
        border = at("2026-10-26T06:00")
        for world in (berlin, made):
            for hour in (border - 1, border):
                use_in(world, hour, 200.0)
        berlin.report()
        yield made
        made.pm.close()

    @pytest.mark.parametrize("other", ["[peak]", "[off_peak]"])
    def test_each_of_the_meters_is_one_ledgers(
        self, berlin: World, second: World, other: str
    ) -> None:
        """Also when the other one's tariff shares only one of them."""
        set_tariff(second, TWO.replace(other, "[own]"))
        done = second.report()
        assert {row.state.value for row in done.open} == {"queued"}
        assert "bills this customer: power-billing resolve" in str(done.open[0].reason)
        assert berlin.billed() == 400

    def test_a_claim_that_is_half_there_is_made_whole(self, berlin: World, second: World) -> None:
        """Somebody has taken one of the names out of the customer's metadata."""
        metadata = berlin.server.catalog.objects["customer"][CUSTOMER]["metadata"]
        before = dict(metadata)
        assert set(before) == {PEAK, OFF_PEAK}
        del metadata[OFF_PEAK]
        later(berlin, 25)
        use_in(berlin, int(berlin.now // HOUR) - 2, 5.0)
        assert berlin.report().complete
        assert berlin.server.catalog.objects["customer"][CUSTOMER]["metadata"] == before

    def test_a_customer_whose_metadata_has_no_room_waits(self, berlin: World) -> None:
        """There are names for 50 ledgers' meters; which limit that is, is said."""
        many = {f"key{number}": "text" for number in range(49)}
        berlin.server.catalog.add_customer(CUSTOMER, metadata=many)
        use_in(berlin, at("2026-10-26T06:00"), 5.0)
        done = berlin.report()
        assert [row.state.value for row in done.open] == ["queued"]
        assert "which ledger bills cus_Nf1XyzAbc: Metadata: up to 50 keys" in str(
            done.open[0].reason
        )
        del many["key0"]
        berlin.server.catalog.add_customer(CUSTOMER, metadata=many)
        later(berlin)
        assert berlin.report().complete

    def test_meters_of_its_own_bill_both_in_full(self, berlin: World, second: World) -> None:
        """Their names begin with another word; so does what events are called."""
        set_tariff(second)
        assert not second.report().complete
        set_tariff(second, meter_name="energy_roof")
        assert second.report(compare=True).complete
        assert berlin.report(compare=True).complete
        assert {name: sum(by_hour.values()) for name, by_hour in on_meters(berlin).items()} == {
            PEAK: 200,
            OFF_PEAK: 200,
            "energy_roof_peak": 200,
            "energy_roof_off_peak": 200,
        }
        assert len({event["identifier"] for event in berlin.server.events}) == 4

    def test_a_plain_ledger_and_one_with_a_tariff_have_other_meters(
        self, berlin: World, second: World
    ) -> None:
        """Both are billed, if their hours' events have names of their own."""
        client = make_client(Secret(API_KEY, KEY), {}, second.transport(second.server))
        setup(second.pm, client, "energy_roof")
        assert second.report(compare=True).complete
        assert berlin.billed() == 800

    def test_a_ledger_that_has_sent_keeps_its_meters(self, berlin: World, second: World) -> None:
        """Another name would be other meters."""
        set_tariff(second, meter_name="energy_roof")
        second.report()
        with pytest.raises(BillingError, match="another meter needs another --ledger"):
            set_tariff(second, meter_name="energy_attic")
        set_tariff(second)
        assert [one["event_name"] for one in second.server.meters.values()].count(PEAK) == 1

    def test_other_hours_are_a_ledger_of_their_own_from_an_hour_on(
        self, berlin: World, tmp_path: Path
    ) -> None:
        """The device moves to the other ledger: each hour is billed once, late ones too."""
        switch = at("2026-10-27T13:00")
        hours = range(switch - 3, switch + 3)
        use_in(berlin, hours[0], 10.0)
        berlin.report()
        assert unlink(berlin.pm, "edge", clock=lambda: berlin.now).until_hour == switch
        ledger = LedgerFile(tmp_path / "new.db")
        client = make_client(Secret(API_KEY, KEY), {}, berlin.transport(berlin.server))
        tariff = parse_tariff(TWO.replace("22:00", "15:00"))
        setup_tariff(ledger, client, "Energy", tariff, "energy_late")
        link(
            berlin.pm,
            "edge",
            CUSTOMER,
            since=switch * HOUR,
            ledger=ledger,
            clock=lambda: berlin.now,
        )
        later(berlin, 6)
        for hour in hours:
            use_in(berlin, hour, 10.0)
        run = Run(berlin.pm, ledger, clock=lambda: berlin.now, sleep=berlin.slept.append)
        sink = open_sink(ledger, client, session=lambda token: client)
        assert run.report(sink, compare=True).complete
        assert berlin.report(compare=True).complete
        meters = on_meters(berlin)
        assert sorted(meters[PEAK]) == list(hours[:3])
        assert sorted(meters["energy_late_peak"]) == [switch]
        assert sorted(meters["energy_late_off_peak"]) == list(hours[4:])
        assert set(berlin.server.hours(CUSTOMER).values()) == {10}

    @pytest.mark.parametrize("name", ["", "Energy", "a" * 17, "a-b"])
    def test_names_that_are_none_are_refused(self, berlin: World, name: str) -> None:
        """As for one meter."""
        before = _posts(berlin.server)
        with pytest.raises(InvalidValue, match="meter: expected 1 to 16 lower-case letters"):
            set_tariff(berlin, meter_name=name)
        assert _posts(berlin.server) == before

    def test_the_longest_names_are_keys_of_metadata(self) -> None:
        """Stripe's have up to 40 characters."""
        longest = event_name_of("a" * 16, "b" * LONGEST_NAME)
        assert len(longest) == 40
        assert parse_tariff(f'currency = "eur"\n[{"b" * LONGEST_NAME}]\nprice = 1').periods


def on_meters(world: World) -> dict[str, dict[int, int]]:
    """What each meter has of the customer."""
    return world.server.meter_hours(CUSTOMER)
