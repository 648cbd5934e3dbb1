"""The commands with a tariff: setup, subscribe, link, report, reconcile, statement; Stripe knows
its customers.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from loopback import Loopback
from loopback_catalog import MOST_ITEMS
from power_billing.hours import iso
from power_billing.tables import tables
from power_billing.tariff_file import MOST_PERIODS
from shop import ALICE, BOB, PRICED, Shop, at_stripe
from tariffs import BY_TURNS, OFF_PEAK, PEAK, TWO

from power_manager import PowerManager


def month_of(hour: int) -> str:
    """The UTC month of an hour."""
    return time.strftime("%Y-%m", time.gmtime(hour * 3600))


class TestSetup:
    """A meter, a product and a price for each period."""

    def test_each_period_has_a_meter_a_product_and_a_price(self, shop: Shop) -> None:
        """They are printed with the hours, so that a person sees what was understood."""
        per_wh = "which Stripe has as {} of its smallest unit a watt-hour"
        assert shop(*shop.tariff(TWO)) == [
            "tariff: hours of Europe/Berlin",
            "peak: mon-fri 07:00-22:00",
            "  meter: mtr_test_1 (made) power_watt_hours_peak",
            "  product: prod_loop1 (made) Energy peak",
            f"  price: price_loop1 (made) 0.34 EUR a kWh, {per_wh.format('0.034')}",
            "off_peak: mon-fri 00:00-07:00, 22:00-24:00; sat-sun 00:00-24:00",
            "  meter: mtr_test_2 (made) power_watt_hours_off_peak",
            "  product: prod_loop2 (made) Energy off peak",
            f"  price: price_loop2 (made) 0.20 EUR a kWh, {per_wh.format('0.02')}",
        ]
        prices = {one["nickname"]: one for one in shop.objects("price")}
        assert prices["0.34 EUR a kWh"]["recurring"]["meter"] == "mtr_test_1"
        assert prices["0.20 EUR a kWh"]["recurring"]["meter"] == "mtr_test_2"
        assert {one["unit_label"] for one in shop.objects("product")} == {"Wh"}

    def test_it_can_be_repeated(self, shop: Shop) -> None:
        """Everything is found."""
        first = shop(*shop.tariff(TWO))
        assert shop(*shop.tariff(TWO)) == [line.replace("(made)", "(found)") for line in first]

    def test_what_failed_half_way_is_found_again(self, shop: Shop) -> None:
        """The ledger knows nothing of a tariff until all of it is there."""
        shop.stripe.broken = ("/v1/prices",)
        shop(*shop.tariff(TWO), code=1)
        with PowerManager(shop.db) as pm, tables(pm) as conn:
            assert conn.execute("SELECT count(*) FROM billing_periods").fetchone() == (0,)
        shop.stripe.broken = ()
        assert any("meter: mtr_test_1 (found)" in line for line in shop(*shop.tariff(TWO)))

    def test_a_meter_that_counts_otherwise_is_refused(self, shop: Shop) -> None:
        """Of any period."""
        shop.stripe._make_meter(
            {
                "display_name": "x",
                "event_name": OFF_PEAK,
                "default_aggregation[formula]": "count",
                "event_time_window": "hour",
            }
        )
        assert "'count' instead of 'sum'" in shop(*shop.tariff(TWO), code=1)[-1]

    @pytest.mark.parametrize(
        ("extra", "said"),
        [
            (("--price", "1"), "--tariff has the prices: leave out --price, --currency and --unit"),
            (("--currency", "eur"), "--tariff has the prices"),
            (("--unit", "kWh"), "--tariff has the prices"),
        ],
    )
    def test_prices_beside_it_are_wrong_usage(
        self,
        shop: Shop,
        capsys: pytest.CaptureFixture[str],
        extra: tuple[str, ...],
        said: str,
    ) -> None:
        """Exit code 2, and nothing is made."""
        with pytest.raises(SystemExit) as caught:
            shop(*shop.tariff(BY_TURNS), *extra)
        assert caught.value.code == 2
        assert said in capsys.readouterr().err
        assert shop.stripe.requests == []

    def test_without_a_product_it_is_wrong_usage(
        self, shop: Shop, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Prices need one."""
        setup, _, _, *file = shop.tariff(BY_TURNS)
        with pytest.raises(SystemExit) as caught:
            shop(setup, *file)
        assert caught.value.code == 2
        assert "--tariff and --product go together" in capsys.readouterr().err

    def test_a_file_that_is_no_tariff_makes_nothing(self, shop: Shop) -> None:
        """One line names the file and what is wrong."""
        (said,) = shop(*shop.tariff(TWO.replace("07:00", "07:30")), code=1)
        assert "tariff.toml: peak: hours: expected whole hours" in said
        assert shop.stripe.requests == []

    def test_a_ledger_is_set_up_with_a_tariff_or_without(self, shop: Shop) -> None:
        """A plain setup would make every hour one meter's."""
        shop(*shop.tariff(BY_TURNS))
        made = len(shop.stripe.meters)
        (said,) = shop(*PRICED, code=1)
        assert "it has a tariff (UTC; odd, even): give its file by --tariff" in said
        assert len(shop.stripe.meters) == made

    def test_a_price_of_every_hour_is_forgotten(self, shop: Shop) -> None:
        """A plain setup before, by mistake, leaves nothing behind."""
        shop(*PRICED)
        shop(*shop.tariff(BY_TURNS))
        shop.subscribe("--report")
        month = month_of(shop.hour - 2)
        assert "prices by time of day in UTC" in shop("statement", "--month", month)[0]

    def test_stripe_carries_as_many_periods_as_a_tariff_may_have(self, shop: Shop) -> None:
        """A subscription of the most there may be is made."""
        assert MOST_PERIODS == MOST_ITEMS
        text = "".join(
            f'[p{n}]\nhours = "{n:02d}:00-{n + 1:02d}:00"\nprice = {n + 1}\n' for n in range(19)
        )
        shop(*shop.tariff(f'currency = "eur"\n{text}[rest]\nprice = 1\n'))
        shop.subscribe()
        (subscription,) = shop.objects("subscription")
        assert len(subscription["items"]["data"]) == MOST_PERIODS


