"""Usage from a fleet's engine: by the commands, over many files, in stories, and through real
servers.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fragile import FragileLedger, Fuse
from hypothesis import HealthCheck, given, settings
from loopback import Loopback
from power_billing.cli import CLICKHOUSE, main
from power_billing.errors import BillingError
from power_billing.hours import iso
from power_billing.ledger import LOOK_BACK_DAYS
from power_billing.links import link, links_of, unlink
from power_billing.sources import ALL_DAYS, UsageSource, source_of
from power_billing.tables import LedgerFile, tables
from power_billing.usage import Run, status
from power_billing.webhooks import shut_down_devices
from shop import ALICE, BOB, PRICED, Commands, add_used_device, at_stripe
from test_billing_properties import Episode, Story, live, stories
from world import CUSTOMER, HOUR, MAX_GAP, NOW, World

from power_manager import NotFound, PowerManager

pytest.importorskip("chdb", reason="chdb is for Python 3.11 and later here")

from fleet_harness import carry, emptied
from fleet_world import URL, CarriedDevices, Carrier, FleetWorld
from power_billing import fleet_usage
from power_billing.fleet_usage import FleetDevices
from power_fleet import schema
from power_fleet import tables as fleet_tables
from power_fleet.engine import Engine

THIS_HOUR = int(NOW // HOUR)
# Each takes some hundred times as long as a file's.
STORIES = int(os.environ.get("BILLING_EXAMPLES", "250")) // 50


@pytest.fixture
def world(engine: object, tmp_path: Path) -> Iterator[FleetWorld]:
    """A fleet of one device."""
    made = FleetWorld(tmp_path / "power.db")
    yield made
    made.pm.close()


# --- Many files, one customer


def test_one_customers_devices_log_into_many_files(world: FleetWorld, tmp_path: Path) -> None:
    """Equal hours of eight files add up, and a late reading of one of them is a revision."""
    files = []
    for number in range(8):
        pm = PowerManager(tmp_path / f"{number}.db", max_gap=MAX_GAP, durability="normal")
        files.append(pm)
        pm.register_device(f"d{number:03}", f"Device {number}")
        meter = pm.add_meter(f"d{number:03}", "main").id
        for second in (600, 2040):
            pm.log_power(meter, 25.0, 1.0, timestamp=(THIS_HOUR - 3) * HOUR + second)
        carry(pm, world.engine)
        link(world.devices, f"d{number:03}", CUSTOMER, since=NOW - 9 * HOUR, clock=lambda: NOW)
    assert world.report().complete
    assert world.billed() == 80
    (late,) = files[5].list_meters("d005")
    files[5].log_power(late.id, 25.0, 1.0, timestamp=(THIS_HOUR - 3) * HOUR + 2400)
    carry(files[5], world.engine)
    assert world.report().complete
    assert world.billed() == 82
    for pm in files:
        pm.close()


def questions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many devices each question to the engine is about, from now on."""
    asked: list[int] = []
    whole = FleetDevices._ask

    def ask(devices: FleetDevices, device_ids: Any, days: float) -> Any:
        asked.append(len(device_ids))
        return whole(devices, device_ids, days)

    monkeypatch.setattr(FleetDevices, "_ask", ask)
    return asked


