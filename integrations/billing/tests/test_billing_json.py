"""`report`, `reconcile` and `resolve` with --json: what their text says, as one object."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from loopback import Loopback
from power_billing.cli import main
from power_billing.hours import iso
from power_billing.links import has_links
from power_billing.outbox import State, revise
from power_billing.tables import has_tables, tables
from shop import ALICE, BOB, PRICED, Shop, at_stripe
from tariffs import BY_TURNS

from power_manager import PowerManager

ROOT = Path(__file__).resolve().parents[3]
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "integrations/billing")])
EVENT_KEYS = [
    "identifier",
    "customer",
    "hour",
    "period",
    "revision",
    "energy_wh",
    "biller_wh",
    "state",
    "attempts",
    "reason",
]


@pytest.fixture
def shop(shop: Shop) -> Shop:
    """Alice is billed by the device `edge`: 10, 11 and 10 Wh, of which nothing has been sent."""
    shop(*PRICED)
    shop.subscribe()
    return shop


@pytest.fixture
def shop_of_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Shop]:
    """The same by this machine's own clock, which is that of another process."""
    with at_stripe(Loopback(time.time, knows_customers=True), monkeypatch) as server:
        made = Shop(tmp_path / "power.db", server, capsys)
        made(*PRICED)
        made.subscribe()
        yield made


@pytest.fixture
def to_csv(tmp_path: Path) -> tuple[str, ...]:
    """The options of a CSV file as the biller."""
    return ("--sink", "csv", "--csv", str(tmp_path / "usage.csv"))


