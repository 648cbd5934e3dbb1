"""Load the service and bare Starlette with the same work: requests a second, latency, memory.

    python3 integrations/service/bench/load.py [--seconds 5] [--passes 3] [--connections 16]

It needs Debian's wrk (apt-get install wrk). Each pass runs every case once, in turns, so that a
noisy machine affects all alike; the median is shown. Server and wrk share the machine's cores. Each
server has a database of its own, so that what one still writes when its run ends does not delay the
next.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from power_manager import PowerManager

HERE = Path(__file__).resolve()
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(
        [str(HERE.parents[1]), str(HERE.parents[3]), os.environ.get("PYTHONPATH", "")]
    ),
}

# The same library calls in as many threads, and no more: no tokens, limits, metrics or checks.
BARE = """
import asyncio, dataclasses, json, sys
from concurrent.futures import ThreadPoolExecutor
import uvicorn
from power_manager import PowerManager
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
pm, readers, writer = PowerManager(sys.argv[1]), ThreadPoolExecutor(4), ThreadPoolExecutor(1)
def call(threads, function, *arguments):
    return asyncio.get_running_loop().run_in_executor(threads, function, *arguments)
def answer(value):
    return Response(json.dumps(value), media_type="application/json")
async def health(request):
    return answer({"status": "ok"})
async def devices(request):
    return answer([dataclasses.asdict(device) for device in await call(readers, pm.list_devices)])
async def report(request):
    text = await call(readers, pm.export_report, request.path_params["device_id"], 7)
    return Response(text, media_type="application/json")
async def readings(request):
    rows = json.loads(await request.body())
    rows = rows if isinstance(rows, list) else [rows]
    rows = [(row["meter_id"], row["voltage"], row["current_draw"]) for row in rows]
    return answer({"received": len(rows), "stored": await call(writer, pm.log_many, rows)})
routes = [
    Route("/healthz", health),
    Route("/v1/devices", devices),
    Route("/v1/devices/{device_id}/report", report),
    Route("/v1/readings", readings, methods=["POST"]),
]
uvicorn.run(Starlette(routes=routes), port=int(sys.argv[2]), log_level="warning", access_log=False,
            loop=sys.argv[3], http=sys.argv[4])
