"""Where the chaos program runs: a cluster of servers, or a hub.

Each says what of it can be harmed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nats.errors
from chaos_common import ENVIRONMENT, FLEET, POWER_FLEET, Program, fleet_program, run_fleet
from faults import Fault, FillDisk, Kill, Stop, Victim, small_disk
from power_fleet.stream import ACK_WAIT, Nats, make_consumer
from power_fleet.subjects import DEAD_STREAM, STREAM
from servers import SOON, Servers, free_ports

NATS_MEGABYTES = 100  # of a NATS server's disk
ENGINE_MEGABYTES = 300
DEVICE_MEGABYTES = 100  # of the disk with the devices' files
_FAILURES = (nats.errors.Error, OSError, asyncio.TimeoutError)


@dataclass
class Place:
    """What is there to send to and to ask, and what can be harmed."""

    nats_url: str
    engine_urls: list[str]
    victims: list[Victim] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def to(self) -> list[str]:
        """The options of what connects to NATS and goes on for ever."""
        return ["--nats", self.nats_url, "--max-wait", "2s"]

    @property
    def engine(self) -> list[str]:
        """The shards, as options of power-fleet."""
        return [text for url in self.engine_urls for text in ("--clickhouse", url)]

    def of(self, kind: str) -> list[Victim]:
        """The victims of a kind."""
        return [victim for victim in self.victims if victim.kind == kind]

    def messages(self, stream: str = STREAM) -> int:
        """How many messages wait in a stream; -1 where nobody says."""

        async def ask() -> int:
            connection = await Nats(self.nats_url).connect("chaos")
            try:
                return (await connection.jetstream().stream_info(stream)).state.messages
            finally:
                await connection.close()

        try:
            return asyncio.run(ask())
        except _FAILURES:
            return -1

    def dead_letters(self) -> int:
        """How many dead letters there are; -1 where nobody says."""
        return self.messages(DEAD_STREAM)


@contextlib.contextmanager
def cluster(home: Path, ack_wait_s: float = ACK_WAIT) -> Iterator[Place]:
    """Three NATS servers, 2 x 2 ClickHouse servers, ZooKeeper, two sinks, and `close`."""
    with contextlib.ExitStack() as stack:
        stores = [home / f"servers/nats{number}/store" for number in range(3)]
        engines = [
            home / f"servers/clickhouse{shard}{replica}/data"
            for shard in (0, 1)
            for replica in (0, 1)
        ]
        small = [stack.enter_context(small_disk(store, NATS_MEGABYTES)) for store in stores]
        small += [stack.enter_context(small_disk(data, ENGINE_MEGABYTES)) for data in engines]
        servers = stack.enter_context(Servers(home / "servers"))
        servers.start_nats(3)
        servers.start_clickhouse(2, 2)
        place = Place(servers.nats_url, servers.clickhouse_urls)
        run_fleet("schema", *place.engine)
        run_fleet("stream", "--nats", place.nats_url, "--max-bytes", "50000000")
        asyncio.run(set_ack_wait(place.nats_url, ack_wait_s))
        assert servers.zookeeper is not None
        place.victims = [
            *(Victim("NATS", server) for server in servers.nats),
            *(Victim("ClickHouse", server) for shard in servers.shards for server in shard),
            Victim("ZooKeeper", servers.zookeeper),
            *(
                Victim(
                    "sink", fleet_program(home / f"sink{n}.log", "sink", *place.to, *place.engine)
                )
                for n in (0, 1)
            ),
            Victim(
                "close",
                fleet_program(home / "close.log", "close", "--interval", "2s", *place.engine),
            ),
        ]
        for kind in ("NATS", "ClickHouse", "ZooKeeper", "sink", "close"):
            place.faults.append(Kill(place.of(kind), name=f"{kind} killed"))
        for kind in ("NATS", "ClickHouse", "sink"):
            place.faults.append(Stop(place.of(kind), name=f"{kind} stopped"))
        if all(small):
            place.faults.append(FillDisk(stores, "disk of NATS full"))
            place.faults.append(FillDisk(engines, "disk of ClickHouse full"))
        yield place


async def set_ack_wait(nats_url: str, seconds: float) -> None:
    """Have messages of a sink that was killed come again after so long."""
    connection = await Nats(nats_url).connect("chaos")
    try:
        js = connection.jetstream(timeout=SOON)  # of a cluster that has just found its leaders
        await make_consumer(js, seconds)
    finally:
        await connection.close()


class HubProgram(Program):
    """A hub with addresses of its own, which are the same each time that it starts."""

    def __init__(self, home: Path) -> None:
        self.data = home / "hub"
        nats_port, engine_port = free_ports(2)
        ports = ["--nats-port", str(nats_port), "--engine-port", str(engine_port)]
        self.arguments = ["hub", "--data", str(self.data), *ports]
        super().__init__(home / "hub.log", *POWER_FLEET, *self.arguments)
        self.environment = {**ENVIRONMENT, "XDG_STATE_HOME": str(home / "state")}

    def start(self, environment: Mapping[str, str] | None = None) -> Program:
        """Start it."""
        return super().start(environment or self.environment)

    def addresses(self) -> dict[str, str]:
        """What it says of itself when it is ready; nothing before."""
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, str] = json.loads((self.data / "hub.json").read_text())
            return found
        return {}


@dataclass
class HarmChild:
    """The hub's NATS server killed, or stopped for a while; the hub starts it again."""

    hub: HubProgram
    sent: signal.Signals
    name: str

    def harm(self, chance: random.Random, pause: Callable[[float], None]) -> bool:
        """Do it."""
        try:
            process = int((self.hub.data / "nats/nats.pid").read_text())
            os.kill(process, self.sent)
        except (OSError, ValueError):  # it is just starting
            return False
        pause(chance.uniform(0.5, 5.0))
        if self.sent == signal.SIGSTOP:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)
        return True