def energies(events: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    """Customer, hour and watt-hours of events."""
    return [(event["customer"], event["hour"], event["energy_wh"]) for event in events]


def of_three_hours(shop: Shop) -> list[tuple[str, str, int]]:
    """What Alice used."""
    amounts_wh = {4: 10, 3: 11, 2: 10}
    return [(ALICE, iso(shop.hour - ago), wh) for ago, wh in amounts_wh.items()]


def facts(text: str) -> set[str]:
    """Customers, hours, watt-hours and reasons that a text names."""
    words = re.findall(r"cus_\w+|\d{4}-\d\d-\d\dT\d\d:\d\dZ|(?<!\S)-?\d+(?= Wh)", text)
    return {*words, *re.findall(r"(?<=times: ).+", text)}


# --- report


def test_a_dry_run_says_what_the_report_then_sends(shop: Shop) -> None:
    """Event by event; it sends and keeps nothing itself."""
    would = shop.json("report", "--dry-run")
    assert list(would) == ["is_dry_run", "would_send"]
    assert would["is_dry_run"] is True
    assert [list(event) for event in would["would_send"]] == [EVENT_KEYS] * 3
    assert energies(would["would_send"]) == of_three_hours(shop)
    assert {event["state"] for event in would["would_send"]} == {"queued"}
    assert shop.stripe.events == []
    done = shop.json("report")
    assert (done["is_dry_run"], done["is_complete"]) == (False, True)
    assert energies(done["sent"]) == energies(would["would_send"])
    names = [event["identifier"] for event in would["would_send"]]
    assert [event["identifier"] for event in done["sent"]] == names
    assert shop.stripe.billed(ALICE) == 31


def test_an_object_whatever_there_is_to_say(shop: Shop) -> None:
    """The same keys with nothing in them: a program need not look whether they are there."""
    done = shop.json("report")
    account = done["account"]
    assert account.startswith("stripe:mtr_")
    assert shop.json("report") == {
        "is_dry_run": False,
        "is_complete": True,
        "account": account,
        "told_device_count": 0,
        "sent": [],
        "open": [],
        "too_old": [],
        "lost": [],
        "kept": [],
        "reconciliation": None,
        "problems": [],
    }
    assert done["reconciliation"] == {
        "differences": [],
        "not_compared": {},
        "settling_hour_count": 3,
    }


def test_watt_hours_are_whole_numbers(shop: Shop) -> None:
    """As the biller counts them: no 10.0."""
    printed = shop.printed("report", "--dry-run", "--json")
    assert re.findall(r'"energy_wh": (\S+),', printed.out) == ["10", "11", "10"]


def test_what_is_left_is_there_with_its_reason(shop: Shop) -> None:
    """And the exit code is that of the text."""
    shop.stripe.faults.extend(["400-before"])
    done = shop.json("report", code=1)
    (left,) = done["open"]
    assert (left["state"], left["attempts"]) == ("refused", 1)
    assert left["reason"].startswith("InvalidRequestError: as told")
    assert energies([left, *done["sent"]]) == of_three_hours(shop)
    assert done["is_complete"] is False
    assert shop.json("status")["open"] == [left]
    assert shop.json("report", "--dry-run", "--retry-refused")["would_send"][0]["revision"] == 1
    assert energies(shop.json("report", "--retry-refused")["sent"]) == [of_three_hours(shop)[0]]


def test_what_is_lost_is_there_and_what_has_no_energy_has_none(
    shop: Shop, to_csv: tuple[str, ...]
) -> None:
    """Late energy with its watt-hours, a silent device with null: nobody measured it."""
    old = shop.hour - 40 * 24
    with PowerManager(shop.db) as pm:
        with tables(pm) as conn:
            conn.execute("UPDATE billing_links SET from_hour = ?", (old - 5,))
        (meter,) = pm.list_meters("edge")
        for second in (600, 2040):
            pm.log_power(meter.id, 10.0, 1.0, timestamp=old * 3600 + second)
        pm.register_device("mute", "Mute")
    shop("link", "mute", "--customer", BOB, "--offline", "--since", iso(shop.hour - 30 * 24))
    lost = {finding["kind"]: finding for finding in shop.json("report", *to_csv, code=1)["lost"]}
    assert (lost["late"]["energy_wh"], lost["late"]["hour"]) == (4.0, iso(old))
    assert (lost["silent"]["energy_wh"], lost["silent"]["device_id"]) == (None, "mute")
    assert lost["silent"]["text"].startswith(f"not billed: {BOB} mute no readings since")
    listed = shop.json("resolve", code=1)
    assert listed["lost"] == list(lost.values())
    kept = shop.json("resolve", "--keep", "--all")
    assert (kept["decision"], kept["accepted_loss_count"]) == ("keep", 2)
    accepted = shop.json("status")["findings"]
    assert [finding["is_accepted"] for finding in accepted] == [True, True]


def test_what_stays_billed_is_there(shop: Shop, to_csv: tuple[str, ...]) -> None:
    """Of a device that is deleted; nothing is to be done about it, so the exit code is 0."""
    shop.json("report", *to_csv)
    with PowerManager(shop.db) as pm:
        pm.delete_device("edge")
    done = shop.json("report", *to_csv)
    assert {finding["kind"] for finding in done["kept"]} == {"kept"}
    assert sum(finding["energy_wh"] for finding in done["kept"]) == pytest.approx(-31.5)
    assert done["is_complete"] is True


def test_devices_that_were_told_are_counted(shop: Shop, to_csv: tuple[str, ...]) -> None:
    """Once, by the report after the grace period."""
    with PowerManager(shop.db) as pm, tables(pm) as conn:
        sql = "INSERT INTO billing_invoices (invoice, customer, due_at) VALUES ('in_1', ?, ?)"
        conn.execute(sql, (ALICE, shop.clock() - 1))
    assert shop.json("report", *to_csv)["told_device_count"] == 1
    assert shop.json("report", *to_csv)["told_device_count"] == 0


def test_an_hour_too_old_to_be_sent_is_apart(shop: Shop) -> None:
    """No report can send it, so it is not among what is open."""
    old = shop.hour - 40 * 24
    with PowerManager(shop.db) as pm, tables(pm) as conn:
        revise(conn, ALICE, old, 7)
    done = shop.json("report", code=1)
    assert energies(done["too_old"]) == [(ALICE, iso(old), 7)]
    assert done["open"] == []
    assert energies(shop.json("resolve", code=1)["too_old"]) == [(ALICE, iso(old), 7)]


def test_hours_of_a_tariff_name_their_period(shop: Shop, tmp_path: Path) -> None:
    """As the column of the text."""
    other = ("--ledger", str(tmp_path / "tariff.db"))
    tariff = shop.tariff(BY_TURNS)
    shop(*other, *tariff, "--meter", "by_turns")
    shop(*other, "subscribe", "edge", "--customer", BOB, "--since", iso(shop.hour - 10))
    names = {1: "odd", 0: "even"}
    periods = [names[(shop.hour - ago) % 2] for ago in (4, 3, 2)]
    would = shop.json(*other, "report", "--dry-run")["would_send"]
    assert [event["period"] for event in would] == periods
    assert [event["period"] for event in shop.json(*other, "report")["sent"]] == periods


def test_the_problems_at_stripe_are_there(shop: Shop) -> None:
    """Of a customer without a subscription."""
    for subscription in shop.objects("subscription"):
        subscription["status"] = "canceled"
    (problem,) = shop.json("report", code=1)["problems"]
    assert problem.startswith(f"at Stripe: {ALICE}: ")


def test_quiet_and_json_are_wrong_usage(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """One asks for no output where all is well, the other for one object always."""
    with pytest.raises(SystemExit, match="2"):
        shop("report", "--quiet", "--json")
    assert "--quiet is for text: leave out --quiet or --json" in capsys.readouterr().err


def test_metrics_that_cannot_be_written_hide_nothing(shop: Shop, tmp_path: Path) -> None:
    """What was sent is said, in text and in JSON, and then what failed, with exit code 1."""
    missing = str(tmp_path / "missing" / "x.prom")
    out = shop("report", "--until", iso(shop.hour - 2), "--metrics-file", missing, code=1)
    assert "2 hours sent, 0 left" in out
    assert missing in out[-1]
    printed = shop.printed("report", "--json", "--metrics-file", missing, code=1)
    assert energies(json.loads(printed.out)["sent"]) == of_three_hours(shop)[-1:]
    assert printed.err.startswith(f"power-billing: {missing}")
    assert printed.err.count("\n") == 1


# --- reconcile


def test_differences_are_there_with_their_events(shop: Shop, to_csv: tuple[str, ...]) -> None:
    """And what was repaired; a difference is ours beside the biller's."""
    shop.json("report", *to_csv)
    clean = shop.json("reconcile", *to_csv)
    assert clean["account"].startswith("csv:")
    assert (clean["differences"], clean["not_compared"], clean["repair"]) == ([], {}, None)
    assert clean["until"] == iso(shop.hour)
    Path(to_csv[-1]).unlink()
    listed = "\n".join(shop("reconcile", *to_csv, code=1))
    found = shop.json("reconcile", *to_csv, code=1)
    of_hours = [(one["customer"], one["hour"], one["energy_wh"]) for one in found["differences"]]
    assert of_hours == of_three_hours(shop)
    first, *_ = found["differences"]
    assert (first["day"], first["period"]) == (iso(shop.hour - 4)[:10], None)
    assert (first["biller_wh"], first["misplaced_wh"], first["is_foreign"]) == (0, 0, False)
    assert [event["state"] for event in first["events"]] == ["sent"]
    assert facts(listed) - facts_of(found) <= day_sums(found)
    assert (
        shop.json("report", *to_csv, code=1)["reconciliation"]["differences"]
        == (found["differences"])
    )
    done = shop.json("reconcile", "--repair", *to_csv)
    assert done["repair"] == {
        "repaired": [{"customer": ALICE, "hour": hour} for _, hour, _ in of_three_hours(shop)],
        "queued_hour_count": 3,
        "too_old_count": 0,
        "misplaced_count": 0,
        "foreign_hour_count": 0,
    }


def facts_of(found: object) -> set[str]:
    """Every value of an object, as a text would have it."""
    return set(re.findall(r'[^\s",\[\]{}]+', json.dumps(found)))


def day_sums(found: dict[str, Any]) -> set[str]:
    """What the text sums by day, and JSON leaves to its reader."""
    sums: dict[str, int] = {}
    for one in found["differences"]:
        sums[one["day"]] = sums.get(one["day"], 0) + one["energy_wh"]
    return {str(energy_wh) for energy_wh in sums.values()}


def test_what_cannot_be_repaired_is_counted(shop: Shop, to_csv: tuple[str, ...]) -> None:
    """An hour that was never sent from here, and one that is too old."""
    shop.json("report", *to_csv)
    old = shop.hour - 50 * 24
    with PowerManager(shop.db) as pm, tables(pm) as conn:
        revise(conn, ALICE, old, 7, State.KEPT)
    path = Path(to_csv[-1])
    _, row, *_ = path.read_text().splitlines()
    ledger = row.rpartition(",")[2]
    foreign = shop.hour - 9
    with path.open("a") as file:
        file.write(f"x,{ALICE},{iso(foreign)},0,5,{ledger}\n")
    now = shop.json("reconcile", *to_csv, code=1)
    assert [(one["hour"], one["is_foreign"]) for one in now["differences"]] == [
        (iso(foreign), True)
    ]
    assert now["differences"][0]["events"] == []
    done = shop.json("reconcile", "--repair", *to_csv, code=1)["repair"]
    assert (done["foreign_hour_count"], done["queued_hour_count"]) == (1, 0)
    (conflict,) = shop.json("resolve", code=1)["conflicts"]
    assert (conflict["energy_wh"], conflict["biller_wh"]) == (0, 5)


def test_a_customer_that_cannot_be_compared_is_named(shop: Shop, tmp_path: Path) -> None:
    """With the reason, and exit code 1."""
    shop.json("report")
    other = ("--ledger", str(tmp_path / "other.db"))
    shop(*other, "setup")
    shop(*other, "link", "edge", "--customer", ALICE, "--since", iso(shop.hour - 10))
    shop(*other, "report", code=1)
    found = shop.json(*other, "reconcile", code=1)
    assert list(found["not_compared"]) == [ALICE]
    assert "bills this customer" in found["not_compared"][ALICE]


# --- resolve


def take_from_elsewhere(shop: Shop, values: dict[int, int]) -> None:
    """Let Stripe have other values of hours (so many ago) than this ledger is about to send."""
    for hours_ago, value in values.items():
        hour = shop.hour - hours_ago
        identifier = f"{ALICE}:power_watt_hours:{iso(hour)}:0"
        event = {"name": "power_watt_hours", "identifier": identifier, "customer": ALICE}
        shop.stripe.events.append({**event, "timestamp": hour * 3600, "value": value})
        shop.stripe._identifiers[identifier] = shop.clock()


def test_conflicts_are_listed_and_decided(shop: Shop) -> None:
    """Both values of each; then what was decided about how many."""
    take_from_elsewhere(shop, {4: 77, 3: 88})
    assert len(shop.json("report", code=1)["open"]) == 2
    listed = shop.json("resolve", code=1)
    values = [(one["hour"], one["energy_wh"], one["biller_wh"]) for one in listed["conflicts"]]
    assert values == [(iso(shop.hour - 4), 10, 77), (iso(shop.hour - 3), 11, 88)]
    assert (listed["decision"], listed["kept_hour_count"], listed["queued_hour_count"]) == (
        None,
        0,
        0,
    )
    kept = shop.json("resolve", "--keep", "--hour", iso(shop.hour - 4))
    assert (kept["decision"], kept["kept_hour_count"]) == ("keep", 1)
    assert kept["conflicts"] == listed["conflicts"][:1]
    sent = shop.json("resolve", "--send", "--all")
    assert (sent["decision"], sent["queued_hour_count"]) == ("send", 1)
    assert shop.json("resolve") == {
        "decision": None,
        "kept_hour_count": 0,
        "accepted_loss_count": 0,
        "queued_hour_count": 0,
        "conflicts": [],
        "too_old": [],
        "lost": [],
        "other_ledgers": {},
        "waiting": [],
    }
    shop.json("report")
    assert shop.stripe.billed(ALICE) == 77 + 11 + 10


def test_a_customer_of_another_ledger_is_listed_and_taken_over(shop: Shop, tmp_path: Path) -> None:
    """With that ledger's id, and the hours that wait."""
    shop.json("report")
    other = ("--ledger", str(tmp_path / "other.db"))
    shop(*other, "setup")
    shop(*other, "link", "edge", "--customer", ALICE, "--since", iso(shop.hour - 10))
    shop(*other, "report", code=1)
    listed = shop.json(*other, "resolve", code=1)
    assert energies(listed["waiting"]) == of_three_hours(shop)
    assert listed["other_ledgers"] == shop.json(*other, "status")["other_ledgers"]
    assert shop.json(*other, "resolve", "--take-over", "--customer", ALICE) == {
        "decision": "take_over",
        "customer": ALICE,
    }
    assert len(shop.json(*other, "report")["sent"]) == 3


# --- Where something fails


def run(shop: Shop, *arguments: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    command = [sys.executable, "-m", "power_billing", "--db", str(shop.db), *arguments]
    streams = {"stdout": subprocess.PIPE, **streams}
    return subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=100,
        **streams,
    )


def other_program(path: Path) -> None:
    """A database of another program."""
    with sqlite3.connect(path) as conn:
        conn.execute("CREATE TABLE notes (text)")
        conn.execute("PRAGMA application_id = 4711")
    conn.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--db", "typo.db", "report"], "no such database"),
        (["report", "--sink", "csv", "--csv", "/etc/passwd"], "not a file of this sink"),
        (["--fleet", "--clickhouse", "http://127.0.0.1:9", "report"], "engine does not answer"),
        (["resolve", "--customer", "cus_Typo"], "cus_Typo: no device was ever billed to it"),
        (["resolve", "--keep", "--customer", "cus_Typo"], "cus_Typo: no device was ever billed"),
        (["resolve", "--take-over", "--customer", "cus_Typo"], "cus_Typo: no device was ever"),
        (["report", "--sink", "csv", "--csv", "x\udcff.csv"], "csv: expected text without"),
    ],
)
def test_an_error_is_one_line_and_no_object(
    shop: Shop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: Sequence[str],
    message: str,
) -> None:
    """A program that reads standard output finds it empty, and exit code 1."""
    monkeypatch.chdir(tmp_path)
    if "--fleet" in arguments:
        pytest.importorskip("clickhouse_connect")
        ledger = ("--ledger", str(tmp_path / "ledger.db"))
        shop(*ledger, "link", "edge", "--customer", ALICE, "--offline")
        arguments = [*ledger, *arguments, "--sink", "csv", "--csv", "usage.csv"]
    printed = shop.printed(*arguments, "--json", code=1)
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith("power-billing: ")
    assert message in printed.err


