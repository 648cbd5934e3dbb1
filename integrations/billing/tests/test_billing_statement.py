"""Statements: that they add up to what the biller has, to the watt-hour and to the cent, in every
format.
"""

from __future__ import annotations

import csv
import io
import json
import random
from datetime import datetime, timezone
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import page_count
from power_billing.cli import main
from power_billing.closing import KEPT_HOURS
from power_billing.command_line import month_hours
from power_billing.errors import BillingError
from power_billing.hours import iso, oldest_billable
from power_billing.money import Price
from power_billing.outbox import State, revise
from power_billing.reconcile import reconcile, repair
from power_billing.statement import (
    CustomerStatement,
    DeviceLines,
    Late,
    Line,
    Statement,
    Unbilled,
    make_statement,
)
from power_billing.statement_formats import as_csv, as_html, as_json, as_text
from power_billing.tables import tables
from world import CUSTOMER, HOUR, NOW, World

from power_manager import InvalidValue, Screen

PRICE = Price.parse("0.30", "eur")
SEPTEMBER = month_hours("2026-09")  # NOW is in it
OCTOBER = datetime(2026, 10, 1, tzinfo=timezone.utc).timestamp()
SCREEN = Screen.of(io.StringIO())


def statement(world: World, month: range = SEPTEMBER, **options: object) -> Statement:
    """The statement as the world's clock has it."""
    return make_statement(world.pm, world.pm, month, clock=lambda: world.now, **options)  # type: ignore[arg-type]


def test_a_statement_is_what_the_biller_has(world: World) -> None:
    """By customer, device and day; the parts add up."""
    world.add_device("twin")
    world.link()
    world.link("twin")
    for hours_ago, wh in ((30, 1000.4), (29, 1.4), (2, 500.4)):
        world.use(wh, hours_ago)
    world.use(100.4, 29, "twin")
    world.report()
    made = statement(world, price=PRICE)
    (one,) = made.customers
    assert one.total.watt_hours == made.total.watt_hours == world.billed() == 1602
    assert [(device.device_id, dict(device.days)) for device in one.devices] == [
        ("edge", {"2026-09-20": line("1001.8", "0.30"), "2026-09-21": line("500.4", "0.15")}),
        ("twin", {"2026-09-20": line("100.4", "0.03")}),
    ]
    assert one.other == line("-0.6", "0.00")
    assert {day: part.watt_hours for day, part in one.days.items()} == {
        "2026-09-20": 1102,
        "2026-09-21": 500,
    }
    assert (one.late, one.unbilled, made.is_over) == ([], [], False)


def line(watt_hours: str, cost: str) -> Line:
    """A line of a statement."""
    return Line(Decimal(watt_hours), Decimal(cost))


def test_parts_add_up_to_the_cent() -> None:
    """Whatever is used: devices with the rest, and days, each come to the rounded cost of the
    whole.
    """
    rng = random.Random(7)
    for _ in range(5):
        world = World(":memory:")
        world.add_device("twin")
        world.link()
        world.link("twin", CUSTOMER if rng.random() < 0.5 else "cus_Other")
        for hours_ago in rng.sample(range(2, 400), 40):
            world.use(
                rng.choice([0.0004, 3.3, 77.7, 1234.567]), hours_ago, rng.choice(["edge", "twin"])
            )
        world.report()
        made = statement(world, price=PRICE)
        assert made.total.watt_hours == world.billed() + world.billed("cus_Other")
        for one in made.customers:
            assert one.total == Line(one.total.watt_hours, PRICE.cost(one.total.watt_hours))
            assert total([*(device.total for device in one.devices), one.other]) == one.total
            assert total(one.days.values()) == one.total
            for device in one.devices:
                assert total(device.days.values()) == device.total
        world.pm.close()


def total(lines: object) -> Line:
    """The sum of lines."""
    every = list(lines)  # type: ignore[call-overload]
    return Line(sum(one.watt_hours for one in every), sum(one.cost for one in every))


