"""What .ci/jobs.sh promises of the jobs of the gate."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

_HEAD = """
set -euo pipefail
work=$PWD
. {jobs}
trap stop_jobs EXIT
trap 'exit 130' INT
"""
# Says that it runs, then waits until Ctrl-C.
_WAITS = f"""
waits() {{
  {sys.executable} -c '
import pathlib, time
try:
    print("waiting", file=open("began", "w"), flush=True)
    time.sleep(1000)
except KeyboardInterrupt:
    pathlib.Path("cleared").touch()
    raise SystemExit(2)'
}}
"""


def start(folder: Path, script: str) -> subprocess.Popen[str]:
    """Start a script in a folder with two pipes, by which its jobs can wait for each other."""
    for name in ("began", "go"):
        os.mkfifo(folder / name)
    head = _HEAD.format(jobs=Path(__file__).with_name("jobs.sh"))
    return subprocess.Popen(
        ["bash", "-c", head + script],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What a script prints until it ends."""
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # it stops its jobs
            process.communicate(timeout=20)
    return output


def test_two_jobs_run_at_once(tmp_path: Path) -> None:
    """A second job runs beside the first, and each log is shown whole."""
    script = """
    first() { echo first begins; read -r word <go; echo "first heard $word"; }
    second() { echo second begins; echo hello >go; }
    third() { echo "third $1"; }
    job first first; job second second; job third "third argument"; run_jobs
    printf '%s\n' "${seconds[@]}"
    """
    process = start(tmp_path, script)
    output = finish(process)
    assert process.returncode == 0, output
    assert "printed:\nfirst begins\nfirst heard hello\n" in output
    assert "printed:\nthird argument\n" in output
    assert sorted(line.split(" s  ")[1] for line in output.splitlines()[-3:]) == [
        "first",
        "second",
        "third",
    ]


def test_the_first_failure_stops_the_others(tmp_path: Path) -> None:
    """What runs is ended by Ctrl-C, no further job begins, and the failed job is named last."""
    script = (
        _WAITS
        + """
    fails() { read -r _ <began; echo before; false; echo after; }
    never() { touch never; }
    job waits waits; job fails fails; job never never; run_jobs
    """
    )
    process = start(tmp_path, script)
    output = finish(process)
    assert process.returncode == 1
    assert "printed:\nbefore\n\n=== FAILED: fails (exit code 1), after " in output
    assert output.splitlines()[-1].startswith("=== FAILED: fails")
    assert (tmp_path / "cleared").exists()
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_jobs(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM of the gate end its jobs, which clear up."""
    process = start(tmp_path, _WAITS + "trap 'exit 143' TERM\njob waits waits; run_jobs")
    assert (tmp_path / "began").read_text() == "waiting\n"
    process.send_signal(number)
    output = finish(process)
    assert process.returncode == 128 + number
    assert "=== waits is stopped" in output
    assert (tmp_path / "cleared").exists()


def test_programs_of_a_job_hear_ctrl_c(tmp_path: Path) -> None:
    """A test in a job can send Ctrl-C to a program, which does not ignore it."""
    program = f"{sys.executable} -c 'import os, signal; os.kill(os.getpid(), signal.SIGINT)'"
    script = (
        f"hears() {{ code=0; {program} || code=$?; echo code $code; }}\njob hears hears; run_jobs"
    )
    process = start(tmp_path, script)
    output = finish(process)
    assert process.returncode == 0
    assert "code 130\n" in output


def test_nothing_outlives_its_job(tmp_path: Path) -> None:
    """A process that a job leaves behind is ended, and said."""
    script = "leaves() { sleep 1000 >began & read -r _ <go; }\njob leaves leaves; run_jobs"
    process = start(tmp_path, script)
    with open(tmp_path / "began") as held_by_what_is_left:
        (tmp_path / "go").write_text("on\n")
        ready, _, _ = select.select([held_by_what_is_left], [], [], 60)
        assert ready  # its last writer has ended
        assert not held_by_what_is_left.read()
    output = finish(process)
    assert process.returncode == 0
    assert "=== leaves left processes behind" in output
