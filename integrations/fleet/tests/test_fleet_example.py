"""The example's files: each is started, loaded or checked by what really reads it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

import pytest
from example_harness import EXAMPLE, nats_servers, prepare, replaced
from fleet_harness import queried
from pipeline import quick
from power_fleet import cli
from power_fleet.dead import set_up_streams
from power_fleet.engine import Engine, EngineError
from power_fleet.enroll import enroll, users
from power_fleet.forwarder import forward
from power_fleet.keys import make_key, write_key
from power_fleet.outbox import Outbox
from power_fleet.stream import Nats
from power_fleet.subjects import STREAM
from servers import SOON, Server, Servers, eventually, free_ports, program, told_to_reread

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
    """A second run changes nothing; what is not for a server's own account is for the owner
    alone.
    """

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
    """Streams with three copies, by the operator's key; a device goes on forwarding when a server
    is killed.
    """
    urls = ",".join(server.url for server in cluster)
    ca = secrets / "ca.pem"
    operator = Nats(urls, ca=ca, key_file=secrets / "operator.key")
    key = make_key()
    write_key(tmp_path / "device.key", key, "edge-001")
    enroll(secrets / "users/devices.conf", ["edge-001"], key.public)
    for server in cluster:
        reload = [program("nats-server"), "--signal", f"reload={server.home / 'pid'}"]
        with told_to_reread(server.home / "output"):
            subprocess.run(reload, check=True)

    async def work() -> int:
        await set_up_streams(operator, 3, 10_000_000)
        connection = await operator.connect("test")
        js = connection.jetstream(timeout=SOON)
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
        messages = (await again.jetstream(timeout=SOON).stream_info(STREAM)).state.messages
        await again.close()
        return messages

    assert asyncio.run(asyncio.wait_for(work(), 2 * SOON)) >= 2


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
    with build_opener(ProxyHandler({})).open(f"http://{place}/routez", timeout=SOON) as answer:
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


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_are_right(unit: Path, tmp_path: Path) -> None:
    """By systemd itself, which also finds little that they may do; only the program is another
    one.
    """
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


# --- ClickHouse

# What the package's own configuration says, as far as it matters here.
_CLICKHOUSE = """<yandex>
<logger><level>warning</level><log>{home}/server.log</log><errorlog>{home}/error.log</errorlog></logger>
<http_port>8123</http_port><tcp_port>9000</tcp_port><interserver_http_port>9009</interserver_http_port>
<mysql_port>9004</mysql_port><postgresql_port>9005</postgresql_port>
<path>{home}/data/</path><tmp_path>{home}/tmp/</tmp_path><users_config>{home}/users.xml</users_config>
<default_profile>default</default_profile><default_database>default</default_database>
<mark_cache_size>67108864</mark_cache_size>
</yandex>
"""
_USERS = """<yandex><profiles><default/></profiles><users><default><password></password>
<networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota></default></users>
<quotas><default/></quotas></yandex>
"""


@pytest.fixture(scope="module")
def replicas(secrets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two replicas of ClickHouse 18 with the example's files, of which it knows all but the
    grants.
    """
    home = tmp_path_factory.mktemp("clickhouse")
    with Servers(home) as servers:
        keeper = re.search(r"<port>(\d+)</port>", servers.start_zookeeper())
        assert keeper is not None
        names = ("clickhouse-1", "clickhouse-2")
        found = [clickhouse_server(home / name, secrets, name, keeper[1]) for name in names]
        try:
            yield [server.start() for server in found]
        finally:
            for server in found:
                server.kill()


