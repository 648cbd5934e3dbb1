"""A hub: what it starts, and what is there after its end, whatever that was."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_common import same
from fleet_harness import INTEGRATION
from hub_process import (
    GRACE_S,
    HubProcess,
    device,
    is_gone,
    readings_of,
    reported,
    running_hub,
    send_to,
)
from power_fleet import cli, hub
from power_fleet.backoff import Backoff
from power_fleet.fleet import Fleet
from power_fleet.nats_server import NatsServer
from servers import SOON, eventually, told_to_reread

from power_manager import StorageError

# --- Two commands


def test_a_device_is_seen_after_two_commands(one_hub: HubProcess) -> None:
    """A hub, a forwarder without an address, and the report is the device's own."""
    pm = device(one_hub.data.parent / "edge-1.db", "edge-1")
    sent = one_hub.run("forward", "--db", "edge-1.db", "--once")
    assert sent.returncode == 0, sent.stderr
    assert re.fullmatch(r"60 readings sent in \d+ messages; nothing waits\n", sent.stdout)
    assert f"forwarding edge-1.db to {one_hub.addresses.nats}" in sent.stderr
    eventually(lambda: reported(Fleet([one_hub.addresses.clickhouse]), "edge-1") == 60)
    report = json.loads(one_hub.run("report", "edge-1").stdout)
    own = json.loads(pm.export_report("edge-1"))
    assert same({**own, "generated_at": ""}, {**report, "generated_at": ""})
    pm.close()


def test_operators_find_it_too(one_hub: HubProcess) -> None:
    """Commands for NATS alone and for the engine alone need no address either."""
    assert one_hub.run("dead", "list").stdout == "no dead letters\n"
    closed = one_hub.run("close", "--once")
    assert (closed.returncode, closed.stdout) == (0, "")


def test_the_ready_line_names_nats(one_hub: HubProcess) -> None:
    """So that a script can wait for it; the file of addresses is its owner's alone."""
    assert one_hub.addresses.nats.startswith("nats://127.0.0.1:")
    for name in ("hub.json", "password"):
        assert (one_hub.data / name).stat().st_mode & 0o777 == 0o600
    assert one_hub.data.stat().st_mode & 0o777 == 0o700
    assert (one_hub.data / ".gitignore").read_text() == "*\n"


def test_a_second_hub_on_its_files_is_refused(one_hub: HubProcess) -> None:
    """One line says why; the first one goes on."""
    second = one_hub.run("hub", "--data", str(one_hub.data), "--nats-port", "0")
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert "another hub runs on it: end that one first" in second.stderr
    assert one_hub.run("budget").returncode == 0


def test_a_port_that_is_taken(one_hub: HubProcess, tmp_path: Path) -> None:
    """It is named, with what would do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused = one_hub.run("hub", "--data", str(tmp_path / "other"), "--nats-port", port)
        ports = ("--nats-port", "0", "--engine-port", port)
        other = one_hub.run("hub", "--data", str(tmp_path / "third"), *ports)
    assert other.returncode == 2
    said = f"--engine-port: {port} cannot be had (Address already in use): name another one"
    assert other.stderr == f"power-fleet: {said}\n"
    assert refused.returncode == 2
    assert f"--nats-port: 127.0.0.1:{port} cannot be had" in refused.stderr
    assert one_hub.run("budget").returncode == 0  # the other one did not take its place


# --- Ends


@pytest.mark.parametrize(("sig", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_all_that_it_started(
    tmp_path: Path, sig: signal.Signals, code: int
) -> None:
    """Within two seconds; commands then say that it is not running, and how to start it."""
    with running_hub(tmp_path / "fleet") as process:
        child = process.nats_process
        begin = time.monotonic()
        assert process.end(sig) == code
        assert time.monotonic() - begin < GRACE_S
        assert is_gone(child)
        asked = process.run("budget")
        assert asked.returncode == 1
        assert asked.stderr == (
            f"power-fleet: the hub of {tmp_path}/fleet is not running: "
            f"`power-fleet hub --data {tmp_path}/fleet` starts it\n"
        )
        assert "Traceback" not in process.errors()


def test_kill_9_loses_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """NATS ends with the hub, and what the stream acknowledged is in the engine of the next one,
    once.
    """
    with running_hub(tmp_path / "fleet") as process:
        files = [device(tmp_path / f"e{number}.db", f"e{number}", 3000) for number in range(2)]
        for pm in files:
            send_to(process, pm)
            child = process.nats_process
            process.end(signal.SIGKILL)  # the last messages may be on their way into the engine
            eventually(functools.partial(is_gone, child))
            process.start()
        fleet = Fleet([process.addresses.clickhouse])
        for number, pm in enumerate(files):
            eventually(lambda id_=f"e{number}": reported(fleet, id_) == 3000)  # type: ignore[misc]
            assert readings_of(process, f"e{number}") == 3000
            pm.close()


def test_nats_is_started_again(tmp_path: Path) -> None:
    """At the same port; what is sent afterwards is stored by the same hub."""
    with running_hub(tmp_path / "fleet") as process:
        before = process.addresses
        child = process.nats_process
        os.kill(child, signal.SIGKILL)
        pm = device(tmp_path / "a.db", "a")
        send_to(process, pm)
        pm.close()
        eventually(lambda: readings_of(process, "a") == 60)
        assert process.nats_process != child
        assert process.addresses == before
        assert "the NATS server ended (code -9), and is started again" in process.errors()


def test_a_child_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    """Also where the parent was gone before the program began."""
    code = "import sys; from power_fleet import child; "
    code += "sys.argv = ['child', '1', 'sleep']; child.main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (1, "sleep: process 1 has ended meanwhile\n")


def test_a_full_disk_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is free and what is needed."""
    monkeypatch.setattr(hub, "LEAST_FREE", 2**62)
    with pytest.raises(StorageError, match=r"the disk is full: \d+ MiB are free, a hub needs"):
        hub._check_space(tmp_path)


