"""`power-billing` as a command: what it prints, how it exits, and what a kill -9 leaves."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import KEY, Loopback
from power_billing import BillingError, CannotSayNow, commands_links, sender
from power_billing import cli as cli_module
from power_billing import outbox as outbox_module
from power_billing.cli import main
from power_billing.hours import iso
from power_billing.keys import API_KEY
from power_billing.outbox import Entry
from power_billing.signatures import BadEvent, BadSignature
from power_billing.tables import tables
from prometheus_client.parser import text_string_to_metric_families
from shop import Printed, add_used_device, at_stripe
from world import CUSTOMER, NOW, outbox

from power_manager import PowerManager, PowerManagerError

ROOT = Path(__file__).resolve().parents[3]
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "integrations/billing")])


class Cli:
    """The command over a file whose device has used 10.5 Wh in each of three past hours."""

    def __init__(
        self,
        db: Path,
        capsys: pytest.CaptureFixture[str],
        clock: Callable[[], float] = lambda: NOW,
    ) -> None:
        self.db, self._capsys, self.clock = db, capsys, clock
        self.hour = int(clock() // 3600)
        with PowerManager(db, max_gap=1500) as pm:
            self.meter = add_used_device(pm, "edge", self.hour)

    def __call__(self, *arguments: str, code: int = 0) -> Printed:
        """Run a command; its output and its errors."""
        assert main(["--db", str(self.db), *arguments], clock=self.clock) == code
        captured = self._capsys.readouterr()
        return Printed(captured.out, captured.err)


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """A command over a file with consumption."""
    return Cli(tmp_path / "power.db", capsys)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """A loopback Stripe on a port, and an environment that leads there."""
    with at_stripe(Loopback(lambda: NOW), monkeypatch) as made:
        yield made


def linked(cli: Cli) -> None:
    """Link the device from ten hours ago on."""
    cli(
        "link",
        "edge",
        "--customer",
        CUSTOMER,
        "--subscription-item",
        "si_9",
        "--since",
        iso(cli.hour - 10),
    )


def test_from_setup_to_status(cli: Cli, server: Loopback) -> None:
    """Every command in turn, with what it prints."""
    out, _ = cli("setup")
    assert out == "meter: mtr_test_1 (made)\n"
    out, _ = cli(
        "link", "edge", "--customer", CUSTOMER, "--since", iso(cli.hour - 10), "--types", "main,ups"
    )
    assert out.splitlines() == [
        f"edge: billed to {CUSTOMER} from {iso(cli.hour - 10)} on (main, ups)",
        f"{CUSTOMER}: its usage reaches an invoice",
    ]
    out, _ = cli("report", "--dry-run")
    assert out.splitlines()[-1] == "dry run: 3 hours would be sent"
    assert server.events == []
    out, _ = cli("report", "--until", iso(cli.hour - 3))
    assert out.splitlines()[-1] == "1 hours sent, 0 left"
    out, _ = cli("report", "--sink", "stripe-stream")
    assert [line.split() for line in out.splitlines()] == [
        ["customer", "hour", "watt-hours", "revision"],
        [CUSTOMER, iso(cli.hour - 3), "11", "0"],
        [CUSTOMER, iso(cli.hour - 2), "10", "0"],
        ["2", "hours", "sent,", "0", "left"],
    ]
    assert server.billed(CUSTOMER) == 31
    out, _ = cli("status")
    assert f"{CUSTOMER}: 31 Wh in all; events: 3 sent" in out
    assert "usage goes to stripe:mtr_test_1" in out
    out, _ = cli("unlink", "edge")
    assert out == f"edge: billed to {CUSTOMER} until {iso(cli.hour + 1)}\n"


def test_hours_that_are_left_make_the_exit_code_1(cli: Cli, server: Loopback) -> None:
    """And are listed with the reason, by report and by status, until they are sent."""
    cli("setup")
    linked(cli)
    server.faults.extend(["400-before"])
    out, _ = cli("report", code=1)
    event = f"{CUSTOMER}:power_watt_hours:{iso(cli.hour - 4)}:0 10 Wh"
    assert f"refused: {event}, tried 1 times: InvalidRequestError: as told" in out
    assert "2 hours sent, 1 left" in out
    assert f"refused: {event}" in cli("status").out
    assert "1 hours sent, 0 left" in cli("report", "--retry-refused").out
    assert server.billed(CUSTOMER) == 31


def test_what_came_to_light_too_late_is_said_until_it_is_accepted(cli: Cli, tmp_path: Path) -> None:
    """By the job that runs, with exit code 1, and by status, with its watt-hours."""
    linked(cli)
    old = cli.hour - 40 * 24
    with PowerManager(cli.db) as pm:
        with tables(pm) as conn:
            conn.execute("UPDATE billing_links SET from_hour = ?", (old - 5,))
        for second in (600, 2040):
            pm.log_power(cli.meter, 10.0, 1.0, timestamp=old * 3600 + second)
    late = f"cannot be billed: {CUSTOMER} edge {iso(old)} +4.000 Wh came to light too late"
    report = ("report", "--sink", "csv", "--csv", str(tmp_path / "usage.csv"))
    out, _ = cli(*report, code=1)
    assert late in out
    assert "3 hours sent, 0 left" in out
    assert late in cli("status").out
    assert late in cli("resolve", code=1).out
    assert (
        "0 hours stay as the biller has them, 1 losses accepted"
        in cli("resolve", "--keep", "--all").out
    )
    assert late not in cli(*report).out, "somebody has said that it is to stay so"
    assert f"{late}; accepted" in cli("status").out
    assert cli("resolve").out == "nothing to decide\n"


def test_a_deleted_device_is_said(cli: Cli, tmp_path: Path) -> None:
    """What was billed of it is not taken back, though its readings are gone."""
    linked(cli)
    report = ("report", "--sink", "csv", "--csv", str(tmp_path / "usage.csv"))
    cli(*report)
    with PowerManager(cli.db) as pm:
        pm.delete_device("edge")
    out, _ = cli(*report)
    assert f"stays billed: {CUSTOMER} edge " in out
    assert out.endswith("\n0 hours sent, 0 left\n")
    out, _ = cli("status")
    assert f"edge: {CUSTOMER}, si_9, all that counts, from " in out
    assert "deleted: what was billed of it stays billed\n" in out


def test_status_reads_no_more_of_the_outbox_than_is_open(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Years of hours that were sent are counted in the file, not held in memory."""
    linked(cli)
    with PowerManager(cli.db) as pm, tables(pm) as conn:
        sql = """INSERT INTO billing_outbox (customer, hour, revision, value_wh, state)
            VALUES (?, ?, 0, 5, ?)"""
        conn.executemany(
            sql, [(CUSTOMER, back, "sent" if back else "refused") for back in range(3000)]
        )
    made: list[Entry] = []

    def entry(*parts: Any) -> Entry:
        made.append(Entry(*parts))
        return made[-1]

    monkeypatch.setattr(outbox_module, "Entry", entry)
    out, _ = cli("status")
    assert f"{CUSTOMER}: 0 Wh in all; events: 1 refused, 2999 sent\n" in out
    assert f"too old to be billed: {CUSTOMER}:power_watt_hours:{iso(0)}:0" in out
    assert len(made) == 1


