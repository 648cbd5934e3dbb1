"""Enrolling: keys, the file of users, and what a real server makes of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos_common import fleet_program
from fleet_harness import INTEGRATION, run_command
from pipeline import info, quick, streams, until
from power_fleet.enroll import (
    DEVICE,
    HUB,
    OPERATOR,
    SINK,
    check_ids,
    enroll,
    make_file,
    reload_server,
    revoke,
    users,
)
from power_fleet.forwarder import forward
from power_fleet.keys import Key, check_public, make_key, read_key, write_key
from power_fleet.outbox import Outbox
from power_fleet.stream import LoginRefused, Nats
from power_fleet.subjects import SUBJECT, token
from servers import SOON, Server, Servers, told_to_reread

from power_manager import (
    InvalidValue,
    NotFound,
    PowerManager,
    StorageError,
)

ODD_IDS = ["edge 1.a", "*", ">", 'a"b\\c', "a.>", "50%", "#1", "电源", "a'b", "{$HOME}", "x" * 200]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a file of users is to be."""
    return tmp_path / "devices.conf"


# --- Keys


def test_a_key_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The pair is the same, the file is for its owner alone, and a second one never overwrites
    it.
    """
    key = make_key()
    write_key(tmp_path / "key", key, "edge\n-001")
    assert read_key(tmp_path / "key") == key
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(StorageError, match="a key already, which may be in use: move it away"):
        write_key(tmp_path / "key", make_key(), "edge-001")
    assert read_key(tmp_path / "key") == key


def test_every_wrong_letter_of_a_key_is_noticed(tmp_path: Path) -> None:
    """Wherever it is, in the secret half or the public one."""
    key = make_key()
    for place in range(2, len(key.seed)):
        letter = "A" if key.seed[place] != "A" else "B"
        (tmp_path / "key").write_text(key.seed[:place] + letter + key.seed[place + 1 :])
        with pytest.raises(StorageError, match="key: "):
            read_key(tmp_path / "key")
    for place in range(len(key.public)):
        letter = "A" if key.public[place] != "A" else "B"
        with pytest.raises(InvalidValue, match="a public key"):
            check_public(key.public[:place] + letter + key.public[place + 1 :])
    assert check_public(key.public) == key.public


@pytest.mark.parametrize("text", ["", "# only\n", "SUA\n", "secret\n", b"\xff\xfe", "two\nlines\n"])
def test_a_file_without_a_key_is_refused(tmp_path: Path, text: Any) -> None:
    """By its name, without what is in it."""
    (tmp_path / "key").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StorageError, match="begins with SU"):
        read_key(tmp_path / "key")


# --- The file of users


def test_users_are_read_as_they_were_enrolled(path: Path) -> None:
    """Roles, ids of any characters, and several devices with one key."""
    enrolled = [enroll(path, [id_], make_key().public) for id_ in ODD_IDS]
    enrolled.append(enroll(path, ["a", "b"], make_key().public))
    enrolled.append(enroll(path, ["a"], make_key().public, role=OPERATOR))
    assert users(path) == enrolled
    assert path.stat().st_mode & 0o777 == 0o600
    assert revoke(path, "b") == enrolled[-2]
    assert users(path) == [*enrolled[:-2], enrolled[-1]]


def test_a_device_belongs_to_one_key(path: Path) -> None:
    """A second one is refused, or with `again` takes the place of the first; one of a group stays
    with the group.
    """
    enroll(path, ["a"], (old := make_key()).public)
    enroll(path, ["b", "c"], make_key().public)
    before = path.read_bytes()
    with pytest.raises(InvalidValue, match="'a' is enrolled already: give --again"):
        enroll(path, ["a"], make_key().public)
    with pytest.raises(InvalidValue, match="'b', 'c' share a key: revoke it first"):
        enroll(path, ["b"], make_key().public, again=True)
    with pytest.raises(InvalidValue, match="'a' has this key"):
        enroll(path, ["d"], old.public)
    with pytest.raises(InvalidValue, match="different ids"):
        enroll(path, ["e", "e"], make_key().public)
    with pytest.raises(InvalidValue, match="id: "):
        enroll(path, [""], make_key().public)
    assert path.read_bytes() == before
    new = enroll(path, ["a"], make_key().public, again=True)
    assert [user.public for user in users(path) if user.ids == ("a",)] == [new.public]


def test_again_is_for_who_is_enrolled(path: Path) -> None:
    """A mistyped id would else leave the lost key in force; the nearest one is named, and the file
    stays as it was.
    """
    enroll(path, ["edge-001"], make_key().public)
    before = path.read_bytes()
    with pytest.raises(NotFound, match=r"no device 'edge-01' is enrolled in .*: did you mean edge"):
        enroll(path, ["edge-01"], make_key().public, again=True)
    with pytest.raises(NotFound, match=r"no device 'x' is .*: leave out --again to enroll it"):
        enroll(path, ["x"], make_key().public, again=True)
    with pytest.raises(NotFound, match="no sink 'edge-001' is enrolled"):
        enroll(path, ["edge-001"], make_key().public, role=SINK, again=True)
    with pytest.raises(NotFound, match="no device 'x'"):
        check_ids(path, ["x"], again=True)
    assert path.read_bytes() == before
    with pytest.raises(NotFound, match="no device 'x'"):
        enroll(path.parent / "new.conf", ["x"], make_key().public, again=True)
    assert os.listdir(path.parent) == [path.name]


def test_who_is_not_enrolled_cannot_be_revoked(path: Path) -> None:
    """The nearest id is named."""
    enroll(path, ["edge-001"], make_key().public)
    with pytest.raises(NotFound, match=r"no device 'edge-01' .*: did you mean edge-001"):
        revoke(path, "edge-01")
    with pytest.raises(NotFound, match="no operator 'edge-001'"):
        revoke(path, "edge-001", role=OPERATOR)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("users: []\n", "not a file that `power-fleet enroll` made"),
        ("", "not a file that `power-fleet enroll` made"),
        (None, "line 3 was changed by hand"),
    ],
)
def test_a_file_of_others_is_refused(path: Path, text: str | None, message: str) -> None:
    """It stays as it is."""
    if text is None:
        make_file(path)
        text = path.read_text().replace("nobody", "somebody")
    path.write_text(text)
    with pytest.raises(StorageError, match=message):
        enroll(path, ["a"], make_key().public)
    with pytest.raises(StorageError, match=message):
        revoke(path, "a")
    assert path.read_text() == text


def test_the_file_keeps_its_mode(path: Path) -> None:
    """A server under an account of its own goes on reading it; nothing else is left beside it."""
    make_file(path)
    path.chmod(0o640)
    enroll(path, ["a"], make_key().public)
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(path.parent) == [path.name]


def test_many_at_once_lose_nobody(path: Path) -> None:
    """Each change waits for the one before."""

    def some(number: int) -> None:
        for place in range(5):
            enroll(path, [f"edge-{number}-{place}"], make_key().public)

    threads = [threading.Thread(target=some, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(users(path)) == 20


# --- The commands


def test_enrolling_prints_the_lines_for_the_device(
    tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is in a file of its own, never on the screen; `enrolled` lists it, `revoke` takes it
    away.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POWER_FLEET_USERS", raising=False)
    assert run_command("enroll", "edge 1", "--users", str(path)) == 0
    key = read_key(tmp_path / "edge%201.key")
    shown = capsys.readouterr()
    assert "edge 1 is enrolled; its key: edge%201.key" in shown.out
    assert "power-fleet forward --nats tls://HOST:4222" in shown.out
    assert "--key-file /etc/power/nats.key" in shown.out
    assert "nats-server --signal reload" in shown.out
    assert key.seed not in shown.out + shown.err + path.read_text()
    assert run_command("enrolled", "--users", str(path), "--json") == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["public_key"] == key.public
    assert record["may_publish"] == ["power.fleet.edge%201"]
    assert run_command("enrolled", "--users", str(path)) == 0
    assert capsys.readouterr().out.split("\n")[1].startswith("edge 1  device  20")
    assert run_command("revoke", "edge 1", "--users", str(path)) == 0
    assert "edge 1 is revoked" in capsys.readouterr().out
    assert users(path) == []


def test_a_device_may_keep_its_key_to_itself(
    tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It makes the key and shows the public half, which is enrolled; no secret travels."""
    assert run_command("key", str(tmp_path / "nats.key")) == 0
    public = capsys.readouterr().out.strip()
    assert run_command("key", str(tmp_path / "nats.key")) == 0
    assert capsys.readouterr().out.strip() == public
    assert run_command("enroll", "edge-001", "--users", str(path), "--public-key", public) == 0
    assert [user.public for user in users(path)] == [public]
    assert sorted(os.listdir(tmp_path)) == ["devices.conf", "nats.key"]


