"""The systemd units: what the README promises of them, and that systemd understands them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]
SERVICE, TIMER = HERE / "power-billing.service", HERE / "power-billing.timer"
POWER_SERVICE = HERE.parent / "service/power-service.service"


def settings(unit: Path) -> list[str]:
    """The lines of a unit that are no comments."""
    return [line for line in unit.read_text().splitlines() if line and not line.startswith("#")]


def test_the_unit_is_as_hardened_as_the_services() -> None:
    """It needs no more of the machine than power-service does, and has the same user and file."""
    theirs = settings(POWER_SERVICE)
    hardening = theirs[theirs.index("CapabilityBoundingSet=") : theirs.index("[Install]")]
    assert len(hardening) > 20
    assert set(hardening) <= set(settings(SERVICE))
    for line in ("User=power", "Group=power", "StateDirectory=power-manager", "UMask=0077"):
        assert line in theirs
        assert line in settings(SERVICE)
    (command,) = (line for line in settings(SERVICE) if line.startswith("ExecStart="))
    assert "--db /var/lib/power-manager/power_manager.db" in command
    assert any("--db /var/lib/power-manager/power_manager.db" in line for line in theirs)


def test_the_timer_starts_it_hourly() -> None:
    """Also for the hours in which the machine was off; the key is in a file that its user alone
    reads.
    """
    assert {"OnCalendar=*-*-* *:07:00", "Persistent=yes"} <= set(settings(TIMER))
    assert TIMER.stem == SERVICE.stem, "so that the timer finds the service"
    assert "install -D -m 0400 -o power" in SERVICE.read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
@pytest.mark.parametrize("unit", [SERVICE, TIMER], ids=["service", "timer"])
def test_systemd_understands_it(unit: Path) -> None:
    """But for the program, which is not installed here."""
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if "power-billing." in line]
    assert [line for line in complaints if "not executable" not in line] == []


def test_the_comment_names_files_that_are_there() -> None:
    """What it says to copy is beside it."""
    for name in re.findall(r"power-billing\.(?:service|timer)", SERVICE.read_text()):
        assert (HERE / name).exists()
