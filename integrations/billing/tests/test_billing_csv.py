"""A CSV file as the biller: which files it takes, and what follows from a mistyped name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from power_billing import BillingError, CsvSink, UsageEvent, sender
from power_billing.sinks import took_nothing
from power_billing.tables import setting, tables
from shop import ALICE, BOB, Shop
from world import CUSTOMER, NOW, World

from power_manager import PowerManager

HOUR = int(NOW // 3600)


@pytest.fixture
def linked(shop: Shop) -> Shop:
    """Three hours of Alice's are to be sent."""
    since = str((shop.hour - 10) * 3600)
    shop("link", "edge", "--customer", ALICE, "--since", since, "--offline")
    return shop


def account_of(shop: Shop) -> str | None:
    """Where the ledger says that its usage goes."""
    with PowerManager(shop.db) as pm, tables(pm) as conn:
        return setting(conn, "account")


def not_files(folder: Path) -> list[tuple[Path, str]]:
    """Paths at which there can be no file, and why."""
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    return [
        (folder, "not a regular file: name another"),
        (pipe, "not a regular file: name another"),
        (Path("/dev/full"), "not a regular file: name another"),
        (Path("/dev/zero"), "not a regular file: name another"),
        (folder / "missing" / "u.csv", "there is no such folder: name a file in another"),
    ]


@pytest.mark.parametrize("command", ["report", "reconcile"])
def test_what_can_be_no_file_is_refused_before_anything_is_kept(
    linked: Shop, tmp_path: Path, command: str
) -> None:
    """A device is not read without end, and a mistyped name is not the ledger's for ever."""
    for path, why in not_files(tmp_path):
        (said,) = linked(command, "--sink", "csv", "--csv", str(path), code=1)
        assert said == f"power-billing: {path}: {why}"
    assert account_of(linked) is None
    usage = str(tmp_path / "usage.csv")
    *_, said = linked("report", "--sink", "csv", "--csv", usage)
    assert said == "3 hours sent, 0 left"


def test_a_program_of_ones_own_is_told_so_too(tmp_path: Path) -> None:
    """Whatever it asks of the sink."""
    event = UsageEvent(CUSTOMER, HOUR - 4, 0, 200)
    for path, why in not_files(tmp_path):
        sink = CsvSink(path)
        with pytest.raises(BillingError, match=why):
            sink.send([event])
        with pytest.raises(BillingError, match=why):
            sink.recorded(CUSTOMER, range(HOUR))
        with pytest.raises(BillingError, match=why):
            sink.claim(CUSTOMER, "a" * 16)


class Unwritable(CsvSink):
    """A file that nobody may write."""

    def _write(self, rows: object) -> None:
        raise PermissionError(13, "Permission denied")


def test_a_file_that_took_nothing_does_not_keep_the_ledger(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first write failed: another file may have the usage, and has all of it once."""
    monkeypatch.setattr(sender, "PAUSES", ())
    world.link()
    world.use(10.0, 3)
    done = world.usage.report(Unwritable(tmp_path / "typo.csv"))
    assert [str(row.reason) for row in done.open] == [f"{tmp_path}/typo.csv: Permission denied"]
    usage = CsvSink(tmp_path / "usage.csv")
    assert world.usage.report(usage, compare=True).complete
    assert usage.recorded(CUSTOMER, range(HOUR)) == {HOUR - 3: 10}
    with tables(world.pm) as conn:
        assert setting(conn, "account") == usage.account


def test_a_file_that_took_nothing_does_not_keep_stripe_away(linked: Shop, tmp_path: Path) -> None:
    """Setup, and a report to Stripe, which is asked which ledger bills the customer."""
    folder = tmp_path / "away"
    folder.mkdir()
    with PowerManager(linked.db) as pm, tables(pm) as conn:
        sql = "INSERT INTO billing_settings VALUES ('account', ?)"
        conn.execute(sql, (f"csv:{folder}/typo.csv",))
    linked("setup", "--product", "Energy", "--price", "0.30", "--currency", "eur")
    linked("subscribe", "edge", "--customer", ALICE)
    *_, said = linked("report")
    assert said == "3 hours sent, 0 left"
    assert linked.stripe.billed(ALICE) == 31


def test_a_file_that_took_usage_keeps_the_ledger(linked: Shop, tmp_path: Path) -> None:
    """Even if somebody has deleted it: another one would be billed the same hours again."""
    usage = tmp_path / "usage.csv"
    linked("report", "--sink", "csv", "--csv", str(usage))
    usage.unlink()
    other = str(tmp_path / "other.csv")
    (said,) = linked("report", "--sink", "csv", "--csv", other, code=1)
    assert "so it cannot go to" in said
    assert not Path(other).exists()


def test_a_file_with_rows_that_nobody_noted_keeps_the_ledger(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ended between the row and the note."""
    monkeypatch.setattr(sender, "PAUSES", ())
    world.link()
    world.use(10.0, 3)
    typo = tmp_path / "typo.csv"
    world.usage.report(Unwritable(typo))
    CsvSink(typo).send([UsageEvent(BOB, HOUR - 3, 0, 10)])
    with pytest.raises(BillingError, match="so it cannot go to"):
        world.usage.report(CsvSink(tmp_path / "usage.csv"))


def test_of_stripe_it_is_never_sure_that_it_took_nothing(tmp_path: Path) -> None:
    """An answer may have been lost; of a file it can be seen."""
    assert not took_nothing("stripe:mtr_1")
    assert took_nothing(f"csv:{tmp_path}/none.csv")
    assert took_nothing(f"csv:{tmp_path}")
    (tmp_path / "rows.csv").write_text("x")
    assert not took_nothing(f"csv:{tmp_path}/rows.csv")
