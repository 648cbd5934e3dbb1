"""Statements by period of a tariff: that they add up to what each meter has, at its price, before
and after closing.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from browser import page_count, title_of
from power_billing.closing import closed_before
from power_billing.command_line import month_hours
from power_billing.errors import BillingError
from power_billing.money import Price
from power_billing.statement import CustomerStatement, DeviceLines, Line, Statement, make_statement
from power_billing.statement_formats import as_csv, as_html, as_json, as_text
from power_billing.tables import tables
from power_billing.tariff_file import parse_tariff
from tariffs import OFF_PEAK, PEAK, TWO, at, go_to, set_tariff, use_in
from world import CUSTOMER, World

from power_manager import Screen

OCTOBER = month_hours("2026-10")
SCREEN = Screen.of(io.StringIO())
PRICES = parse_tariff(TWO).prices()


def statement(world: World, **options: object) -> Statement:
    """That of October, as the world's clock has it."""
    return make_statement(world.pm, world.pm, OCTOBER, clock=lambda: world.now, **options)  # type: ignore[arg-type]


def on_meters(world: World, customer: str = CUSTOMER) -> dict[str, int]:
    """What each meter of Stripe's has for October."""
    by_meter = world.server.meter_hours(customer)
    return {
        name: sum(wh for hour, wh in by_hour.items() if hour in OCTOBER)
        for name, by_hour in by_meter.items()
    }


def total(lines: object) -> Line:
    """The sum of lines."""
    every = list(lines)  # type: ignore[call-overload]
    return Line(sum(one.watt_hours for one in every), sum(one.cost for one in every))


def check(made: Statement) -> None:
    """Every part of a statement adds up to its whole, and every period costs its price."""
    for one in made.customers:
        assert total(one.periods.values()) == one.total
        assert total(one.days.values()) == one.total
        assert total([*(device.total for device in one.devices), one.other]) == one.total
        for device in one.devices:
            assert total(device.days.values()) == device.total
        for name, line in one.periods.items():
            assert line.cost == PRICES[name].cost(line.watt_hours)
    assert total(one.total for one in made.customers) == made.total


@pytest.fixture
def october(world: World) -> World:
    """Two devices of two customers used something in many hours of October, also in the night of 25
    October.
    """
    go_to(world, "2026-10-31T20:00")
    set_tariff(world)
    world.add_device("twin")
    world.link(hours_ago=24 * 30)
    world.link("twin", hours_ago=24 * 30)
    rng = random.Random(5)
    night = range(at("2026-10-24T20:00"), at("2026-10-25T06:00"))
    days = rng.sample(range(at("2026-10-02T00:00"), at("2026-10-24T20:00")), 20)
    for hour in (*night, *days):
        for device in ("edge", "twin"):
            use_in(world, hour, rng.choice([0.4, 3.3, 77.7, 1234.567]), device)
    world.report()
    return world


def test_periods_are_what_their_meters_have(october: World) -> None:
    """To the watt-hour; money is that at each period's price."""
    made = statement(october)
    (one,) = made.customers
    meters = on_meters(october)
    assert {name: line.watt_hours for name, line in one.periods.items()} == {
        "peak": meters[PEAK],
        "off_peak": meters[OFF_PEAK],
    }
    check(made)
    assert one.total.watt_hours == october.billed()


def test_months_of_chance_add_up(world: World) -> None:
    """Whatever is used, and whatever comes late."""
    go_to(world, "2026-10-31T20:00")
    set_tariff(world)
    world.add_device("twin")
    world.link(hours_ago=24 * 30)
    world.link("twin", "cus_Other", hours_ago=24 * 30)
    rng = random.Random(9)
    for _ in range(4):
        for hour in rng.sample(range(at("2026-10-02T00:00"), at("2026-10-31T19:00")), 20):
            device = rng.choice(["edge", "twin"])
            use_in(world, hour, rng.choice([0.0004, 3.3, 77.7, 1234.567]), device)
        world.report()
        made = statement(world)
        check(made)
        for one in made.customers:
            meters = on_meters(world, one.customer)
            assert one.periods["peak"].watt_hours == meters.get(PEAK, 0)
            assert one.periods["off_peak"].watt_hours == meters.get(OFF_PEAK, 0)


