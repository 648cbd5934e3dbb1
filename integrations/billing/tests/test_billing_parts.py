"""Links, keys, hours, the CSV file and the tables: each by itself."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import pytest
from power_billing import (
    BillingError,
    CannotSayNow,
    CsvSink,
    LedgerFile,
    Outcome,
    UsageEvent,
    create_usage_record,
    link,
    links_of,
    report,
    unlink,
)
from power_billing.hours import hour_of, iso, next_hour, oldest_billable, seconds_of
from power_billing.keys import API_KEY, Secret, read_secret
from power_billing.ledger import LOOK_BACK_DAYS
from power_billing.tables import set_setting, setting, tables
from power_billing.usage import Run
from world import CUSTOMER, HOUR, NOW, World, outbox

from power_manager import InvalidValue, NotFound, PowerManager

THIS_HOUR = int(NOW // HOUR)

# --- Links


def test_a_link_begins_at_the_next_full_hour(world: World) -> None:
    """The hour under way is not the customer's yet; a clock on the hour begins at once."""
    assert link(world.pm, "edge", CUSTOMER, clock=lambda: NOW).from_hour == THIS_HOUR + 1
    world.add_device("twin")
    assert link(world.pm, "twin", CUSTOMER, clock=lambda: THIS_HOUR * HOUR).from_hour == THIS_HOUR


def test_a_link_that_ended_before_it_began_blocks_nothing(world: World) -> None:
    """Linked, unlinked within the hour, and linked again with the --since that was forgotten."""
    link(world.pm, "edge", CUSTOMER, clock=lambda: NOW)
    unlink(world.pm, "edge", clock=lambda: NOW)
    assert (
        link(world.pm, "edge", CUSTOMER, since=NOW - 5 * HOUR, clock=lambda: NOW).from_hour
        == THIS_HOUR - 5
    )


def test_a_clock_that_is_behind_links_nothing(world: World) -> None:
    """The link would begin in 1970, and bill what the device used before it was made."""
    world.use(500.0, 48)
    with pytest.raises(
        BillingError, match=r"edge: its newest reading is of .*: set the clock, or say since when"
    ):
        link(world.pm, "edge", CUSTOMER, clock=lambda: 1000.0)
    assert links_of(world.pm) == []
    assert (
        link(world.pm, "edge", CUSTOMER, clock=lambda: NOW - 47 * HOUR).from_hour == THIS_HOUR - 46
    )


def test_links_are_kept_in_the_librarys_file(world: World) -> None:
    """With all that was given."""
    made = link(
        world.pm,
        "edge",
        CUSTOMER,
        subscription_item="si_Abc",
        types=("ups", "main"),
        since=NOW,
        clock=lambda: NOW,
    )
    assert links_of(world.pm) == [made]
    assert made.types == ("main", "ups")


def test_a_device_has_one_customer_at_a_time(world: World) -> None:
    """A second link is refused until the first has ended."""
    world.link()
    with pytest.raises(BillingError, match=f"edge: billed to {CUSTOMER} from .* to now already"):
        world.link(customer="cus_Next")
    unlink(world.pm, "edge", clock=lambda: NOW)
    with pytest.raises(BillingError, match="already"):
        world.link(customer="cus_Next", hours_ago=1)
    assert link(world.pm, "edge", "cus_Next", clock=lambda: NOW).from_hour == THIS_HOUR + 1


def test_unlinking_never_takes_back_what_is_billed(world: World) -> None:
    """Also where the clock was set back to before the link."""
    world.link()
    world.use(5.0, 2)
    world.report()
    assert unlink(world.pm, "edge", clock=lambda: 1000.0).until_hour == THIS_HOUR - 1
    world.report()
    assert world.billed() == 5