@pytest.mark.parametrize(
    "command", [["report"], ["report", "--dry-run"], ["reconcile"], ["resolve"], ["status"]]
)
def test_a_ledger_of_another_program_is_left_as_it_is(
    shop: Shop, tmp_path: Path, command: list[str]
) -> None:
    """It is named, in one line, and no table is added to it."""
    path = tmp_path / "notes.db"
    other_program(path)
    before = path.read_bytes()
    printed = shop.printed("--ledger", str(path), *command, "--json", code=1)
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert f"{path}: not a ledger: it has tables of another program" in printed.err
    assert path.read_bytes() == before


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--json"], ["--dry-run", "--json"]])
def test_a_ledger_without_links_is_no_success(
    shop: Shop, tmp_path: Path, to_csv: tuple[str, ...], more: list[str]
) -> None:
    """A mistyped --ledger would else be a timer that bills nothing, and says that all is well."""
    typo = tmp_path / "typo.db"
    printed = shop.printed("--ledger", str(typo), "report", *to_csv, *more, code=1)
    assert printed.out == ""
    assert printed.err == (
        f"power-billing: {typo}: no device is linked to a customer: power-billing link does that, "
        "and --ledger names another ledger\n"
    )
    assert not typo.exists()


def test_a_dry_run_without_links_makes_no_tables(tmp_path: Path) -> None:
    """In a database that has never been billed: nothing in it changes."""
    path = tmp_path / "power.db"
    with PowerManager(path) as pm:
        assert not has_links(pm)
        assert main(["--db", str(path), "report", "--dry-run", "--json"]) == 1
        with pm.connection() as conn:
            assert not has_tables(conn)


