"""A hub: what it starts, how commands find it, and what is there after its end, whatever that
was.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
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
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import clickhouse_connect
import pytest
from chaos_common import same
from clickhouse_connect.driver.exceptions import DatabaseError
from fleet_harness import NOW, carry, queried
from hub_process import HubProcess, running_hub
from pipeline import send
from power_fleet import demo, front, hub, read
from power_fleet.discovery import HUB_VARIABLE, Addresses, NotRunning, announced, find_hub, locked
from power_fleet.engine import Engine
from power_fleet.errors import Refused
from power_fleet.fleet import Fleet
from power_fleet.nats_server import NatsServer
from power_fleet.stream import Backoff, Nats
from servers import eventually

from power_manager import NotFound, PowerManager, StorageError

GRACE = (
    15.0  # seconds: it takes 2 at most, but what else the machine does may hold up the test itself
)


@pytest.fixture(scope="module")
def one_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """A hub for the tests that leave it as it is."""
    with running_hub(tmp_path_factory.mktemp("hub") / "fleet") as process:
        yield process


def device(path: Path, device_id: str, count: int = 60) -> PowerManager:
    """A file with a device whose readings are of the last hour."""
    pm = PowerManager(path, durability="normal")
    pm.register_device(device_id, "Edge")
    pack = pm.add_meter(device_id, "battery", 50.0, "Pack", charge_pct=80.0)
    now = time.time()
    pm.log_many([(pack.id, 4.0, 0.5, 80.0, now - 3000 + 3000 * i / count) for i in range(count)])
    return pm


def readings_of(hub: HubProcess, device_id: str) -> int:
    """How many readings of a device the hub's engine has."""
    count = "SELECT toInt64(count()) FROM power_readings FINAL WHERE device_id = %(id)s"
    ((found,),) = queried(Engine([hub.addresses.clickhouse]), count, id=device_id)
    return int(found)


def reported(fleet: Fleet, device_id: str) -> int:
    """How many readings a device's report counts; 0 where nothing is known of it yet."""
    try:
        report = json.loads(fleet.report(device_id).value)
    except NotFound:
        return 0
    return sum(meter["reading_count"] for meter in report["meters"])


def send_to(hub: HubProcess, pm: PowerManager) -> None:
    """Forward a file until the hub's stream has all of it."""
    asyncio.run(send(pm, Nats(hub.addresses.nats)))