class TestSubscribe:
    """A customer's usage reaches an invoice when every period has an item."""

    def test_every_period_has_an_item(self, shop: Shop) -> None:
        """In one subscription, backdated to the link; a second time all is found."""
        shop(*shop.tariff(BY_TURNS))
        out = shop.subscribe("--report")
        assert [line for line in out if line.startswith("subscription")] == [
            "subscription: sub_loop1, item si_loop1n1 (made), price price_loop1, odd",
            "subscription: sub_loop1, item si_loop1n2 (made), price price_loop2, even",
        ]
        assert "3 hours sent, 0 left" in out
        assert len(shop.objects("subscription")) == 1
        assert "si_loop1n1,si_loop1n2" in shop("status")[0]
        again = shop.subscribe()
        assert [line.count("(found)") for line in again if line.startswith("sub")] == [1, 1]

    def test_an_item_that_is_missing_is_added_to_the_subscription(self, shop: Shop) -> None:
        """What was used before is on no invoice, and that is said with exit code 1."""
        shop(*shop.tariff(BY_TURNS))
        shop.subscribe()
        (subscription,) = shop.objects("subscription")
        subscription["created"] -= 7200
        subscription["items"]["data"].pop()
        out = shop.subscribe(code=1)
        assert "price price_loop2, even" in out[-2]
        assert "(made)" in out[-2]
        assert out[-1].startswith("on no invoice: usage from ")
        assert ", even, when the subscription began" in out[-1]
        assert [one["price"]["id"] for one in subscription["items"]["data"]] == [
            "price_loop1",
            "price_loop2",
        ]

    def test_items_may_be_in_subscriptions_that_there_are(self, shop: Shop) -> None:
        """Somebody has made one by hand for one period: only the other is made."""
        shop(*shop.tariff(BY_TURNS))
        made = shop.stripe.catalog._make_subscription(
            {"customer": ALICE, "items[0][price]": "price_loop2"}
        )
        shop.subscribe(code=1)
        assert len(shop.objects("subscription")) == 1
        assert len(made["items"]["data"]) == 2

    def test_a_period_without_an_item_is_said(self, shop: Shop) -> None:
        """By link and by report, with the meter that has none."""
        shop(*shop.tariff(BY_TURNS))
        shop.subscribe()
        (subscription,) = shop.objects("subscription")
        subscription["items"]["data"].pop()
        meter = "the meter mtr_test_2, so its usage is on no invoice"
        assert f"no active subscription to a price of {meter}" in shop("report", code=1)[-1]
        assert meter in shop("link", "twin", "--customer", ALICE)[-1]
        out = shop("link", "twin", "--customer", BOB, code=1)
        shop("unlink", "twin")
        out = shop("link", "twin", "--customer", BOB)
        assert "of the meters mtr_test_1 and mtr_test_2, so" in out[-1]

    def test_a_new_price_is_for_new_subscriptions(self, shop: Shop) -> None:
        """Who is subscribed stays with the old one."""
        shop(*shop.tariff(BY_TURNS))
        shop.subscribe()
        shop(*shop.tariff(BY_TURNS.replace("300", "400")))
        assert "price price_loop1, odd" in "\n".join(shop.subscribe())
        assert "price price_loop3, odd" in "\n".join(shop.subscribe(device="twin", customer=BOB))


