"""What the tests start, they end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hold_port import held_port
from service_harness import ENVIRONMENT

# Like a run of the tests: it has a service forked, and ends.
RUN = """
import os, sys
from pathlib import Path
from forked import Forked
assert Forked([], Path(sys.argv[1]), dict(os.environ), code="print('done')").wait(60) == 0
"""


def test_the_server_that_forks_ends_with_the_tests(tmp_path: Path) -> None:
    """When a run has ended, its group has no process left."""
    here = str(Path(__file__).parent)
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([here, ENVIRONMENT["PYTHONPATH"]])}
    log = tmp_path / "log"
    command = [sys.executable, "-c", RUN, str(log)]
    with subprocess.Popen(command, env=environment, start_new_session=True) as run:
        assert run.wait(60) == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)
    assert log.read_text() == "done\n"


def test_a_port_that_is_held_is_for_who_names_it_alone() -> None:
    """Also after somebody has listened there: a service that starts again gets its port again."""
    with held_port() as holder:
        address = holder.getsockname()
        for _ in range(2):
            with socket.create_server(address), socket.create_connection(address):
                pass
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(address)
