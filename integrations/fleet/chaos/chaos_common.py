"""What the programs share: places, processes, and comparing an engine with the files."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

FLEET = Path(__file__).resolve().parents[1]
PATHS = [str(FLEET), str(FLEET.parents[1])]
sys.path[:0] = PATHS
POWER_FLEET = [str(FLEET / "chaos/clickhouse18.py")]  # as a command of Python
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}

import clickhouse18  # noqa: E402, F401 - the engine's URLs are of its kind
from power_fleet.engine import Connection, Engine  # noqa: E402 - found by the lines above
from power_fleet.fleet import Fleet  # noqa: E402
from power_fleet.subjects import STREAM  # noqa: E402
from servers import Servers  # noqa: E402

from power_manager import PowerManager, to_microseconds  # noqa: E402


class Clock:
    """The time, until it is stopped: then files and engine are asked about the same moment."""

    def __init__(self) -> None:
        self.stopped: float | None = None

    def __call__(self) -> float:
        """Epoch seconds."""
        return time.time() if self.stopped is None else self.stopped


class Program:
    """A process that can be killed and started again."""

    def __init__(self, log: Path, *command: str) -> None:
        self._log, self._command = log, [sys.executable, *command]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, environment: Mapping[str, str] = ENVIRONMENT) -> Program:
        """Start it."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)
        return self

    def kill(self, sig: int = signal.SIGKILL) -> None:
        """End it, and wait until it is gone."""
        if self.process is not None:
            self.process.send_signal(sig)
            self.process.wait()


def fleet_program(log: Path, *arguments: str) -> Program:
    """`power-fleet` with these arguments."""
    return Program(log, *POWER_FLEET, *arguments)


def run_fleet(*arguments: str) -> str:
    """Run `power-fleet` to its end; return what it printed."""
    command = [sys.executable, *POWER_FLEET, *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def messages_of_leader(url: str) -> int:
    """How many messages the stream has, if that server leads it; else -1."""
    try:
        with urlopen(url + "/jsz?streams=1&leader_only=1", timeout=2) as answer:
            accounts = json.load(answer).get("account_details", [])
    except (OSError, HTTPException, ValueError):  # it is starting, or was killed meanwhile
        return -1
    streams = [stream for account in accounts for stream in account.get("stream_detail", [])]
    return next((stream["state"]["messages"] for stream in streams if stream["name"] == STREAM), -1)


def nats_http(servers: Servers) -> list[str]:
    """Where the NATS servers are watched."""
    found = [
        re.search(r"http: (\S+)", (server.home / "nats.conf").read_text())
        for server in servers.nats
    ]
    return [f"http://{match[1]}" for match in found if match]


def settle(files: Sequence[PowerManager], watched: Sequence[str], seconds: float) -> float:
    """Wait until every file is sent and the stream is empty; return how long that took."""
    begin = time.monotonic()
    while True:
        waiting = sum(bool(pm.pending_readings(1) or pm.pending_deletions(1)) for pm in files)
        messages = max(map(messages_of_leader, watched))
        if not waiting and messages == 0:
            return time.monotonic() - begin
        assert time.monotonic() - begin < seconds, (
            f"{waiting} files and {messages} messages wait after {seconds:g} s"
        )
        time.sleep(0.3)


def readings_of(
    client: Connection, device_id: str
) -> dict[tuple[str, int], tuple[float | None, float | None, float | None]]:
    """What a replica has of a device, by meter and microsecond; assert that nothing is double."""
    sql = """SELECT meter_id, at, voltage, current_draw, charge_pct FROM power_readings FINAL
        WHERE device_id = %(device)s AND deleted = 0"""
    rows = list(client.query(sql, {"device": device_id}).named_results())
    found = {
        (row["meter_id"], row["at"]): (row["voltage"], row["current_draw"], row["charge_pct"])
        for row in rows
    }
    assert len(found) == len(rows), f"{device_id}: a reading is there twice"
    return found


def processor_s(process: int) -> float:
    """Seconds of processor time that a process has taken."""
    # proc(5) counts the fields from 1, and this begins behind the second, a name in brackets.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[-1].split()
    user_ticks, system_ticks = fields[11:13]
    return (int(user_ticks) + int(system_ticks)) / os.sysconf("SC_CLK_TCK")


def compare(pm: PowerManager, device_id: str, clients: Sequence[Connection]) -> int:
    """Assert that each replica has exactly the file's readings and events.

    Return how many readings those are.
    """
    expected = {}
    for meter in pm.list_meters(device_id):
        for r in pm.iter_history(meter.id):
            expected[meter.id, to_microseconds(r.timestamp)] = (
                r.voltage,
                r.current_draw,
                r.charge_pct,
            )
    events = {event.id for event in pm.get_events(device_id, 10**9)}
    for client in clients:
        found = readings_of(client, device_id)
        assert found == expected, f"{device_id}: {len(found)} readings instead of {len(expected)}"
        sql = "SELECT id FROM power_events FINAL WHERE device_id = %(device)s AND deleted = 0"
        rows = client.query(sql, {"device": device_id}).named_results()
        assert {row["id"] for row in rows} == events, f"{device_id}: events"
    return len(expected)


def compare_all(files: dict[str, PowerManager], urls: Sequence[str], clock: Clock) -> int:
    """Assert that the engine is what the files are: readings, sums, states, reports.

    Return how many readings.
    """
    clock.stopped = time.time()
    engine, fleet, readings = Engine(urls), Fleet(urls, clock=clock), 0
    for device_id, pm in files.items():
        readings += compare(pm, device_id, engine.shards[engine.shard_of(device_id)].clients)
        assert pm.list_meters(device_id) == fleet.latest([device_id]).value, (
            f"{device_id}: present states"
        )
        for days in (1, 7):
            expected, report = (
                pm.export_report(device_id, days),
                fleet.report(device_id, days).value,
            )
            assert same(json.loads(expected), json.loads(report)), (
                f"{device_id}: {days} days\n{expected}\n{report}"
            )
        assert same(pm.power_budget_check([device_id]), fleet.budget([device_id]).value), (
            f"{device_id}: budget"
        )
    return readings


def same(expected: Any, actual: Any) -> bool:
    """Equal, floats to a millionth of their size."""
    if isinstance(expected, float) and isinstance(actual, (int, float)):
        return math.isclose(expected, actual, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(expected, dict) and isinstance(actual, dict):
        return list(expected) == list(actual) and all(
            same(expected[key], actual[key]) for key in expected
        )
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(map(same, expected, actual))
    return bool(expected == actual)
