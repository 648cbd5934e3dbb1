"""The example configuration: TLS, a key for each device, and a device that tries another's
subject.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from example_harness import nats_servers, prepare
from fleet_harness import emptied, run_command
from nats.aio.client import Client, ServerVersion
from pipeline import drained, quick, running_sink, until
from power_fleet.dead import dead_subject, make_dead_stream
from power_fleet.engine import Engine
from power_fleet.enroll import enroll
from power_fleet.errors import Refused
from power_fleet.forwarder import forward
from power_fleet.keys import make_key, read_key, write_key
from power_fleet.outbox import Outbox
from power_fleet.stream import LoginRefused, Nats, check_server, make_streams
from power_fleet.subjects import DEAD_STREAM, STREAM, SUBJECT
from servers import SOON, Server, Servers

from power_manager import PowerManager, StorageError

NAMES = ("operator", "sink", "edge-001", "edge-002")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with example/nats.conf and what example/prepare.sh makes, which is in its
    directory.
    """
    home = tmp_path_factory.mktemp("tls")
    secrets = prepare(home / "example")
    for name in ("edge-001", "edge-002"):
        key = make_key()
        write_key(secrets / f"{name}.key", key, name)
        enroll(secrets / "users/devices.conf", [name], key.public)
    (server,) = nats_servers(home, secrets, 1)
    try:
        yield server.start()
    finally:
        server.kill()


def secrets_of(server: Server) -> Path:
    """The directory of the keys and certificates that go with a server."""
    return server.home.parent / "example/secrets"


@pytest.fixture
def who(server: Server) -> dict[str, Nats]:
    """Everybody who has a key."""
    return {name: as_whom(server, name) for name in NAMES}


def as_whom(server: Server, name: str) -> Nats:
    """The server for the holder of a key."""
    secrets = secrets_of(server)
    return Nats(server.url, ca=secrets / "ca.pem", key_file=secrets / f"{name}.key")


async def make(operator: Nats) -> None:
    """The streams, by the operator."""
    connection = await operator.connect("test")
    await make_streams(connection.jetstream(timeout=SOON), 1, 1_000_000)
    await make_dead_stream(connection.jetstream(timeout=SOON), 1, 100_000)
    await connection.close()


async def publish(as_whom: Nats, subject: str) -> None:
    """Publish something under a subject and wait for the acknowledgement."""
    connection = await as_whom.connect("test")
    try:
        await connection.jetstream(timeout=SOON).publish(subject, b"x")
    finally:
        await connection.close()


async def publish_in_vain(as_whom: Nats, subject: str, caplog: pytest.LogCaptureFixture) -> None:
    """Publish something, with an answer wanted, until the server has said that we may not."""
    connection = await as_whom.connect("test")
    answers = await connection.subscribe(connection.new_inbox())
    try:
        await connection.publish(subject, b"x", reply=answers.subject)
        refusal = f'permissions violation for publish to "{subject}"'.lower()
        await until(lambda: refusal in caplog.text.lower())
        await connection.flush()
        assert answers.pending_msgs == 0
    finally:
        await connection.close()


def test_devices_forward_and_the_sink_stores(
    who: dict[str, Nats], old_urls: list[str], tmp_path: Path
) -> None:
    """Each with its own password over TLS, with no more rights than the example gives."""
    engine = Engine(emptied(old_urls))

    async def run() -> None:
        await make(who["operator"])
        async with running_sink(engine, who["sink"]):
            for name in ("edge-001", "edge-002"):
                with PowerManager(tmp_path / f"{name}.db") as pm:
                    pm.register_device(name, name)
                    pm.log_power(pm.add_meter(name, "main").id, 1.0, 1.0)
                    await forward(Outbox(pm), who[name], 0.1, quick(), once=True)
            await drained(who["operator"])

    asyncio.run(run())
    rows = engine.select("SELECT DISTINCT device_id FROM power_readings")
    assert {"edge-001", "edge-002"} <= {row["device_id"] for row in rows}


