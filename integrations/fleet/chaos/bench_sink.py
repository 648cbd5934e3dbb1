"""How many small messages one sink stores in a second.

Each device's steady news, a few readings or its meters' states.

    python3 integrations/fleet/chaos/bench_sink.py
    python3 integrations/fleet/chaos/bench_sink.py --against OTHER_CHECKOUT

The second measures both in turn, and prints their ratio.

The stream is filled first, so that nothing but the sink, its NATS server and its engine, a hub's,
is measured. With `sync_interval: always` the NATS server syncs its disk for each message that it
takes in, and for each that it drops: then the disk is measured. So here it does not, unless --sync
says so.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from chaos_common import ENVIRONMENT, FLEET, messages_of_leader
from servers import Servers


@contextlib.contextmanager
def engine_of_hub(home: Path) -> Iterator[str]:
    """A hub's engine in a process of its own; its URL."""
    code = """
import signal, sys
from power_fleet.front import Front
front = Front(sys.argv[1], "secret", 0)
front.start()
print(front.url, flush=True)
signal.pause()
"""
    command = [sys.executable, "-c", code, str(home / "engine")]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def run(home: Path, checkout: Path, devices: int, rounds: int, sync: bool) -> float:
    """Fill a stream, let the sink of a checkout empty it; return messages a second."""
    paths = [str(checkout / "integrations/fleet"), str(checkout)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    total = 2 * devices * rounds

    def power_fleet(*arguments: str) -> None:
        command = [sys.executable, "-m", "power_fleet", *arguments]
        subprocess.run(command, env=environment, check=True, cwd=home)

    with Servers(home) as servers, engine_of_hub(home) as shard:
        servers.start_nats(1, jetstream="" if sync else 'sync_interval: "2m"')
        power_fleet("schema", "--clickhouse", shard)
        power_fleet("stream", "--nats", servers.nats_url, "--replicas", "1")
        command = [sys.executable, str(FLEET / "chaos/fill_stream.py"), servers.nats_url]
        command += [str(devices), str(rounds)]
        subprocess.run(command, env=environment, check=True, cwd=home)
        await_messages(servers, range(total, total + 1))
        options = ["sink", "--nats", servers.nats_url, "--clickhouse", shard]
        command = [sys.executable, "-m", "power_fleet", *options]
        # From another directory, or Python would take the package that is in this one.
        with (
            (home / "sink.log").open("wb") as log,
            subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=log) as sink,
        ):
            try:
                left = await_messages(servers, range(total))  # it has begun
                begin = time.monotonic()
                await_messages(servers, range(1))
                took = time.monotonic() - begin
                status = Path(f"/proc/{sink.pid}/status").read_text()
                (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
                stat = Path(f"/proc/{sink.pid}/stat").read_text()
                ticks = sum(map(int, stat.split()[13:15]))
            finally:
                sink.kill()
        cpu = ticks / os.sysconf("SC_CLK_TCK")
    print(
        f"{total} messages, the last {left} of them in {took:.1f} s, {left / took:,.0f} a second; "
        f"sink: {cpu:.1f} s of processor time, {int(peak) / 1024:.0f} MB at most; "
        f"load average {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return left / took


def await_messages(servers: Servers, counts: range) -> int:
    """Return how many messages are in the stream, as soon as that is one of these numbers."""
    deadline = time.monotonic() + 120
    (server,) = servers.nats
    configuration = (server.home / "nats.conf").read_text()
    (address,) = re.findall(r"http: (\S+)", configuration)  # where the server is watched
    while (found := messages_of_leader(f"http://{address}")) not in counts:
        assert time.monotonic() < deadline, f"after 120 s {found} messages are in the stream"
        time.sleep(0.02)
    return found


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=int, default=10_000, help="(default: 10000)")
    parser.add_argument("--rounds", type=int, default=4, help="of messages (default: 4)")
    parser.add_argument("--times", type=int, default=1, help="each is measured (default: 1)")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout to compare")
    parser.add_argument("--sync", action="store_true", help="NATS syncs its disk every time")
    options = parser.parse_args()
    checkouts = [FLEET.parents[1]]
    if options.against:
        checkouts.insert(0, options.against.resolve())
    rates: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
    for _ in range(options.times):
        for checkout, found in rates.items():
            if options.against:
                print(checkout)
            with tempfile.TemporaryDirectory(prefix="bench-sink-") as home:
                found.append(
                    run(Path(home), checkout, options.devices, options.rounds, options.sync)
                )
    if options.against:
        before, present = (statistics.median(found) for found in rates.values())
        print(f"{present / before:.1f} times as many as before")
    return 0


if __name__ == "__main__":
    sys.exit(main())