def test_a_key_that_nobody_may_use_is_not_left_behind(
    tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where enrolling is refused, its new key goes again."""
    enroll(path, ["a"], make_key().public)
    assert (
        run_command("enroll", "a", "--users", str(path), "--key-out", str(tmp_path / "new.key"))
        == 1
    )
    assert "give --again" in capsys.readouterr().err
    assert os.listdir(tmp_path) == [path.name]


def test_a_key_is_replaced_and_the_text_says_so(
    tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the way is named first: that it is enrolled, then its old key's file."""
    monkeypatch.chdir(tmp_path)

    def shown(*arguments: str) -> str:
        run_command("enroll", "edge-001", "--users", str(path), *arguments)
        printed = capsys.readouterr()
        return (printed.out + printed.err).partition("\n")[0]

    assert shown("--again") == (
        f"power-fleet: no device 'edge-001' is enrolled in {path}: leave out --again to enroll it"
    )
    assert shown() == "edge-001 is enrolled; its key: edge-001.key"
    assert shown() == (
        "power-fleet: 'edge-001' is enrolled already: give --again to replace its key"
    )
    assert shown("--again") == (
        "power-fleet: edge-001.key: there is a key already, which may be in use: "
        "move it away, or name another file"
    )
    assert shown("--again", "--key-out", "new.key") == (
        "edge-001 is enrolled with a new key, and the old one is revoked; its key: new.key"
    )
    new = read_key(tmp_path / "new.key").public
    assert [user.public for user in users(path)] == [new]
    assert shown("--again", "--public-key", new) == "edge-001 is enrolled with the key that it had"
    assert sorted(os.listdir(tmp_path)) == ["devices.conf", "edge-001.key", "new.key"]


def test_wrong_usage_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file of users, with a key that is none, or with two ways to a key at once."""
    monkeypatch.delenv("POWER_FLEET_USERS", raising=False)
    public = make_key().public
    assert run_command("enrolled") == 2
    both = ("--public-key", public, "--key-out", "x")
    assert run_command("enroll", "a", "--users", str(tmp_path / "u"), *both) == 2
    no_key = ("--public-key", "UAAA")
    assert run_command("enroll", "a", "--users", str(tmp_path / "u"), *no_key) == 2
    assert os.listdir(tmp_path) == []


# --- A real server


class Guarded:
    """A server that lets in who is enrolled."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = home / "devices.conf"
        make_file(self.path)
        self.servers = Servers(home)
        self.keys: dict[str, Key] = {}

    @property
    def server(self) -> Server:
        """Its process."""
        return self.servers.nats[0]

    def start(self) -> None:
        """Start it with the file as it is."""
        self.servers.start_nats(1, extra='authorization { include "../devices.conf" }')

    def add(self, *ids: str, role: str = DEVICE) -> Nats:
        """Enroll somebody; return the server for the holder of the key."""
        key = self.keys[ids[0]] = make_key()
        key_file = self.home / f"{len(self.keys)}.key"
        write_key(key_file, key, ids[0])
        enroll(self.path, ids, key.public, role=role)
        url = self.server.url if self.servers.nats else "nats://127.0.0.1:1"
        return Nats(url, key_file=key_file)

    def reload(self) -> None:
        """Have it read the file, and wait until it has."""
        with told_to_reread(self.server.home / "output"):
            reload_server(self.server.home / "pid")


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    """A server whose file of users is empty at first."""
    place = Guarded(tmp_path)
    with place.servers:
        place.start()
        yield place


def test_a_file_without_users_lets_nobody_in(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list without a user would open the server to everybody: when the last one is revoked, it
    stays shut.
    """
    monkeypatch.setattr("power_fleet.stream.CONNECT_SECONDS", 3600.0)  # it is said before

    def assert_shut() -> None:
        with pytest.raises(LoginRefused, match=r"(?i)authorization violation"):
            asyncio.run(asyncio.wait_for(Nats(guarded.server.url).connect("test"), SOON))

    assert_shut()
    guarded.add("a")
    guarded.reload()
    revoke(guarded.path, "a")
    guarded.reload()
    assert users(guarded.path) == []
    assert_shut()


def test_forwarding_once_ends_where_the_login_is_refused(
    guarded: Guarded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key that the server does not know is named at once; the file keeps what was not sent."""
    guarded.add("known")
    guarded.reload()
    stranger = tmp_path / "stranger.key"
    write_key(stranger, make_key(), "stranger")
    db = tmp_path / "stranger.db"
    with PowerManager(db) as pm:
        pm.register_device("stranger", "stranger")
        pm.log_power(pm.add_meter("stranger", "main").id, 1.0, 1.0)
        to = ("--nats", guarded.server.url, "--key-file", str(stranger))
        assert run_command("forward", "--once", "--db", str(db), *to) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        line = printed.err.splitlines()[-1]
        assert line.startswith(f"power-fleet: {guarded.server.url}: the login is refused: ")
        assert len(pm.pending_readings(10)) == 1


def test_odd_ids_have_their_own_subjects(guarded: Guarded, tmp_path: Path) -> None:
    """A device of any id forwards with its own rights, and cannot publish for any of the others."""
    hub = guarded.add("hub", role=HUB)
    devices = {id_: guarded.add(id_) for id_ in ODD_IDS}
    guarded.reload()

    async def work() -> None:
        await streams(hub)
        for number, (id_, nats_) in enumerate(devices.items()):
            with PowerManager(tmp_path / f"{number}.db") as pm:
                pm.register_device(id_, "odd")
                pm.log_power(pm.add_meter(id_, "main").id, 1.0, 1.0)
                await forward(Outbox(pm), nats_, 0.1, quick(), once=True)
        before = (await info(hub)).state.messages
        for id_, nats_ in devices.items():
            connection = await nats_.connect("test")
            for other in (*ODD_IDS, "*", ">"):
                if other != id_:
                    await connection.publish(SUBJECT + token(other), b"forged")
            for raw in (SUBJECT + "*", SUBJECT + ">", "power.dead.x.y"):
                await connection.publish(raw, b"forged")
            await connection.flush()
            await connection.close()
        assert (await info(hub)).state.messages == before

    asyncio.run(asyncio.wait_for(work(), SOON))


def test_devices_of_one_file_share_a_key(guarded: Guarded, tmp_path: Path) -> None:
    """One forwarder sends for all of them."""
    hub = guarded.add("hub", role=HUB)
    gateway = guarded.add("a", "b")
    guarded.reload()

    async def work() -> None:
        await streams(hub)
        with PowerManager(tmp_path / "gateway.db") as pm:
            for id_ in ("a", "b"):
                pm.register_device(id_, id_)
                pm.log_power(pm.add_meter(id_, "main").id, 1.0, 1.0)
            await forward(Outbox(pm), gateway, 0.1, quick(), once=True)
            assert pm.pending_readings(1) == []

    asyncio.run(asyncio.wait_for(work(), SOON))


def test_revoking_closes_an_open_connection_and_no_other(guarded: Guarded, tmp_path: Path) -> None:
    """The forwarder of the revoked device is cut off while it runs; its messages stay, its file
    keeps the rest; another device's connection stays open.
    """
    hub = guarded.add("hub", role=HUB)
    stolen, honest = guarded.add("stolen"), guarded.add("honest")
    guarded.reload()
    db = tmp_path / "stolen.db"

    async def work() -> None:
        await streams(hub)
        connection = await honest.connect("test")
        with PowerManager(db) as pm:
            pm.register_device("stolen", "stolen")
            meter = pm.add_meter("stolen", "main")
            pm.log_power(meter.id, 1.0, 1.0)
            options = ("--nats", stolen.urls, "--key-file", str(stolen.key_file))
            waits = ("--interval", "0.1", "--max-wait", "0.3")
            program = fleet_program(tmp_path / "log", "forward", "--db", str(db), *options, *waits)
            try:
                program.start()
                await until(lambda: not pm.pending_readings(1))
                before = (await info(hub)).state.messages
                assert before > 0
                revoke(guarded.path, "stolen")
                guarded.reload()
                await until(lambda: is_refused(guarded.server))
                pm.log_power(meter.id, 2.0, 1.0)
                await until(lambda: is_refused(guarded.server, times=2))  # again, and in vain
                assert len(pm.pending_readings(10)) == 1
                assert (await info(hub)).state.messages == before
            finally:
                program.kill()
        assert "authorization violation" in (tmp_path / "log").read_text().lower()
        await connection.flush()
        assert connection.stats["reconnects"] == 0
        await connection.close()

    asyncio.run(asyncio.wait_for(work(), SOON))


def test_the_readme_shows_what_enrolling_prints(
    guarded: Guarded, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command and its lines, with the places of this test."""
    monkeypatch.chdir(guarded.home)
    readme = (INTEGRATION / "README.md").read_text(encoding="utf-8")
    block = next(
        block
        for block in re.findall(r"^```text\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
        if "enroll" in block
    )
    command, expected = block.removeprefix("$ power-fleet ").split("\n", 1)
    for place, here in {
        "/etc/nats/users/devices.conf": str(guarded.path),
        "/run/nats.pid": str(guarded.server.home / "pid"),
    }.items():
        assert place in command
        command = command.replace(place, here)
    assert run_command(*command.split()) == 0
    shown = capfd.readouterr()
    assert shown.out + shown.err == expected


def is_refused(server: Server, times: int = 1) -> bool:
    """Whether the server has refused somebody so often."""
    return (server.home / "output").read_text().lower().count("authentication error") >= times


def test_a_server_that_cannot_be_told_hides_nothing(
    tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is enrolled, its key and its line are shown, and the exit code says that a hand is
    needed.
    """
    monkeypatch.chdir(tmp_path)
    command = ("enroll", "edge-1", "--users", str(path), "--pid-file", str(tmp_path / "no pid"))
    assert run_command(*command) == 1
    out, err = capsys.readouterr()
    assert "edge-1 is enrolled; its key: edge-1.key" in out
    assert "nats-server --signal reload" in out
    assert "the users are written, but no server was told: " in err
    assert [user.ids for user in users(path)] == [("edge-1",)]


def test_only_a_nats_server_is_told_to_read_again(tmp_path: Path) -> None:
    """A number in an old pid file may be another program's by now, which the signal would end."""
    other = subprocess.Popen(["sleep", "infinity"])
    try:
        for text, reason in ((str(other.pid), "process"), ("-1", ""), ("x", ""), ("", "")):
            (tmp_path / "pid").write_text(text)
            with pytest.raises(StorageError, match=f"no running NATS server by it: .*{reason}"):
                reload_server(tmp_path / "pid")
        with pytest.raises(StorageError, match="no running NATS server by it"):
            reload_server(tmp_path / "no pid")
        assert other.poll() is None
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