@pytest.mark.parametrize(
    "subject",
    [SUBJECT + "edge-002", SUBJECT + "*", "power.dead.edge-001", "$JS.API.STREAM.PURGE." + STREAM],
)
def test_a_device_may_publish_its_own_subject_only(
    who: dict[str, Nats], subject: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Another's subject is refused by the server, by name, and nothing arrives."""

    async def run() -> int:
        await make(who["operator"])
        await publish(who["edge-001"], SUBJECT + "edge-001")
        connection = await who["operator"].connect("test")
        before = (await connection.jetstream(timeout=SOON).stream_info(STREAM)).state.last_seq
        await publish_in_vain(who["edge-001"], subject, caplog)
        after = (await connection.jetstream(timeout=SOON).stream_info(STREAM)).state.last_seq
        await connection.close()
        return after - before

    with caplog.at_level(logging.WARNING, "power_fleet"):
        assert asyncio.run(run()) == 0


def test_the_reply_subject_of_anothers_is_of_no_use(
    who: dict[str, Nats], caplog: pytest.LogCaptureFixture
) -> None:
    """The server's acknowledgement goes where a device says, but nothing there takes it: no message
    of another device is purged or deleted, no dead letter forged, no stream changed.
    """
    attacks = (
        f"$JS.API.STREAM.PURGE.{STREAM}",
        f"$JS.API.STREAM.MSG.DELETE.{STREAM}",
        f"$JS.API.STREAM.DELETE.{STREAM}",
        f"$JS.API.STREAM.UPDATE.{STREAM}",
        f"$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}",
        f"$JS.API.CONSUMER.DELETE.{STREAM}.sink",
        f"$JS.API.CONSUMER.RESET.{STREAM}.sink",
        f"$JS.API.CONSUMER.PAUSE.{STREAM}.sink",
        f"$JS.API.STREAM.PURGE.{DEAD_STREAM}",
        f"$JS.API.STREAM.MSG.DELETE.{DEAD_STREAM}",
        "power.dead.edge-002",
        f"power.dead.{'0' * 32}.edge-002",
    )

    async def run() -> None:
        await make(who["operator"])
        operator = await who["operator"].connect("test")
        js = operator.jetstream(timeout=SOON)
        subject = await dead_subject(js)
        sink = await who["sink"].connect("test")
        await sink.jetstream(timeout=SOON).publish(
            subject + "edge-002", b"kept", stream=DEAD_STREAM
        )
        await publish(who["edge-002"], SUBJECT + "edge-002")
        before = await js.stream_info(STREAM), await js.stream_info(DEAD_STREAM)
        device = await who["edge-001"].connect("test")
        for attack in attacks:
            await device.publish(SUBJECT + "edge-001", b"x", reply=attack)
        await device.flush()
        await publish(who["edge-001"], SUBJECT + "edge-001")  # the last of them is taken in
        after = await js.stream_info(STREAM), await js.stream_info(DEAD_STREAM)
        assert after[0].state.messages == before[0].state.messages + len(attacks) + 1
        assert after[1].state.messages == before[1].state.messages
        assert [info.config for info in after] == [info.config for info in before]
        consumer = await who["sink"].connect("test")
        subscription = await consumer.jetstream(timeout=SOON).pull_subscribe_bind("sink", STREAM)
        assert await subscription.fetch(1, timeout=SOON)
        for connection in (operator, sink, device, consumer):
            await connection.close()

    asyncio.run(run())


def test_a_lax_server_is_refused(tmp_path: Path) -> None:
    """One that takes requests it does not understand is named, with the line to remove."""

    async def run(url: str) -> None:
        connection = await Nats(url).connect("test")
        try:
            with pytest.raises(Refused, match="strict: false"):
                await check_server(connection)
        finally:
            await connection.close()

    with Servers(tmp_path) as servers:
        servers.start_nats(1, jetstream="strict: false")
        asyncio.run(run(servers.nats_url))


def test_an_old_server_is_refused() -> None:
    """Its version and the least one are named."""

    class Old:
        connected_server_version = ServerVersion("2.11.11")

    with pytest.raises(Refused, match=r"version 2\.11\.11: it has to be 2\.12 or later"):
        asyncio.run(check_server(cast("Client", Old())))


def test_a_device_hears_nobody_else(
    server: Server, who: dict[str, Nats], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither others' messages nor their answers."""

    def refused() -> int:
        return len(re.findall("permissions violation for subscription", caplog.text, re.IGNORECASE))

    other = read_key(secrets_of(server) / "edge-002.key")

    async def run() -> None:
        connection = await who["edge-001"].connect("test")
        for subject in (SUBJECT + "*", "_INBOX.>", f"{other.inbox_prefix}.>"):
            await connection.subscribe(subject)
        await until(lambda: refused() == 3)
        await connection.close()

    with caplog.at_level(logging.WARNING, "power_fleet"):
        asyncio.run(run())


def test_the_sink_may_not_touch_the_streams(
    who: dict[str, Nats], caplog: pytest.LogCaptureFixture
) -> None:
    """It can take and acknowledge; to delete or to publish as a device is not its to do."""
    with caplog.at_level(logging.WARNING, "power_fleet"):
        for subject in (SUBJECT + "edge-001", "$JS.API.STREAM.DELETE." + STREAM):
            asyncio.run(publish_in_vain(who["sink"], subject, caplog))


def test_strangers_stay_outside(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No key, one that is not enrolled, or a server that proves itself by another certificate: no
    connection.
    """
    monkeypatch.setattr("power_fleet.stream.CONNECT_SECONDS", SOON)
    other = prepare(tmp_path / "other")
    write_key(tmp_path / "strange.key", make_key(), "edge-001")
    ca = secrets_of(server) / "ca.pem"
    strange = tmp_path / "strange.key"
    for stranger in (Nats(server.url, ca=ca), Nats(server.url, ca=ca, key_file=strange)):
        with pytest.raises(LoginRefused, match=r"(?i)authorization violation"):
            asyncio.run(stranger.connect("test"))

    async def run_deceived() -> None:
        deceived = Nats(server.url, ca=other / "ca.pem", key_file=strange)
        attempt = asyncio.ensure_future(deceived.connect("test"))
        await until(lambda: "certificate verify failed" in caplog.text.lower())
        assert not attempt.done()
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)

    with caplog.at_level(logging.WARNING, "power_fleet"):
        asyncio.run(run_deceived())


def test_secrets_stay_secret(tmp_path: Path) -> None:
    """No secret in what is shown of the settings, and no login over the network in the clear."""
    key = make_key()
    write_key(tmp_path / "key", key, "edge-001")
    assert key.seed not in repr(key)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    for url in (
        "nats://example.com:4222",
        "nats://127.0.0.1.example.com:4222",
        "tls://127.0.0.1:1,nats://b:2",
    ):
        with pytest.raises(Refused, match=r"--user: .* give --ca"):
            Nats(url, "edge-001", tmp_path / "password")
        with pytest.raises(Refused, match=r"--key-file: .* give --ca"):
            Nats(url, key_file=tmp_path / "key")
    with pytest.raises(Refused, match="--password-file"):
        Nats("nats://127.0.0.1:4222", "edge-001")
    with pytest.raises(Refused, match="--key-file"):
        Nats("nats://127.0.0.1:4222", "edge-001", tmp_path / "password", key_file=tmp_path / "key")


@pytest.mark.parametrize("kind", ["key", "password"])
def test_secrets_are_for_their_owner(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that everybody can write is refused; one that all can read is warned of, once."""
    file = tmp_path / kind
    if kind == "key":
        write_key(file, make_key(), "edge-001")
        nats = Nats("nats://127.0.0.1:4222", key_file=file)
    else:
        file.write_text("secret\n", encoding="utf-8")
        nats = Nats("nats://127.0.0.1:4222", "edge-001", file)

    def read() -> object:
        return nats.key() if kind == "key" else nats.password()

    file.chmod(0o600)
    assert read()
    assert caplog.messages == []
    file.chmod(0o604)
    assert read() == read()
    said = f"{file}: every user of this machine can read it (mode 0604): chmod 600 it"
    assert caplog.messages == [said]
    file.chmod(0o602)
    with pytest.raises(StorageError, match="can write it"):
        read()


def test_a_file_that_is_no_key_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any attempt: none would mend it; nor one that is missing."""
    file = tmp_path / "k.key"
    with PowerManager(tmp_path / "a.db"):
        pass
    command = ["forward", "--db", str(tmp_path / "a.db"), "--nats", "nats://127.0.0.1:9"]
    assert run_command(*command, "--key-file", str(file)) == 1
    assert capsys.readouterr().err == f"power-fleet: {file}: No such file or directory\n"
    file.write_bytes(b"\xff no key")
    file.chmod(0o600)
    assert run_command(*command, "--key-file", str(file)) == 1
    message = "expected one line with a key that begins with SU"
    assert capsys.readouterr().err == f"power-fleet: {file}: {message}\n"