def test_an_end_by_a_clock_that_was_ahead_can_be_brought_forward(world: World) -> None:
    """Else the device would be its old customer's for the hours until then, and nobody could say
    otherwise.
    """
    world.link()
    assert unlink(world.pm, "edge", clock=lambda: NOW + 900 * HOUR).until_hour == THIS_HOUR + 901
    assert (
        link(world.pm, "edge", "cus_Next", clock=lambda: NOW + 900 * HOUR).from_hour
        == THIS_HOUR + 901
    )
    ends = [unlink(world.pm, "edge", clock=lambda: NOW) for _ in range(2)]
    assert [(one.customer, one.until_hour) for one in ends] == [
        ("cus_Next", THIS_HOUR + 901),
        (CUSTOMER, THIS_HOUR + 1),
    ]
    with pytest.raises(BillingError, match="edge: not linked"):
        unlink(world.pm, "edge", clock=lambda: NOW)
    assert link(world.pm, "edge", "cus_Next", clock=lambda: NOW).from_hour == THIS_HOUR + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"customer": "cus_..."},
            r"customer: expected an id of Stripe's that begins with cus_, got 'cus_\.\.\.'",
        ),
        ({"customer": "sub_123"}, "begins with cus_, got 'sub_123'"),
        ({"customer": "cus_" + "a" * 57}, "begins with cus_"),
        ({"subscription_item": "sub_1"}, "subscription_item: expected .* si_, got 'sub_1'"),
        ({"types": ["sun"]}, "types: expected some of main, battery, solar, ups, got sun"),
        ({"types": []}, "got none"),
        ({"since": NOW - 36 * 24 * HOUR}, "since: expected a time of the past 35 days"),
        ({"since": NOW + 2 * HOUR}, "since: expected a time of the past 35 days"),
        ({"since": "soon"}, "since: expected an aware datetime"),
    ],
)
def test_a_link_names_what_is_wrong(world: World, options: dict[str, object], message: str) -> None:
    """And nothing is stored."""
    with pytest.raises(InvalidValue, match=message):
        link(world.pm, "edge", **{"customer": CUSTOMER, **options}, clock=lambda: NOW)  # type: ignore[arg-type]
    assert links_of(world.pm) == []


def test_unknown_and_unlinked_devices_are_named(world: World) -> None:
    """NotFound is the library's; not linked is ours."""
    with pytest.raises(NotFound, match="nobody"):
        link(world.pm, "nobody", CUSTOMER)
    with pytest.raises(BillingError, match="edge: not linked"):
        unlink(world.pm, "edge")


# --- Keys

GOOD = "sk_test_" + "Ab1Cd2Ef3Gh4Ij5Kl6"


@pytest.mark.parametrize("key", [GOOD, GOOD.replace("test", "live"), "rk_live_Ab1Cd2Ef3Gh4Ij5Kl6"])
def test_keys_come_from_the_environment_or_a_file(key: str, tmp_path: Path) -> None:
    """Secret and restricted ones, live and test."""
    file = tmp_path / "key"
    file.write_text(f"  {key}\n")
    assert read_secret({API_KEY: key}, API_KEY).reveal() == key
    assert read_secret({API_KEY + "_FILE": str(file)}, API_KEY).reveal() == key


@pytest.mark.parametrize(
    "text",
    [
        "sk_test_...",
        "sk_test_xxxxxxxxxxxxxxxxxxxxxxxx",
        "sk_live_YOUR_KEY",
        "sk_live_YourSecretKey1234567",
        "pk_live_Ab1Cd2Ef3Gh4Ij5Kl6",
        "sk_test_short",
        "changeme",
        "sk_test_00000000000000000000",
        "<key>",
        "sk_test_ThisIsAnExampleKey99",
        "sk_live_1234567890abcdef",
        "sk_test_abcdefghijklmnopqrst",
        "sk_live_ReplaceThisWithYours",
        "rk_test_InsertKeyHere123456",
    ],
)
def test_placeholders_stop_the_start(text: str) -> None:
    """The error does not quote them: it may be a real key with a typing mistake."""
    with pytest.raises(
        BillingError, match="STRIPE_API_KEY: a placeholder, or not such a secret"
    ) as caught:
        read_secret({API_KEY: text}, API_KEY)
    assert text not in str(caught.value)


