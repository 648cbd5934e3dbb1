"""The README's commands run as they stand, and its numbers are the code's; the unit is one that
systemd takes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mosquitto import Mosquitto
from power_mqtt import events, mirror, notices, publisher
from power_mqtt.cli import _parser
from power_mqtt.payloads import event_payload, state_payload, totals_payload
from world import HERE, PYTHONPATH

from power_manager import PowerManager, settings_table

README = (HERE / "README.md").read_text(encoding="utf-8")
# What the README's commands run here: the programs of this checkout, and nothing is installed.
PROGRAMS = {
    "power-manager": f'exec "{sys.executable}" -m power_manager "$@"',
    "power-mqtt": f'exec "{sys.executable}" -m power_mqtt "$@"',
    "python3": "mkdir -p .venv/bin && touch .venv/bin/activate",
    "pip": "true",
}


def test_every_command_runs(tmp_path: Path, broker: Mosquitto) -> None:
    """One after the other, against a broker on another port; what is shown is what is printed."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, line in PROGRAMS.items():
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    blocks = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    script = "\n".join(["set -e", "trap 'kill $(jobs -p)' EXIT", *blocks])
    script = script.replace("mqtt://localhost", broker.url)
    script = script.replace("-h localhost", f"-h 127.0.0.1 -p {broker.port}")
    assert script.count(str(broker.port)) == 2
    environ = {name: text for name, text in os.environ.items() if not name.startswith("POWER_")}
    environ |= {"PATH": f"{commands}{os.pathsep}{environ['PATH']}", "PYTHONPATH": PYTHONPATH}
    run = subprocess.run(
        ["timeout", "300", "bash", "-c", script],
        cwd=tmp_path, env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    (shown,) = re.findall(r"^```text\n(This bridge\n.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert without_names(shown) in without_names(run.stdout)
    received = run.stdout.rpartition("nothing was sent\n")[2].splitlines()
    assert {line.split()[0].rpartition("/")[2] for line in received} == {
        "availability",
        "state",
        "totals",
    }


def without_names(text: str) -> str:
    """The text without what differs from run to run: the machine, the meter's id, the time."""
    text = re.sub(r"bridge/[^/]+/", "bridge/NAME/", text)
    text = re.sub(r"[0-9a-f]{32}", "FILE", text)
    text = re.sub(r"[0-9a-f]{24}", "METER", text)
    return re.sub(r'"time":"[^"]+"', '"time":"TIME"', text)


def test_the_settings_of_the_readme_are_the_programs() -> None:
    """The table of options, variables and defaults is the one that the parser makes."""
    table = settings_table(_parser())
    shown = README.partition("<!-- settings -->\n")[2].partition("\n<!-- /settings -->")[0]
    assert shown == table, f"paste this into README.md:\n{table}"


def test_every_key_of_the_payloads_is_in_the_readme() -> None:
    """In the chapter about topics."""
    chapter = README.partition("\n## Topics")[2].partition("\n## ")[0]
    with PowerManager(":memory:") as pm:
        pm.register_device("a", "a")
        meter = pm.add_meter("a", "battery")
        event = pm.trigger_event("a", "restore")
        keys = [*state_payload(meter), *totals_payload(pm.power_budget_check(["a"])["a"])]
        keys += event_payload(1, event, pm.file_id, None)
    for key in keys:
        assert f"`{key}`" in chapter, key


def test_the_numbers_of_the_readme_are_the_codes() -> None:
    """Limits and pauses, where it names them."""
    assert f"It ends within {notices.END_SECONDS:g} seconds" in README
    assert (mirror.REFUSED_SECONDS, events.REFUSED_SECONDS) == (300.0, 60.0)
    assert "tried again every 5 minutes" in README
    assert "tried again every minute" in README.replace("\n  ", " ")
    assert publisher.POLL_SECONDS == 0.2
    assert publisher.LOOK_SECONDS == 1.0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd on this machine")
def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """With a program that is there in the place of ours."""
    text = (HERE / "power-mqtt.service").read_text(encoding="utf-8")
    program = "/opt/power/bin/power-mqtt"
    assert text.count(program) == 1
    unit = tmp_path / "power-mqtt.service"
    unit.write_text(text.replace(program, "/bin/true"), encoding="utf-8")
    run = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    said = [line for line in run.stderr.splitlines() if "power-mqtt" in line]
    assert (run.returncode, said) == (0, [])


def test_the_units_command_line_is_one_that_the_program_takes(tmp_path: Path) -> None:
    """Also the options that the comment at its head has."""
    text = (HERE / "power-mqtt.service").read_text(encoding="utf-8")
    (words,) = re.findall(r"^ExecStart=\S+ (.*)$", text, re.MULTILINE)
    (options,) = re.findall(r"OPTIONS=(.*)' >", text)
    args = _parser().parse_args(words.replace("$OPTIONS", options).split())
    assert (args.command, args.device) == ("publish", ["edge-001"])