def test_a_disk_that_was_full_has_nats_started_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the same port, once there is more room than a little; each is said once."""
    megabyte = 2**20
    looks = [mb * megabyte for mb in (500, 63, 0, 64, 95, 96, 500, 500)]

    async def run() -> tuple[int, int, bool]:
        server = NatsServer(tmp_path / "nats", 0, 10 * megabyte)
        await server.start()
        first = int(server.pid_file.read_text())
        port = server.port
        keeping = asyncio.ensure_future(server.keep_running(Backoff()))
        left = iter(looks)
        try:
            with contextlib.suppress(StopIteration, RuntimeError):  # after the last look
                await hub._watch_disk(tmp_path, server, lambda _: next(left), 0.001)
            async with asyncio.timeout(SOON):
                while not is_gone(first) or not list(server.home.glob(f"*_{server.process}.ports")):
                    await asyncio.sleep(0.02)
            return first, server.process, port == server.port
        finally:
            keeping.cancel()
            await server.stop()

    with caplog.at_level(logging.WARNING, "power_fleet"):
        before, after, is_same_port = asyncio.run(run())
    assert before != after
    assert is_same_port
    assert [record.message.partition(" of ")[0] for record in caplog.records] == [
        "the disk",
        "there is room again on the disk",
    ]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.slow
def test_a_full_disk_loses_nothing_and_needs_no_hand(small_disk: Path, tmp_path: Path) -> None:
    """The file keeps what the hub cannot take, and all is stored some moments after there is
    room.
    """
    hub_there = running_hub(small_disk / "fleet", log=tmp_path / "hub.log")
    with hub_there as process, (tmp_path / "log").open("wb") as log:
        pm = device(tmp_path / "a.db", "a", 5000)
        (pack,) = pm.list_meters()
        command = process.command("forward", "--db", str(tmp_path / "a.db"), "--interval", "0.1")
        command += ["--max-wait", "1", "--nats", process.addresses.nats]
        with subprocess.Popen(command, env=process.environment, stderr=log) as forwarder:
            try:
                eventually(lambda: readings_of(process, "a") == 5000)
                filler = small_disk / "filler"
                with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(4096))
                now = time.time()
                for _ in range(3):
                    now += 10
                    pm.log_many([(pack.id, 4.0, 0.5, 80.0, now + i / 1000) for i in range(3000)])
                    pm.log_power(pack.id, 4.0, 0.5, 80.0)
                eventually(lambda: "is full" in process.errors())
                filler.unlink()
                eventually(lambda: readings_of(process, "a") == 14_003)
                eventually(lambda: not pm.pending_readings(1))
            finally:
                forwarder.terminate()
        pm.close()


# --- Beyond this machine


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for another name than this machine's, which is its own authority, and its
    key: by the command that the help has.
    """
    home = tmp_path_factory.mktemp("tls")
    subprocess.run(
        openssl_command().replace("IP:192.0.2.1", "DNS:hub.example.com,IP:127.0.0.1"),
        shell=True,
        check=True,
        capture_output=True,
        cwd=home,
    )
    return home / "hub.pem", home / "hub-key.pem"


def openssl_command() -> str:
    """The command of `power-fleet hub --help` that makes a certificate."""
    text = cli.make_parser().commands["hub"].format_help()
    command, _, _ = text[text.index("  openssl ") :].partition("\n\n")
    return command.strip()


def test_the_readme_makes_the_same_certificate() -> None:
    """Word for word."""
    readme = (INTEGRATION / "README.md").read_text(encoding="utf-8")
    block = readme[readme.index("openssl req") :].partition("```")[0]
    assert block.split() == openssl_command().split()


