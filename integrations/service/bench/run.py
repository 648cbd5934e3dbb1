"""Run every benchmark of the service and write RESULTS.md whole.

    python3 integrations/service/bench/run.py [--quick]

It takes about 5 minutes on a quiet machine. It needs Debian's wrk, a ClickHouse server on the PATH,
the extras `service`, `fast`, `fleet` and `hub`, and pytest.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
SERVICE = HERE.parent
ROOT = SERVICE.parents[1]
COMMAND = "python3 integrations/service/bench/run.py"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(
        [
            str(ROOT),
            str(SERVICE),
            str(SERVICE / "tests"),
            str(ROOT / "integrations/fleet"),
            os.environ.get("PYTHONPATH", ""),
        ]
    ),
}
STORM = "test_three_hundred_clients_lose_nothing_when_the_service_is_killed"


def output_of(*words: str) -> str:
    """What a program of this Python prints; its errors are shown."""
    command = [sys.executable, *words]
    print("running", *words, file=sys.stderr, flush=True)
    ended = subprocess.run(
        command, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return ended.stdout


def storm() -> str:
    """The row of a table that the test of 300 clients prints."""
    path = "integrations/service/tests/test_service_storm.py"
    options = ["-q", "-s", "-m", "slow", "-p", "no:cacheprovider", "--rootdir", "."]
    text = output_of("-m", "pytest", *options, "-c", "pyproject.toml", f"{path}::{STORM}")
    found = re.search(
        r"lost (\d+), twice (\d+), live (\d+), p50 (\d+) ms, p99 (\d+) ms, max (\d+) ms, RSS (\d+)",
        text,
    )
    assert found is not None, text
    lost, twice, live, p50, p99, most, rss = map(int, found.groups())
    return (
        f"| {platform.python_version()} | {lost} | {twice} | {live:,} | {p50} ms | {p99} ms "
        f"| {most} ms | {rss} MB |"
    )


@contextlib.contextmanager
def hub(devices: int) -> Iterator[None]:
    """A hub on this machine with a made-up fleet, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="power-bench-") as directory:
        command = [sys.executable, "-m", "power_fleet", "hub", "--data", f"{directory}/fleet"]
        with subprocess.Popen(
            command, env=ENVIRONMENT, cwd=directory, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith("ready"):
                        break
                else:
                    raise SystemExit("the hub did not start: its error is above")
                output_of("-m", "power_fleet", "demo", "--devices", str(devices), "--once")
                yield
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(60)


def machine() -> str:
    """The machine and the versions, as a sentence."""
    system = Path("/etc/os-release").read_text(encoding="utf-8")
    name = re.search(r'^PRETTY_NAME="?([^"\n]+)', system, re.MULTILINE)
    versions = [f"{each} {metadata.version(each)}" for each in ("fastapi", "uvicorn")]
    return (
        f"{name[1] if name else platform.system()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{', '.join(versions)}; load average at the start {os.getloadavg()[0]:.1f}."
    )


def results(quick: bool) -> str:
    """Measure everything; return RESULTS.md."""
    head = machine()
    seconds, passes, devices = (1, 1, 50) if quick else (2, 3, 1000)
    load = ["--seconds", str(seconds), "--passes", str(passes)]
    loads = output_of(str(HERE / "load.py"), *load).strip()
    connects = output_of(str(HERE / "connect.py")).strip()
    looks = output_of(str(HERE / "looks.py")).strip()
    row = storm()
    with hub(devices):
        fleet = output_of(str(HERE / "fleet.py")).strip()
    return f"""# Results

Written by `{COMMAND}`{" --quick: figures of a trial" if quick else ""}. {head}
Server and load generator share the cores, so differences below about 40 % mean nothing. ARM was
not measured.

## Load

wrk with 16 connections, {seconds} s a run, median of {passes} runs in turns. The service checks a
token, hosts, origins, limits and every value, and counts each request; bare Starlette makes the
same library call in as many threads, and nothing else. Each has five devices and 43,200 readings of
its own; durability `full`. The extra `fast` is uvloop and httptools.

{loads}

## Stream

300 clients; another process writes 300 events at 20 a second; after a third of them the service is
killed with `kill -9` and started again. The delay of an event is from just before it is written
until a client has it, for all events that came live; clients come back after 0.2 to 2 s.

| Python | lost | twice | live | p50 | p99 | most | memory |
| --- | --- | --- | --- | --- | --- | --- | --- |
{row}

Connecting to a service with 2,000 meters, whose states come after the hello, with 20 clients:

{connects}

## Looks and charts

{looks}

The look after a look at all meters waits four times as long as that took. A request for a chart
reads at most a million readings.

## A fleet

The service's questions to a `power-fleet hub` with a day of readings, median of 5:

{fleet}
"""


def main() -> int:
    """Measure, and write RESULTS.md."""
    parser = argparse.ArgumentParser(description="Run every benchmark and write RESULTS.md.")
    parser.add_argument(
        "--quick", action="store_true", help="print a trial of a minute, and write nothing"
    )
    options = parser.parse_args()
    for program in ("wrk", "clickhouse-server"):
        if shutil.which(program) is None:
            print(f"{program} is not installed: apt-get install {program}", file=sys.stderr)
            return 1
    for module in ("uvloop", "httptools", "clickhouse_connect", "nats", "pytest"):
        if importlib.util.find_spec(module) is None:
            command = "pip install '.[service,fast,fleet,hub]' -r requirements.txt"
            print(f"{module} is not installed: {command}", file=sys.stderr)
            return 1
    text = results(options.quick)
    if options.quick:
        print(text, end="")
    else:
        (SERVICE / "RESULTS.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