def clickhouse_server(home: Path, secrets: Path, name: str, keeper_port: str) -> Server:
    """A server with the example's clickhouse.xml and clickhouse-users.xml."""
    port, between, tcp = free_ports(3)
    for part in ("data", "tmp", "config.d", "users.d"):
        (home / part).mkdir(parents=True)
    (home / "config.xml").write_text(_CLICKHOUSE.format(home=home))
    (home / "users.xml").write_text(_USERS)
    places = {
        "clickhouse>": "yandex>",
        ">8443<": f">{port}<",
        ">9010<": f">{between}<",
        ">0.0.0.0<": ">127.0.0.1<",
        "/etc/clickhouse-server/tls/server": str(secrets / name),
        "/etc/clickhouse-server/tls/ca.pem": str(secrets / "ca.pem"),
        # 18 has no replicas without one.
        '<tcp_port remove="remove"/>': f"<tcp_port>{tcp}</tcp_port>",
        ">2181<": f">{keeper_port}<",
        ">zookeeper-1<": ">127.0.0.1<",
        "    <node><host>zookeeper-2</host><port>2181</port></node>\n": "",
        "    <node><host>zookeeper-3</host><port>2181</port></node>\n": "",
    }
    nodes = {old: new for old, new in places.items() if "node" in old}
    text = replaced((EXAMPLE / "clickhouse.xml").read_text(encoding="utf-8"), nodes)
    places = {old: new for old, new in places.items() if old not in nodes}
    (home / "config.d/power.xml").write_text(replaced(text, places))
    text = (EXAMPLE / "clickhouse-users.xml").read_text(encoding="utf-8")
    text = re.sub(r"<constraints>.*?</constraints>", "", text, flags=re.DOTALL)  # of later versions
    (home / "users.d/power.xml").write_text(text.replace("clickhouse>", "yandex>"))
    environment = {
        **os.environ,
        **environment_of(secrets / "clickhouse.env"),
        # Under this name the other replica fetches from it; the certificates have both.
        "CLICKHOUSE_NAME": {"clickhouse-1": "localhost", "clickhouse-2": "127.0.0.1"}[name],
        "CLICKHOUSE_SHARD": "1",
    }
    return Server(
        home,
        [program("clickhouse-server"), f"--config-file={home / 'config.xml'}"],
        lambda: status(secrets, f"https://localhost:{port}/ping") == 200,
        f"https://localhost:{port}",
        environment=environment,
    )