def test_what_came_after_the_invoice_is_listed(world: World) -> None:
    """An hour that was revised, and one that was first sent then; what came in time is not."""
    world.link()
    begin = int(OCTOBER // HOUR)
    for back in (3, 2):
        world.pm.log_power(world.meters["edge"], 25, 1.0, timestamp=(begin - back) * HOUR + 600)
        world.pm.log_power(world.meters["edge"], 25, 1.0, timestamp=(begin - back) * HOUR + 2040)
    move(world, OCTOBER + 600)
    world.report()
    assert statement(world).customers[0].late == []
    move(world, OCTOBER + 2 * HOUR)
    world.pm.log_power(world.meters["edge"], 250, 1.0, timestamp=(begin - 3) * HOUR + 1200)
    world.pm.log_power(world.meters["edge"], 25, 1.0, timestamp=(begin - 1) * HOUR + 600)
    world.pm.log_power(world.meters["edge"], 25, 1.0, timestamp=(begin - 1) * HOUR + 2040)
    world.report()
    (one,) = statement(world).customers
    assert one.late == [Late(begin - 3, 10, 55), Late(begin - 1, 0, 10)]
    assert statement(world).is_over
    text = as_text(statement(world), SCREEN)
    assert "after the invoice: 2026-09-30T21:00Z 10 Wh became 55 Wh (+45 Wh)" in text


def test_what_arrived_only_after_the_invoice_is_listed(world: World) -> None:
    """Though it was tried before: it is when the biller took it that counts."""
    world.link()
    hour = int(OCTOBER // HOUR) - 1
    move(world, OCTOBER + 60)
    for second in (600, 2040):
        world.pm.log_power(world.meters["edge"], 250, 1.0, timestamp=hour * HOUR + second)
    world.server.faults.extend(["500-before"] * 40)
    world.report()
    world.server.faults.clear()
    move(world, OCTOBER + 9 * HOUR)
    assert world.report().complete
    assert statement(world).customers[0].late == [Late(hour, 0, 100)]


def test_what_was_missing_on_the_invoice_and_is_repaired_is_listed(world: World) -> None:
    """Stripe had dropped it before, and was asked after."""
    world.link()
    world.use(100.0, 5)
    world.report()
    world.server.events.clear()
    move(world, OCTOBER + 5 * HOUR)
    hours = range(oldest_billable(world.now), int(world.now // HOUR))
    found = reconcile(world.pm, world.sink(), hours, world.now)
    assert repair(world.pm, found.differences, hours.start) == 1
    world.report()
    assert world.billed() == 100
    assert statement(world).customers[0].late == [Late(int(NOW // HOUR) - 5, 0, 100)]


def move(world: World, now: float) -> None:
    """Set both clocks."""
    world.now = world.true_now = now


def test_what_is_not_billed_is_listed(world: World) -> None:
    """Refused, waiting as a revision, too late: none of it is in the sums."""
    world.link()
    for hours_ago, wh in ((10, 100.0), (9, 50.0), (8, 20.0)):
        world.use(wh, hours_ago)
    world.server.faults.extend(["400-before"])
    world.report()
    with tables(world.pm) as conn:
        revise(conn, CUSTOMER, int(NOW // HOUR) - 8, 25)
    (one,) = statement(world).customers
    assert one.total.watt_hours == 70
    assert [(lost.watt_hours, lost.reason[:30]) for lost in one.unbilled] == [
        (Decimal(100), "refused: InvalidRequestError: "),
        (Decimal(5), "waiting: not sent yet"),
    ]


def test_an_event_that_arrived_counts_beside_a_revision_that_was_refused(world: World) -> None:
    """Its answer was lost, the hour changed, and Stripe says no to the change: the first one is on
    the invoice.
    """
    world.link()
    world.use(100.0, 10)
    world.server.faults.extend(["lost-after"] * 24)
    world.report()
    world.server.faults.clear()
    at = (int(NOW // HOUR) - 10) * HOUR + 2400
    world.pm.log_power(world.meters["edge"], 250.0, 1.0, timestamp=at)
    world.server.faults.append("400-before")
    world.report()
    (one,) = statement(world).customers
    assert one.total.watt_hours == world.billed() == 100
    assert [(lost.watt_hours, lost.reason[:8]) for lost in one.unbilled] == [
        (Decimal(25), "refused:")
    ]


def test_a_comparison_notes_what_stripe_has_beside_a_refused_revision(world: World) -> None:
    """Its sums come some time after its events."""
    world.link()
    world.use(100.0, 10)
    world.report()
    hour = int(NOW // HOUR) - 10
    with tables(world.pm) as conn:
        revise(conn, CUSTOMER, hour, 120, State.REFUSED, "no")
    world.server.events[0]["value"] = 99
    reconcile(world.pm, world.sink(), range(hour, hour + 1), world.now)
    (one,) = statement(world).customers
    assert one.total.watt_hours == 99


def test_what_came_to_light_too_late_is_listed(world: World) -> None:
    """Nobody can bill it any more, and the statement says how much it was."""
    world.link()
    world.use(100.0, 10)
    world.report()
    move(world, NOW + 36 * 24 * HOUR)
    world.use(50.0, 8)
    world.report()
    (one,) = statement(world).customers
    assert one.total.watt_hours == 100
    assert [(lost.watt_hours, lost.reason) for lost in one.unbilled] == [
        (Decimal(50), "came to light too late to be billed (edge)"),
        (None, "from then on no readings (edge)"),
    ]


def test_what_was_not_measured_is_listed(world: World) -> None:
    """Since when, and no watt-hours, which nobody knows: in each format."""
    world.link()
    for minute in range(0, 1500, 61):
        at = NOW - 1500 * 60 + minute * 60
        world.pm.log_power(world.meters["edge"], 100.0, 1.0, timestamp=at)
    world.add_device("twin")
    world.link("twin", hours_ago=30)
    world.report()
    made = statement(world)
    (one,) = made.customers
    of_edge, of_twin = one.unbilled
    assert (of_edge.watt_hours, of_twin.watt_hours) == (None, None)
    assert of_edge.reason == "from then on readings, but no energy in most hours (edge)"
    assert of_twin.reason == "from then on no readings (twin)"
    said = f"{iso(of_twin.hour)} from then on no readings (twin)"
    assert f"not billed: {said}" in as_text(made, SCREEN)
    assert f"<li>{said}</li>" in as_html(made)
    (customer,) = json.loads(as_json(made))["customers"]
    assert [row["energy_wh"] for row in customer["not_billed"]] == [None, None]
    rows = [row for row in csv.DictReader(io.StringIO(as_csv(made))) if row["kind"] == "not_billed"]
    assert [row["energy_wh"] for row in rows] == ["", ""]


def test_a_device_that_was_deleted_stays_billed(world: World) -> None:
    """With what was counted of it: its readings are gone, and the ledger has them."""
    world.add_device("twin")
    world.link()
    world.link("twin")
    world.use(10.0, 3)
    world.use(5.0, 3, "twin")
    world.report()
    world.pm.delete_device("twin")
    (one,) = statement(world).customers
    assert [(device.name, int(device.total.watt_hours)) for device in one.devices] == [
        ("edge", 10),
        (None, 5),
    ]
    assert "twin (deleted)" in as_text(statement(world), SCREEN)


def test_old_months_are_the_same_when_they_are_closed(world: World) -> None:
    """Their hours are summed by day then; revised ones keep their story."""
    world.add_device("twin")
    world.link()
    world.link("twin")
    for hours_ago in range(2, 40):
        world.use(7.7, hours_ago)
        world.use(1.2, hours_ago, "twin")
    world.report()
    world.pm.log_power(
        world.meters["edge"], 100, 1.0, timestamp=NOW // HOUR * HOUR - 30 * HOUR + 900
    )
    world.report()
    before = statement(world, price=PRICE)
    move(world, NOW + (KEPT_HOURS + 24 * 40) * HOUR)
    world.use(3.0, -(KEPT_HOURS + 24 * 39))
    world.report()
    move(world, world.now + 24 * 32 * HOUR)
    world.report()  # once a month it closes what is older than the newest that was sent
    with tables(world.pm) as conn:
        (closed,) = conn.execute("SELECT count(*) FROM billing_customer_days").fetchone()
    assert closed > 0
    after = statement(world, price=PRICE)
    assert after.customers[0].days == before.customers[0].days
    assert after.customers[0].devices == before.customers[0].devices
    assert after.total == before.total


def test_a_device_that_changed_hands_is_on_two_statements(world: World) -> None:
    """Each has the hours of its own link, and the whole is what was used."""
    from power_billing.links import unlink

    world.link(hours_ago=20)
    world.use(10.0, 5)
    unlink(world.pm, "edge", clock=lambda: world.now)
    move(world, NOW + 24 * HOUR)
    world.link(customer="cus_Next", hours_ago=10)
    world.use(7.0, -20)
    world.report()
    made = {one.customer: one.total.watt_hours for one in statement(world).customers}
    assert made == {CUSTOMER: 10, "cus_Next": 7}


def test_other_months_are_left_out(world: World) -> None:
    """A month begins and ends at midnight UTC."""
    world.link()
    first = SEPTEMBER.start * HOUR
    for begin in (first - HOUR, first):
        for second in (600, 2040):
            world.pm.log_power(world.meters["edge"], 25, 1.0, timestamp=begin + second)
    world.report()
    assert statement(world).total.watt_hours == 10
    assert statement(world, month_hours("2026-08")).total.watt_hours == 10
    assert statement(world, month_hours("2026-07")).customers == []


def test_what_there_is_no_statement_of_is_refused(world: World) -> None:
    """A month to come, and a customer whom nobody knows."""
    world.link()
    with pytest.raises(InvalidValue, match="month: 2026-10 has not begun"):
        statement(world, month_hours("2026-10"))
    with pytest.raises(BillingError, match="cus_Nobody: no device was ever billed to it"):
        statement(world, customer="cus_Nobody")


@pytest.mark.parametrize(
    ("watt_hours", "cost"), [(49, "0.00"), (50, "0.01"), (150, "0.02"), (-50, "-0.01")]
)
def test_half_a_cent_is_rounded_up(watt_hours: int, cost: str) -> None:
    """At 0.01 cent a watt-hour; what is taken back, as much."""
    assert Price.parse("0.10", "eur").cost(watt_hours) == Decimal(cost)


def test_one_customer_alone(world: World) -> None:
    """Also where nothing was used: the person who asked gets an answer."""
    world.add_device("twin")
    world.link()
    world.link("twin", "cus_Other", hours_ago=20)
    world.use(10.0, 3)
    world.report()
    assert [one.customer for one in statement(world, customer="cus_Other").customers] == [
        "cus_Other"
    ]
    assert statement(world, customer="cus_Other").total.watt_hours == 0
    assert [one.customer for one in statement(world).customers] == [CUSTOMER]


# --- Formats


@pytest.fixture
def made(world: World) -> Statement:
    """A statement with some of everything, and with names that are no HTML."""
    days = {"2026-09-20": line("1001.8", "0.30"), "2026-09-21": line("500.4", "0.15")}
    devices = [DeviceLines("edge", "<b>Pump & Co</b>", days, line("1502.2", "0.45"))]
    whole = {"2026-09-20": line("1002", "0.30"), "2026-09-21": line("500", "0.15")}
    one = CustomerStatement(
        CUSTOMER,
        devices,
        whole,
        line("-0.2", "0.00"),
        line("1502", "0.45"),
        [Late(SEPTEMBER.start, 10, 46)],
        [Unbilled(SEPTEMBER.start + 1, Decimal(-5), "refused: <i>no</i>")],
    )
    return Statement("2026-09", PRICE, True, [one], line("1502", "0.45"))


def test_text_for_people(made: Statement) -> None:
    """A table, then what is not in it."""
    assert as_text(made, SCREEN).splitlines() == [
        "Energy billed, 2026-09, 0.30 EUR a kWh",
        "",
        "cus_Nf1XyzAbc                     day                Wh      cost",
        "edge (<b>Pump & Co</b>)           2026-09-20  1,001.800  0.30 EUR",
        "edge (<b>Pump & Co</b>)           2026-09-21    500.400  0.15 EUR",
        "edge (<b>Pump & Co</b>)           month       1,502.200  0.45 EUR",
        "rounding, and what is not billed  month          -0.200  0.00 EUR",
        "total                             month           1,502  0.45 EUR",
        "after the invoice: 2026-09-01T00:00Z 10 Wh became 46 Wh (+36 Wh)",
        "not billed: 2026-09-01T01:00Z -5 Wh refused: <i>no</i>",
        "",
        "total: 1,502 Wh 0.45 EUR",
    ]


def test_json_for_programs(made: Statement) -> None:
    """Energies are numbers, and money is text, with every digit."""
    found = json.loads(as_json(made))
    assert (found["month"], found["is_over"], found["currency"]) == ("2026-09", True, "eur")
    assert (found["price"], found["price_unit"], found["energy_wh"], found["cost"]) == (
        "0.30",
        "kWh",
        1502,
        "0.45",
    )
    (one,) = found["customers"]
    assert one["devices"][0]["days"][0] == {
        "day": "2026-09-20",
        "energy_wh": 1001.8,
        "cost": "0.30",
    }
    assert one["after_invoice"] == [{"hour": "2026-09-01T00:00Z", "before_wh": 10, "after_wh": 46}]
    assert one["not_billed"][0]["energy_wh"] == -5


def test_csv_for_book_keeping(made: Statement) -> None:
    """Rows of usage and other come to what was billed."""
    rows = list(csv.DictReader(io.StringIO(as_csv(made))))
    assert [row["kind"] for row in rows] == [
        "usage",
        "usage",
        "other",
        "after_invoice",
        "not_billed",
    ]
    billed = [row for row in rows if row["kind"] in ("usage", "other")]
    assert sum(Decimal(row["energy_wh"]) for row in billed) == 1502
    assert sum(Decimal(row["cost"]) for row in billed) == Decimal("0.45")
    assert rows[4]["reason"] == "refused: <i>no</i>"


class _Tags(HTMLParser):
    """Which tags there are, and whether each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_needs_nothing_from_elsewhere(made: Statement) -> None:
    """Names are text, whatever they say; no script, no picture, no address."""
    page = as_html(made)
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert not tags.seen & {"b", "script", "img", "link", "a"}
    assert "http" not in page
    assert "&lt;b&gt;Pump &amp; Co&lt;/b&gt;" in page
    assert "refused: &lt;i&gt;no&lt;/i&gt;" in page


def test_without_a_price_there_is_no_money(world: World) -> None:
    """Watt-hours alone, in every format."""
    world.link()
    world.use(10.0, 3)
    world.report()
    found = statement(world)
    assert "no price" in as_text(found, SCREEN)
    assert json.loads(as_json(found))["cost"] is None
    assert "EUR" not in as_html(found)
    assert next(csv.DictReader(io.StringIO(as_csv(found))))["cost"] == ""


def test_nobody_used_anything(world: World) -> None:
    """Every format says so instead of failing."""
    found = statement(world, price=PRICE)
    assert as_text(found, SCREEN).endswith("total: 0 Wh 0.00 EUR")
    assert "no customer" in as_html(found)
    for shown in (as_html(found), as_text(found, SCREEN)):
        assert "Nothing is billed yet. A statement has what was sent" in shown
    assert len(as_csv(found).splitlines()) == 1


@pytest.mark.slow
def test_a_full_month_prints_on_one_page(tmp_path: Path) -> None:
    """31 days, five devices, more changed or lost hours than are listed: one sheet of A4."""
    october = month_hours("2026-10")
    whole = {f"2026-10-{day:02}": line("9876543", "2962.96") for day in range(1, 32)}
    devices = [
        DeviceLines(
            f"edge-{number:03}",
            "Pumping station of the north",
            whole,
            line("306172833", "91851.85"),
        )
        for number in range(5)
    ]
    late = [Late(october.start + hour, 1000, 2000) for hour in range(20)]
    lost = [
        Unbilled(october.start + hour, Decimal(100), "came to light too late to be billed")
        for hour in range(20)
    ]
    one = CustomerStatement(
        CUSTOMER, devices, whole, line("-0.2", "0.00"), line("306172833", "91851.85"), late, lost
    )
    page = as_html(Statement("2026-10", PRICE, True, [one], one.total))
    assert page_count(page, tmp_path) == 1
    assert "and 15 hours more: --format csv has all of them" in page


# --- The command


def test_the_command_prints_every_format(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the price that setup was given, or another one."""
    world.link()
    world.use(100_000.0, 3)
    world.report()
    world.pm.close()
    command = ["--db", str(tmp_path / "power.db"), "statement", "--month", "2026-09"]
    for extra, wanted in (
        ((), "total: 100,000 Wh"),
        (("--price", "0.30", "--currency", "eur"), "total: 100,000 Wh 30.00 EUR"),
        (("--format", "json"), '"energy_wh": 100000.0'),
        (
            ("--format", "csv", "--customer", CUSTOMER),
            "usage,cus_Nf1XyzAbc,edge,2026-09-21,,100000",
        ),
        (("--format", "html"), "</html>"),
    ):
        assert main([*command, *extra]) == 0
        assert wanted in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main([*command, "--price", "1"])
    assert caught.value.code == 2