def test_no_key_and_two_keys_are_refused() -> None:
    """One of the two variables, and not both."""
    with pytest.raises(BillingError, match="neither is set"):
        read_secret({}, API_KEY)
    with pytest.raises(BillingError, match="both are set"):
        read_secret({API_KEY: GOOD, API_KEY + "_FILE": "/x"}, API_KEY)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_key_that_everybody_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    """With the file's name and its mode, and what to do; a group is how a service gets one."""
    file = tmp_path / "key"
    file.write_text(GOOD)
    file.chmod(mode)
    assert read_secret({API_KEY + "_FILE": str(file)}, API_KEY).reveal() == GOOD
    said = "every user of this machine can read it (mode 0644): chmod 600 it"
    assert caplog.messages == ([f"STRIPE_API_KEY_FILE: {file}: {said}"] if warned else [])


def test_a_key_that_everybody_can_write_is_refused(tmp_path: Path) -> None:
    """Somebody else's key would bill to somebody else's account."""
    file = tmp_path / "key"
    file.write_text(GOOD)
    file.chmod(0o666)
    said = rf"^STRIPE_API_KEY_FILE: {file}: every user of this machine can write it \(mode 0666\)"
    with pytest.raises(BillingError, match=said):
        read_secret({API_KEY + "_FILE": str(file)}, API_KEY)


def test_a_secret_has_no_text_in_its_repr() -> None:
    """Nor in str() or a format."""
    secret = Secret(API_KEY, GOOD)
    assert {repr(secret), str(secret), f"{secret}"} == {"<STRIPE_API_KEY>"}
    assert not hasattr(secret, "__dict__")


# --- Hours


def test_times_are_read_alike_in_every_form() -> None:
    """Aware datetimes, ISO text with an offset, epoch seconds."""
    moment = datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)
    for text in ("14T22:13:20Z", "15T00:13:20+02:00", "14T22:13:20+0000", "14T22:13:20.0Z"):
        assert seconds_of("t", f"2023-11-{text}") == 1.7e9
    for value in (moment, 1_700_000_000, 1.7e9):
        assert seconds_of("t", value) == 1.7e9
    assert iso(hour_of("t", moment)) == "2023-11-14T22:00Z"


@pytest.mark.parametrize(
    "value",
    [
        "2023-11-14",
        "2023-11-14T22:13",
        datetime(2023, 1, 1),  # noqa: DTZ001
        None,
        True,
        -1,
        1e99,
        "x",
    ],
)
def test_other_times_are_refused(value: object) -> None:
    """Naive ones too: nobody knows which hour they mean."""
    with pytest.raises(InvalidValue, match="since: expected an aware datetime"):
        hour_of("since", value)


def test_the_look_back_covers_what_can_be_billed() -> None:
    """With days to spare, for a clock that is set meanwhile."""
    assert LOOK_BACK_DAYS >= 35 + 5
    assert THIS_HOUR - oldest_billable(NOW) < 35 * 24
    assert next_hour(NOW) == THIS_HOUR + 1


# --- CSV


