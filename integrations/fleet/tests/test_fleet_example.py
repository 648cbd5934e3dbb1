"""The example's files: each is started, loaded or checked by what really reads it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest
from example_harness import EXAMPLE, nats_servers, prepare, replaced
from pipeline import quick
from power_fleet import cli
from power_fleet.commands_server import set_up_streams
from power_fleet.enroll import enroll, users
from power_fleet.forwarder import forward
from power_fleet.keys import make_key, write_key
from power_fleet.outbox import Outbox
from power_fleet.stream import STREAM, Nats
from servers import Server, eventually, program

from power_manager import PowerManager

UNITS = sorted(EXAMPLE.glob("*.service"))


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What prepare.sh has made."""
    return prepare(tmp_path_factory.mktemp("example") / "example", "DNS:fleet.example.com")


def environment_of(*files: Path) -> dict[str, str]:
    """The variables of some files."""
    lines = [line for file in files for line in file.read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines)


# --- prepare.sh


def test_secrets_are_made_once(secrets: Path) -> None:
    """A second run changes nothing; what is not for a server's own account is for the owner alone."""

    def everything() -> dict[str, str]:
        files = [file for file in secrets.rglob("*") if file.is_file()]
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    before = everything()
    prepare(secrets.parent, "DNS:other.example.com")
    assert everything() == before
    assert secrets.stat().st_mode & 0o777 == 0o700
    for name in ("ca-key.pem", "sink.key", "operator.key", "sink.env", "clickhouse.env"):
        assert (secrets / name).stat().st_mode & 0o777 == 0o600
    assert [user.role for user in users(secrets / "users/devices.conf")] == ["sink", "operator"]


def test_an_error_of_a_tool_is_shown(tmp_path: Path) -> None:
    """What openssl says is seen, and nothing goes on."""
    with pytest.raises(subprocess.CalledProcessError) as failed:
        prepare(tmp_path / "example", "DNS:a,nonsense:b")
    assert b"nonsense" in failed.value.stderr
    assert not (tmp_path / "example/secrets/clickhouse.env").exists()


# --- NATS


@pytest.fixture
def cluster(secrets: Path, tmp_path: Path) -> Iterator[list[Server]]:
    """Three servers with example/nats.conf."""
    servers = nats_servers(tmp_path, secrets, 3)
    try:
        for server in servers:
            server.start(wait=False)
        for server in servers:
            server.await_ready()
        yield servers
    finally:
        for server in servers:
            server.kill()


@pytest.mark.slow
def test_a_cluster_outlives_one_of_its_servers(
    cluster: list[Server], secrets: Path, tmp_path: Path
) -> None:
    """Streams with three copies, by the operator's key; a device goes on forwarding when a server is killed."""
    urls = ",".join(server.url for server in cluster)
    ca = secrets / "ca.pem"
    operator = Nats(urls, ca=ca, key_file=secrets / "operator.key")
    key = make_key()
    write_key(tmp_path / "device.key", key, "edge-001")
    enroll(secrets / "users/devices.conf", ["edge-001"], key.public)
    for server in cluster:
        subprocess.run(
            [program("nats-server"), "--signal", f"reload={server.home / 'pid'}"], check=True
        )

    async def work() -> int:
        await set_up_streams(operator, 3, 10_000_000)
        connection = await operator.connect("test")
        js = connection.jetstream(timeout=10)
        info = await js.stream_info(STREAM)
        assert info.cluster is not None
        leader = info.cluster.leader
        with PowerManager(tmp_path / "edge.db") as pm:
            pm.register_device("edge-001", "Edge")
            meter = pm.add_meter("edge-001", "main")
            device = Nats(urls, ca=ca, key_file=tmp_path / "device.key")
            for number in range(2):
                pm.log_power(meter.id, 1.0, 1.0)
                await forward(Outbox(pm), device, 0.1, quick(), once=True)
                assert pm.pending_readings(1) == []
                if number == 0:
                    cluster[int(str(leader)[-1]) - 1].kill()
        await connection.close()
        again = await operator.connect("test")
        messages = (await again.jetstream(timeout=10).stream_info(STREAM)).state.messages
        await again.close()
        return messages

    assert asyncio.run(asyncio.wait_for(work(), 60)) >= 2


def test_a_server_without_a_certificate_cannot_join(
    secrets: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One of another authority takes part in nothing, though it knows every address."""
    others = prepare(tmp_path_factory.mktemp("other") / "example")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name in ("ca.pem", "nats-1.pem", "nats-1-key.pem", "users"):
        (mixed / name).symlink_to(secrets / name)
    for name in ("nats-2.pem", "nats-2-key.pem"):
        (mixed / name).symlink_to(others / name)
    for name in ("nats-3.pem", "nats-3-key.pem"):
        (mixed / name).symlink_to(secrets / name)
    good, stranger, third = nats_servers(tmp_path, mixed, 3)
    try:
        for server in (good, stranger, third):
            server.start(wait=False)
        output = good.home / "output"
        eventually(lambda: "unknown authority" in output.read_text())
        web = re.search(r'http: "(\S+)"', (good.home / "nats.conf").read_text())
        assert web is not None
        eventually(lambda: route_names(web[1]) == {"nats-3"})
    finally:
        for server in (good, stranger, third):
            server.kill()


def route_names(place: str) -> set[str]:
    """The servers that a server is connected with, by its monitoring port."""
    with build_opener(ProxyHandler({})).open(f"http://{place}/routez", timeout=5) as answer:
        return {route["remote_name"] for route in json.load(answer)["routes"]}


# --- Compose and systemd


def test_the_compose_file_is_one() -> None:
    """By the schema of the Compose specification."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    run = subprocess.run(
        [*command, str(EXAMPLE / "compose.yaml")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_everything_that_the_compose_file_mounts_is_there(secrets: Path) -> None:
    """Shipped, or made by prepare.sh."""
    text = (EXAMPLE / "compose.yaml").read_text(encoding="utf-8")
    mounted = re.findall(r"\./([\w./-]+):/", text) + re.findall(r"env_file: \[(\S+)\]", text)
    assert len(mounted) > 20
    for name in mounted:
        assert (secrets.parent / name).exists(), name


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_are_right(unit: Path, tmp_path: Path) -> None:
    """By systemd itself, which also finds little that they may do; only the program is another one."""
    text = replaced(unit.read_text(), {"/opt/power/bin/power-fleet": "/bin/true"})
    copy = tmp_path / unit.name
    copy.write_text(text)
    run = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in run.stderr.splitlines() if unit.name in line]
    assert complaints == []
    command = ["systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=15"]
    run = subprocess.run([*command, str(copy)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_start_what_there_is(
    unit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the options of the lines above it, the command line takes what it starts."""
    monkeypatch.setenv("POWER_FLEET_CLICKHOUSE", "http://127.0.0.1:1")
    text = unit.read_text()
    (start,) = re.findall(r"^ExecStart=/opt/power/bin/power-fleet (.*)$", text, re.MULTILINE)
    options = re.findall(r"^#   echo 'OPTIONS=(.*)' >", text, re.MULTILINE)
    line = start.replace("$OPTIONS", options[0]) if options else start
    assert callable(cli.make_parser().parse_args(line.split()).run)
