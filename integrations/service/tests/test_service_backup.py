"""A backup of a running service: by REST, and by the command."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import Start
from power_service import backup, cli
from service_harness import Service, certificate, eventually, small_disk
from test_service_storage import RUN

from power_manager import PowerManager, replace_file

HELD_COPY = """
import os, threading
from power_manager import PowerManager
made = PowerManager.backup
def copy(pm, path):
    open("copying", "w").close()
    while not os.path.exists("go on"):
        threading.Event().wait(0.02)
    made(pm, path)
PowerManager.backup = copy
"""


@pytest.fixture
def filled(service: Service) -> Path:
    """The service's file, with a device in it and more than one chunk's worth of readings."""
    with PowerManager(service.db) as pm:
        pm.register_device("a", "A")
        meter = pm.add_meter("a", "main")
        pm.log_many((meter.id, 5.0, n / 7, None, n) for n in range(20_000))
    return service.db


@contextlib.contextmanager
def on_a_broken_disk(path: Path, mode: int) -> Iterator[Any]:
    """As replace_file, of a file that takes in nothing."""

    class Broken:
        def write(self, _: bytes) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with replace_file(path, mode):
        yield Broken()


def get_in_vain(service: Service, url: str) -> None:
    """Make a request whose server goes away."""
    with contextlib.suppress(httpx2.HTTPError), service.client() as client:
        client.get(url)


def devices(path: Path) -> list[str]:
    """What is in a copy, which has to be whole."""
    with PowerManager(path) as pm:
        assert pm.check() == []
        return [device.id for device in pm.list_devices()]


class TestRest:
    """GET /v1/backup."""

    def test_the_copy_is_whole_and_nothing_of_it_is_left(
        self, service: Service, api: httpx2.Client, filled: Path, tmp_path: Path
    ) -> None:
        """Beside the database too; and another can be had after it."""
        before = {path.name for path in filled.parent.iterdir()}
        for number in range(2):
            answer = api.get("/v1/backup")
            assert (answer.status_code, answer.headers["Content-Type"]) == (
                200,
                "application/vnd.sqlite3",
            )
            assert int(answer.headers["Content-Length"]) == len(answer.content) > 500_000
            assert answer.headers["Content-Disposition"].startswith("attachment;")
            copy = tmp_path / f"{number}.db"
            copy.write_bytes(answer.content)
            assert "a" in devices(copy)
        assert {path.name for path in filled.parent.iterdir()} == before

    def test_it_is_for_admins_of_everything(self, service: Service) -> None:
        """A token bound to devices must not read the others'."""
        for scopes, bound, code in (
            (["read", "write"], None, "forbidden_scope"),
            (["admin"], ["a"], "forbidden_device"),
        ):
            with service.client(service.token(*scopes, devices=bound)) as client:
                answer = client.get("/v1/backup")
            assert (answer.status_code, answer.json()["code"]) == (403, code)

    def test_one_at_a_time_and_nobody_waits_for_it(
        self, make_service: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A second one is told to come later; readers and writers go on."""
        monkeypatch.chdir(tmp_path)
        service = make_service("--no-auth", program=("-c", HELD_COPY + RUN)).start()
        answers: list[int] = []

        def back_up() -> None:
            with service.client() as client:
                answers.append(client.get("/v1/backup").status_code)

        first = threading.Thread(target=back_up)
        first.start()
        eventually((tmp_path / "copying").exists)
        with service.client() as client:
            second = client.get("/v1/backup")
            assert (second.status_code, second.json()["code"]) == (503, "overloaded")
            assert int(second.headers["Retry-After"]) >= 1
            assert client.put("/v1/devices/b", json={"name": "B"}).status_code == 200
            assert client.get("/v1/devices").status_code == 200
            (tmp_path / "go on").touch()
            first.join()
            assert answers == [200]
            assert client.get("/v1/backup").status_code == 200

    def test_a_client_that_goes_leaves_the_place(self, service: Service, filled: Path) -> None:
        """Also in the middle of it."""
        token = service.token("admin")
        for _ in range(3):
            with service.client(token) as client, client.stream("GET", "/v1/backup") as answer:
                assert answer.status_code == 200
                next(answer.iter_raw())
            with service.client(token) as client:
                eventually(lambda: client.get("/v1/backup").status_code == 200)

    def test_what_a_killed_service_left_of_a_copy_goes(
        self, make_service: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When it starts again; a copy that another service is making stays."""
        monkeypatch.chdir(tmp_path)
        first = make_service("--no-auth", program=("-c", HELD_COPY + RUN)).start()
        waiting = threading.Thread(target=get_in_vain, args=(first, "/v1/backup"))
        waiting.start()
        eventually((tmp_path / "copying").exists)
        (half,) = tmp_path.glob(".power-backup-*")
        second = make_service("--no-auth").start()
        with second.client() as client:
            assert client.get("/v1/backup").status_code == 200
        assert list(tmp_path.glob(".power-backup-*")) == [half]
        first.end(signal.SIGKILL)
        waiting.join()
        assert half.exists()
        with second.client() as client:
            assert client.get("/v1/backup").status_code == 200
        assert list(tmp_path.glob(".power-backup-*")) == []
        half.mkdir()
        foreign = tmp_path / ".power-backup-note"
        foreign.touch()
        first.start()
        assert not half.exists()
        with second.client() as client:
            assert client.get("/v1/backup").status_code == 200, "what cannot be removed stays"
        assert f"{foreign} cannot be removed: Not a directory" in first.log.read_text()
        assert f"removed {half}: a copy that was never finished" in first.log.read_text()


class TestCommand:
    """power-service backup."""

    @pytest.mark.parametrize("before", [True, False])
    def test_a_file_of_this_machine(
        self, filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], before: bool
    ) -> None:
        """While the service has it; --db before or after the command."""
        target = tmp_path / "copy.db"
        db = ["--db", str(filled)]
        arguments = [*db, "backup", str(target)] if before else ["backup", str(target), *db]
        assert cli.main(arguments) == 0
        size = target.stat().st_size
        text = f"The copy is {target}, {size:,} bytes: power-manager restore puts it back.\n"
        assert capsys.readouterr().out == text
        assert "a" in devices(target)

    def test_json_for_programs(
        self,
        service: Service,
        filled: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Of a copy of this machine and of one from elsewhere; nothing else is printed."""
        monkeypatch.setenv("POWER_SERVICE_TOKEN", service.token("admin"))
        for origin in (["--db", str(filled)], ["--url", service.url]):
            target = tmp_path / "copy.db"
            assert cli.main(["backup", "--json", str(target), *origin]) == 0
            printed = capsys.readouterr()
            expected = {"path": str(target), "bytes": target.stat().st_size}
            assert (json.loads(printed.out), printed.err) == (expected, "")

    def test_no_file_is_made_where_there_was_none(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A mistyped name is no empty backup."""
        assert cli.main(["--db", str(tmp_path / "no.db"), "backup", str(tmp_path / "c.db")]) == 1
        assert "no.db: no such file" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_a_service_that_is_elsewhere(
        self, service: Service, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By its address, with the token in the environment; private, replacing an older one."""
        target = tmp_path / "copy.db"
        target.write_text("an older copy")
        monkeypatch.setenv("POWER_SERVICE_TOKEN", service.token("admin"))
        assert cli.main(["backup", str(target), "--url", service.url + "/"]) == 0
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert "a" in devices(target)

    def test_what_the_service_says_is_said(
        self,
        service: Service,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """And the older copy stays."""
        target = tmp_path / "copy.db"
        target.write_text("an older copy")
        for token, message in (
            (service.token("read"), "does not have the scope 'admin'"),
            ("wrong", "unknown or revoked"),
            ("", "a bearer token is needed"),
        ):
            monkeypatch.setenv("POWER_SERVICE_TOKEN", token)
            assert cli.main(["backup", str(target), "--url", service.url]) == 1
            assert message in capsys.readouterr().err
        assert [path.read_text() for path in tmp_path.iterdir()] == ["an older copy"]

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("/short", "ended early"),
            ("/page", "is not a database"),
            ("/empty", "ended early"),
            ("/moved", "302"),
            ("/broken", "500"),
        ],
    )
    def test_what_is_no_backup_is_none(
        self,
        elsewhere: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        path: str,
        message: str,
    ) -> None:
        """Half an answer, another server, one that sends the token on."""
        monkeypatch.setenv("POWER_SERVICE_TOKEN", "secret")
        assert cli.main(["backup", str(tmp_path / "copy.db"), "--url", elsewhere + path]) == 1
        assert message in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    @pytest.fixture
    def target(
        self, service: Service, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Path:
        """Where a copy of more than 500,000 bytes goes; the token for it is in the environment."""
        assert filled.stat().st_size > 500_000
        monkeypatch.setenv("POWER_SERVICE_TOKEN", service.token("admin"))
        return tmp_path / "copy.db"

    def test_a_disk_that_is_full(
        self,
        service: Service,
        target: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """The copy is named, as the service is not at fault; an older one stays."""
        target.write_text("an older copy")
        with small_disk(100_000):
            assert cli.main(["backup", str(target), "--url", service.url]) == 1
        reason = "File too large; free some space, then try again"
        assert capsys.readouterr().err == f"power-service: {target}: {reason}\n"
        assert [path.read_text() for path in tmp_path.iterdir()] == ["an older copy"]

    def test_a_disk_that_fails(
        self,
        service: Service,
        target: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Whatever is wrong with it: the copy is named, and not the service."""
        monkeypatch.setattr(backup, "replace_file", on_a_broken_disk)
        assert cli.main(["backup", str(target), "--url", service.url]) == 1
        assert capsys.readouterr().err == f"power-service: {target}: {os.strerror(errno.EIO)}\n"
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("token", ["secret\n", "secret\r\n", "secr\u00e9t", "sec\tret"])
    def test_a_token_that_no_header_takes_is_not_shown(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        token: str,
    ) -> None:
        """As one that was read from a file with its end of the line: the variable is named."""
        monkeypatch.setenv("POWER_SERVICE_TOKEN", token)
        words = ["backup", str(tmp_path / "copy.db"), "--url", "http://127.0.0.1:1"]
        assert cli.main(words) == 1
        message = capsys.readouterr().err
        assert message.startswith("power-service: $POWER_SERVICE_TOKEN: expected a token as ")
        assert "sec" not in message
        assert list(tmp_path.iterdir()) == []

    def test_a_place_where_no_file_can_be(
        self, service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It is told before the service makes a copy, or asks for a token."""
        target = tmp_path / "no" / "copy.db"
        assert cli.main(["backup", str(target), "--url", service.url]) == 1
        assert f"power-service: {target}: No such file or directory" in capsys.readouterr().err

    def test_one_origin(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A file and a service contradict each other."""
        both = ["--db", "power.db", "--url", "http://127.0.0.1:1"]
        assert cli.main(["backup", str(tmp_path / "copy.db"), *both]) == 2
        assert "power-service: --db and --url: " in capsys.readouterr().err

    def test_a_certificate_that_nobody_knows(
        self,
        make_service: Start,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """It is refused, and the variable that names it is said; with it the copy is made."""
        options, _ = certificate(tmp_path)
        service = make_service(*options)
        monkeypatch.setenv("POWER_SERVICE_TOKEN", service.token("admin"))
        service.start()
        words = ["backup", str(tmp_path / "copy.db"), "--url", service.url]
        assert cli.main(words) == 1
        message = capsys.readouterr().err
        assert f"{service.url}: its certificate is not trusted (self" in message
        assert message.endswith("in $SSL_CERT_FILE\n")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert cli.main(words) == 0
        assert devices(tmp_path / "copy.db") == []

    def test_nobody_there(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """And addresses that are none."""
        assert cli.main(["backup", str(tmp_path / "c.db"), "--url", "http://127.0.0.1:1"]) == 1
        assert capsys.readouterr().err == "power-service: http://127.0.0.1:1: Connection refused\n"
        for url in ("http://127.0.0.1:1", "nonsense", "http://[", "file:///etc"):
            assert cli.main(["backup", str(tmp_path / "copy.db"), "--url", url]) == 1
            assert url in capsys.readouterr().err


class Elsewhere(BaseHTTPRequestHandler):
    """Servers that are no power-service."""

    def do_GET(self) -> None:
        """Answer by the path."""
        assert not self.path.startswith("/stolen"), "the token was sent on"
        status = {"/moved": 302, "/broken": 500}.get(self.path.removesuffix("/v1/backup"), 200)
        body = b"SQLite format 3\0" if self.path.startswith("/short") else b"<!doctype html>"
        if self.path.startswith("/empty"):
            body = b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + 9 * self.path.startswith("/short")))
        if status == 302:
            self.send_header("Location", "/stolen")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The address of such a server."""
    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_copy_is_put_back_by_the_library(filled: Path, tmp_path: Path) -> None:
    """As it does with its own backups."""
    copy, fresh = tmp_path / "copy.db", tmp_path / "fresh.db"
    assert cli.main(["backup", str(copy), "--db", str(filled)]) == 0
    with PowerManager(fresh) as pm:
        pm.restore(copy)
    assert "a" in devices(fresh)
