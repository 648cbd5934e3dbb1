"""The README's commands and examples run as they stand, against a loopback Stripe; what it names is
there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from loopback import KEY, Loopback, serve
from power_billing import cli, ledger, sender
from power_billing.keys import API_URL
from power_billing.sources import NANO

from power_manager import settings_table

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]
README = (HERE / "README.md").read_text(encoding="utf-8")
_PYTHON = f'exec "{sys.executable}"'
# The environment that the README makes is there already, and so is what pip would install.
PROGRAMS = {
    "python3": f"""case "$*" in
"-m venv .venv") mkdir -p .venv/bin && : >.venv/bin/activate ;;
*) {_PYTHON} "$@" ;;
esac""",
    "pip": "true",
    "power-manager": f'{_PYTHON} -m power_manager "$@"',
    "power-billing": f'{_PYTHON} -m power_billing "$@"',
}


def script() -> str:
    """Every block of shell and Python before the development section, in order, that stops at the
    first failure.
    """
    parts = ["set -e -o pipefail"]
    text = README.partition("\n## Development")[0].replace("sk_test_...", KEY)
    for language, block in re.findall(
        r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    ):
        parts.append(block if language == "sh" else f"python3 - <<'END'\n{block}END\n")
    return "\n".join(parts)


def pattern_of(block: str) -> str:
    """What a block of output matches: three dots stand for something, on a line of their own for
    lines.
    """
    lines = []
    for line in block.splitlines():
        some_lines = r"(.*\n)*?"
        parts = [r"\s+".join(map(re.escape, part.split(" "))) for part in line.split("...")]
        lines.append(some_lines if line == "..." else ".*?".join(parts) + r"\n")
    return "^" + "".join(lines)


def test_two_commands_lead_to_the_first_bill() -> None:
    """The README counts them: between the key and the first bill there are two."""
    section = README.partition("## To the first bill\n")[2]
    assert section.lstrip().startswith("Two commands")
    commands = re.search(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert commands is not None
    key, *others = commands[1].splitlines()
    assert key.startswith("export STRIPE_API_KEY=")
    assert [command.split()[:2] for command in others] == [
        ["power-billing", "setup"],
        ["power-billing", "subscribe"],
    ]


def test_every_command_and_example_runs(tmp_path: Path) -> None:
    """One after the other; only what pip would install is there already. Stripe has what the dry
    run said.
    """
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, program in PROGRAMS.items():
        (commands / name).write_text(f"#!/bin/sh\n{program}\n")
        (commands / name).chmod(0o755)
    (tmp_path / "script").write_text(script())
    server = Loopback(time.time, knows_customers=True)
    for customer in ("cus_Nf1XyzAbc", "cus_Day1Night"):
        server.catalog.add_customer(customer)
    with serve(server) as url:
        environ = {
            **{
                name: text
                for name, text in os.environ.items()
                if not name.startswith(("STRIPE_", "POWER_"))
            },
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
            API_URL: url,
        }
        command = ["timeout", "100", "bash", "script"]
        run = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
    assert run.returncode == 0, run.stdout + run.stderr
    dry = sum(
        int(wh)
        for wh in re.findall(
            r"^cus_\S+ +\S+Z +(\d+) +0$", run.stdout.partition("dry run:")[0], re.MULTILINE
        )
    )
    assert dry > 10
    assert server.billed("cus_Nf1XyzAbc") == dry
    assert "0 hours sent, nothing left" in run.stdout, "create_usage_record found everything billed"
    assert (
        len(re.findall(r"^cus_Other:power_watt_hours:\S+Z:0 \d+$", run.stdout, re.MULTILINE)) > 10
    )
    for block in re.findall(r"^```(?:text|json)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        assert re.search(pattern_of(block), run.stdout, re.MULTILINE), block
    assert KEY not in run.stdout + run.stderr


def test_every_command_is_in_the_readme() -> None:
    """Each has a row of its table."""
    for name in cli.make_parser().commands:
        assert f"| `{name}" in README, name


def test_the_settings_of_the_readme_are_the_commands() -> None:
    """Options and variables, as the program documents them."""
    table = settings_table(cli.make_parser())
    assert f"<!-- settings -->\n{table}\n<!-- /settings -->" in README, table


def test_the_numbers_of_the_readme_are_the_codes() -> None:
    """Defaults and limits, where it names them."""
    assert f"after {sender.PROTECTED // 3600} hours" in README
    assert "pauses of about 1, 2 and 4 s" in README
    assert sender.PAUSES == (1.0, 2.0, 4.0)
    assert sender.MAX_FAILURES == 3
    assert f"more than {ledger.MAX_HOUR_NWH // NANO // 10**6} MWh" in README
