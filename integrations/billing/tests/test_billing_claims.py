"""Which ledger bills a customer: two files of one customer, a lost ledger, a copy, a restored
backup.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import KEY, Asked, FakeTransport, Loopback
from power_billing import BillingError, CannotSayNow, CsvSink, LedgerFile, State, UsageEvent
from power_billing.claims import Claim, claims, note_claim, take_over
from power_billing.customers import customer_problems, note_customer, recheck_customer
from power_billing.decisions import keep_theirs
from power_billing.hours import iso
from power_billing.keys import API_KEY, Secret
from power_billing.periods import HourMeters
from power_billing.stripe_client import make_client, meters_of
from power_billing.stripe_setup import setup
from power_billing.stripe_sinks import StripeMeterSink
from power_billing.tables import (
    _CLEAR,
    _COPY,
    _FORGET_CUSTOMER,
    copy_in_memory,
    ledger_id,
    set_setting,
    tables,
)
from shop import ALICE, PRICED, Shop
from world import CUSTOMER, HOUR, NOW, World, outbox, pass_time, to_decide

from power_manager import InvalidValue, restore_database

THIS_HOUR = int(NOW // HOUR)


def id_of(world: World) -> str:
    """The id of a world's ledger."""
    with tables(world.pm) as conn:
        return ledger_id(conn)


@pytest.fixture
def first(world: World) -> World:
    """A ledger with 200 Wh in each of three hours of a customer, all of it at Stripe."""
    world.link()
    for hours_ago in (4, 3, 2):
        world.use(200.0, hours_ago)
    world.server.clock = lambda: world.true_now
    assert world.report().complete
    return world


@pytest.fixture
def second(first: World, tmp_path: Path) -> Iterator[World]:
    """Another file, with a ledger of its own, and the same customer; its device has used as much in
    the same hours.
    """
    made = World(tmp_path / "second.db")
    made.server = first.server
    made.link()
    for hours_ago in (4, 3, 2):
        made.use(200.0, hours_ago)
    made.setup_from(first)
    yield made
    made.pm.close()


# --- Two ledgers of one customer


@pytest.mark.parametrize("stream", [False, True], ids=["v1", "stream"])
@pytest.mark.parametrize("hours_later", [0, 49])
def test_hours_of_equal_values_are_not_taken_for_the_own_ones(
    first: World, second: World, hours_later: float, stream: bool
) -> None:
    """The second ledger sends nothing, takes nothing for sent, and says whose customer it is, in
    every run.
    """
    pass_time([first, second], hours_later)
    for _ in range(2):
        done = second.usage.report(second.sink(stream), compare=True)
        assert not done.complete
        assert [row.state for row in done.open] == [State.QUEUED] * 3
        reason = f"the ledger {id_of(first)} bills this customer: power-billing resolve"
        assert {row.reason for row in done.open} == {reason}
        assert done.reconciliation is not None
        assert done.reconciliation.unsaid == {CUSTOMER: reason}
    assert len(first.server.events) == 3
    assert [len(rows) for rows in to_decide(second).others.values()] == [3]
    assert first.report().complete, "the first one goes on"


def test_a_meter_of_its_own_bills_both_in_full(first: World, second: World) -> None:
    """Different devices, equal hours: 600 and 600 Wh are 1,200 Wh, and late readings of either stay
    its own.
    """
    assert not second.report().complete
    client = make_client(Secret(API_KEY, KEY), {}, second.transport(second.server))
    setup(second.pm, client, "energy_roof")
    assert second.report(compare=True).complete
    assert first.billed() == 1200
    second.use(5.0, 6)
    first.use(7.0, 6)
    assert second.report(compare=True).complete
    assert first.report(compare=True).complete
    assert first.billed() == 1212
    names = {event["name"] for event in first.server.events}
    assert names == {"power_watt_hours", "energy_roof"}


def test_a_ledger_that_has_sent_keeps_its_meter(first: World) -> None:
    """What is at one meter cannot go on at another."""
    client = make_client(Secret(API_KEY, KEY), {}, first.transport(first.server))
    with pytest.raises(BillingError, match="another meter needs another --ledger"):
        setup(first.pm, client, "energy_roof")
    assert setup(first.pm, client).made is False, "without a name it is the one that it has"
    for name in ("Roof", "a" * 17, "", "1st", "cus:x"):
        with pytest.raises(InvalidValue, match="meter: expected 1 to 16 lower-case letters"):
            setup(first.pm, client, name)