def test_devices_are_asked_about_many_at_a_time(
    world: FleetWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with nothing new asks the engine one question for many devices, not one for each."""
    for number in range(7):
        world.add_device(f"d{number}")
        world.link(f"d{number}")
        world.use(10.0, 3, f"d{number}")
    assert world.report().complete
    asked = questions(monkeypatch)
    assert world.report().complete
    assert asked == [7]
    monkeypatch.setattr(fleet_usage, "AT_ONCE_DAYS", 5 * LOOK_BACK_DAYS)
    assert world.report().complete
    assert asked == [7, 5, 2]
    source = source_of(world.devices)
    assert isinstance(source, UsageSource)
    assert source.usage("d6", ALL_DAYS)
    assert asked == [7, 5, 2, 1], "what nobody announced is asked about by itself"


def test_a_device_of_two_customers_is_asked_about_with_each_of_them(
    world: FleetWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has changed hands: the questions stay as many as the devices of both, five at a time, and
    the bills exact.
    """
    for number in range(8):
        world.add_device(f"d{number}")
        world.link(f"d{number}", "cus_First", hours_ago=30)
        world.use(10.0, 20, f"d{number}")
        world.use(5.0, 2, f"d{number}")
        unlink(world.devices, f"d{number}", clock=lambda: NOW - 9 * HOUR)
        world.link(f"d{number}", "cus_Second", hours_ago=8)
    assert world.report().complete
    assert (world.billed("cus_First"), world.billed("cus_Second")) == (80, 40)
    asked = questions(monkeypatch)
    monkeypatch.setattr(fleet_usage, "AT_ONCE_DAYS", 5 * LOOK_BACK_DAYS)
    assert world.report().complete
    assert asked == [5, 5, 5, 1]


def test_a_device_that_the_fleet_does_not_have(world: FleetWorld) -> None:
    """It cannot be linked, and one that was deleted stays billed."""
    with pytest.raises(NotFound, match="no device 'ghost' in the fleet"):
        link(world.devices, "ghost", CUSTOMER)
    assert source_of(world.devices).usage("ghost", 1.0) is None
    world.link()
    world.use(10.0, 3)
    assert world.report().complete
    world.pm.delete_device("edge")
    assert world.report().complete
    assert status(world.devices, clock=lambda: world.now).deleted == ["edge"]
    assert world.billed() == 10


def test_an_engine_that_keeps_too_little_is_refused(world: FleetWorld) -> None:
    """Hours that it has let go would look as if somebody had deleted them."""
    world.link()
    world.use(10.0, 3)
    assert world.report().complete
    for shard in world.engine.shards:
        shard.insert("power_keep", fleet_tables.KEEP, [["hours", 30, 0, 1]])
    with pytest.raises(BillingError, match=r"keeps hours since 2026-08-.* --keep-hours 110"):
        world.report()
    for shard in world.engine.shards:
        shard.insert("power_keep", fleet_tables.KEEP, [["hours", 110, 0, 2]])
    assert world.report().complete


def test_an_engine_that_does_not_answer_is_said(tmp_path: Path) -> None:
    """And nothing is taken for zero."""
    devices = FleetDevices(["http://127.0.0.1:9"], LedgerFile(tmp_path / "ledger.db"))
    with pytest.raises(BillingError, match="the fleet's engine does not answer"):
        devices.usage("edge", 1.0)
    with pytest.raises(BillingError, match="the fleet's engine does not answer"):
        status(devices)


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    """By what it is."""
    with pytest.raises(TypeError, match="expected a PowerManager or a UsageSource"):
        source_of(LedgerFile(tmp_path / "x.db"))  # type: ignore[arg-type]


# --- By the commands


class FleetShop(Commands):
    """A fleet's engine with devices `edge` and `twin`, which have used 10.5 Wh in each of three
    hours, and Stripe.
    """

    def __init__(self, folder: Path, stripe: Loopback, capsys: pytest.CaptureFixture[str]) -> None:
        self.ledger, self.stripe = folder / "ledger.db", stripe
        super().__init__(
            ["--fleet", "--clickhouse", URL, "--ledger", str(self.ledger)], capsys, stripe.clock
        )
        self.engine = Engine(emptied([URL]))
        for customer in (ALICE, BOB):
            stripe.catalog.add_customer(customer)
        for device in ("edge", "twin"):
            with PowerManager(folder / f"{device}.db", max_gap=1500) as pm:
                add_used_device(pm, device, self.hour)
                carry(pm, self.engine, clock=self.clock)


@pytest.fixture
def shop(
    engine: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[FleetShop]:
    """Nothing is set up yet."""
    with at_stripe(Loopback(lambda: NOW, knows_customers=True), monkeypatch) as server:
        yield FleetShop(tmp_path, server, capsys)


def test_from_setup_to_a_statement(shop: FleetShop) -> None:
    """Every command that asks about devices: their names are the engine's."""
    shop(*PRICED)
    out = shop("subscribe", "edge", "--customer", ALICE, "--since", iso(shop.hour - 10))
    assert out[0].startswith("main ")
    assert out[1] == "edge: 31.500 Wh would be billed of the last 24 hours"
    shop("link", "twin", "--customer", ALICE, "--since", iso(shop.hour - 10))
    assert shop("report", "--dry-run")[-1] == "dry run: 3 hours would be sent"
    assert shop("report")[-1] == "3 hours sent, 0 left"
    assert shop.stripe.billed(ALICE) == 63
    assert shop.json("status")["customers"][0]["billed_wh"] == 63
    month = time.strftime("%Y-%m", time.gmtime((shop.hour - 3) * 3600))
    assert any("Twin" in line for line in shop("statement", "--month", month))
    assert shop("report")[-1] == "0 hours sent, 0 left"
    assert "0 differences" in shop("reconcile")[-1]
    assert shop("unlink", "twin")[0].startswith(f"twin: billed to {ALICE} until ")


def test_the_commands_of_the_readme_run(
    shop: FleetShop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they stand, but for the place of the ledger."""
    monkeypatch.setenv(CLICKHOUSE, URL)
    shop.stripe.catalog.add_customer("cus_Nf1XyzAbc")
    with PowerManager(shop.ledger.with_name("edge-001.db"), max_gap=1500) as pm:
        pm.register_device("edge-001", "Edge Node")
        pm.add_meter("edge-001", "main")
        carry(pm, shop.engine, clock=shop.clock)
    chapter = (Path(__file__).parents[1] / "README.md").read_text().partition("## A fleet\n")[2]
    lines = chapter.partition("```console\n")[2].partition("```")[0].splitlines()
    commands = [line.split()[1:] for line in lines if line.startswith("power-billing ")]
    assert len(commands) == 2
    for command in commands:
        where = command.index("--ledger") + 1
        command[where] = str(shop.ledger)
        assert main(command, clock=shop.clock) == 0
    assert capsys.readouterr().out.endswith("0 hours sent, 0 left\n")


def test_who_is_to_be_shut_down_is_said(shop: FleetShop) -> None:
    """No event reaches a fleet's devices: every report names them, until nothing is owed."""
    shop(*PRICED)
    shop("subscribe", "edge", "--customer", ALICE, "--since", iso(shop.hour - 10))
    shop("report")
    sql = """INSERT INTO billing_invoices (invoice, customer, due_at) VALUES ('in_1', ?, 1.0)"""
    ledger = LedgerFile(shop.ledger)
    with tables(ledger) as conn:
        conn.execute(sql, (ALICE,))
    said = f"{ALICE}: shut down edge by hand: a fleet's engine cannot tell the device"
    for _ in range(2):
        assert shop("report", "--quiet", code=1)[-1] == said
    with tables(ledger) as conn:
        assert shut_down_devices(conn) == [("edge", ALICE)]


def test_a_device_that_is_not_there_is_named(shop: FleetShop) -> None:
    """With the command that lists those that are."""
    assert shop("link", "ghost", "--customer", ALICE, "--offline", code=1) == [
        "power-billing: no device has the id 'ghost': `power-fleet latest` lists them"
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fleet", "status"], "--fleet needs the ledger in a file of its own: --ledger FILE"),
        (["--clickhouse", URL, "status"], "--clickhouse is the engine of --fleet: give both"),
        (["--fleet", "--ledger", "x.db", "status"], "--clickhouse: name the shards"),
        (["--fleet", "--ledger", "x.db", "--clickhouse", "ftp://x", "status"], "--clickhouse"),
    ],
)
def test_half_of_what_a_fleet_takes_is_wrong_usage(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2, and nothing is made."""
    for name in (CLICKHOUSE, "POWER_FLEET_HUB", "POWER_BILLING_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_hub_that_does_not_run_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an address the fleet is this machine's hub."""
    monkeypatch.delenv(CLICKHOUSE, raising=False)
    monkeypatch.setenv("POWER_FLEET_HUB", str(tmp_path / "hub"))
    assert main(["--fleet", "--ledger", str(tmp_path / "x.db"), "status"]) == 1
    assert "is not running" in capsys.readouterr().err


def test_the_environment_names_the_engine(
    shop: FleetShop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it does for power-fleet."""
    monkeypatch.setenv(CLICKHOUSE, URL)
    assert main(["--fleet", "--ledger", str(shop.ledger), "status"]) == 0
    assert capsys.readouterr().out == "no usage has been sent yet\n"


def test_without_fleet_nothing_of_it_is_loaded(tmp_path: Path) -> None:
    """Who bills one file needs no client of an engine; who asks for a fleet without one is told
    what to install.
    """
    program = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("clickhouse_connect", "nats"):
            raise ModuleNotFoundError("not here", name=name)
sys.meta_path.insert(0, Blocker())
from power_billing.cli import main
code = main(["--db", "power.db", "status"])
assert code == 0 and not any(name.startswith("power_fleet") for name in sys.modules)
sys.exit(main(["--fleet", "--ledger", "x.db", "--clickhouse", "http://127.0.0.1:9", "status"]))
"""
    PowerManager(tmp_path / "power.db").close()
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{program}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 1, run.stderr
    assert " is not installed: pip install '.[billing,fleet]'" in run.stderr


# --- Through real servers


@pytest.mark.slow
def test_through_a_stream_into_a_server(tmp_path: Path) -> None:
    """Four files of two customers by NATS into a ClickHouse of its own; then late readings and a
    deletion.
    """
    from pipeline import drained, running_sink, send, streams
    from power_fleet.stream import Nats
    from servers import Servers

    files: dict[str, PowerManager] = {}
    for number in range(4):
        device_id = f"d{number}"
        pm = PowerManager(tmp_path / f"{number}.db", max_gap=MAX_GAP, clock=lambda: NOW)
        files[device_id] = pm
        pm.register_device(device_id, device_id)
        pm.add_meter(device_id, "main")
        log(pm, device_id, 5, 10.25 * (number + 1))
        log(pm, device_id, 3, 3.5)
    stripe = World(tmp_path / "stripe.db")
    with Servers(tmp_path) as servers:
        servers.start_nats(1)
        servers.start_clickhouse(1)
        engine = Engine(servers.clickhouse_urls)
        schema.create(engine)
        nats = Nats(servers.nats[0].url)

        async def carry_all() -> None:
            async with running_sink(engine, nats):
                for pm in files.values():
                    await send(pm, nats)
                await drained(nats)

        asyncio.run(streams(nats))
        asyncio.run(carry_all())
        ledger = LedgerFile(tmp_path / "ledger.db")
        devices = FleetDevices(servers.clickhouse_urls, ledger, lambda: NOW)
        stripe.devices = devices
        run = Run(devices, clock=lambda: NOW)
        for number, device_id in enumerate(files):
            customer = ("cus_Even", "cus_Odd")[number % 2]
            link(devices, device_id, customer, since=NOW - 99 * HOUR, clock=lambda: NOW)
        assert run.report(stripe.sink(), compare=True).complete
        assert stripe.server.hours("cus_Even") == {THIS_HOUR - 5: 41, THIS_HOUR - 3: 7}
        assert stripe.server.hours("cus_Odd") == {THIS_HOUR - 5: 61, THIS_HOUR - 3: 7}
        log(files["d2"], "d2", 4, 100.0)
        files["d0"].delete_readings(files["d0"].list_meters("d0")[0].id, until=NOW - 4 * HOUR)
        asyncio.run(carry_all())
        done = run.report(stripe.sink())
        assert [(one.device_id, one.watt_hours) for one in done.kept] == [("d0", -10.25)]
        assert stripe.server.billed("cus_Even") == 48 + 100
        assert {one.device_id for one in links_of(devices)} == set(files)
        unlink(devices, "d0", clock=lambda: NOW)
    stripe.pm.close()
    for pm in files.values():
        pm.close()


def log(pm: PowerManager, device_id: str, hours_ago: int, watt_hours: float) -> None:
    """Let a device consume that much in one hour."""
    (meter,) = pm.list_meters(device_id)
    for second in (600, 2040):
        at = (THIS_HOUR - hours_ago) * HOUR + second
        pm.log_power(meter.id, watt_hours / 0.4, 1.0, timestamp=at)


# --- Stories


@dataclass
class FleetStory(Story):
    """A story whose readings go through an engine."""

    folder: Path = Path()

    def __post_init__(self) -> None:
        World.__init__(self, ":memory:", self.newest_by)
        self.carrier = Carrier(Engine(emptied([URL])))
        ledger = FragileLedger(self.folder / "ledger.db")
        ledger.fuse = self.fuse = Fuse()
        self.devices = CarriedDevices(ledger, self.carry_all, lambda: self.now)
        self.begin()

    def carry_all(self) -> None:
        """What the forwarder and a sink do."""
        self.carrier.carry(self.pm)


@pytest.mark.slow
@settings(
    max_examples=STORIES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(stories())
def test_billed_is_the_floor_of_consumed_in_a_fleet(
    engine: object, episodes: list[Episode]
) -> None:
    """The stories that billing of a file goes through: late readings, crashes, lost answers, clock
    jumps.
    """
    with tempfile.TemporaryDirectory() as folder:
        end = live(FleetStory(folder=Path(folder)), episodes)
    assert end.billed_wh == end.consumed_wh
