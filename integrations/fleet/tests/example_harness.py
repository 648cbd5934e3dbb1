"""The example's files as they are shipped, with the places and ports of a test in them."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from fleet_harness import INTEGRATION
from servers import Server, answers, free_ports, program

EXAMPLE = INTEGRATION / "example"
PATHS = os.pathsep.join([str(INTEGRATION), str(INTEGRATION.parents[1])])


def prepare(directory: Path, *names: str) -> Path:
    """A copy of the example in which prepare.sh has run; returns the directory of its secrets."""
    if not directory.exists():
        shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns("secrets", ".env"))
    commands = directory.parent / "bin"
    commands.mkdir(exist_ok=True)
    (commands / "power-fleet").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m power_fleet "$@"\n'
    )
    (commands / "power-fleet").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": PATHS,
    }
    subprocess.run(
        [directory / "prepare.sh", *names], env=environment, check=True, capture_output=True
    )
    return directory / "secrets"


def replaced(text: str, places: dict[str, str]) -> str:
    """A text with each of the places, which have to be there, replaced by that of a test."""
    for old, new in places.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def nats_servers(home: Path, secrets: Path, count: int) -> list[Server]:
    """NATS servers with example/nats.conf, not started yet.

    Of one server without the section cluster.
    """
    text = (EXAMPLE / "nats.conf").read_text(encoding="utf-8")
    ports, webs, routes = free_ports(count), free_ports(count), free_ports(count)
    servers = []
    for index in range(count):
        name = f"nats-{index + 1}"
        place = home / name
        place.mkdir(parents=True)
        places = {
            "0.0.0.0:4222": f"127.0.0.1:{ports[index]}",
            "127.0.0.1:8222": f"127.0.0.1:{webs[index]}",
            "/var/lib/nats": str(place / "store"),
            "50GB": "1GB",
            "/etc/nats/tls/server": str(secrets / name),
        }
        if count > 1:
            places["/etc/nats/tls/ca.pem"] = str(secrets / "ca.pem")
            places["0.0.0.0:6222"] = f"127.0.0.1:{routes[index]}"
            for number, route in enumerate(routes, 1):
                places[f"nats://nats-{number}:6222"] = f"nats://127.0.0.1:{route}"
            own = replaced(text, places)
        else:
            own = replaced(
                re.sub(r"^cluster \{.*?^\}\n", "", text, flags=re.MULTILINE | re.DOTALL), places
            )
        (place / "nats.conf").write_text(f'pid_file: "{place}/pid"\n{own}')
        (place / "users").symlink_to(secrets / "users")
        servers.append(
            Server(
                place,
                [program("nats-server"), "-c", str(place / "nats.conf")],
                functools.partial(answers, f"http://127.0.0.1:{webs[index]}/healthz"),
                f"tls://127.0.0.1:{ports[index]}",
                environment={**os.environ, "NATS_NAME": name},
            )
        )
    return servers