def test_report_tells_the_devices_whose_grace_period_is_over(
    cli: Cli, server: Loopback, tmp_path: Path
) -> None:
    """A timer's run does what no delivery has come to do."""
    linked(cli)
    with PowerManager(cli.db) as pm, tables(pm) as conn:
        sql = "INSERT INTO billing_invoices (invoice, customer, due_at) VALUES ('in_1', ?, ?)"
        conn.execute(sql, (CUSTOMER, cli.clock() - 1))
    assert (
        "1 devices told to shut down"
        in cli("report", "--sink", "csv", "--csv", str(tmp_path / "u.csv")).out
    )
    assert "told" not in cli("report", "--sink", "csv", "--csv", str(tmp_path / "u.csv")).out
    with PowerManager(cli.db) as pm:
        assert [(event.type.value, event.note) for event in pm.get_events("edge")] == [
            ("shutdown", "billing: in_1 is not paid")
        ]


def test_a_clock_that_is_ahead_ends_no_grace_period(
    cli: Cli, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stripe's clock counts: this machine's is four days ahead of it, and then both are right."""
    monkeypatch.setattr(sender, "PAUSES", ())
    told = "shut down"
    server.clock = lambda: NOW - 4 * 86_400
    cli("setup")
    linked(cli)
    with PowerManager(cli.db) as pm, tables(pm) as conn:
        sql = "INSERT INTO billing_invoices (invoice, customer, due_at) VALUES ('in_1', ?, ?)"
        conn.execute(sql, (CUSTOMER, server.clock() + 86_400))
    assert f"0 devices told to {told}" in cli("report", code=1).out, (
        "nor does Stripe take hours of its future"
    )
    server.clock = cli.clock
    assert f"1 devices told to {told}" in cli("report").out


def test_a_link_shows_its_choice_and_wants_a_yes(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where main and ups may measure the same energy; --types and --yes are one, and a yes on a
    terminal.
    """
    with PowerManager(cli.db) as pm:
        pm.add_meter("edge", "ups", name="Rack UPS")
    arguments = ("link", "edge", "--customer", CUSTOMER)
    out, err = cli(*arguments, code=1)
    assert "31.500 Wh in the last 24 hours" in out
    assert "ups Rack UPS: 0.000 Wh, not counted: the main meter measures it already" in out
    assert "edge: 31.500 Wh would be billed of the last 24 hours" in out
    assert "choose by --types. Bill it like this? There is no terminal to ask: give --yes" in err
    assert "edge" not in cli("status").out
    monkeypatch.setattr(commands_links, "confirm", lambda *_, **__: None)
    assert "(all that counts)" in cli(*arguments).out
    cli("unlink", "edge")
    monkeypatch.undo()
    out, _ = cli(*arguments, "--since", iso(cli.hour - 1), "--yes")
    assert f"from {iso(cli.hour - 1)} on" in out
    cli("unlink", "edge")
    assert "(main)" in cli(*arguments, "--types", "main", "--since", iso(cli.hour + 1), code=0).out


def test_status_as_json_says_the_same(cli: Cli, server: Loopback) -> None:
    """For programs, with hours as text."""
    cli("setup")
    linked(cli)
    server.faults.extend(["400-before"])
    cli("report", code=1)
    now = json.loads(cli("status", "--json").out)
    assert now["account"] == "stripe:mtr_test_1"
    assert now["customers"] == [
        {"customer": CUSTOMER, "billed_wh": 31, "events": {"refused": 1, "sent": 2}}
    ]
    assert [(row["hour"], row["state"]) for row in now["open"]] == [(iso(cli.hour - 4), "refused")]
    assert now["links"][0]["types"] is None
    assert now["last_good_run"] is None
    assert now["last_run"] == NOW


def test_metrics_are_written_for_others_to_read(cli: Cli, tmp_path: Path) -> None:
    """The node exporter is another user; nothing else is left beside the file."""
    linked(cli)
    folder = tmp_path / "textfile"
    folder.mkdir()
    file = folder / "billing.prom"
    to_csv = ("--sink", "csv", "--csv", str(tmp_path / "u.csv"))
    cli("report", *to_csv, "--metrics-file", str(file))
    assert f'power_billing_billed_watt_hours{{customer="{CUSTOMER}"}} 31.0\n' in file.read_text()
    assert [path.name for path in folder.iterdir()] == ["billing.prom"]
    assert file.stat().st_mode & 0o777 == 0o644
    missing = str(tmp_path / "missing" / "x.prom")
    _, err = cli("status", "--metrics-file", missing, code=1)
    assert err.startswith(f"power-billing: {missing}: ")


def test_the_metrics_are_those_of_the_readme(cli: Cli, server: Loopback, tmp_path: Path) -> None:
    """By the parser of Prometheus' own client: names, labels, types and values."""
    cli("setup")
    linked(cli)
    server.faults.extend(["400-before"])
    file = tmp_path / "billing.prom"
    cli("report", "--metrics-file", str(file), code=1)
    families = {one.name: one for one in text_string_to_metric_families(file.read_text())}
    readme = (ROOT / "integrations/billing/README.md").read_text(encoding="utf-8")
    named = dict(re.findall(r"`(power_billing_\w+)(?:\{(\w+)\})?`", readme))
    assert set(families) == set(named)
    samples = {}
    for name, family in families.items():
        assert family.type == "gauge"
        for sample in family.samples:
            assert list(sample.labels) == ([named[name]] if named[name] else [])
            samples[(name, *sample.labels.values())] = sample.value
    last_run = samples.pop(("power_billing_last_run_timestamp_seconds",))
    assert last_run == NOW
    kinds = ("late", "sensor", "kept", "unclear", "no_energy", "silent", "deleted")
    expected: dict[tuple[str, ...], float] = {
        ("power_billing_last_good_run_timestamp_seconds",): 0.0,
        ("power_billing_open_events", "queued"): 0.0,
        ("power_billing_open_events", "refused"): 1.0,
        ("power_billing_open_events", "conflict"): 0.0,
        **{("power_billing_findings", kind): 0.0 for kind in kinds},
        ("power_billing_too_old_events",): 0.0,
        ("power_billing_lost_watt_hours",): 0.0,
        ("power_billing_billed_watt_hours", CUSTOMER): 31.0,
    }
    assert samples == expected


def test_a_missing_client_of_prometheus_is_said_before_anything_is_sent(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody needs it without --metrics-file."""
    linked(cli)
    monkeypatch.delitem(sys.modules, "power_billing.metrics", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    usage = tmp_path / "u.csv"
    report = ("report", "--sink", "csv", "--csv", str(usage))
    out, err = cli(*report, "--metrics-file", str(tmp_path / "x.prom"), code=1)
    said = "power-billing: prometheus_client is not installed: pip install '.[billing]'\n"
    assert (out, err) == ("", said)
    assert not usage.exists()
    assert "3 hours sent" in cli(*report).out


def test_a_quiet_report_says_nothing_where_all_is_well(cli: Cli, tmp_path: Path) -> None:
    """A timer's mail is read only if it comes seldom."""
    linked(cli)
    report = ("report", "--sink", "csv", "--csv", str(tmp_path / "u.csv"), "--quiet")
    assert cli(*report) == ("", "")
    (tmp_path / "u.csv").unlink()
    out, _ = cli(*report, code=1)
    assert f"differs: {CUSTOMER} " in out
    assert "sent 31 Wh, the biller has 0 Wh" in out or out.count("differs:") == 2


def test_reconcile_lists_and_repairs(cli: Cli, tmp_path: Path) -> None:
    """A deleted CSV file is written anew."""
    linked(cli)
    to_csv = ("--sink", "csv", "--csv", str(tmp_path / "u.csv"))
    cli("report", *to_csv)
    assert "0 differences" in cli("reconcile", *to_csv).out
    (tmp_path / "u.csv").unlink()
    out, _ = cli("reconcile", *to_csv, code=1)
    assert f"  {iso(cli.hour - 4)} the biller has 0 Wh; revision 0 of 10 Wh sent" in out
    assert "3 differences" in out
    assert "3 of 3 hours repaired" in cli("reconcile", "--repair", *to_csv).out
    assert "0 hours sent, 0 left" in cli("report", *to_csv).out


def test_a_conflict_is_listed_and_decided(cli: Cli, server: Loopback) -> None:
    """By report, by resolve, and by the two ways that there are."""
    cli("setup")
    linked(cli)
    for back, value in ((4, 77), (3, 88)):
        hour = cli.hour - back
        identifier = f"{CUSTOMER}:power_watt_hours:{iso(hour)}:0"
        head = {"name": "power_watt_hours", "identifier": identifier}
        event = {**head, "timestamp": hour * 3600, "customer": CUSTOMER}
        server.events.append({**event, "value": value})
        server._identifiers[identifier] = cli.clock()
    out, _ = cli("report", code=1)
    assert "1 hours sent, 2 left" in out
    assert "conflict: " in out
    out, _ = cli("resolve", code=1)
    rows = [line.split()[:4] for line in out.splitlines()[1:]]
    assert rows == [
        [CUSTOMER, iso(cli.hour - 4), "10", "77"],
        [CUSTOMER, iso(cli.hour - 3), "11", "88"],
    ]
    with pytest.raises(SystemExit):
        cli("resolve", "--keep")
    assert "1 hours stay" in cli("resolve", "--keep", "--hour", iso(cli.hour - 4)).out
    assert "1 hours go out" in cli("resolve", "--send", "--customer", CUSTOMER).out
    assert "1 hours sent, 0 left" in cli("report").out
    assert server.billed(CUSTOMER) == 77 + 11 + 10


def test_ctrl_c_is_exit_code_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the shell has it, and no traceback."""

    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_module, "make_parser", interrupt)
    assert cli("status", code=130) == ("", "")


def test_a_missing_package_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed without the extra, it says what to install."""
    monkeypatch.setenv(API_KEY, KEY)
    monkeypatch.delitem(sys.modules, "power_billing.stripe_client", raising=False)
    monkeypatch.setitem(sys.modules, "stripe", None)
    assert (
        "power-billing: stripe is not installed: pip install '.[billing]'"
        in cli("setup", code=1).err
    )


def test_a_csv_file_needs_no_stripe(cli: Cli, tmp_path: Path) -> None:
    """Neither a key nor the SDK."""
    linked(cli)
    assert (
        "3 hours sent, 0 left"
        in cli("report", "--sink", "csv", "--csv", str(tmp_path / "usage.csv")).out
    )
    unwanted = {"stripe", "prometheus_client"}
    program = f"import sys, power_billing.cli; sys.exit(not {unwanted}.isdisjoint(sys.modules))"
    subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": PYTHONPATH}, check=True
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report"], "no device is linked to a customer"),
        (
            ["setup"],
            "STRIPE_API_KEY or STRIPE_API_KEY_FILE (a file that holds it): neither is set",
        ),
        (
            ["link", "nobody", "--customer", "cus_1"],
            "no device has the id 'nobody': `power-manager devices` lists them",
        ),
        (["unlink", "edge"], "edge: not linked"),
    ],
)
def test_errors_are_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    """On standard error, with exit code 1."""
    monkeypatch.delenv(API_KEY, raising=False)
    out, err = cli(*arguments, code=1)
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("power-billing: ")
    assert message in err


