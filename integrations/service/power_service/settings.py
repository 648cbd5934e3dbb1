"""What the service is told, and the binds it refuses."""

from __future__ import annotations

import ipaddress
import os
import shlex
from dataclasses import dataclass
from pathlib import Path


class Refused(Exception):
    """The service does not start like this; the message says what to do."""


@dataclass(frozen=True)
class Settings:
    """Everything the service can be told; sizes in bytes, times in seconds."""

    db: Path
    host: str = "127.0.0.1"
    port: int = 8080
    tokens: Path | None = None  # None: beside the database
    auth: bool = True
    behind_proxy: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    allowed_hosts: tuple[str, ...] = ()  # beside the loopback names and the address itself
    allowed_origins: tuple[str, ...] = ()  # beside the service's own
    dashboard: Path | None = None
    durability: str = "full"
    rate: float = 100.0  # requests a second for each token; 0: no limit
    burst: int = 200  # requests a token may save up
    max_connections: int = 1000  # sockets, streams included
    max_requests: int = 200  # under way at once
    max_body: int = 4 * 1024 * 1024
    max_headers: int = 16 * 1024
    body_seconds: float = 30.0  # to send a body, and to take in each part of an answer
    header_seconds: float = 10.0  # to send a request's head
    handshake_seconds: float = 10.0  # for TLS to begin
    queue: int = 1000  # frames that may wait for one client of the stream
    poll_seconds: float = 0.05
    reading_seconds: float = 0.25  # at most one reading of a meter in that time
    heartbeat_seconds: float = 15.0
    stall_seconds: float = 20.0  # a client that takes in nothing for so long is slow

    @property
    def token_file(self) -> Path:
        """The file of tokens: as told, or beside the database."""
        return self.tokens or self.db.with_name(self.db.name + ".tokens.json")

    def check(self, token_count: int) -> None:
        """Raise Refused for a combination that would let in who should not get in."""
        loopback = is_loopback(self.host)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise Refused("--tls-cert and --tls-key go together: give both")
        if str(self.db) == ":memory:":
            raise Refused("--db: a database in memory has no other users: name a file")
        if not self.auth and not loopback:
            raise Refused(
                f"--no-auth is for loopback addresses only, and {self.host} is none: make a token"
            )
        if not self.auth and self.behind_proxy:
            raise Refused(
                "--no-auth and --behind-proxy: the proxy would let everybody in: make a token"
            )
        if "*" in self.allowed_origins + self.allowed_hosts:
            raise Refused("--allow-origin and --allow-host take names, not '*'")
        if not loopback and not self.behind_proxy and (not token_count or self.tls_cert is None):
            missing = (
                "TLS (--tls-cert, --tls-key)"
                if token_count
                else f"tokens ({how_to_make_one(self)})"
            )
            raise Refused(
                f"{self.host} can be reached from elsewhere: it needs {missing}, or --behind-proxy"
            )


def how_to_make_one(settings: Settings) -> str:
    """The command that makes a token for this service, from whichever directory it is run."""
    file = settings.tokens or settings.db
    option = "--tokens" if settings.tokens else "--db"
    return (
        f"power-service token new NAME --scope read {option} {shlex.quote(os.path.abspath(file))}"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