class TestReport:
    """Reports, comparisons and statements know the periods."""

    @pytest.fixture
    def billed(self, shop: Shop) -> Shop:
        """Three hours of 10.5 Wh, by turns in one period and the other, are at Stripe."""
        shop(*shop.tariff(BY_TURNS))
        shop.subscribe("--report")
        return shop

    def test_both_meters_have_their_hours(self, billed: Shop) -> None:
        """By the hour's number."""
        by_meter = billed.stripe.meter_hours(ALICE)
        assert {hour % 2 for hour in by_meter["power_watt_hours_odd"]} == {1}
        assert {hour % 2 for hour in by_meter["power_watt_hours_even"]} == {0}
        assert billed.stripe.billed(ALICE) == 31

    def test_hours_are_listed_with_their_period(self, shop: Shop) -> None:
        """By a dry run, before any hour is noted, and by the report that sends them."""
        shop(*shop.tariff(BY_TURNS))
        shop.subscribe()
        dry = shop("report", "--dry-run")
        assert dry[0].split() == ["customer", "hour", "period", "watt-hours", "revision"]
        names = {1: "odd", 0: "even"}
        hours = [shop.hour - hours_ago for hours_ago in (4, 3, 2)]
        rows = [line.split()[1:3] for line in dry[1:-1]]
        assert rows == [[iso(hour), names[hour % 2]] for hour in hours]
        assert shop("report")[:4] == dry[:4]

    def test_hours_without_a_tariff_have_no_period(self, shop: Shop) -> None:
        """One price for every hour: no column."""
        shop(*PRICED)
        shop.subscribe()
        head, *_ = shop("report", "--dry-run")
        assert head.split() == ["customer", "hour", "watt-hours", "revision"]

    def test_differences_are_listed_by_period(self, billed: Shop) -> None:
        """With what is on another period's meter, which a repair does not claim to mend."""
        moved = billed.stripe.events[0]
        hour = moved["timestamp"] // 3600
        period, other = ("odd", "even") if hour % 2 else ("even", "odd")
        moved["name"] = f"power_watt_hours_{other}"
        with PowerManager(billed.db) as pm, tables(pm) as conn:
            conn.execute("UPDATE billing_outbox SET attempted_at = attempted_at - 7200")
        out = billed("reconcile", code=1)
        value = moved["value"]
        assert f" {period} sent {value} Wh, the biller has {value} Wh" in out[0]
        assert (
            f"the biller has {value} Wh, {value} Wh of that on another period's meter; " in out[1]
        )
        out = billed("reconcile", "--repair", code=1)
        assert "0 of 0 hours repaired" in out
        assert any(line.startswith("1 differences have usage on another period's") for line in out)

    def test_a_statement_has_the_periods(self, billed: Shop) -> None:
        """As Stripe has them, each at its price."""
        month = month_of(billed.hour - 2)
        made = json.loads("\n".join(billed("statement", "--month", month, "--format", "json")))
        (one,) = made["customers"]
        by_meter = billed.stripe.meter_hours(ALICE)
        wh = {
            name: sum(
                value
                for hour, value in by_meter[f"power_watt_hours_{name}"].items()
                if month_of(hour) == month
            )
            for name in ("odd", "even")
        }
        assert [(line["period"], line["price"], line["energy_wh"]) for line in one["periods"]] == [
            ("odd", "300", wh["odd"]),
            ("even", "100", wh["even"]),
        ]
        costs = [line["cost"] for line in one["periods"]]
        assert costs == [f"{wh['odd'] * 3 / 10:.2f}", f"{wh['even'] / 10:.2f}"]

    def test_other_prices_are_those_of_a_file(self, billed: Shop, tmp_path: Path) -> None:
        """Of the same hours; one price, or a tariff of other hours, is refused."""
        month = month_of(billed.hour - 2)
        command = ("statement", "--month", month)
        path = tmp_path / "other.toml"
        path.write_text(BY_TURNS.replace("300", "1000").replace("100\n", "1000\n"))
        wh = sum(
            value for hour, value in billed.stripe.hours(ALICE).items() if month_of(hour) == month
        )
        assert billed(*command, "--tariff", str(path))[-1] == f"total: {wh} Wh {wh}.00 EUR"
        said = billed(*command, "--price", "1", "--currency", "eur", code=1)[-1]
        assert "it has a tariff, so one price does not do: give other prices by --tariff" in said
        path.write_text(TWO)
        said = billed(*command, "--tariff", str(path), code=1)[-1]
        assert "hours were not counted by this tariff: its zone, hours and periods" in said

    def test_a_statement_without_a_tariff_takes_none(self, shop: Shop) -> None:
        """There are no periods in that ledger."""
        shop(*PRICED)
        path = shop.tariff(BY_TURNS)[-1]
        said = shop("statement", "--month", "2026-08", "--tariff", path, code=1)[-1]
        assert "hours were not counted by this tariff" in said

    def test_status_shows_the_tariff(self, billed: Shop) -> None:
        """Hours, zone and price of each period; for programs too."""
        lines = billed("status")
        assert "even: mon-sun 00:00-01:00, 02:00-03:00, 04:00-05:00" in lines[3]
        assert lines[3].endswith(", UTC, 100.00 EUR a kWh")
        read = billed.json("status")
        assert read["tariff"]["zone"] == "UTC"
        odd = read["tariff"]["periods"][0]
        assert (odd["period"], odd["price"], odd["price_unit"]) == ("odd", "300", "kWh")

    def test_what_stripe_refuses_later_is_found_by_its_name(self, billed: Shop) -> None:
        """On whichever meter it is; the next report that retries sends it there again."""
        before = billed.stripe.meter_hours(ALICE)
        error = {"code": "meter_event_invalid_value", "message": "no", "idempotency_key": "x"}
        for event in billed.stripe.events:
            event["dropped"] = True
            billed.stripe.errors.append({**error, "identifier": event["identifier"]})
        report = billed.stripe.report_errors()
        with PowerManager(billed.db) as pm, tables(pm) as conn:
            conn.execute("INSERT INTO billing_error_reports VALUES (?, 0)", (report["id"],))
        out = billed("report", code=1)
        assert sum(line.startswith("refused:") for line in out) == 3
        billed("report", "--retry-refused")
        assert billed.stripe.meter_hours(ALICE) == before


