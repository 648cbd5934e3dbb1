"""From nothing to the first bill: meter, product, price, subscription; then to a live key."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from loopback import KEY_LIVE, Loopback
from power_billing.hours import iso
from power_billing.keys import API_KEY
from power_billing.money import Price
from power_billing.tables import ledger_id, tables
from power_billing.usage import one_run
from shop import ALICE, BOB, PRICED, Shop, at_stripe
from world import NOW

from power_manager import InvalidValue, PowerManager

# --- Prices


@pytest.mark.parametrize(
    ("amount", "currency", "unit", "per_wh"),
    [
        ("0.30", "eur", "kWh", "0.03"),
        ("0.30", "USD", "kWh", "0.03"),
        ("30", "jpy", "kWh", "0.03"),
        ("0.085", "kwd", "kWh", "0.085"),
        ("1", "eur", "Wh", "100"),
        ("300", "eur", "MWh", "0.03"),
        ("0.00000001", "eur", "kWh", "0.000000001"),
    ],
)
def test_a_price_is_of_a_watt_hour_at_stripe(
    amount: str, currency: str, unit: str, per_wh: str
) -> None:
    """In the currency's smallest unit, which is not a hundredth everywhere."""
    assert Price.parse(amount, currency, unit).unit_amount_decimal == per_wh


@pytest.mark.parametrize(
    ("amount", "currency", "unit", "message"),
    [
        ("0", "eur", "kWh", "price: expected an amount above 0 such as 0.30, got '0'"),
        ("-1", "eur", "kWh", "price: expected an amount above 0"),
        ("0,30", "eur", "kWh", "price: expected an amount above 0"),
        ("nan", "eur", "kWh", "price: expected an amount above 0"),
        ("1e3", "eur", "kWh", "price: expected an amount above 0"),
        ("0.3", "euro", "kWh", "currency: expected three letters such as eur, got 'euro'"),
        ("0.3", "eur", "kwh", "unit: expected Wh, kWh, MWh, got 'kwh'"),
        ("0.000000000001", "eur", "kWh", "more than 12 decimals a watt-hour"),
    ],
)
def test_a_price_that_stripe_cannot_carry_is_refused(
    amount: str, currency: str, unit: str, message: str
) -> None:
    """Before anything is made."""
    with pytest.raises(InvalidValue, match=message):
        Price.parse(amount, currency, unit)


@pytest.mark.parametrize(
    ("wh", "cost"),
    [(0, "0.00"), (1, "0.00"), (16, "0.00"), (17, "0.01"), (12_345, "3.70"), (-1_000, "-0.30")],
)
def test_money_is_rounded_half_up_once(wh: int, cost: str) -> None:
    """To the currency's decimals, of the exact product."""
    assert str(Price.parse("0.30", "eur").cost(wh)) == cost
    assert Price.parse("30", "jpy").cost(12_345) == Decimal(370)


# --- Setup


def test_setup_makes_meter_product_and_price_once(shop: Shop) -> None:
    """What invoices count is watt-hours, so that is what the product's label says, whatever the
    price is of.
    """
    at_stripe = "which Stripe has as 0.03 of its smallest unit a watt-hour"
    assert shop(*PRICED) == [
        "meter: mtr_test_1 (made)",
        "product: prod_loop1 (made) Energy",
        f"price: price_loop1 (made) 0.30 EUR a kWh, {at_stripe}",
    ]
    (product,), (price,) = shop.objects("product"), shop.objects("price")
    assert (product["name"], product["unit_label"]) == ("Energy", "Wh")
    assert (price["unit_amount_decimal"], price["currency"]) == ("0.03", "eur")
    assert price["recurring"]["meter"] == "mtr_test_1"
    again = [line.replace("made", "found") for line in shop(*PRICED)]
    assert all(" (found)" in line for line in again)
    assert len(again) == 3
    assert len(shop.objects("product")) == len(shop.objects("price")) == 1


def test_another_price_is_another_object(shop: Shop) -> None:
    """Prices of Stripe's cannot be changed; who is subscribed to the old one stays so."""
    shop(*PRICED)
    *_, price = shop(*PRICED[:3], "--price", "0.40", "--currency", "eur")
    assert "price_loop2 (made)" in price
    *_, price = shop(*PRICED)
    assert "price_loop1 (found)" in price


@pytest.mark.parametrize(
    ("amount", "at_stripe"), [("300", "30"), ("0.00000001", "0.000000001"), ("10000000", "1000000")]
)
def test_a_price_is_written_without_an_exponent(shop: Shop, amount: str, at_stripe: str) -> None:
    """Stripe takes digits and a point; what was made is found the second time."""
    command = ("setup", "--product", "Energy", "--price", amount, "--currency", "eur")
    shop(*command)
    *_, price_line = shop(*command)
    assert "(found)" in price_line
    assert [price["unit_amount_decimal"] for price in shop.objects("price")] == [at_stripe]