def rows(path: Path) -> list[dict[str, str]]:
    """What the file has."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_csv_file_gets_a_row_an_event(world: World, tmp_path: Path) -> None:
    """Private to its owner, with revisions as further rows; a second run adds nothing."""
    sink = CsvSink(tmp_path / "usage.csv")
    world.link()
    world.use(10.0, 3)
    world.usage.report(sink)
    world.usage.report(sink)
    world.pm.log_power(world.meters["edge"], 25.0, 1.0, timestamp=(THIS_HOUR - 3) * HOUR + 2400)
    assert world.usage.report(sink).complete
    assert [
        (row["customer"], row["hour"], row["revision"], row["watt_hours"])
        for row in rows(sink.path)
    ] == [
        (CUSTOMER, iso(THIS_HOUR - 3), "0", "10"),
        (CUSTOMER, iso(THIS_HOUR - 3), "1", "12"),
    ]
    assert sink.path.stat().st_mode & 0o777 == 0o600
    assert sink.recorded(CUSTOMER, range(THIS_HOUR - 4, THIS_HOUR)) == {THIS_HOUR - 3: 12}
    assert sink.recorded(CUSTOMER, range(THIS_HOUR - 4, THIS_HOUR - 3)) == {}


def test_a_torn_line_is_cut_and_its_event_written_again(tmp_path: Path) -> None:
    """Whatever byte a crash ends the file at, there is one row an event."""
    sink, event = CsvSink(tmp_path / "usage.csv"), UsageEvent(CUSTOMER, THIS_HOUR, 0, 7)
    sink.send([event])
    whole = sink.path.read_bytes()
    for length in range(len(whole)):
        sink.path.write_bytes(whole[:length])
        assert sink.send([event])[0].outcome in (Outcome.SENT, Outcome.KNOWN)
        assert sink.path.read_bytes() == whole, length


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """It is named, and not a byte of it changes."""
    path = tmp_path / "notes.csv"
    path.write_text("a,b\n1,2\nno newline")
    with pytest.raises(
        BillingError, match=r"notes.csv: not a file of this sink: it begins with 'a,b'"
    ):
        CsvSink(path).send([UsageEvent(CUSTOMER, THIS_HOUR, 0, 7)])
    assert path.read_text() == "a,b\n1,2\nno newline"


@pytest.mark.parametrize(
    "content", [b"a note of one line", b"identifier\n", b"\x89PNG\xff\x00", b"\xff\n\xfe"]
)
def test_a_file_that_is_no_csv_at_all_is_left_alone(tmp_path: Path, content: bytes) -> None:
    """Without a line's end it is no torn line of ours, and bytes that are no text are no reason to
    break.
    """
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(BillingError, match=r"photo.png: not a file of this sink"):
        CsvSink(path).send([UsageEvent(CUSTOMER, THIS_HOUR, 0, 7)])
    assert path.read_bytes() == content


@pytest.mark.parametrize(("before", "after"), [(",7,", ",seven,"), (",0,", ",,"), (",7,\n", "\n")])
def test_a_row_that_somebody_has_changed_is_named(tmp_path: Path, before: str, after: str) -> None:
    """Nobody guesses what it was."""
    sink, event = CsvSink(tmp_path / "usage.csv"), UsageEvent(CUSTOMER, THIS_HOUR, 0, 7)
    sink.send([event])
    head, row = sink.path.read_text().splitlines(keepends=True)
    sink.path.write_text(head + row[:20] + row[20:].replace(before, after, 1))
    with pytest.raises(BillingError, match=r"usage.csv: cus_.* not a row of this sink"):
        sink.recorded(CUSTOMER, range(THIS_HOUR - 1, THIS_HOUR + 1))


def test_a_disk_that_fails_is_later(tmp_path: Path) -> None:
    """The events stay queued."""

    class Full(CsvSink):
        def _write(self, rows: object) -> None:
            raise OSError(28, "No space left on device")

    sink = Full(tmp_path / "usage.csv")
    (receipt,) = sink.send([UsageEvent(CUSTOMER, THIS_HOUR, 0, 7)])
    assert receipt.outcome is Outcome.LATER
    assert receipt.reason == f"{tmp_path}/usage.csv: No space left on device"
    there = CsvSink(sink.path)
    there.claim(CUSTOMER, "a" * 16)
    there.send([UsageEvent(CUSTOMER, THIS_HOUR, 0, 7)])
    with pytest.raises(CannotSayNow, match="No space left on device"):
        sink.claim(CUSTOMER, "b" * 16, take_over=True)


# --- Tables and functions


def test_the_ledger_may_be_a_file_of_its_own(world: World, tmp_path: Path) -> None:
    """Private to its owner; the library's file has no table of billing then, and the bill is the
    same.
    """
    ledger = LedgerFile(tmp_path / "ledger.db")
    link(world.pm, "edge", CUSTOMER, since=NOW - 9 * HOUR, clock=lambda: NOW, ledger=ledger)
    world.use(4.4, 3)
    world.use(4.4, 2)
    sink = CsvSink(tmp_path / "usage.csv")
    run = Run(world.pm, ledger, clock=lambda: NOW)
    assert [entry.event.watt_hours for entry in run.preview()] == [4, 4]
    assert run.report(sink).complete
    assert run.report(sink).sent == []
    assert [row.event.watt_hours for row in outbox(ledger)] == [4, 4]
    assert ledger.db_path.stat().st_mode & 0o777 == 0o600
    with world.pm.connection() as conn:
        names = "SELECT name FROM sqlite_master WHERE name LIKE 'billing%'"
        assert conn.execute(names).fetchall() == []


def test_a_transaction_of_a_ledger_that_fails_stores_nothing(tmp_path: Path) -> None:
    """Whatever ends it."""
    ledger = LedgerFile(tmp_path / "ledger.db")
    with suppress(KeyboardInterrupt), tables(ledger) as conn:
        set_setting(conn, "account", "somebody")
        raise KeyboardInterrupt
    with tables(ledger) as conn:
        assert setting(conn, "account") is None


def test_a_ledger_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A folder that is missing, and a file that is no database."""
    for path in (tmp_path / "missing" / "ledger.db", tmp_path / "notes.txt"):
        if path.parent.exists():
            path.write_text("not a database, but long enough to look like something" * 20)
        with pytest.raises(BillingError, match=f"{path.name}: cannot be used as the ledger"):
            links_of(LedgerFile(path))


