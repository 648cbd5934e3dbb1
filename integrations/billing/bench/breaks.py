"""Break the code in one place at a time, and see whether the tests fail: some minutes.

python3 integrations/billing/bench/breaks.py
python3 integrations/billing/bench/breaks.py --only 3 --only 7

It works in a copy. A break that no test sees makes exit code 1, and so does one whose text is no
longer in the code: then write it anew.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT)]

from power_manager import parse_count  # noqa: E402 - see sys.path above

_LINKED = ("power_manager.py", "pyproject.toml", "integrations/service", "integrations/fleet")


class Break(NamedTuple):
    """What would be wrong; a text of a module and what it becomes; the tests that should see it."""

    what: str
    module: str
    text: str
    broken: str
    tests: str


BREAKS = (
    Break(
        "an attempt is not noted before it is sent",
        "sender",
        "                note_attempt(conn, entry.event, now)\n",
        "                pass\n",
        "sender",
    ),
    Break(
        "what the biller refuses counts as sent",
        "sender",
        "Outcome.REFUSED: State.REFUSED",
        "Outcome.REFUSED: State.SENT",
        "sender",
    ),
    Break(
        "a duplicate is a success, whatever its value",
        "sender",
        "    if theirs == event.watt_hours or (theirs is _Silence.EVER and not is_unseen):",
        "    if True:",
        "conflicts",
    ),
    Break(
        "a customer of another ledger is billed",
        "sender",
        "                if owner != ours:",
        "                if owner is None:",
        "claims",
    ),
    Break(
        "usage of a customer that Stripe has not is sent",
        "usage",
        "if customer not in held] if held else None",
        "if customer not in held] if None else None",
        "checks",
    ),
    Break(
        "two runs go at once",
        "usage",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "report",
    ),
    Break(
        "the rest below a watt-hour is forgotten",
        "ledger",
        "divmod(rest + changes[hour], NANO)",
        "divmod(changes[hour], NANO)",
        "report",
    ),
    Break(
        "a correction downwards is not sent",
        "outbox",
        "elif value_wh != newest.event.watt_hours:",
        "elif value_wh > newest.event.watt_hours:",
        "report",
    ),
    Break(
        "an answer that names no event is a success",
        "stripe_sinks",
        'if getattr(answer, "identifier", None) != event.identifier:',
        "if answer is None:",
        "stripe",
    ),
    Break(
        "hours that are too old are sent",
        "sender",
        "return self._is_protected(entry) and entry.event.hour >= oldest_billable(self.clock())",
        "return self._is_protected(entry)",
        "sender",
    ),
    Break(
        "the biller has more, and that is no difference",
        "reconcile",
        "return self.ours_wh == self.theirs_wh and not",
        "return self.ours_wh <= self.theirs_wh and not",
        "reconcile",
    ),
    Break(
        "a clock that is ahead closes what can be billed",
        "closing",
        "min(int(now // HOUR), newest)",
        "int(now // HOUR)",
        "closing",
    ),
    Break(
        "an hour changes its period with the rules of its zone",
        "periods",
        "INSERT OR IGNORE INTO billing_hour_periods",
        "INSERT OR REPLACE INTO billing_hour_periods",
        "periods",
    ),
    Break(
        "a ups counts beside the main meter",
        "counting",
        "if part.meter.id in (counted_since if has_main else counted_before):",
        "if types is None or part.meter.id in counted_since:",
        "counting",
    ),
    Break(
        "what is deleted before it is counted is said by one run only",
        "findings",
        "WHERE customer = ? AND kind != 'deleted'",
        "WHERE customer = ? AND kind != ''",
        "counting",
    ),
    Break(
        "half a cent is rounded down",
        "money",
        "rounding=ROUND_HALF_UP",
        'rounding="ROUND_HALF_DOWN"',
        "statement",
    ),
    Break(
        "the first event of an hour counts in a statement",
        "statement",
        "return taken[-1] if taken else 0",
        "return taken[0] if taken else 0",
        "statement",
    ),
    Break(
        "the line that a crash has torn stays in the CSV file",
        "sinks",
        "            if whole < len(content):",
        "            if not content:",
        "parts",
    ),
    Break(
        "a CSV file with usage lets the ledger go to another",
        "sinks",
        "or found.st_size == 0",
        "or found.st_size >= 0",
        "csv",
    ),
    Break(
        "an old signature of Stripe's counts",
        "signatures",
        "abs(int(signed_at) - now) > TOLERANCE",
        "int(signed_at) - now > TOLERANCE",
        "signatures",
    ),
    Break(
        "an event of Stripe's counts as often as it comes",
        "webhooks",
        "if not conn.execute(sql, (event.id, int(created))).rowcount:",
        "if conn.execute(sql, (event.id, int(created))).rowcount < 0:",
        "webhooks",
    ),
    Break(
        "--price 0,30 is read as something",
        "money",
        '[0-9]{1,9}(\\.[0-9]{1,15})?", text)',
        '[0-9]{1,9}([.,][0-9]{1,15})?", text)',
        "usage",
    ),
)


def is_seen(one: Break) -> bool:
    """Whether its tests fail. Raises SystemExit if its text is not once in the module."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        billing = root / "integrations" / "billing"
        shutil.copytree(HERE, billing, ignore=shutil.ignore_patterns("__pycache__"))
        for name in _LINKED:
            (root / name).symlink_to(ROOT / name)
        module = billing / "power_billing" / f"{one.module}.py"
        code = module.read_text(encoding="utf-8")
        if code.count(one.text) != 1:
            raise SystemExit(f"{one.what}: {one.module}.py has its text {code.count(one.text)}x")
        module.write_text(code.replace(one.text, one.broken), encoding="utf-8")
        tests = billing / "tests" / f"test_billing_{one.tests}.py"
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", str(tests)],
            cwd=root,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if run.returncode not in (0, 1):
        raise SystemExit(f"{one.what}: the tests did not run:\n{run.stdout}")
    return run.returncode == 1


def main(argv: Sequence[str] | None = None) -> int:
    """Plant each break, and print what the tests did; return 1 if one was not seen."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    number = functools.partial(parse_count, at_least=1, at_most=len(BREAKS))
    parser.add_argument(
        "--only", action="append", type=number, metavar="N", help="the N-th, repeatable"
    )
    options = parser.parse_args(argv)
    numbers = options.only or range(1, len(BREAKS) + 1)
    unseen = 0
    print("| break | in | seen by the tests of |\n| --- | --- | --- |")
    for at in numbers:
        one = BREAKS[at - 1]
        seen = is_seen(one)
        unseen += not seen
        print(f"| {one.what} | {one.module} | {one.tests if seen else 'none'} |", flush=True)
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