def test_another_meter_asks_for_the_customers_again(world: World) -> None:
    """Whose they are stands under the meter's name."""
    world.sink()
    with tables(world.pm) as conn:
        set_setting(conn, "account", "stripe:mtr_test_1")
        note_claim(conn, CUSTOMER, Claim(ledger_id(conn), world.now))
    setup(world.pm, make_client(Secret(API_KEY, KEY), {}, world.transport(world.server)), "roof")
    world.link()
    world.use(10.0, 2)
    assert world.report().complete
    metadata = world.server.catalog.objects["customer"][CUSTOMER]["metadata"]
    assert metadata == {"roof": id_of(world)}


def test_the_longest_names_fit_an_identifier() -> None:
    """Stripe takes a hundred characters."""
    event = UsageEvent("cus_" + "x" * 56, THIS_HOUR, 9999, 1, "a" * 16)
    assert len(event.identifier) == 100


def test_what_is_left_to_the_other_ledger_is_lost_here(first: World, second: World) -> None:
    """Both bill the same devices: a person says so, and nothing waits any more."""
    second.report()
    keep_theirs(second.pm, to_decide(second))
    assert [row.state for row in outbox(second.pm)] == [State.LOST] * 3
    assert {row.reason for row in outbox(second.pm)} == {f"left to the ledger {id_of(first)}"}
    assert not to_decide(second)
    assert first.billed() == 600


# --- By the command line


@pytest.fixture
def shop(shop: Shop) -> Shop:
    """A ledger that has billed Alice by the device `edge`: 31 Wh."""
    shop(*PRICED)
    shop.subscribe("--report")
    return shop


def test_the_commands_say_whose_customer_it_is(shop: Shop, tmp_path: Path) -> None:
    """report, status and resolve of a second ledger; a person takes the customer over, and nothing
    is billed twice.
    """
    other = ("--ledger", str(tmp_path / "other.db"))
    since = iso(shop.hour - 10)
    shop(*other, "setup")
    shop(*other, "link", "edge", "--customer", ALICE, "--since", since)
    out = shop(*other, "report", code=1)
    assert out[0] == "0 hours sent, 3 left"
    assert sum("bills this customer: power-billing resolve" in line for line in out) == 4
    assert shop(*other, "status")[-1].startswith(f"{ALICE}: the ledger ")
    (found,) = shop.json(*other, "status")["other_ledgers"]
    assert found == ALICE
    listed = shop(*other, "resolve", code=1)
    assert re.fullmatch(
        rf"{ALICE}: the ledger [0-9a-f]{{16}} bills this customer: 3 hours wait here", listed[0]
    )
    with pytest.raises(SystemExit, match="2"):
        shop(*other, "resolve", "--take-over")
    assert shop(*other, "resolve", "--take-over", "--customer", ALICE)[:1] == [
        f"{ALICE}: billed from this ledger; what waits goes out with the next report"
    ]
    assert shop(*other, "report")[-1] == "3 hours sent, 0 left"
    assert shop(*other, "resolve") == ["nothing to decide"]
    assert shop.stripe.billed(ALICE) == 31
    assert len(shop.stripe.events) == 3


def test_link_and_subscribe_say_that_another_ledger_bills_the_customer(
    shop: Shop, tmp_path: Path
) -> None:
    """At once, as report would say it, and the ledger that bills the customer hears nothing."""
    other = ("--ledger", str(tmp_path / "other.db"))
    shop(*other, *PRICED)
    said = shop(*other, "link", "edge", "--customer", ALICE)
    assert said[-2] == f"{ALICE}: its usage reaches an invoice"
    waits = rf"{ALICE}: the ledger [0-9a-f]{{16}} bills this customer: power-billing resolve"
    assert re.fullmatch(waits, said[-1])
    assert shop(*other, "status")[-1] == said[-1]
    assert shop(*other, "subscribe", "twin", "--customer", ALICE)[-1] == said[-1]
    assert "bills this customer" not in "".join(shop("subscribe", "twin", "--customer", ALICE))
    assert shop.stripe.requests.count(Asked("POST", f"/v1/customers/{ALICE}")) == 1


def test_link_says_nothing_of_ledgers_where_it_cannot_ask(shop: Shop, tmp_path: Path) -> None:
    """Neither with --offline nor before setup."""
    other = ("--ledger", str(tmp_path / "other.db"))
    link = (*other, "link", "edge", "--customer", ALICE)
    assert "Stripe was not asked" in shop(*link, "--offline")[-1]
    shop(*other, "unlink", "edge")
    assert "setup makes meter and price" in shop(*link)[-1]
    assert not any("bills this customer" in line for line in shop(*other, "status"))