def test_a_product_that_counts_something_else_is_refused(shop: Shop) -> None:
    """Its invoices would say 12,345 kWh where 12,345 Wh were used."""
    shop("setup")
    shop.stripe.catalog._make_product({"name": "Energy", "unit_label": "kWh"})
    assert "has the unit label kWh, and the meter counts Wh" in shop(*PRICED, code=1)[-1]
    assert shop.objects("price") == []


def test_a_product_of_ours_is_taken_before_one_that_was_made_by_hand(shop: Shop) -> None:
    """Two may have one name."""
    shop(*PRICED)
    shop.stripe.catalog._make_product({"name": "Energy", "unit_label": "Wh"})
    _, product, _ = shop(*PRICED)
    assert product == "product: prod_loop1 (found) Energy"


def test_half_a_price_is_wrong_usage(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and nothing is made."""
    with pytest.raises(SystemExit) as caught:
        shop("setup", "--product", "Energy")
    assert caught.value.code == 2
    assert "--product, --price and --currency go together" in capsys.readouterr().err
    assert shop.stripe.requests == []


# --- The first bill


def test_two_commands_lead_to_the_first_bill(shop: Shop) -> None:
    """Setup once, subscribe once: the usage is at Stripe, on a price, for a subscription that
    covers it.
    """
    shop(*PRICED)
    out = shop.subscribe("--report")
    begin = iso(shop.hour - 10)
    assert out[1:4] == [
        "edge: 31.500 Wh would be billed of the last 24 hours",
        f"edge: billed to {ALICE} from {begin} on (all that counts)",
        "subscription: sub_loop1, item si_loop1n1 (made), price price_loop1",
    ]
    assert out[-1] == "3 hours sent, 0 left"
    assert shop.stripe.billed(ALICE) == 31
    (subscription,) = shop.objects("subscription")
    assert subscription["start_date"] == (shop.hour - 10) * 3600, "backdated to the link"
    assert shop.stripe.errors == []
    assert "si_loop1n1" in shop("status")[0]


def test_subscribe_finds_what_is_there(shop: Shop) -> None:
    """Again, and for a second device of the customer: one subscription, its item beside each
    device.
    """
    shop(*PRICED)
    shop.subscribe()
    assert "(found)" in shop.subscribe()[-1]
    assert "(found)" in shop.subscribe(device="twin")[-1]
    assert len(shop.objects("subscription")) == 1
    assert all("si_loop1n1" in line for line in shop("status")[:2])


def test_mailed_invoices_and_subscriptions_of_the_customers_own(shop: Shop) -> None:
    """--days-until-due, and --subscription for one that is there already: then earlier usage is on
    no invoice.
    """
    shop(*PRICED)
    shop.subscribe("--days-until-due", "14")
    (subscription,) = shop.objects("subscription")
    assert subscription["collection_method"] == "send_invoice"
    other = shop.stripe.catalog._make_subscription(
        {"customer": BOB, "items[0][price]": licensed(shop)}
    )
    since = iso(shop.hour - 10)
    options = ("--customer", BOB, "--since", since, "--subscription", other["id"])
    out = shop("subscribe", "twin", *options, code=1)
    assert "item si_loop2n2 (made)" in out[-2]
    assert out[-1].startswith(f"on no invoice: usage from {since} to ")
    assert len(shop.objects("subscription")) == 2


def licensed(shop: Shop) -> str:
    """A price of a monthly fee."""
    product = shop.stripe.catalog._make_product({"name": "Fee"})
    head = {"product": product["id"], "currency": "eur", "unit_amount_decimal": "500"}
    return str(shop.stripe.catalog._make_price({**head, "recurring[interval]": "month"})["id"])


@pytest.mark.parametrize(
    ("customer", "message"),
    [
        ("cus_Nobody", "cus_Nobody: Stripe has no such customer; test and live mode"),
        (BOB, f"{BOB}: this customer was deleted at Stripe"),
    ],
)
@pytest.mark.parametrize("command", ["subscribe", "link"])
def test_a_customer_that_there_is_not_is_refused(
    shop: Shop, command: str, customer: str, message: str
) -> None:
    """By link and by subscribe, before anything is kept."""
    shop(*PRICED)
    shop.stripe.catalog._delete("customer", BOB)
    out = shop(command, "edge", "--customer", customer, code=1)
    assert message in out[-1]
    assert shop("status") == ["no usage has been sent yet"]


def test_link_says_what_is_missing(shop: Shop) -> None:
    """No meter, no subscription, then nothing."""
    link = ("link", "edge", "--customer", ALICE)
    assert (
        shop(*link)[-1]
        == f"{ALICE}: Stripe has this customer; power-billing setup makes meter and price"
    )
    shop("unlink", "edge")
    shop(*PRICED)
    assert f"{ALICE}: no active subscription to a price of the meter mtr_test_1" in shop(*link)[-1]
    shop("unlink", "edge")
    shop.subscribe(device="twin")
    assert shop(*link)[-1] == f"{ALICE}: its usage reaches an invoice"


def test_link_asks_nobody_where_it_cannot(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """--offline, or no key: the next report asks."""
    not_asked = "Stripe was not asked whether its usage reaches an invoice: the next report does"
    said = f"cus_Nobody: {not_asked}"
    assert shop("link", "edge", "--customer", "cus_Nobody", "--offline")[-1] == said
    shop("unlink", "edge")
    monkeypatch.delenv(API_KEY)
    assert shop("link", "edge", "--customer", "cus_Nobody")[-1] == said
    assert shop.stripe.requests == []


def test_what_is_missing_leaves_nothing_half_done(shop: Shop) -> None:
    """No meter, no price, no such device: no device is linked."""
    subscribe = ("subscribe", "edge", "--customer", ALICE)
    assert "no meter yet: run power-billing setup" in shop(*subscribe, code=1)[-1]
    shop("setup")
    assert "no price yet: power-billing setup --product" in shop(*subscribe, code=1)[-1]
    shop(*PRICED)
    (said,) = shop("subscribe", "edge-9", "--customer", ALICE, code=1)
    assert said == "power-billing: no device has the id 'edge-9': did you mean edge?"
    assert shop("status") == ["no usage has been sent yet"]


def test_options_that_would_change_a_link_are_not_passed_over(shop: Shop) -> None:
    """An earlier hour, other meters: said, instead of billing less than was asked for. A later hour
    is covered.
    """
    shop(*PRICED)
    shop.subscribe()
    earlier = ("subscribe", "edge", "--customer", ALICE, "--since", iso(shop.hour - 20))
    said = f"edge: billed to {ALICE} from {iso(shop.hour - 10)} on (all that counts) already"
    assert said in shop(*earlier, code=1)[-1]
    assert said in shop.subscribe("--types", "main", code=1)[-1]
    shop("subscribe", "edge", "--customer", ALICE, "--since", iso(shop.hour - 5))


def test_a_device_of_somebody_else_is_not_taken_over(shop: Shop) -> None:
    """Subscribe links as link does."""
    shop(*PRICED)
    shop.subscribe()
    assert (
        "edge: billed to cus_Alice1 from"
        in shop("subscribe", "edge", "--customer", BOB, code=1)[-1]
    )
    assert len(shop.objects("subscription")) == 1


def test_what_stripe_refuses_is_said_in_its_words(shop: Shop) -> None:
    """Such as a subscription that is not there."""
    shop(*PRICED)
    options = ("--customer", ALICE, "--subscription", "sub_none")
    assert "No such subscription: 'sub_none'" in shop("subscribe", "edge", *options, code=1)[-1]


# --- Going live


@pytest.fixture
def live(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """Live mode of the same account, with its own key and customer, after a trial with two."""
    shop(*PRICED)
    shop.subscribe("--report")
    shop.subscribe("--report", device="twin", customer=BOB)
    server = Loopback(shop.clock, knows_customers=True, livemode=True)
    server.catalog.add_customer("cus_LiveAlice")
    with at_stripe(server, monkeypatch):
        yield server


def test_going_live_bills_nothing_of_the_trial(shop: Shop, live: Loopback) -> None:
    """From the next full hour on, to customers of live mode; who has none is said."""
    out = shop("go-live", "--customer", f"{ALICE}=cus_LiveAlice", "--yes")
    assert out == [
        "meter: mtr_live_1 (made)",
        "product: prod_loop1 (made)",
        "price: price_loop1 (made)",
        f"edge: billed to cus_LiveAlice from {iso(shop.hour + 1)} on",
        "twin: no longer billed; power-billing subscribe twin --customer cus_... bills it again",
    ]
    assert shop("report")[-1] == "0 hours sent, 0 left"
    assert live.events == []
    with PowerManager(shop.db) as pm, tables(pm) as conn:
        assert conn.execute("SELECT count(*) FROM billing_hours").fetchone() == (0,)
        assert conn.execute("SELECT count(*) FROM billing_outbox").fetchone() == (0,)
        links = conn.execute("SELECT customer, subscription_item FROM billing_links").fetchall()
    assert links == [("cus_LiveAlice", "si_loop1n1")]


def test_the_meters_name_and_the_ledgers_id_go_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ledger with its own meter has one in live mode too, and keeps its customers."""
    names = []
    ids = []
    shop = Shop(tmp_path / "power.db", Loopback(lambda: NOW), capsys)
    for is_live, command in ((False, ["setup", "--meter", "roof"]), (True, ["go-live", "--yes"])):
        server = Loopback(shop.clock, livemode=is_live)
        with at_stripe(server, monkeypatch):
            shop(*command, code=int(is_live))
        names += [meter["event_name"] for meter in server.meters.values()]
        with PowerManager(shop.db) as pm, tables(pm) as conn:
            ids.append(ledger_id(conn))
    assert names == ["roof", "roof"]
    assert len(set(ids)) == 1


def test_without_going_live_the_live_key_is_refused(shop: Shop, live: Loopback) -> None:
    """By setup and by report: a trial's file is not moved by a variable alone."""
    assert "power-billing go-live ends a trial" in shop("setup", code=1)[-1]
    assert "cannot see the meter mtr_test_1" in shop("report", code=1)[-1]


def test_a_file_goes_live_once(shop: Shop, live: Loopback) -> None:
    """The second time would forget what is to be billed."""
    shop("go-live", "--yes")
    assert "it is live already: this key sees its meter" in shop("go-live", "--yes", code=1)[-1]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([f"{ALICE}=cus_Nobody"], "cus_Nobody: Stripe has no such customer"),
        (["cus_Stranger=cus_LiveAlice"], "cus_Stranger: no device is billed to it"),
    ],
)
def test_a_wrong_customer_leaves_the_trial_as_it_is(
    shop: Shop, live: Loopback, pairs: list[str], message: str
) -> None:
    """Nothing is forgotten, and nothing is made at Stripe."""
    options = [part for pair in pairs for part in ("--customer", pair)]
    assert message in shop("go-live", *options, "--yes", code=1)[-1]
    assert live.meters == {}
    now = shop("status")
    assert not any("62 Wh" in line for line in now)
    assert "usage goes to stripe:mtr_test_1" in now


