"""Kill every part at random for a while; then the engine must be exactly what the files are.

    python integrations/fleet/chaos/chaos.py                      # 40 devices, 60 seconds
    python integrations/fleet/chaos/chaos.py --seconds 15 --devices 12

Three NATS servers, two shards of two ClickHouse servers, ZooKeeper, two sinks, a forwarder a device, and a writer for
all of the files; each of them is killed with SIGKILL and started again a moment later.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from chaos_common import FLEET, Clock, Program, compare_all, fleet_program, run_fleet, settle
from servers import Server, Servers

from power_manager import PowerManager

HANGS = 15.0  # seconds without an answer


class Victims:
    """All that may be killed, by kind; one of a kind is down at a time, but for forwarders."""

    def __init__(self, kinds: dict[str, list[Server | Program]], seed: int) -> None:
        self._kinds, self._chance = kinds, random.Random(seed)
        self._down: list[Server | Program] = []  # killed on purpose
        self._turn = threading.Lock()  # two that start one victim would lose a process
        self._silent: dict[int, float] = {}  # servers that do not answer, since when
        self.kills: collections.Counter[str] = collections.Counter()
        self.exits: collections.Counter[str] = collections.Counter()

    def supervise(self, ended: threading.Event) -> None:
        """Start again what has ended by itself or hangs, as systemd and a health check would.

        ClickHouse 18 ends where ZooKeeper is gone at its start, and sometimes hangs where it goes during that.
        """
        while not ended.wait(1.0):
            for kind, victims in self._kinds.items():
                for victim in victims:
                    if victim not in self._down and self._is_lost(victim):
                        self._start_lost(kind, victim)

    def _start_lost(self, kind: str, victim: Server | Program) -> None:
        with self._turn:
            if victim in self._down:  # killed on purpose meanwhile, and started again by who did it
                return
            self.exits[kind] += 1
            victim.kill()
            _start(victim)

    def _is_lost(self, victim: Server | Program) -> bool:
        process = victim.process
        if process is None or process.poll() is not None:
            return process is not None
        if isinstance(victim, Program) or victim.ready():
            self._silent.pop(id(victim), None)
            return False
        lost = time.monotonic() - self._silent.setdefault(id(victim), time.monotonic()) > HANGS
        if lost:
            del self._silent[id(victim)]
        return lost

    def harm(self, seconds: float) -> None:
        """Kill, wait, start again, for so long: one thread for each kind, so that several are down at once."""
        end = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._harm_kind, args=(kind, end)) for kind in self._kinds
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def spare(self, victim: Server | Program) -> None:
        """From now on it is not started again."""
        self._down.append(victim)

    def _harm_kind(self, kind: str, end: float) -> None:
        while time.monotonic() < end:
            time.sleep(self._chance.uniform(0.2, 3.0))
            victim = self._chance.choice(self._kinds[kind])
            with self._turn:
                self._down.append(victim)
                victim.kill()
            self.kills[kind] += 1
            time.sleep(self._chance.uniform(0.1, 2.0))
            with self._turn:
                _start(victim)
                self._down.remove(victim)


def _start(victim: Server | Program) -> None:
    if isinstance(victim, Server):
        victim.start(wait=False)
    else:
        victim.start()


def make_files(directory: Path, count: int, clock: Clock) -> dict[str, PowerManager]:
    """A file for each device, with two meters."""
    files = {}
    for number in range(count):
        device_id = f"edge-{number:03}"
        pm = files[device_id] = PowerManager(
            directory / f"{device_id}.db", durability="normal", clock=clock
        )
        pm.register_device(device_id, f"Device {number}", target_wh=100.0)
        pm.add_meter(device_id, "battery", capacity_wh=50.0, name="Pack")
        pm.add_meter(device_id, "solar", name="Panel")
    return files


def nats_http(servers: Servers) -> list[str]:
    """Where the NATS servers are watched."""
    found = [
        re.search(r"http: (\S+)", (server.home / "nats.conf").read_text())
        for server in servers.nats
    ]
    return [f"http://{match[1]}" for match in found if match]


def make_programs(
    home: Path, servers: Servers, device_ids: Iterable[str]
) -> dict[str, list[Program]]:
    """The programs that move the readings, not started yet, by kind."""
    to = ("--nats", servers.nats_url, "--max-wait", "2")
    shards = shard_options(servers)
    return {
        "writer": [
            Program(
                home / "writer.log", str(FLEET / "chaos/writer.py"), str(home / "files"), "0.01"
            )
        ],
        "sink": [
            fleet_program(home / f"sink{number}.log", "sink", *to, *shards) for number in range(2)
        ],
        "forwarder": [
            fleet_program(
                home / f"{id_}.log",
                "forward",
                *to,
                "--interval",
                "1",
                "--db",
                str(home / f"files/{id_}.db"),
            )
            for id_ in device_ids
        ],
    }


def shard_options(servers: Servers) -> list[str]:
    """The shards, as options of power-fleet."""
    return [text for url in servers.clickhouse_urls for text in ("--clickhouse", url)]


def run(home: Path, devices: int, seconds: float, seed: int) -> None:
    """Start everything, harm it, let it settle, compare."""
    home.joinpath("files").mkdir()
    clock = Clock()
    with Servers(home / "servers") as servers:
        servers.start_nats(3)
        servers.start_clickhouse(2, 2)
        run_fleet("schema", *shard_options(servers))
        run_fleet("stream", "--nats", servers.nats_url, "--max-bytes", "200000000")
        files = make_files(home / "files", devices, clock)
        programs = make_programs(home, servers, files)
        everything: dict[str, list[Server | Program]] = {
            kind: list(some) for kind, some in programs.items()
        }
        everything |= {
            "NATS": list(servers.nats),
            "ClickHouse": [s for shard in servers.shards for s in shard],
        }
        everything |= {"ZooKeeper": [servers.zookeeper] if servers.zookeeper else []}
        victims = Victims(everything, seed)
        with running(victims, [program for some in programs.values() for program in some]):
            victims.harm(seconds)
            (writer,) = programs["writer"]
            victims.spare(writer)
            writer.kill()
            took = settle(list(files.values()), nats_http(servers), 180)
            # A message is acknowledged after it is stored: an empty stream is all there is.
            readings = compare_all(files, servers.clickhouse_urls, clock)
    print(
        f"seed {seed}, {seconds:g} s, killed: "
        + ", ".join(f"{k} {n}" for k, n in victims.kills.items())
    )
    print("ended or hung by itself, and started again: " + str(dict(victims.exits) or "nothing"))
    print(f"settled {took:.0f} s after the last kill; {devices} devices, {readings} readings: "
          "every replica equal to the files, reports and budgets too")  # fmt: skip


@contextlib.contextmanager
def running(victims: Victims, programs: list[Program]) -> Iterator[None]:
    """Programs at work and supervised; they are gone afterwards."""
    ended = threading.Event()
    supervisor = threading.Thread(target=victims.supervise, args=(ended,))
    try:
        for program in programs:
            program.start()
        supervisor.start()
        yield
    finally:
        ended.set()
        if supervisor.is_alive():
            supervisor.join()
        for program in programs:
            program.kill()


def main() -> int:
    """Run; the exit code is 0 if nothing was lost, doubled or changed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of killing (default: 60)")
    parser.add_argument("--devices", type=int, default=40, help="files (default: 40)")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(10**6), help="(default: by chance)"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="a directory that is kept, with all logs"
    )
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True)
        run(options.keep, options.devices, options.seconds, options.seed)
    else:
        with tempfile.TemporaryDirectory(prefix="chaos-") as home:
            run(Path(home), options.devices, options.seconds, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