def status(secrets: Path, url: str, authority: str = "ca.pem") -> int:
    """What an HTTPS server whose certificate is right answers; 0 for none, and for one whose
    certificate is wrong.
    """
    context = ssl.create_default_context(cafile=str(secrets / authority))
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # as from Python 3.13 on
    try:
        handlers = (ProxyHandler({}), HTTPSHandler(context=context))
        with build_opener(*handlers).open(url, timeout=SOON) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_clickhouse_speaks_tls_alone(replicas: list[Server], secrets: Path, tmp_path: Path) -> None:
    """Its certificate is right by our authority and by no other; its other ports are those that the
    test gave it.
    """
    other = prepare(tmp_path / "example")
    assert status(secrets, f"{replicas[0].url}/ping") == 200
    assert status(other, f"{replicas[0].url}/ping") == 0
    assert replicas[0].process is not None
    listening = subprocess.run(
        ["ss", "-Hltnp"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    own = [line for line in listening if f"pid={replicas[0].process.pid}," in line]
    assert len(own) == 3, own


def urls_of(user: str, replicas: list[Server], secrets: Path) -> list[str]:
    """The replicas for a user, with the password of its file."""
    (url, *_) = environment_of(secrets / f"{user}.env")["POWER_FLEET_CLICKHOUSE"].split(",")
    who = urlsplit(url).netloc.rpartition("@")[0]
    return [server.url.replace("//", f"//{who}@") for server in replicas]


def ask(url: str, sql: str, **settings: str) -> str:
    """What a server answers to a question over HTTPS. Raises OSError."""
    parts = urlsplit(url)
    place = f"https://{parts.hostname}:{parts.port}/?{urlencode(settings)}"
    who = base64.b64encode(f"{parts.username or ''}:{parts.password or ''}".encode()).decode()
    request = Request(place, sql.encode(), {"Authorization": f"Basic {who}"})
    handlers = (ProxyHandler({}), HTTPSHandler(context=ssl.create_default_context()))
    with build_opener(*handlers).open(request, timeout=SOON) as answer:
        return str(answer.read().decode().strip())


@pytest.mark.parametrize("user", ["schema", "sink", "close", "operator", "reader"])
def test_clickhouse_knows_the_users_of_the_example(
    replicas: list[Server], secrets: Path, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with the password of its file; nobody else."""
    monkeypatch.setenv("SSL_CERT_FILE", str(secrets / "ca.pem"))
    (url, _) = urls_of(user, replicas, secrets)
    assert ask(url, "SELECT user FROM system.processes") == f"power_{user}"
    for wrong in (re.sub(":[0-9a-f]{48}@", ":x@", url), replicas[0].url):
        with pytest.raises(HTTPError):
            ask(wrong, "SELECT 1")


def test_the_programs_check_clickhouse_by_ssl_cert_file(
    replicas: list[Server], secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the authority there they ask, which version 18 is too old for; without it they do not
    get so far.
    """
    urls = urls_of("reader", replicas, secrets)
    monkeypatch.setenv("SSL_CERT_FILE", str(secrets / "ca.pem"))
    with pytest.raises(EngineError, match="Unknown identifier: readonly"):
        queried(Engine(urls[:1]), "SELECT 1")
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(EngineError, match=r"(?i)certificate verify failed|no sign of life"):
        queried(Engine(urls[:1]), "SELECT 1")


def test_replicas_fetch_from_each_other_over_tls(
    replicas: list[Server], secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one of them stores the other has, by the certificates and the interserver password of
    the example.
    """
    monkeypatch.setenv("SSL_CERT_FILE", str(secrets / "ca.pem"))
    urls = urls_of("schema", replicas, secrets)
    kind = "ReplicatedMergeTree('/clickhouse/test/{shard}', '{replica}')"
    for url in urls:
        ask(url, f"CREATE TABLE test (a Int8) ENGINE = {kind} ORDER BY a")
    count = "SELECT count() FROM system.replicas WHERE active_replicas = 2"
    eventually(lambda: ask(urls[0], count) == "1")
    ask(urls[0], "INSERT INTO test VALUES (7)", insert_quorum="2")
    assert ask(urls[1], "SELECT a FROM test") == "7"


# What each user of ClickHouse does, and what it may not.
_MAY = {
    "schema": ["schema", "schema --keep-readings 90 --keep-hours 730"],
    "sink": ["store"],
    "close": ["close --once"],
    "operator": [
        "retire edge-001",
        "retire edge-001 --undo",
        "devices",
        "ALTER TABLE power_readings DELETE WHERE device_id = 'another'",
    ],
    "reader": [
        "report edge-001",
        "budget",
        "latest",
        "energy",
        "silent",
        "devices",
        "alarms --all",
    ],
}
_MAY_NOT = {
    "schema": ["DROP TABLE power_readings", "TRUNCATE TABLE power_readings"],
    "sink": [
        "DROP TABLE power_readings",
        "TRUNCATE TABLE power_readings",
        "ALTER TABLE power_readings DELETE WHERE 1",
        "CREATE TABLE other (a Int8) ENGINE = Memory",
    ],
    "close": [
        "INSERT INTO power_readings (device_id) SELECT 'a'",
        "INSERT INTO power_deletions (device_id) SELECT 'a'",
    ],
    "operator": ["DROP TABLE power_readings", "CREATE TABLE other (a Int8) ENGINE = Memory"],
    "reader": [
        "INSERT INTO power_readings (device_id) SELECT 'a'",
        "ALTER TABLE power_readings DELETE WHERE 1",
        "SET max_memory_usage = 9000000000",
        "SYSTEM SHUTDOWN",
    ],
}


def done_as(home: Path, user: str, works: list[str]) -> list[str | None]:
    """What went wrong with each of the works in the engine, with that user's rights."""
    script = Path(__file__).with_name("as_user.py")
    command = [sys.executable, str(script), str(home), user, *works]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found: list[str | None] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def engine_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of ClickHouse 26 on disk, with its tables and a device."""
    home = tmp_path_factory.mktemp("grants")
    for user in ("schema", "sink"):
        assert done_as(home, user, _MAY[user]) == [None] * len(_MAY[user])
    return home


@pytest.mark.parametrize("user", _MAY)
def test_users_of_clickhouse_may_what_they_do_and_no_more(engine_home: Path, user: str) -> None:
    """By the grants and profiles of example/clickhouse-users.xml, as ClickHouse 26 understands
    them.
    """
    may, may_not = _MAY[user], _MAY_NOT[user]
    found = done_as(engine_home, user, [*may, *may_not])
    assert found[: len(may)] == [None] * len(may), found
    for what, reason in zip(may_not, found[len(may) :]):
        assert re.search("Not enough privileges|readonly mode|shouldn't be greater", str(reason)), (
            what
        )
