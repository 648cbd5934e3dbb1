"""The README's commands and examples run; the unit and the Dockerfile are valid."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hold_port import held_port
from power_service import cli
from service_harness import ENVIRONMENT, SERVICE

README = (SERVICE / "README.md").read_text(encoding="utf-8")


def script(port: int) -> str:
    """Every block of shell and Python, in order, as one script that stops at the first failure."""
    parts = ["set -e -o pipefail; shopt -s expand_aliases; trap 'kill %1; wait' EXIT"]
    for language, block in re.findall(
        r"^```(sh|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL
    ):
        parts.append(block if language == "sh" else f"python3 - <<'END'\n{block}END\n")
    return (
        "\n".join(parts)
        .replace("python3 -m venv .venv && . .venv/bin/activate", "true")
        .replace("power-service --demo --open", DEMO)
        .replace(":8080", f":{port}")
        .replace("power_manager.db --quiet &", f"power_manager.db --quiet --port {port} &")
    )


# A reader ends it by Ctrl-C, and has a browser.
DEMO = """power-service --demo --port 0 >demo.txt &
until grep -q 'The demo is at' demo.txt; do sleep 0.2; done
kill $!; wait $!
"""


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's examples use curl")
def test_every_command_and_example_runs(tmp_path: Path) -> None:
    """One after the other, on a port that is free; only what pip would install is there already."""
    commands = tmp_path / "bin"
    commands.mkdir()
    python = f'exec "{sys.executable}"'
    for name, line in {
        "python3": f'{python} "$@"',
        "power-service": f'{python} -m power_service "$@"',
        "pip": "true",
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    (tmp_path / "integrations").symlink_to(SERVICE.parent)
    environment = {**ENVIRONMENT, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    with (
        held_port() as held,
        (tmp_path / "printed").open("w+") as printed,
    ):
        (tmp_path / "script").write_text(script(held.getsockname()[1]))
        with subprocess.Popen(
            ["bash", "script"],
            cwd=tmp_path,
            env=environment,
            stdout=printed,
            stderr=printed,
            start_new_session=True,
        ) as run:
            try:
                code = run.wait(600)
            finally:  # also where this test is interrupted, nothing goes on running
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(run.pid, signal.SIGKILL)
        text = (tmp_path / "printed").read_text()
    assert code == 0, text
    assert '"type":"discharge"' in text.replace(" ", "").replace("'", '"'), (
        "the reading's event came"
    )


def test_every_option_and_route_is_in_the_readme() -> None:
    """Nothing is left undocumented."""
    from test_service_contract import CONTRACT

    for option in re.findall(r"--[a-z-]+", cli._parser().format_help()):
        assert option in README or option in ("--help", "--version"), option
    for path in CONTRACT["paths"]:
        last = path.rpartition("/")[2]
        assert (
            path.replace("device_id", "id").replace("meter_id", "id") in README
            or f"`/{last}`" in README
        ), path


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_the_unit_is_valid_and_hardened(tmp_path: Path) -> None:
    """Systemd finds no fault, and little exposure."""
    unit = tmp_path / "power-service.service"
    text = (
        (SERVICE / unit.name)
        .read_text(encoding="utf-8")
        .replace("/opt/power/bin/power-service", "/bin/true")
    )
    unit.write_text(text.replace("User=power\nGroup=power\n", ""))
    verify = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert verify.returncode == 0, verify.stderr
    unit.write_text(text)
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]
    security = subprocess.run(command, capture_output=True, text=True, check=False)
    assert security.returncode == 0, security.stdout + security.stderr


@pytest.mark.parametrize("file", ["power-service.service", "Dockerfile"])
def test_the_options_of_unit_and_image_exist(file: str) -> None:
    """Their command lines are ones that the service takes."""
    text = (SERVICE / file).read_text(encoding="utf-8")
    if file == "Dockerfile":
        arguments = re.findall(r'"([^"]+)"', re.findall(r"^CMD \[(.*)\]", text, re.MULTILINE)[-1])
    else:
        arguments = re.findall(r"^ExecStart=\S+ (.*)$", text, re.MULTILINE)[0].split()
    cli._settings(cli._options(arguments)).check(token_count=0)
