"""A short run of the chaos program, on a cluster and on a hub: everything is harmed, and nothing is
lost or doubled.
"""

from __future__ import annotations

import string
import subprocess
import sys
from pathlib import Path

import pytest
import results
from fleet_harness import INTEGRATION


@pytest.mark.slow
@pytest.mark.parametrize("where", ["cluster", "hub"])
def test_nothing_is_lost_or_doubled(tmp_path: Path, where: str) -> None:
    """With a seed that has most faults in a few seconds; which moment each of them hits is up to
    the machine.
    """
    program = INTEGRATION / "chaos/chaos.py"
    command = [sys.executable, str(program), "--seconds", "6", "--devices", "3", "--seed", "7"]
    command += ["--ack-wait", "5"]
    command += ["--keep", str(tmp_path / "chaos")]
    command += ["--hub"] if where == "hub" else []
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "every replica equal to the files" in run.stdout


def test_the_results_have_a_place_for_every_measurement() -> None:
    """What is measured is written, and each program is there."""
    fields = {name for _, name, _, _ in string.Formatter().parse(results.TEXT) if name}
    assert fields == {*results.PARTS, "date", "machine"}
    for command in results.PARTS.values():
        assert (INTEGRATION / "chaos" / command.split()[0]).exists()
    assert "chdb" in results.machine()