"""


Cases = dict[str, tuple[str | None, str]]  # by name a script of wrk, or none, and a path


@dataclass
class Server:
    """A server under load, and what was measured of it."""

    name: str
    command: list[str]
    port: int
    process: subprocess.Popen[bytes] | None = None
    headers: list[str] = field(default_factory=list)
    rates: dict[str, list[float]] = field(default_factory=dict)
    p99: dict[str, list[float]] = field(default_factory=dict)
    cases: Cases = field(default_factory=dict)
    start_seconds: float = 0.0
    idle_mb: int = 0

    def start(self) -> None:
        """Start, and wait until it answers."""
        begin = time.monotonic()
        self.process = subprocess.Popen(self.command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < begin + 20, f"{self.name} does not start"
                time.sleep(0.02)
        self.start_seconds = time.monotonic() - begin
        self.idle_mb = self.rss_mb("VmRSS")

    def rss_mb(self, key: str) -> int:
        """Resident memory: now (VmRSS), or at most (VmHWM)."""
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = re.search(rf"{key}:\s+(\d+)", text)
        assert found
        return int(found[1]) // 1024

    def load(self, case: str, options: argparse.Namespace) -> None:
        """Let wrk loose on one path."""
        script, path = self.cases[case]
        command = [
            "wrk",
            "-t1",
            f"-c{options.connections}",
            f"-d{options.seconds}s",
            "--latency",
            *self.headers,
        ]
        command += ["-s", script] if script else []
        out = subprocess.run(
            [*command, f"http://127.0.0.1:{self.port}{path}"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Non-2xx" not in out.stdout, out.stdout
        rate, p99 = (
            re.search(r"Requests/sec:\s+([\d.]+)", out.stdout),
            re.search(r"99%\s+([\d.]+)(us|ms|s)", out.stdout),
        )
        assert rate, out.stdout
        assert p99, out.stdout
        self.rates.setdefault(case, []).append(float(rate[1]))
        self.p99.setdefault(case, []).append(
            float(p99[1]) * {"us": 0.001, "ms": 1, "s": 1000}[p99[2]]
        )


def prepare(directory: Path) -> tuple[Path, Cases]:
    """A database of five devices with a month of readings; and the cases: wrk script and path."""
    directory.mkdir()
    db = directory / "power.db"
    with PowerManager(db) as pm:
        for number in range(5):
            pm.register_device(f"edge-{number}", f"Edge Node {number}", target_wh=150.0)
        meter = pm.add_meter("edge-0", "battery", 50.0, "Pack")
        begin = time.time() - 30 * 86_400
        pm.log_many(
            (meter.id, 3.7, minute % 7 / 10, 80.0, begin + 60 * minute)
            for minute in range(30 * 1440)
        )
    reading = {"meter_id": meter.id, "voltage": 3.7, "current_draw": 0.5}
    scripts = {}
    for name, body in (("one", reading), ("batch", [reading] * 1000)):
        path = directory / f"{name}.lua"
        head = 'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        path.write_text(f"{head}wrk.body = [==[{json.dumps(body)}]==]\n")
        scripts[name] = str(path)
    return db, {
        "GET /healthz": (None, "/healthz"),
        "GET /v1/devices (5)": (None, "/v1/devices"),
        "GET report, 7 days": (None, "/v1/devices/edge-0/report"),
        "POST 1 reading": (scripts["one"], "/v1/readings"),
        "POST 1,000 readings": (scripts["batch"], "/v1/readings"),
    }


def servers(directory: Path) -> list[Server]:
    """The service and bare Starlette, each on h11 and on the extra `fast`."""
    tokens = directory / "tokens.json"
    words = ["token", "new", "load", "--scope", "admin", "--tokens", str(tokens)]
    made = [sys.executable, "-m", "power_service", *words]
    token = subprocess.run(
        made, env=ENVIRONMENT, capture_output=True, text=True, check=True
    ).stdout.strip()
    found = []
    for number, (loop, http) in enumerate((("asyncio", "h11"), ("uvloop", "httptools"))):
        port = 8301 + 2 * number
        db, cases = prepare(directory / str(port))
        bare_db, bare_cases = prepare(directory / str(port + 1))
        hide = (
            ""
            if number
            else "import sys; sys.modules['httptools'] = sys.modules['uvloop'] = None; "
        )
        run = hide + "import sys; from power_service.cli import main; sys.exit(main())"
        options = ["--db", str(db), "--tokens", str(tokens), "--port", str(port)]
        options += ["--rate", "0", "--quiet"]
        service = Server(f"power-service, {http}", [sys.executable, "-c", run, *options], port)
        service.cases = cases
        service.headers = ["-H", f"Authorization: Bearer {token}"]
        command = [sys.executable, "-c", BARE, str(bare_db), str(port + 1), loop, http]
        bare = Server(f"bare Starlette, {http}", command, port + 1, cases=bare_cases)
        found += [service, bare]
    return found


def show(found: list[Server]) -> None:
    """Print the table."""
    print("| requests/s (p99 ms) | " + " | ".join(server.name for server in found) + " |")
    print("| --- " * (len(found) + 1) + "|")
    for case in found[0].cases:
        cells = [
            f"{statistics.median(s.rates[case]):,.0f} ({statistics.median(s.p99[case]):.0f})"
            for s in found
        ]
        print(f"| {case} | " + " | ".join(cells) + " |")
    print("| start, s | " + " | ".join(f"{server.start_seconds:.1f}" for server in found) + " |")
    print("| memory idle, MB | " + " | ".join(str(server.idle_mb) for server in found) + " |")
    print(
        "| memory at most, MB | "
        + " | ".join(str(server.rss_mb("VmHWM")) for server in found)
        + " |"
    )


def main() -> int:
    """Measure, and print a table of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=int, default=5, help="of each run (default: 5)")
    parser.add_argument("--passes", type=int, default=3, help="over all cases (default: 3)")
    parser.add_argument("--connections", type=int, default=16, help="of wrk (default: 16)")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("wrk is not installed: apt-get install wrk", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        found = servers(Path(name))
        try:
            for server in found:
                server.start()
            for _ in range(options.passes):
                for case in found[0].cases:
                    for server in found:
                        server.load(case, options)
            show(found)
        finally:
            for server in found:
                if server.process is not None:
                    server.process.terminate()
                    server.process.wait(20)
    return 0


if __name__ == "__main__":
    sys.exit(main())
