"""What a connection to the stream of many meters costs: bytes on the wire, and the service's CPU.

    python3 integrations/service/bench/connect.py [--meters 2000] [--clients 20]

Each client reads the present state of every meter and disconnects; first without
permessage-deflate, then with it. It prints a table of RESULTS.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parents[1] / "tests")]

from service_harness import COMMAND, Service  # noqa: E402 - the line above makes it importable
from websockets.asyncio.client import ClientConnection, connect  # noqa: E402
from websockets.asyncio.connection import Connection  # noqa: E402

from power_manager import PowerManager  # noqa: E402


class Counting(ClientConnection):
    """A connection that counts the bytes that come."""

    received = 0

    def data_received(self, data: bytes) -> None:
        """Count the bytes."""
        type(self).received += len(data)
        Connection.data_received(self, data)


def fill(path: Path, meters: int) -> None:
    """Ten meters a device, each with a reading."""
    with PowerManager(path, durability="normal") as pm, pm.transaction():
        for number in range(meters):
            device_id = f"edge-{number // 10:04d}"
            if number % 10 == 0:
                pm.register_device(device_id, f"Edge {number // 10}")
            meter = pm.add_meter(device_id, "battery", capacity_wh=100.0, name="Pack")
            pm.log_power(meter.id, 12.0 + number / 1e4, 1.0, 50.0)


async def read(url: str, compression: str | None, frames: int) -> None:
    """Read so many frames."""
    async with connect(
        url, compression=compression, create_connection=Counting, proxy=None, close_timeout=1
    ) as stream:
        for _ in range(frames):
            await stream.recv()


async def together(url: str, compression: str | None, frames: int, clients: int) -> None:
    """The same by many clients at once."""
    await asyncio.gather(*(read(url, compression, frames) for _ in range(clients)))


def cpu_seconds(pid: int) -> float:
    """That a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--meters", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        service = Service(
            Path(directory), "--no-auth", "--quiet", "--max-connections", "2000", program=COMMAND
        )
        fill(service.db, options.meters)
        service.start()
        print("| a client | KiB | ms of CPU |")
        print("| --- | --- | --- |")
        try:
            for compression in (None, "deflate"):
                Counting.received = 0
                begin = cpu_seconds(service.pid)
                asyncio.run(
                    together(service.stream_url, compression, options.meters + 1, options.clients)
                )
                used_ms = (cpu_seconds(service.pid) - begin) / options.clients * 1000
                kib = Counting.received / options.clients / 1024
                name = "without `permessage-deflate`"
                if compression:
                    name = "with `permessage-deflate`, which browsers offer"
                print(f"| {name} | {kib:,.0f} | {used_ms:.0f} |")
        finally:
            service.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