def without_unbilled(made: Statement) -> Statement:
    """The same, but for what is not billed."""
    return replace(made, customers=[replace(one, unbilled=[]) for one in made.customers])


def test_closing_changes_no_sum(october: World) -> None:
    """Hours of old months are summed by day and period; what was revised late keeps its rows.

    That a device is silent is said until it is not.
    """
    go_to(october, "2026-11-02T12:00")
    use_in(october, at("2026-10-28T10:00"), 5.0)
    use_in(october, at("2026-10-24T21:00"), 50.0)
    assert october.report().open == []
    before = statement(october)
    check(before)
    for text in ("2026-12-01T12:00", "2027-01-20T12:00", "2027-02-20T12:00"):
        go_to(october, text)
        use_in(october, int(october.now // 3600) - 3, 1.0)
        october.report()
    with tables(october.pm) as conn:
        assert closed_before(conn) > OCTOBER.stop
        rows = conn.execute(
            "SELECT count(*) FROM billing_device_hours WHERE hour < ?", (OCTOBER.stop,)
        )
        assert rows.fetchone() == (0,)
    after = statement(october)
    check(after)
    assert without_unbilled(after) == without_unbilled(before)


def test_a_price_of_before_is_in_a_file(october: World) -> None:
    """Setup has raised it since; the invoice of that month was at the old one."""
    before = statement(october)
    set_tariff(october, TWO.replace("0.34", "0.50"))
    raised = statement(october)
    assert raised.total.cost != before.total.cost
    assert raised.total.watt_hours == before.total.watt_hours
    assert statement(october, tariff=parse_tariff(TWO)) == before
    with pytest.raises(BillingError, match="hours were not counted by this tariff"):
        statement(october, tariff=parse_tariff(TWO.replace("07:00", "06:00")))
    with pytest.raises(BillingError, match="so one price does not do"):
        statement(october, price=Price.parse("0.30", "eur"))


# --- Formats


@pytest.fixture
def made() -> Statement:
    """A statement with two periods."""
    tariff = parse_tariff(TWO)
    whole = Line(Decimal(2500), Decimal("0.71"))
    days = {"2026-10-26": whole}
    periods = {
        "peak": Line(Decimal(1500), Decimal("0.51")),
        "off_peak": Line(Decimal(1000), Decimal("0.20")),
    }
    nothing = Line(Decimal(0), Decimal("0.00"))
    one = CustomerStatement(
        CUSTOMER, [DeviceLines("edge", "edge", days, whole)], days, nothing, whole, [], [], periods
    )
    return Statement("2026-10", None, True, [one], whole, tariff)


def test_text_has_a_table_of_periods(made: Statement) -> None:
    """Watt-hours, price and money each."""
    assert as_text(made, SCREEN).splitlines() == [
        "Energy billed, 2026-10, prices by time of day in Europe/Berlin",
        "",
        "cus_Nf1XyzAbc  day            Wh      cost",
        "edge           2026-10-26  2,500  0.71 EUR",
        "edge           month       2,500  0.71 EUR",
        "total          month       2,500  0.71 EUR",
        "",
        "period    price              Wh      cost",
        "peak      0.34 EUR a kWh  1,500  0.51 EUR",
        "off_peak  0.20 EUR a kWh  1,000  0.20 EUR",
        "",
        "total: 2,500 Wh 0.71 EUR",
    ]


def test_json_has_periods(made: Statement) -> None:
    """There is no one price."""
    read = json.loads(as_json(made))
    assert (read["price"], read["price_unit"], read["currency"]) == (None, "kWh", "eur")
    assert read["tariff_zone"] == "Europe/Berlin"
    assert read["customers"][0]["periods"] == [
        {"period": "peak", "price": "0.34", "energy_wh": 1500.0, "cost": "0.51"},
        {"period": "off_peak", "price": "0.20", "energy_wh": 1000.0, "cost": "0.20"},
    ]


def test_csv_has_rows_of_periods_beside_those_of_devices(made: Statement) -> None:
    """Both add up to what was billed."""
    rows = list(csv.DictReader(io.StringIO(as_csv(made))))
    of_periods = [row for row in rows if row["kind"] == "period"]
    assert [
        (row["period"], row["price"], row["price_unit"], row["energy_wh"], row["cost"])
        for row in of_periods
    ] == [("peak", "0.34", "kWh", "1500", "0.51"), ("off_peak", "0.20", "kWh", "1000", "0.20")]
    of_devices = [row for row in rows if row["kind"] in ("usage", "other")]
    for column in ("energy_wh", "cost"):
        by_period = sum(Decimal(row[column]) for row in of_periods)
        assert by_period == sum(Decimal(row[column]) for row in of_devices)


def test_html_has_a_table_of_periods(made: Statement) -> None:
    """Between the devices and the days."""
    page = as_html(made)
    rows = re.findall("<tr>(.*?)</tr>", page)
    texts = [re.findall("<t[dh]>(.*?)</t[dh]>", row) for row in rows]
    at_head = texts.index(["Period", "Price", "Wh", "EUR"])
    assert texts[at_head + 1 : at_head + 3] == [
        ["peak", "0.34 EUR a kWh", "1,500", "0.51"],
        ["off_peak", "0.20 EUR a kWh", "1,000", "0.20"],
    ]
    assert texts[0][0] == "Device"
    assert texts[at_head + 3][0] == "Day"
    assert "prices by time of day in Europe/Berlin" in page


def test_what_is_beside_the_devices_is_shown_where_it_only_costs(made: Statement) -> None:
    """A watt-hour more in one period and one less in the other are none together."""
    (one,) = made.customers
    one_cent = CustomerStatement(
        one.customer,
        one.devices,
        one.days,
        Line(Decimal(0), Decimal("0.01")),
        one.total,
        [],
        [],
        one.periods,
    )
    assert "rounding, and what is not billed" in as_text(
        Statement("2026-10", None, True, [one_cent], one.total, made.tariff), SCREEN
    )


@pytest.mark.slow
def test_a_month_with_four_periods_prints_on_one_page(tmp_path: Path) -> None:
    """With a line for each of 31 days and three devices."""
    text = 'currency = "eur"\n' + "".join(
        f'[p{n}]\nhours = "{n * 6:02d}:00-{n * 6 + 6:02d}:00"\nprice = 0.{n + 1}\n'
        for n in range(4)
    )
    whole = Line(Decimal(306172833), Decimal("91851.85"))
    days = {f"2026-10-{day:02d}": whole for day in range(1, 32)}
    devices = [DeviceLines(f"edge-{n}", f"The pump of house {n}", days, whole) for n in range(3)]
    periods = {f"p{n}": whole for n in range(4)}
    one = CustomerStatement(CUSTOMER, devices, days, whole, whole, [], [], periods)
    page = as_html(Statement("2026-10", None, True, [one], one.total, parse_tariff(text)))
    assert page_count(page, tmp_path) == 1


@pytest.mark.slow
def test_bars_are_as_long_as_their_days(made: Statement, tmp_path: Path) -> None:
    """The largest day's bar fills its cell, and every other one is its share of that."""
    (one,) = made.customers
    days = {
        f"2026-10-{number:02d}": Line(Decimal(watt_hours), Decimal(0))
        for number, watt_hours in enumerate((1000, 970, 500, 10), start=1)
    }
    page = as_html(replace(made, customers=[replace(one, days=days)]))
    measure = """<script>document.title = [...document.querySelectorAll(".bar")].map(bar => [
        bar.getBoundingClientRect().width, bar.getBoundingClientRect().right,
        bar.parentElement.getBoundingClientRect().right].join(" ")).join(";")</script>"""
    measured = title_of(page.replace("</html>", f"{measure}</html>"), tmp_path)
    bars = [[float(text) for text in bar.split()] for bar in measured.split(";")]
    assert max(right - cell_right for _, right, cell_right in bars) < 0.5
    longest = max(width for width, _, _ in bars)
    assert [round(100 * width / longest) for width, _, _ in bars] == [100, 97, 50, 1]