def test_hours_are_left_to_the_other_ledger_by_the_command(shop: Shop, tmp_path: Path) -> None:
    """The device is billed there already."""
    other = ("--ledger", str(tmp_path / "other.db"))
    shop(*other, "setup")
    shop(*other, "link", "edge", "--customer", ALICE, "--since", iso(shop.hour - 10))
    shop(*other, "report", code=1)
    shop(*other, "unlink", "edge")
    assert shop(*other, "resolve", "--keep", "--customer", ALICE)[-1] == (
        "0 hours stay as the biller has them, 3 losses accepted"
    )
    assert shop.stripe.billed(ALICE) == 31


def test_a_second_meter_is_a_second_item_on_the_bill(shop: Shop, tmp_path: Path) -> None:
    """The other ledger's device is another one: both reach an invoice, in full."""
    other = ("--ledger", str(tmp_path / "other.db"))
    shop(*other, *PRICED)
    shop(*other, "subscribe", "twin", "--customer", ALICE, "--since", iso(shop.hour - 10))
    assert shop(*other, "report", code=1)[0] == "0 hours sent, 3 left"
    out = shop(*other, *PRICED, "--meter", "energy_roof")
    assert out[0] == "meter: mtr_test_2 (made)"
    out = shop(*other, "subscribe", "twin", "--customer", ALICE, "--report")
    assert out[-1] == "3 hours sent, 0 left"
    assert shop.stripe.billed(ALICE) == 62
    assert len(shop.objects("subscription")) == 2
    said = shop("setup", "--meter", "energy_roof", code=1)
    assert "another meter needs another --ledger" in said[-1]


# --- A ledger that is begun anew


def test_a_lost_ledger_that_is_begun_anew_bills_nothing_twice(first: World, second: World) -> None:
    """It waits until a person takes the customer over; hours that Stripe has are found there, the
    others are billed.
    """
    second.use(50.0, 1)
    assert not second.report().complete
    assert first.billed() == 600
    take_over(second.pm, second.sink(), CUSTOMER, second.now)
    assert second.report(compare=True).complete
    assert first.billed() == 650
    assert len(first.server.events) == 4
    pass_time([first, second], 25)
    first.use(20.0, -24)
    done = first.report()
    assert not done.complete, "the old one is not as lost as it seemed, and says so"
    assert str(done.open[0].reason).startswith(f"the ledger {id_of(second)} bills this customer")


def test_taking_over_where_the_values_differ_is_a_conflict(first: World, second: World) -> None:
    """A person looks at each hour of which the two say different things."""
    second.use(1.0, 5)
    first.use(2.0, 5)
    first.report()
    second.report()
    take_over(second.pm, second.sink(), CUSTOMER, second.now)
    done = second.report()
    assert [(row.state, row.event.watt_hours, row.theirs_wh) for row in done.open] == [
        (State.CONFLICT, 1, 2)
    ]


def test_nobody_takes_over_a_customer_that_there_is_not(world: World) -> None:
    """It is said, and nothing is kept."""
    world.server = Loopback(lambda: world.true_now, knows_customers=True)
    with pytest.raises(BillingError, match="cus_Gone: the biller has no such customer"):
        take_over(world.pm, world.sink(), "cus_Gone", world.now)
    sink = world.sink()
    world.server.broken = ("/v1/customers",)
    with pytest.raises(BillingError, match="cus_Gone: Stripe does not say which ledger bills"):
        take_over(world.pm, sink, "cus_Gone", world.now)


# --- The same ledger


def test_the_id_goes_wherever_the_tables_go(first: World, tmp_path: Path) -> None:
    """A backup, what is restored of it, a dry run's copy, and a ledger file that is moved."""
    before = id_of(first)
    assert re.fullmatch(r"[0-9a-f]{16}", before)
    first.pm.backup(tmp_path / "backup.db")
    with copy_in_memory(first.pm) as copy, tables(copy) as conn:
        assert ledger_id(conn) == before
    path = first.pm.db_path
    first.pm.close()
    restore_database(path, tmp_path / "backup.db")
    first.open(path)
    assert id_of(first) == before
    assert first.report().complete
    with tables(LedgerFile(tmp_path / "ledger.db")) as conn:
        of_file = ledger_id(conn)
    assert of_file != before
    os.rename(tmp_path / "ledger.db", tmp_path / "moved.db")
    with tables(LedgerFile(tmp_path / "moved.db")) as conn:
        assert ledger_id(conn) == of_file