@pytest.mark.slow
def test_a_reader_that_has_gone_is_no_error(shop_of_today: Shop) -> None:
    """The report is done all the same."""
    shop = shop_of_today
    reading, writing = os.pipe()
    os.close(reading)
    done = run(shop, "report", "--json", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    assert shop.stripe.billed(ALICE) == 31


@pytest.mark.slow
def test_a_full_disk_under_the_output_is_said(shop_of_today: Shop) -> None:
    """With exit code 1; what was sent is in the ledger, and is not sent again."""
    shop = shop_of_today
    with open("/dev/full", "w") as full:
        done = run(shop, "report", "--json", stdout=full)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1
    assert shop.json("report")["sent"] == []
    assert shop.stripe.billed(ALICE) == 31


@pytest.mark.slow
def test_a_killed_report_prints_nothing_and_the_next_one_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL while the second event is under way: there is no half object, and the hours are sent
    once.
    """
    state: dict[str, subprocess.Popen[str]] = {}
    started = threading.Event()
    paths: list[str] = []

    def kill(_: str, path: str) -> None:
        if not path.endswith("meter_events"):
            return
        paths.append(path)
        if len(paths) == 2:
            assert started.wait(20)
            os.kill(state["run"].pid, signal.SIGKILL)
            state["run"].wait(20)

    with at_stripe(Loopback(time.time, knows_customers=True), monkeypatch, kill) as server:
        shop = Shop(tmp_path / "power.db", server, capsys)
        shop(*PRICED)
        shop.subscribe()
        command = [sys.executable, "-m", "power_billing", "--db", str(shop.db), "report", "--json"]
        environ = {**os.environ, "PYTHONPATH": PYTHONPATH}
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as killed:
            state["run"] = killed
            started.set()
            try:
                out, _ = killed.communicate(timeout=60)
            finally:
                killed.kill()
        assert (killed.returncode, out) == (-signal.SIGKILL, "")
        done = shop.json("report")
    assert done["is_complete"] is True
    assert energies(done["sent"]) == of_three_hours(shop)[1:]
    assert server.billed(ALICE) == 31
