"""What logging in costs a NATS server: with keys, with passwords, and with passwords under bcrypt.

python3 integrations/fleet/chaos/bench_login.py
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chaos_common
from nats.aio.client import Client
from power_fleet.keys import Key, make_key
from servers import Server, Servers

PASSWORD = "secret"
BCRYPT = {
    4: "$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW",
    11: "$2b$11$abcdefghijklmnopqrstuuViuGI07N4McP9Kl.tD6XMEzyuvcY8LG",
}


@dataclass(frozen=True)
class Way:
    """A way in which users are known; `entry` is what the server's configuration has of one."""

    name: str
    connections: int
    keys: Sequence[Key] = ()
    secret: str = PASSWORD
    at_once: int = 100  # connections that are made at the same time

    def users(self) -> list[str]:
        """The users, as the configuration lists them."""
        if self.keys:
            return [f"{{ nkey: {key.public} }}" for key in self.keys]
        names = [f"user-{number}" for number in range(self.connections)]
        return [f'{{ user: {name}, password: "{self.secret}" }}' for name in names]

    async def connect(self, url: str, number: int) -> Client:
        """A connection of one of them."""
        client = Client()
        who: dict[str, Any] = {"user": f"user-{number}", "password": PASSWORD}
        if self.keys:
            who = {"nkeys_seed_str": self.keys[number].seed}
        await client.connect(url, connect_timeout=60, allow_reconnect=False, error_cb=ignore, **who)
        return client


async def ignore(_: Exception) -> None:
    """Say nothing: a connection that is closed here is meant to be."""


def processor_s(server: Server) -> float:
    """Seconds of processor time that a server has taken."""
    assert server.process is not None
    return chaos_common.processor_s(server.process.pid)


async def quiet_s(server: Server) -> float:
    """The same, when it does nothing any more."""
    before = -1.0
    while (now := processor_s(server)) > before + 0.01:
        before = now
        await asyncio.sleep(1.0)
    return now


def write_users(path: Path, users: Sequence[str]) -> None:
    """Write the file that the server's configuration includes."""
    path.write_text("users: [\n" + "\n".join(users) + "\n]\n")


async def measure(home: Path, way: Way) -> None:
    """Connect all of them, then take one user away; print what both cost."""
    file = home / "users.conf"
    users = way.users()
    write_users(file, users)
    with Servers(home) as servers:
        servers.start_nats(1, extra='authorization { timeout: 60, include "../users.conf" }')
        (server,) = servers.nats
        before = processor_s(server)
        clients: list[Client] = []
        for first in range(0, way.connections, way.at_once):
            numbers = range(first, min(first + way.at_once, way.connections))
            clients += await asyncio.gather(*(way.connect(server.url, n) for n in numbers))
        a_login = (processor_s(server) - before) / way.connections
        before = processor_s(server)
        write_users(file, users[1:])
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 120
        missing, *rest = clients
        while missing.is_connected:
            assert time.monotonic() < deadline, "the connection of the missing user stays open"
            await asyncio.sleep(0.05)
        reading = await quiet_s(server) - before
        others = sum(client.is_connected for client in rest)
        await asyncio.gather(*(client.close() for client in clients))
    print(
        f"{way.name}: {way.connections} connections of {len(users)} users: "
        f"{a_login * 1000:.2f} ms a connection; "
        f"one user taken away: {reading:.2f} s, {way.connections - others} connections closed",
        flush=True,
    )


def main() -> int:
    """Measure each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--connections", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--keys", type=int, default=10_000, help="users (default: 10000)")
    options = parser.parse_args()
    keys = [make_key() for _ in range(options.keys)]
    ways = [
        Way("keys", options.connections, keys),
        Way("passwords in the clear", options.connections),
        Way("bcrypt, cost 4", options.connections, secret=BCRYPT[4]),
        Way("bcrypt, cost 11", min(options.connections, 100), secret=BCRYPT[11], at_once=2),
    ]
    for way in ways:
        with tempfile.TemporaryDirectory(prefix="bench-login-") as home:
            asyncio.run(measure(Path(home), way))
    return 0


if __name__ == "__main__":
    main()