def test_a_copy_that_lives_on_is_noticed_by_the_first_hour_that_differs(
    first: World, tmp_path: Path
) -> None:
    """Hours of equal values are one event, as long as both measure the same; one that differs is a
    conflict.
    """
    first.pm.backup(tmp_path / "copy.db")
    copy = World(tmp_path / "scratch.db")
    copy.pm.close()
    copy.open(tmp_path / "copy.db")
    copy.meters, copy.server = first.meters, first.server
    for world in (first, copy):
        world.use(10.0, 1)
        assert world.report().complete
    assert first.billed() == 610
    first.use(30.0, 6)
    copy.use(31.0, 6)
    assert first.report().complete
    assert [(row.state, row.theirs_wh) for row in copy.report().open] == [(State.CONFLICT, 30)]
    copy.pm.close()


# --- Asking


class Meanwhile(FakeTransport):
    """Something happens after the first question about a customer, before its answer arrives."""

    def __init__(self, server: Loopback, happens: Callable[[], object]) -> None:
        super().__init__(server)
        self._happens: Callable[[], object] | None = happens

    def request(self, method: str, url: str, *args: Any, **options: Any) -> Any:
        """As the loopback's."""
        answer = super().request(method, url, *args, **options)
        if self._happens is not None and method == "get" and "/v1/customers/" in url:
            happens, self._happens = self._happens, None
            happens()
        return answer


def sink_of(transport: FakeTransport, world: World) -> StripeMeterSink:
    """A sink by that transport."""
    meters = HourMeters(world.pm, meters_of(world.pm))
    return StripeMeterSink(make_client(Secret(API_KEY, KEY), {}, transport), meters)


def test_of_two_that_claim_at_once_the_first_has_the_customer(world: World) -> None:
    """Both have read that it is nobody's; Stripe takes one, and the other knows it at its next
    question.
    """
    world.sink()
    theirs = sink_of(FakeTransport(world.server), world)
    meanwhile = Meanwhile(world.server, lambda: theirs.claim(CUSTOMER, "b" * 16))
    ours = sink_of(meanwhile, world)
    with pytest.raises(CannotSayNow, match="does not say which ledger bills cus_"):
        ours.claim(CUSTOMER, "a" * 16)
    assert ours.claim(CUSTOMER, "a" * 16) == "b" * 16
    assert theirs.claim(CUSTOMER, "b" * 16) == "b" * 16