@contextlib.contextmanager
def hub(home: Path) -> Iterator[Place]:
    """One hub; its disk is a small one where this user may mount one."""
    with contextlib.ExitStack() as stack:
        program = HubProgram(home)
        is_small = stack.enter_context(small_disk(program.data, ENGINE_MEGABYTES))
        stack.callback(keep_logs, program.data / "nats", home)
        program.start()
        stack.callback(program.kill)
        wait_for(lambda: bool(program.addresses()))
        addresses = program.addresses()
        place = Place(addresses["nats"], [addresses["clickhouse"]])
        place.victims = [Victim("hub", program)]
        place.faults = [
            Kill(place.victims, name="hub killed"),
            Stop(place.victims, name="hub stopped"),
            HarmChild(program, signal.SIGKILL, "NATS of the hub killed"),
            HarmChild(program, signal.SIGSTOP, "NATS of the hub stopped"),
        ]
        if is_small:
            place.faults.append(FillDisk([program.data], "disk of the hub full"))
        yield place


def keep_logs(directory: Path, home: Path) -> None:
    """Copy logs from a disk that goes with the program."""
    for log in directory.glob("*.log*"):
        shutil.copy(log, home)


def wait_for(check: Callable[[], bool], seconds: float = 120.0) -> float:
    """Return how many seconds it took until check is true; AssertionError after so many."""
    begin = time.monotonic()
    while not check():
        assert time.monotonic() - begin < seconds, f"not within {seconds:g} s: {check}"
        time.sleep(0.2)
    return time.monotonic() - begin


def next_version(log: Path, *arguments: str) -> Program:
    """`power-fleet` of the next version with these arguments."""
    return Program(log, str(FLEET / "chaos/next_version.py"), *arguments)


def run_next(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the next version to its end."""
    command = [sys.executable, str(FLEET / "chaos/next_version.py"), *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


@contextlib.contextmanager
def upgraded(place: Place, home: Path) -> Iterator[None]:
    """The next version's sinks, or hub, in place of the present ones.

    Then the present ones again.
    """
    present = place.of("sink") or place.of("hub")
    with contextlib.ExitStack() as stack:
        for victim in present:
            stack.enter_context(victim.held)
            victim.what.kill()
        hubs = [victim.what for victim in present if isinstance(victim.what, HubProgram)]
        arguments = ["sink", *place.to, *place.engine]
        environment: Mapping[str, str] = ENVIRONMENT
        for hub in hubs:
            arguments = hub.arguments
            environment = hub.environment  # not to become the hub of whoever runs this
        program = next_version(home / "next-version.log", *arguments).start(environment)
        try:
            wait_for(lambda: place.messages() >= 0)
            yield
        finally:
            program.kill()
        for victim in present:
            victim.start()
    wait_for(lambda: place.messages() >= 0)