def test_a_tariff_goes_live(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its hours and prices; nothing of the trial is billed, and every period has an item
    again.
    """
    shop(*shop.tariff(BY_TURNS))
    shop.subscribe("--report")
    live = Loopback(shop.clock, knows_customers=True, livemode=True)
    live.catalog.add_customer("cus_LiveAlice")
    with at_stripe(live, monkeypatch):
        out = shop("go-live", "--customer", f"{ALICE}=cus_LiveAlice", "--yes")
        *made, link = out
        assert made == [
            "odd meter: mtr_live_1 (made)",
            "odd product: prod_loop1 (made)",
            "odd price: price_loop1 (made)",
            "even meter: mtr_live_2 (made)",
            "even product: prod_loop2 (made)",
            "even price: price_loop2 (made)",
        ]
        assert link.startswith("edge: billed to cus_LiveAlice from ")
        assert shop("report")[-1] == "0 hours sent, 0 left"
        status = shop("status")
        assert "si_loop1n1,si_loop1n2" in status[0]
        assert "usage goes to stripe:mtr_live_1+mtr_live_2" in status
        assert "it is live already" in shop("go-live", "--yes", code=1)[-1]
    assert live.events == []
    assert [one["event_name"] for one in live.meters.values()] == [
        "power_watt_hours_odd",
        "power_watt_hours_even",
    ]
    with PowerManager(shop.db) as pm, tables(pm) as conn:
        assert conn.execute("SELECT count(*) FROM billing_hour_periods").fetchone() == (0,)


def test_periods_are_on_meters_of_their_names(shop: Shop) -> None:
    """The names that the README gives."""
    shop(*shop.tariff(TWO))
    assert [meter["event_name"] for meter in shop.stripe.meters.values()] == [PEAK, OFF_PEAK]