def is_gone(process: int) -> bool:
    """Whether a process does not run any more."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


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
        other = one_hub.run("hub", "--data", str(tmp_path / "third"), "--engine-port", port)
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
        assert time.monotonic() - begin < GRACE
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
            async with asyncio.timeout(20):
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
                assert not pm.pending_readings(1)
            finally:
                forwarder.terminate()
        pm.close()


# --- How it is found


ADDRESSES = Addresses(1, "nats://127.0.0.1:1", "http://127.0.0.1:2")


def test_where_there_never_was_a_hub(tmp_path: Path) -> None:
    """There is none."""
    assert find_hub({"HOME": str(tmp_path)}) is None


def test_the_hub_that_was_started_last_is_found(tmp_path: Path) -> None:
    """Of two hubs of one user it is the later one; the variable names any."""
    environ = {"HOME": str(tmp_path)}
    first, second = tmp_path / "first", tmp_path / "second"
    other = dataclasses.replace(ADDRESSES, process=2)
    with locked(first), announced(first, ADDRESSES, environ):
        with locked(second), announced(second, other, environ):
            assert find_hub(environ) == other
            assert find_hub({**environ, HUB_VARIABLE: str(first)}) == ADDRESSES
        with pytest.raises(NotRunning, match="second is not running"):
            find_hub(environ)
    assert not (first / "hub.json").exists()


@pytest.mark.parametrize("left", ["a file of addresses", "nothing"])
def test_a_hub_that_has_ended_is_said_to_have(tmp_path: Path, left: str) -> None:
    """Whatever kill -9 left of it."""
    environ = {"HOME": str(tmp_path)}
    with locked(tmp_path / "fleet"), announced(tmp_path / "fleet", ADDRESSES, environ):
        pass
    if left == "nothing":
        (tmp_path / "fleet").rename(tmp_path / "elsewhere")
    else:
        (tmp_path / "fleet" / "hub.json").write_text("{}")
    with pytest.raises(NotRunning, match=r"`power-fleet hub --data .*/fleet` starts it"):
        find_hub(environ)


def test_addresses_that_a_killed_hub_left_are_not_taken_for_the_next_one_s(tmp_path: Path) -> None:
    """They go when the lock is taken."""
    (tmp_path / "hub.json").write_text("{}")
    with locked(tmp_path):
        assert not (tmp_path / "hub.json").exists()


def test_a_hub_that_starts_is_waited_for(tmp_path: Path) -> None:
    """Until it has said its addresses, or for as long as it may take."""
    environ = {HUB_VARIABLE: str(tmp_path)}
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            (tmp_path / "hub.json").write_text(json.dumps(dataclasses.asdict(ADDRESSES)))

    with locked(tmp_path):
        assert find_hub(environ, wait=wait) == ADDRESSES
        (tmp_path / "hub.json").unlink()
        with pytest.raises(NotRunning, match="is not ready after 60 s"):
            find_hub(environ, wait=lambda _: None)


@pytest.mark.parametrize("text", ["", "[]", '{"nats": 1}', "\x00"])
def test_addresses_that_are_none(tmp_path: Path, text: str) -> None:
    """The file is named."""
    with locked(tmp_path):
        (tmp_path / "hub.json").write_text(text)
        with pytest.raises(StorageError, match=r"hub.json.*not the addresses of a hub"):
            find_hub({HUB_VARIABLE: str(tmp_path)})


def test_a_home_that_cannot_be_written_hides_no_hub(tmp_path: Path) -> None:
    """The variable still finds it."""
    (tmp_path / "file").write_text("")
    environ = {"XDG_STATE_HOME": str(tmp_path / "file"), HUB_VARIABLE: str(tmp_path)}
    with locked(tmp_path), announced(tmp_path, ADDRESSES, environ):
        assert find_hub(environ) == ADDRESSES


# --- The engine's front


def post(url: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    """Status and body of an answer to a POST."""
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.fixture
def ask(one_hub: HubProcess) -> Callable[..., tuple[int, bytes]]:
    """Asks the front, with the right password."""
    parts = one_hub.addresses.clickhouse.removeprefix("http://").partition("@")
    user, _, password = parts[0].partition(":")

    def asked(body: bytes, query: str = "", **headers: str) -> tuple[int, bytes]:
        known = {"X-ClickHouse-User": user, "X-ClickHouse-Key": password}
        return post(f"http://{parts[2]}/{query}", body, **{**known, **headers})

    return asked


def test_the_stock_client_works(one_hub: HubProcess) -> None:
    """clickhouse-connect as it is: questions, values, commands, compressed inserts, errors with
    their code.
    """
    client = clickhouse_connect.get_client(dsn=one_hub.addresses.clickhouse)
    client.command("CREATE TABLE stock (a Int64, b Nullable(String)) ENGINE = MergeTree ORDER BY a")
    client.insert("stock", [[1, "é'\\"], [2, None]], column_names=["a", "b"])
    assert client.query("SELECT * FROM stock ORDER BY a").result_rows == [(1, "é'\\"), (2, None)]
    assert client.query("SELECT {x:Int64} + 1", {"x": 5}).result_rows == [(6,)]
    assert client.query("SELECT %(x)s", {"x": "it's"}).result_rows == [("it's",)]
    assert client.query("SELECT a FROM stock WHERE a > 2").result_rows == []
    assert client.command("SELECT count() FROM stock") == 2
    assert client.ping()
    with pytest.raises(DatabaseError, match="code: 47"):
        client.query("SELECT nothing_of_that_name")
    client.command("DROP TABLE stock")
    client.close()


def test_a_wrong_password_gets_nothing(one_hub: HubProcess) -> None:
    """However it is said; a sign of life is for everybody."""
    url = "http://" + one_hub.addresses.clickhouse.rpartition("@")[2]
    for headers in ({}, {"X-ClickHouse-User": "fleet", "X-ClickHouse-Key": "guess"},
                    {"Authorization": "Basic Zmxl"},
                    {"Authorization": "Basic ZmxlZXQ6Z3Vlc3M="}):  # fmt: skip
        assert post(url, b"SELECT 1", **headers)[0] == 403
    with urllib.request.urlopen(f"{url}/ping", timeout=20) as answer:
        assert answer.read() == b"Ok.\n"


def test_settings_hold_for_their_request_alone(ask: Callable[..., tuple[int, bytes]]) -> None:
    """Whichever connection to the engine the next ones get: as many at a time as there are."""
    question = b"SELECT value FROM system.settings WHERE name = 'max_block_size' AND sleep(0.3) = 0"
    usual = ask(question)
    assert ask(question, "?max_block_size=777") == (200, b"777\n")
    with ThreadPoolExecutor(front.CONNECTIONS) as threads:
        assert list(threads.map(ask, [question] * front.CONNECTIONS)) == [usual] * front.CONNECTIONS
    text = b"SELECT '1 FORMAT Native' AS x"
    assert ask(text, "?max_block_size=777") == (200, b"1 FORMAT Native\n")


@pytest.mark.parametrize(
    ("body", "query", "status", "said"),
    [
        (b"SET max_threads = 1", "", 501, b"settings go into the URL of each"),
        (b"SELECT 1", "?database=other", 501, b"a hub has one database, default; got 'other'"),
        (b"SELECT 1", "?a;b=1", 501, b"expected a setting's name, got 'a;b'"),
        (b"SELECT 1", "?no_such_setting=1", 500, b"Code: 115."),
        (b"SELECT", "", 500, b"Code: 62."),
        (b" ", "", 501, b"expected a statement, got none"),
        (b"INSERT INTO power_fresh (name) FORMAT Native\nrubbish", "", 500, b"Code: "),
    ],
    ids=["set", "database", "name", "setting", "syntax", "nothing", "rows"],
)
def test_what_the_front_refuses(
    ask: Callable[..., tuple[int, bytes]], body: bytes, query: str, status: int, said: bytes
) -> None:
    """Each with a word, and the connection serves the next question."""
    answer = ask(body, query)
    assert answer[0] == status
    assert said in answer[1]
    assert ask(b"SELECT 1") == (200, b"1\n")


def test_bodies_that_are_too_long_or_broken(ask: Callable[..., tuple[int, bytes]]) -> None:
    """They are refused before they are read, or after."""
    assert ask(b"x", **{"Content-Length": str(front.MAX_BODY + 1)})[0] == 400
    for length in ("-1", "1_0", "x"):
        said = f"expected a number of bytes, got {length!r}\n".encode()
        assert ask(b"x", **{"Content-Length": length}) == (400, said)
    status, said = ask(b"x", **{"Content-Encoding": "lz4"})
    assert (status, said[:18]) == (400, b"the body is no lz4")
    status, said = ask(b"x", **{"Content-Encoding": "br"})
    assert said == b"expected a body as it is, or as lz4 or gzip, got 'br'\n"
    assert ask(b"SELECT 1") == (200, b"1\n")


def test_an_insert_that_fails_at_its_end_is_said_to_have(
    ask: Callable[..., tuple[int, bytes]],
) -> None:
    """Rows that are well-formed, and that the engine cannot store all the same."""
    ask(b"CREATE TABLE picky (a Int64, CONSTRAINT c CHECK a > 0) ENGINE = MergeTree ORDER BY a")
    status, said = ask(b"INSERT INTO picky (a) FORMAT TabSeparated\n-1\n")
    assert (status, said[:10]) == (500, b"Code: 469.")
    assert ask(b"INSERT INTO picky FORMAT TabSeparated\n1\n2\n") == (200, b"")
    with_settings = b"INSERT INTO picky (a) SETTINGS max_threads = 1 FORMAT TabSeparated\n4\n"
    assert ask(with_settings) == (200, b"")
    assert ask(b"INSERT INTO picky SELECT 8 AS a\n") == (200, b"")
    assert ask(b"INSERT INTO picky VALUES (length('\n FORMAT x\n'))") == (200, b"")
    assert ask(b"SELECT sum(a) FROM picky") == (200, b"26\n")
    ask(b"DROP TABLE picky")


def test_questions_are_answered_side_by_side(ask: Callable[..., tuple[int, bytes]]) -> None:
    """A short one sees the long one at work."""
    long = "SELECT count() FROM numbers(2) WHERE sleepEachRow(1) = 0"
    thread = threading.Thread(target=ask, args=(long.encode(),))
    thread.start()
    seen = f"SELECT count() FROM system.processes WHERE query LIKE '{long[:30]}%'"
    eventually(lambda: ask(seen.encode()) == (200, b"1\n"), 10)
    thread.join()


def test_the_answers_of_a_hub_are_those_of_the_engine(one_hub: HubProcess, tmp_path: Path) -> None:
    """Carried through the codec and the sink's rows into its engine, a device's budget is the
    file's own.
    """
    pm = device(tmp_path / "b.db", "through the front")
    urls = [one_hub.addresses.clickhouse]
    carry(pm, Engine(urls))
    fleet = Fleet(urls)
    ids = ["through the front"]
    assert same(pm.power_budget_check(ids), fleet.budget(ids).value)
    assert pm.list_meters(ids[0]) == fleet.latest(ids).value
    pm.close()


# --- Beyond this machine


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for another name than this machine's, which is its own authority, and its
    key.
    """
    home = tmp_path_factory.mktemp("tls")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", "/CN=hub", "-addext", "subjectAltName=DNS:hub.example.com,IP:127.0.0.1"]
    files = home / "hub.pem", home / "hub-key.pem"
    command += ["-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run(command, check=True, capture_output=True)
    return files


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
        (["--memory", "1000"], 2, "expected a number of bytes, at least 268435456, got '1000'"),
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


# --- Pages


def get(url: str, token: str = "") -> tuple[int, bytes]:
    """Status and body of an answer."""
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_the_pages_show_the_fleet(tmp_path: Path) -> None:
    """In the hub's process, at the address of the ready line; a token is asked for once there is
    one.
    """
    with running_hub(tmp_path / "fleet", "--nats-port", "0", "--port", "0") as process:
        url = process.addresses.service
        assert url.startswith("http://127.0.0.1:")
        pm = device(tmp_path / "a.db", "edge-1")
        send_to(process, pm)
        pm.close()
        eventually(lambda: b'"edge-1"' in get(f"{url}/v1/devices")[1])
        assert get(f"{url}/v1/devices/edge-1/report")[0] == 200
        assert b"<html" in get(f"{url}/")[1]
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))):  # says nothing
            begin = time.monotonic()
            assert process.end() == 0
            assert time.monotonic() - begin < GRACE
        file = tmp_path / "fleet" / "tokens.json"
        command = [sys.executable, "-m", "power_service", "token", "new", "me", "--scope", "read"]
        made = subprocess.run(
            [*command, "--tokens", str(file)],
            env=process.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        token = made.stdout.split()[-1]
        line = process.start()
        url = process.addresses.service
        assert line == f"ready {process.addresses.nats} {url}\n"
        assert get(f"{url}/v1/devices")[0] == 401
        assert get(f"{url}/v1/devices", token)[0] == 200, made.stdout
        assert "Traceback" not in process.errors()


def test_a_service_finds_the_hub_by_itself(
    one_hub: HubProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """power-service --hub in a process of its own asks the same engine; without one it says what
    would do.
    """
    monkeypatch.setenv("XDG_STATE_HOME", one_hub.environment["XDG_STATE_HOME"])
    monkeypatch.delenv(HUB_VARIABLE, raising=False)
    assert read.open_source((), hub=True).list_devices() is not None
    monkeypatch.setenv(HUB_VARIABLE, str(tmp_path))
    with pytest.raises(Refused, match=f"--hub: the hub of {tmp_path} is not running"):
        read.open_source((), hub=True)


def test_a_port_of_the_pages_that_is_taken(tmp_path: Path) -> None:
    """It is named, and nothing is left running."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = HubProcess(tmp_path / "fleet")
        refused = process.run("hub", "--data", "fleet", "--nats-port", "0", "--port", port)
    assert refused.returncode == 2
    assert "--port: the pages cannot be served there (" in refused.stderr
    assert is_gone(process.nats_process)


# --- A fleet to look at


def test_a_made_up_fleet_is_sent_as_a_real_one(one_hub: HubProcess) -> None:
    """Each device with its meters and a day of readings, at some sites; without an end it ends when
    that is sent.
    """
    sent = one_hub.run("demo", "--devices", "9", "--once")
    assert sent.returncode == 0, sent.stderr
    fleet = Fleet([one_hub.addresses.clickhouse])
    ids = [f"demo-{number:04}" for number in range(1, 10)]
    eventually(lambda: all("error" not in budget for budget in fleet.budget(ids).value.values()))
    eventually(lambda: [readings_of(one_hub, id_) for id_ in ids] == [2 * 96] * 9)
    assert len(fleet.latest(ids).value) == 18
    assert {row["site"] for row in fleet.energy(2).value} >= set(demo.SITES)


def test_a_made_up_fleet_goes_on_measuring(tmp_path: Path) -> None:
    """What it logs from then on follows what it logged before, and is the same for the same number
    of devices.
    """

    def packs(name: str) -> list[float | None]:
        (tmp_path / name).mkdir()
        sites = demo.make_sites(tmp_path / name, 3, clock=lambda: NOW)
        for site in sites:
            site.log_live(NOW, demo.LIVE_S)
        meters = [meter for site in sites for meter in site.pm.list_meters()]
        for site in sites:
            site.pm.close()
        return [meter.charge_pct for meter in meters if meter.type == "battery"]

    first = packs("first")
    assert len(first) == 3
    assert first == packs("second")


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