def test_the_files_may_be_named_after_the_command(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with the library's own command line."""
    linked(cli)
    ledger = tmp_path / "ledger.db"
    assert main(["status", "--db", str(cli.db)]) == 0
    assert f"edge: {CUSTOMER}" in capsys.readouterr().out
    assert main(["--db", "typo.db", "status", "--db", str(cli.db), "--ledger", str(ledger)]) == 0
    assert capsys.readouterr().out == "no usage has been sent yet\n"


def test_every_error_has_one_root() -> None:
    """A program that catches the library's errors catches these too."""
    assert issubclass(BillingError, PowerManagerError)
    for error in (CannotSayNow, BadEvent, BadSignature):
        assert issubclass(error, BillingError)


def test_a_database_that_is_not_there_is_not_made(cli: Cli) -> None:
    """A typing mistake must not look like a fleet that used nothing."""
    cli.db = cli.db.with_name("typo.db")
    assert "no such database" in cli("report", code=1).err
    assert not cli.db.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bill-everybody"], "unknown command 'bill-everybody'"),
        (["report", "--until", "noon", "--dry-run"], "expected a time from 1970 to 2200"),
        (["report", "--sink", "csv"], "--sink csv and --csv FILE go together"),
        (["report", "--csv", "x"], "--sink csv and --csv FILE go together"),
        (["link", "edge"], "the following arguments are required: --customer"),
        (["link", "edge", "--customer", "cus_..."], "--customer: expected an id of Stripe's"),
        (["unlink", "x\udcff"], "device_id: expected text without NUL or lone surrogates"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    cli: Cli, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """With the usage, and what is wrong in the last line."""
    with pytest.raises(SystemExit) as caught:
        cli(*arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_times_are_read_as_everywhere_in_the_project(cli: Cli) -> None:
    """Epoch seconds and durations before now, and UTC where there is no offset."""
    out, _ = cli("link", "edge", "--customer", CUSTOMER, "--since", str((cli.hour - 3) * 3600))
    assert f"from {iso(cli.hour - 3)} on" in out
    out, _ = cli("report", "--dry-run", "--until", iso(cli.hour - 2).removesuffix("Z"))
    assert out.endswith("dry run: 1 hours would be sent\n")


# --- kill -9


def _report(cli: Cli) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "power_billing", "--db", str(cli.db), "report"]
    environ = {**os.environ, "PYTHONPATH": PYTHONPATH}
    return subprocess.Popen(
        command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.mark.parametrize("request_number", [1, 2, 3])
@pytest.mark.parametrize("arrives", [True, False])
def test_a_killed_run_bills_nothing_twice_and_loses_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request_number: int,
    arrives: bool,
) -> None:
    """SIGKILL while the n-th event is under way, which arrives or does not; the next run makes it
    good.
    """
    cli = Cli(tmp_path / "power.db", capsys, time.time)  # that of the process that is killed
    server = Loopback(time.time)
    state: dict[str, subprocess.Popen[bytes]] = {}
    seen = itertools.count(1)
    started = threading.Event()

    def kill(_: str, path: str) -> None:
        if not path.endswith("meter_events"):
            return
        if next(seen) == request_number:
            assert started.wait(20)
            os.kill(state["run"].pid, signal.SIGKILL)
            state["run"].wait(20)
            if not arrives:
                server.faults.append("lost-before")

    with at_stripe(server, monkeypatch, kill):
        cli("setup")
        linked(cli)
        state["run"] = _report(cli)
        started.set()
        try:
            assert state["run"].wait(60) == -signal.SIGKILL
        finally:
            state["run"].kill()
        _eventually(lambda: not server.faults)
        assert "0 left" in cli("report").out
    assert server.billed(CUSTOMER) == 31
    assert len({event["identifier"] for event in server.events}) == len(server.events) == 3
    with PowerManager(cli.db) as pm:
        assert pm.check() == []
        assert {entry.state for entry in outbox(pm)} == {"sent"}


def _eventually(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)