def test_going_live_waits_for_a_run_of_the_trial(shop: Shop, live: Loopback) -> None:
    """Which would go on with the trial's customers and meter in the live ledger."""
    with PowerManager(shop.db) as pm, one_run(pm):
        assert "another run is under way" in shop("go-live", "--yes", code=1)[-1]
    assert live.meters == {}


def test_going_live_by_a_clock_that_is_behind_is_refused(shop: Shop, live: Loopback) -> None:
    """It would bill what the trial has counted."""
    with PowerManager(shop.db) as pm:
        meter = pm.list_meters("edge")[0].id
        ahead = PowerManager(shop.db, clock=lambda: shop.clock() + 9 * 3600)
        ahead.log_power(meter, 1.0, 1.0)
        ahead.close()
    pair = f"{ALICE}=cus_LiveAlice"
    out = shop("go-live", "--customer", pair, "--yes", code=1)[-1]
    assert "this machine's clock is behind" in out
    assert live.meters == {}


def test_going_live_asks_first(shop: Shop, live: Loopback) -> None:
    """Where there is no terminal, it says what to give."""
    out = shop("go-live", code=1)[-1]
    assert "Forget 6 hours that were billed to stripe:mtr_test_1" in out
    assert "give --yes" in out
    assert live.meters == {}


def test_a_test_key_does_not_go_live(shop: Shop) -> None:
    """That needs sk_live_ or rk_live_."""
    shop(*PRICED)
    assert "go-live takes a live key" in shop("go-live", "--yes", code=1)[-1]


def test_a_file_without_a_trial_needs_no_going_live(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Setup with the live key is enough."""
    monkeypatch.setenv(API_KEY, KEY_LIVE)
    assert (
        "no trial to end: run power-billing setup with the live key"
        in shop("go-live", "--yes", code=1)[-1]
    )


def test_what_the_trial_shut_down_comes_back(shop: Shop, live: Loopback) -> None:
    """An invoice of test mode is owed by nobody."""
    with PowerManager(shop.db) as pm:
        with tables(pm) as conn:
            conn.execute("INSERT INTO billing_shutdowns VALUES ('edge', ?)", (ALICE,))
            conn.execute("INSERT INTO billing_shutdowns VALUES ('gone', ?)", (ALICE,))
        shop("go-live", "--yes")
        events = [(event.device_id, event.type.value) for _, event in pm.events_since(0)]
    assert events == [("edge", "restore")]
