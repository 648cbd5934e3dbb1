"""How many small messages one sink stores in a second: each device's steady news, a few readings or its meters' states.

    python integrations/fleet/chaos/bench_sink.py
    python integrations/fleet/chaos/bench_sink.py --against OTHER_CHECKOUT    # both in turn, and their ratio

The stream is filled first, so that nothing but the sink, its NATS server and its ClickHouse server is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from chaos_common import FLEET, Program
from servers import Servers

MAX_GAP = 5_400_000_000
NOW = 1_790_000_000_000_000  # microseconds


async def fill(url: str, devices: int, rounds: int) -> None:
    """Put messages into the stream: in each round one of two readings and one of two meters of each device."""
    # Here, because another checkout may be on the path.
    from power_fleet.codec import Batch, Meter, Reading, encode
    from power_fleet.stream import SUBJECT, Nats

    connection = await Nats(url).connect("bench")
    js = connection.jetstream()
    pending = []
    for number in range(rounds):
        at = NOW + number * 5_000_000
        for device in range(devices):
            id_ = f"edge-{device:05}"
            readings = Batch(id_, MAX_GAP, 7)
            states = Batch(id_, MAX_GAP, 7)
            for position, kind in enumerate(("battery", "solar")):
                meter_id = f"{id_}-{kind}"
                readings.readings.append(
                    Reading(meter_id, at + device, 12.5 + number / 1000, 0.801, 80.1)
                )
                states.meters.append(
                    Meter(
                        meter_id,
                        position,
                        kind,
                        kind,
                        50.0,
                        12.5 + number / 1000,
                        0.801,
                        80.1,
                        at + device,
                        True,
                        True,
                        "none",
                        number + 1,
                    )
                )
            for batch in (readings, states):
                message_id, data = encode(batch)
                pending.append(
                    js.publish(SUBJECT + id_, data, 60, headers={"Nats-Msg-Id": message_id})
                )
            if len(pending) >= 1000 or device == devices - 1:
                await asyncio.gather(*pending)
                pending.clear()
    await connection.close()


def run(home: Path, checkout: Path, devices: int, rounds: int) -> float:
    """Fill a stream, let the sink of a checkout empty it; return messages a second."""
    paths = [str(checkout / "integrations/fleet"), str(checkout)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    total = 2 * devices * rounds

    def power_fleet(*arguments: str) -> None:
        command = [sys.executable, "-m", "power_fleet", *arguments]
        subprocess.run(command, env=environment, check=True, cwd=home)

    with Servers(home) as servers:
        servers.start_nats(1)
        servers.start_clickhouse(1, 1)
        (shard,) = servers.clickhouse_urls
        power_fleet("schema", "--clickhouse", shard)
        power_fleet("stream", "--nats", servers.nats_url, "--replicas", "1")
        command = [sys.executable, __file__, "--fill", servers.nats_url]
        command += ["--devices", str(devices), "--rounds", str(rounds)]
        subprocess.run(command, env=environment, check=True)
        await_messages(servers, total)
        sink = Program(
            home / "sink.log",
            *("-m", "power_fleet", "sink", "--nats", servers.nats_url, "--clickhouse", shard),
        )
        begin = time.monotonic()
        sink.start(environment)
        try:
            await_messages(servers, 0)
            took = time.monotonic() - begin
            assert sink.process is not None
            status = Path(f"/proc/{sink.process.pid}/status").read_text()
            (peak,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
            ticks = sum(map(int, Path(f"/proc/{sink.process.pid}/stat").read_text().split()[13:15]))
        finally:
            sink.kill()
        cpu = ticks / os.sysconf("SC_CLK_TCK")
    print(
        f"{checkout}: {total} messages in {took:.1f} s with the sink's start, {total / took:,.0f} a second; "
        f"sink: {cpu:.1f} s CPU, {peak}; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return total / took


def await_messages(servers: Servers, count: int) -> None:
    """Return as soon as so many messages are in the stream."""
    from chaos import nats_http
    from chaos_common import messages_of_leader

    deadline = time.monotonic() + 300
    while messages_of_leader(nats_http(servers)[0]) != count:
        assert time.monotonic() < deadline, "the stream does not get there within 300 s"
        time.sleep(0.05)


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=int, default=10_000, help="(default: 10000)")
    parser.add_argument("--rounds", type=int, default=4, help="of messages (default: 4)")
    parser.add_argument("--times", type=int, default=1, help="each is measured (default: 1)")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout to compare")
    parser.add_argument("--fill", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        asyncio.run(fill(options.fill, options.devices, options.rounds))
        return 0
    checkouts = [FLEET.parents[1]]
    if options.against:
        checkouts.insert(0, options.against.resolve())
    rates: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
    for _ in range(options.times):
        for checkout, found in rates.items():
            with tempfile.TemporaryDirectory(prefix="bench-sink-") as home:
                found.append(run(Path(home), checkout, options.devices, options.rounds))
    medians = [statistics.median(found) for found in rates.values()]
    if len(medians) == 2:
        print(f"{medians[1] / medians[0]:.1f} times as many as before")
    return 0


if __name__ == "__main__":
    sys.exit(main())