def test_tables_of_a_later_version_are_refused(world: World) -> None:
    """By number, and nothing is changed."""
    with tables(world.pm) as conn:
        set_setting(conn, "schema", "99")
    with pytest.raises(
        BillingError,
        match="its billing tables are version 99, and this power-billing knows version 4",
    ):
        world.link()


def test_the_librarys_own_check_finds_nothing_wrong(world: World) -> None:
    """The tables are guests in its file."""
    world.link()
    world.use(5.0, 2)
    world.report()
    assert world.pm.check() == []


def test_the_functions_take_the_real_clock_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """report() and create_usage_record() as a program calls them."""
    db, sink = tmp_path / "power.db", CsvSink(tmp_path / "usage.csv")
    with PowerManager(db) as pm:
        pm.register_device("edge", "Edge")
        meter = pm.add_meter("edge", "main")
        now = datetime.now(timezone.utc).timestamp()
        hour = int(now // HOUR) - 2
        link(pm, "edge", CUSTOMER, since=iso(hour - 1))
        for second in (0, 1200):
            pm.log_power(meter.id, 30.0, 1.0, timestamp=hour * HOUR + second)
    monkeypatch.setenv("POWER_MANAGER_DB", str(db))
    done = create_usage_record("edge", iso(hour), iso(hour + 1), sink=sink)
    assert [entry.event.watt_hours for entry in done.sent] == [10]
    with PowerManager(os.environ["POWER_MANAGER_DB"]) as pm:
        assert report(pm, sink).sent == []
    monkeypatch.delenv(API_KEY, raising=False)
    with pytest.raises(BillingError, match="neither is set"):
        create_usage_record("edge", iso(hour), iso(hour + 1))


def test_billing_needs_no_reader_of_toml_but_for_tariffs() -> None:
    """Python 3.10 has none of its own, and a service that takes webhooks, without the extra, has no
    other.
    """
    script = (
        "import sys; sys.modules['tomllib'] = sys.modules['tomli'] = sys.modules['stripe'] = None;"
        "import power_billing.cli, power_billing.webhooks; power_billing.cli.make_parser()"
    )
    here = Path(__file__).resolve()
    path = os.pathsep.join([str(here.parents[1]), str(here.parents[3])])
    environ = {**os.environ, "PYTHONPATH": path}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
