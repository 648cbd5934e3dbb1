"""Harm every part at random for a while; then the engine must be exactly what the files are.

    python3 integrations/fleet/chaos/chaos.py            # a cluster, 20 devices, 60 seconds
    python3 integrations/fleet/chaos/chaos.py --hub      # the same with `power-fleet hub`
    python3 integrations/fleet/chaos/chaos.py --seconds 15 --devices 6

A cluster is three NATS servers, two shards of two ClickHouse servers, ZooKeeper, two sinks and
`power-fleet close`. Beside it run a forwarder for each device, and a writer for all of the files.
What goes wrong is in faults.py: processes are killed and stopped, disks are full, one device floods
the stream with poison, others send a backfill. Four more devices have lives of their own, in
lives.py: a file restored from a backup with a clock that was a year ahead, a card replaced, a card
cloned, a device upgraded before the sinks. In the end the sinks are upgraded, and go back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import logging
import random
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import nats.errors
from chaos_common import FLEET, Clock, Program, compare_all, fleet_program
from faults import Chaos, Do, Fault, FillDisk, Kill, Stop, Victim, small_disk
from lives import Ahead, Life, all_lives, start
from places import DEVICE_MEGABYTES, Place, cluster, hub, run_next, upgraded, wait_for
from power_fleet.engine import Engine
from power_fleet.fleet import Fleet
from power_fleet.progress import FOLLOWER
from power_fleet.stream import ACK_WAIT, Nats
from power_fleet.subjects import SUBJECT, token
from power_fleet.watch import look

from power_manager import PowerManager

THIEF = "thief 1"  # a device whose key was stolen
FLOOD = 400  # messages at once
BACKFILL = 3000  # late readings at once
SETTLE_SECONDS = 240.0
# In a row, a quarter of a second apart, at which nothing waits: forwarders look each half second.
QUIET_LOOKS = 5


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


@functools.lru_cache
def poisons(victim_id: str) -> list[bytes]:
    """What can never be stored, of each kind."""
    text = json.dumps({"v": 2, "device_id": victim_id, "line": 1, "number": 1}).encode()
    return [
        b"",
        random.Random(1).randbytes(200),
        zlib.compress(b"[" * 10_000),
        zlib.compress(b"0" * 5_000_000),
        zlib.compress(text),
        text,
        zlib.compress(json.dumps({"v": 99, "device_id": THIEF}).encode()),
        b'{"stream": "POWER_FLEET", "seq": 1}',
    ]


def flood(place: Place, victim_id: str, chance: random.Random) -> None:
    """A device sends poison as fast as it can, much of it in another device's name."""

    async def send() -> None:
        connection = await Nats(place.nats_url).connect("thief")
        try:
            for _ in range(FLOOD):
                reply = chance.choice(
                    ["", SUBJECT + token(victim_id), "$JS.API.STREAM.PURGE.POWER_FLEET"]
                )
                await connection.publish(
                    SUBJECT + token(THIEF), chance.choice(poisons(victim_id)), reply=reply
                )
            await connection.flush()
        finally:
            await connection.close()

    with contextlib.suppress(
        nats.errors.Error, OSError, asyncio.TimeoutError
    ):  # as it is with thieves
        asyncio.run(send())


def backfill(files: dict[str, PowerManager], chance: random.Random) -> None:
    """A device finds many readings of the days before."""
    pm = files[chance.choice(list(files))]
    meter = chance.choice(
        [meter for device in pm.list_devices() for meter in pm.list_meters(device.id)]
    )
    start_at = time.time() - chance.uniform(1, 6) * 86400.0
    with contextlib.suppress(OSError):  # its disk is full, or the writer has the file for long
        pm.log_many(
            [
                (meter.id, 12.0, chance.uniform(-1, 1), 50.0, start_at + 10.0 * n)
                for n in range(BACKFILL)
            ]
        )


def device_faults(
    place: Place, files: dict[str, PowerManager], disk: Path, is_small: bool
) -> list[Fault]:
    """What goes wrong on the devices, or with them."""
    chosen = random.Random(1).choice(list(files))
    faults: list[Fault] = [
        Kill(place.of("writer"), name="writer killed"),
        Kill(place.of("forwarder"), name="forwarder killed"),
        Stop(place.of("forwarder"), name="forwarder stopped"),
        Do("poison flood", lambda chance: flood(place, chosen, chance)),
        Do("backfill", lambda chance: backfill(files, chance)),
    ]
    if is_small:
        faults.append(FillDisk([disk], "disk of the devices full"))
    return faults


def device_victims(home: Path, place: Place, device_ids: list[str]) -> list[Victim]:
    """The writer, and a forwarder of each device."""
    writer = Program(
        home / "writer.log", str(FLEET / "chaos/writer.py"), str(home / "files"), "0.01"
    )
    found = [Victim("writer", writer)]
    for id_ in device_ids:
        options = [*place.to, "--interval", "0.5s", "--db", str(home / f"files/{id_}.db")]
        found.append(Victim("forwarder", fleet_program(home / f"{id_}.log", "forward", *options)))
    return found