def test_the_key_of_a_certificate_is_private(certificate: tuple[Path, Path]) -> None:
    """Nobody else on the machine may read it."""
    assert certificate[1].stat().st_mode & 0o077 == 0


def test_devices_elsewhere_need_a_key(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """One is enrolled while the hub runs, sends with what is printed, and is revoked; others get
    nowhere.
    """
    options = [
        "--nats-port",
        "0",
        "--no-service",
        "--cert",
        str(certificate[0]),
        "--key",
        str(certificate[1]),
    ]
    with running_hub(tmp_path / "fleet", "--listen", "0.0.0.0", *options) as process:
        with told_to_reread(process.nats_log):
            enrolled = process.run("enroll", "edge-1")
        assert enrolled.returncode == 0, enrolled.stderr
        assert enrolled.stdout.endswith("\nThe server of this machine reads the users again.\n")
        pm = device(tmp_path / "a.db", "edge-1")
        forward = ["forward", "--once", "--db", "a.db", "--nats", process.addresses.nats]
        forward += ["--ca", str(certificate[0]), "--key-file", "edge-1.key"]
        sent = process.run(*forward)
        assert sent.returncode == 0, sent.stderr
        eventually(lambda: readings_of(process, "edge-1") == 60)
        assert process.run("dead", "list").stdout == "no dead letters\n"  # by the hub's own key

        with told_to_reread(process.nats_log):
            assert process.run("revoke", "edge-1").returncode == 0
        pm.trigger_event("edge-1", "restore")
        pm.close()
        with subprocess.Popen(
            process.command(*forward, "--max-wait", "1"),
            env=process.environment,
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        ) as refused:
            assert refused.stderr is not None
            try:
                said = ""
                while "uthorization" not in said:
                    line = refused.stderr.readline()
                    assert line, said
                    said += line
            finally:
                refused.kill()
        # Started anew it knows its key and its users.
        process.end()
        process.start()
        assert process.run("enrolled", "--json").stdout.count('"role"') == 1
        assert process.run("dead", "list").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--listen", "0.0.0.0"], 2, "--listen: others reach 0.0.0.0: give --cert and --key"),
        (["--cert", "a.pem"], 2, "--cert and --key go together: give both"),
        (["--cert", "a.pem", "--key", "b.pem"], 1, "a.pem: it cannot be read"),
        (["--port", "1", "--no-service"], 2, "--port and --no-service: give one of them"),
        (["--memory", "1000"], 2, "expected a whole number of at least 268435456, got '1000'"),
        (["--listen", "hub"], 2, "expected an address such as 127.0.0.1, 0.0.0.0 or ::, got 'hub'"),
    ],
    ids=["no-certificate", "no-key", "no-file", "two", "memory", "a-name"],
)
def test_a_hub_that_is_told_what_cannot_be_does_not_start(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    """It does not start, and says what is missing."""
    refused = HubProcess(tmp_path / "fleet").run("hub", "--data", "fleet", *arguments)
    assert (refused.returncode, message in refused.stderr) == (code, True), refused.stderr


def test_devices_of_a_hub_for_this_machine_alone_are_not_enrolled(one_hub: HubProcess) -> None:
    """It takes everybody; what would do is said."""
    refused = one_hub.run("enroll", "edge-9")
    assert refused.returncode == 2
    assert "start it with --listen, --cert and --key" in refused.stderr


def test_options_for_named_servers_are_not_dropped(one_hub: HubProcess) -> None:
    """Without --nats they would mean nothing."""
    refused = one_hub.run("dead", "list", "--key-file", "a.key")
    assert refused.returncode == 2
    assert refused.stderr.endswith("\npower-fleet: --key-file: give it together with --nats\n")


# --- Streams that were made again


def test_a_stream_that_was_lost_is_made_so_that_what_comes_is_newer(tmp_path: Path) -> None:
    """With the engine's files kept and NATS's gone, what a device sends afterwards is its present
    state.
    """
    with running_hub(tmp_path / "fleet") as process:
        pm = device(tmp_path / "a.db", "a")
        (pack,) = pm.list_meters()
        for _ in range(4):  # each start opens a line of a higher number
            pm.log_power(pack.id, 4.0, 1.0, 80.0)
            send_to(process, pm)
        eventually(lambda: readings_of(process, "a") == 64)
        process.end()
        shutil.rmtree(tmp_path / "fleet" / "nats")
        process.start()
        pm.log_power(pack.id, 4.0, 1.0, 42.0)
        send_to(process, pm)
        fleet = Fleet([process.addresses.clickhouse])
        eventually(lambda: [meter.charge_pct for meter in fleet.latest().value] == [42.0])
        pm.close()