def test_stripe_is_asked_once_a_day_whose_customer_it_is(first: World) -> None:
    """As long as there is something to send."""
    path = f"/v1/customers/{CUSTOMER}"
    assert [one for one in first.server.requests if one.path == path] == [
        ("GET", path),
        ("POST", path),
    ]
    for hours_ago in (-1, -30, -31):
        pass_time([first], -hours_ago + 2 + THIS_HOUR - int(first.now // HOUR))
        first.use(10.0, hours_ago)
        assert first.report().complete
    gets = [one for one in first.server.requests if one == ("GET", path)]
    assert len(gets) == 2


def test_a_claimed_customer_is_billed_while_stripe_does_not_say(first: World) -> None:
    """As it was the last time, so it is."""
    pass_time([first], 30)
    first.use(10.0, -29)
    sink = first.sink()
    first.server.broken = ("/v1/customers",)
    assert first.usage.report(sink).complete
    assert first.billed() == 610


def test_what_is_known_of_a_customer_is_kept_beside_whose_it_is(world: World) -> None:
    """One row has both, and each is noted by itself."""
    with tables(world.pm) as conn:
        note_claim(conn, CUSTOMER, Claim("a" * 16, 1.0))
        note_customer(conn, CUSTOMER, 2.0, "no subscription", False)
        assert claims(conn) == {CUSTOMER: Claim("a" * 16, 1.0)}
        note_claim(conn, CUSTOMER, Claim("b" * 16, 3.0))
        assert customer_problems(conn) == {CUSTOMER: "no subscription"}
        recheck_customer(conn, CUSTOMER)
        assert claims(conn) == {CUSTOMER: Claim("b" * 16, 3.0)}


@pytest.mark.parametrize("fault", ["broken", "forbidden"])
def test_usage_waits_as_long_as_nobody_says_whose_customer_it_is(world: World, fault: str) -> None:
    """Of a customer that was never claimed; the next run goes on."""
    world.link()
    world.use(10.0, 2)
    sink = world.sink()
    setattr(world.server, fault, ("/v1/customers",))
    done = world.usage.report(sink)
    assert [(row.state, row.attempts) for row in done.open] == [(State.QUEUED, 0)]
    assert "which ledger bills" in str(done.open[0].reason)
    assert world.server.events == []
    setattr(world.server, fault, ())
    assert world.report().complete
    assert world.billed() == 10


def test_after_three_customers_of_whom_nothing_is_said_the_others_wait(world: World) -> None:
    """A Stripe that does not answer is not asked for each of thousands."""
    for number in range(6):
        world.add_device(f"d{number}")
        world.link(f"d{number}", f"cus_Nr{number}")
        world.use(10.0, 2, f"d{number}")
    sink = world.sink()
    world.server.broken = ("/v1/customers",)
    assert len(world.usage.report(sink).open) == 6
    asked = {path for _, path in world.server.requests if path.startswith("/v1/customers")}
    assert len(asked) == 3


def test_a_customer_that_stripe_does_not_have_waits(world: World) -> None:
    """What was sent for it would be nobody's."""
    world.server = Loopback(lambda: world.true_now, knows_customers=True)
    world.link()
    world.use(10.0, 2)
    assert [row.reason for row in world.report().open] == ["the biller has no such customer"]
    world.server.catalog.add_customer(CUSTOMER)
    world.server.catalog.objects["customer"][CUSTOMER] = {"id": CUSTOMER, "deleted": True}
    assert [row.reason for row in world.report().open] == ["the biller has no such customer"]
    assert world.server.events == []


# --- CSV


def test_two_ledgers_in_one_csv_file(tmp_path: Path) -> None:
    """The rows of a customer are of the ledger that they name; another one waits, or takes over
    with a row's copy.
    """
    path = tmp_path / "usage.csv"
    sink = CsvSink(path)
    event = UsageEvent(CUSTOMER, THIS_HOUR - 4, 0, 200)
    assert sink.claim(CUSTOMER, "a" * 16) == "a" * 16
    sink.send([event])
    assert path.read_text().splitlines()[1].endswith(f",0,200,{'a' * 16}")
    other = CsvSink(path)
    assert other.claim(CUSTOMER, "b" * 16) == "a" * 16
    assert other.claim(CUSTOMER, "b" * 16, take_over=True) == "b" * 16
    assert CsvSink(path).claim(CUSTOMER, "a" * 16) == "b" * 16
    assert other.recorded(CUSTOMER, range(THIS_HOUR - 9, THIS_HOUR)) == {THIS_HOUR - 4: 200}
    assert other.send([event])[0].outcome.value == "known"
    assert other.claim("cus_New", "c" * 16) == "c" * 16, "another customer is nobody's"


def test_a_second_ledger_at_a_csv_file_waits(world: World, tmp_path: Path) -> None:
    """Equal hours of two files are not one."""
    other = World(tmp_path / "other.db")
    for one in (world, other):
        one.link()
        one.use(10.0, 3)
    sink = CsvSink(tmp_path / "usage.csv")
    assert world.usage.report(sink, compare=True).complete
    done = other.usage.report(CsvSink(sink.path), compare=True)
    assert [row.state for row in done.open] == [State.QUEUED]
    assert id_of(world) in str(done.open[0].reason)
    assert len(sink.path.read_text().splitlines()) == 2
    other.pm.close()


# --- The tables' statements


def test_every_table_is_copied_and_forgotten(world: World) -> None:
    """The statements name each table of the schema with as many columns as it has."""
    with tables(world.pm) as conn:
        sql = """SELECT name FROM sqlite_master
            WHERE type = 'table' AND name LIKE 'billing@_%' ESCAPE '@'"""
        names = {name for (name,) in conn.execute(sql)}
        of_table = "SELECT name FROM pragma_table_info(?)"
        columns = {
            name: [column for (column,) in conn.execute(of_table, (name,))] for name in names
        }
    copied = {}
    for select, insert in _COPY:
        name = select.rpartition(" ")[2]
        assert f" {name} " in insert
        copied[name] = insert.count("?")
    assert copied == {name: len(found) for name, found in columns.items()}
    cleared = {statement.rpartition(" ")[2] for statement in _CLEAR}
    assert cleared == names - {"billing_settings", "billing_links"}
    forgotten = {statement.split()[2] for statement in _FORGET_CUSTOMER}
    assert forgotten == {name for name, found in columns.items() if "customer" in found}