def settle(place: Place, files: list[PowerManager]) -> float:
    """Wait until every file is sent and the stream is empty, and stays so.

    Return how many seconds that took.
    """
    quiet = 0
    events = [pm.event_follower(FOLLOWER, from_start=True) for pm in files]

    def is_quiet() -> bool:
        nonlocal quiet
        waiting = any(pm.pending_readings(1) or pm.pending_deletions(1) for pm in files)
        waiting = waiting or any(follower.pending(1) for follower in events)
        quiet = 0 if waiting or place.messages() != 0 else quiet + 1
        return quiet >= QUIET_LOOKS

    return wait_for(is_quiet, SETTLE_SECONDS)


def upgrade_and_go_back(
    place: Place, home: Path, files: dict[str, PowerManager], lives: list[Life]
) -> None:
    """Sinks of the next version store what present devices send, and what one ahead had sent.

    Then the present sinks go on.
    """

    def log_everywhere() -> None:
        for device_id, pm in files.items():
            pm.log_many([(meter.id, 12.0, 1.0, 50.0) for meter in pm.list_meters(device_id)])
        settle(place, list(files.values()))

    with upgraded(place, home):
        for life in lives:
            if isinstance(life, Ahead) and life.failure is None:
                replayed = run_next(
                    "dead", "replay", "--device", life.device_id, "--nats", place.nats_url
                )
                assert replayed.returncode == 0, replayed.stderr
        log_everywhere()
    log_everywhere()


@contextlib.contextmanager
def devices(home: Path, count: int, clock: Clock) -> Iterator[tuple[dict[str, PowerManager], bool]]:
    """The files, and whether their disk is a small one."""
    with small_disk(home / "files", DEVICE_MEGABYTES) as is_small:
        files = make_files(home / "files", count, clock)
        try:
            yield files, is_small
        finally:
            for pm in files.values():
                pm.close()


class Phases:
    """How long each part of a run takes."""

    def __init__(self) -> None:
        self._began_at = time.monotonic()
        self._parts: list[str] = []

    def end(self, name: str) -> None:
        """Note that a part has ended."""
        now = time.monotonic()
        self._parts.append(f"{name} {now - self._began_at:.0f}")
        self._began_at = now

    def __str__(self) -> str:
        return ", ".join(self._parts)


def run(home: Path, options: argparse.Namespace) -> None:
    """Start everything, harm it, let it settle, compare."""
    clock = Clock()
    phases = Phases()
    make_place = hub if options.hub else functools.partial(cluster, ack_wait_s=options.ack_wait)
    with devices(home, options.devices, clock) as (files, is_small), make_place(home) as place:
        place.victims += device_victims(home, place, list(files))
        place.faults += device_faults(place, files, home / "files", is_small)
        chaos = Chaos(place.victims, place.faults, options.seed)
        lives = all_lives(home, place)
        try:
            with chaos.running():
                phases.end("start")
                threads = start(lives)
                chaos.harm(options.seconds)
                for victim in place.of("writer"):
                    with victim.held:
                        victim.spared = True
                        victim.what.kill()
                phases.end("harm")
                for thread in threads:
                    thread.join()
                phases.end("lives")
                took = settle(place, list(files.values()))
                phases.end("settle")
                letters = place.dead_letters()
                upgrade_and_go_back(place, home, files, lives)
                phases.end("upgrade")
                readings = compare(place, files, lives, clock)
                phases.end("compare")
        finally:
            for life in lives:
                life.end()
    done = ", ".join(f"{name} {count}" for name, count in sorted(chaos.done.items()))
    print(f"seed {options.seed}, {options.seconds:g} s: {done}")
    print(f"ended or hung by itself, and started again: {dict(chaos.restarts) or 'nothing'}")
    print(
        f"settled {took:.0f} s after the last harm; {letters} dead letters; "
        f"{options.devices} devices, and {len(lives)} with lives of their own; "
        f"{readings} readings: every replica equal to the files, reports and budgets too"
    )
    print(f"seconds: {phases}")


def compare(place: Place, files: dict[str, PowerManager], lives: list[Life], clock: Clock) -> int:
    """Assert that the engine has what it has to have; return how many readings that is."""
    readings = compare_all(files, place.engine_urls, clock)
    engine, fleet = Engine(place.engine_urls), Fleet(place.engine_urls, clock=clock)
    look(engine)
    for life in lives:
        readings += life.check(engine)
        life.check_present(fleet)
    return readings


def main() -> int:
    """Run; the exit code is 0 if nothing was lost, doubled or changed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of harm (default: 60)")
    parser.add_argument("--devices", type=int, default=20, help="files (default: 20)")
    parser.add_argument("--hub", action="store_true", help="a hub in place of a cluster")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(10**6), help="(default: by chance)"
    )
    parser.add_argument(
        "--ack-wait",
        type=float,
        default=ACK_WAIT,
        metavar="S",
        help=f"seconds after which messages of a killed sink come again (default: {ACK_WAIT:g})",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="a directory that is kept, with all logs"
    )
    options = parser.parse_args()
    logging.getLogger("power_fleet").setLevel(
        logging.ERROR
    )  # what it warns of here was done on purpose
    with contextlib.ExitStack() as stack:
        if options.keep:
            options.keep.mkdir(parents=True)
            home = options.keep
        else:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        run(home.resolve(), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
