"""Nobody gets in who should not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import shlex
import socket
import stat
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import Start
from fastapi import FastAPI
from forked import Forked
from power_service import cli
from power_service import tokens as tokens_module
from power_service.auth import Gate
from power_service.dashboard import add_dashboard
from power_service.limits import Buckets
from power_service.problems import Problem
from power_service.settings import Refused, Settings
from power_service.tokens import EVERYBODY, Grant, Scope, Tickets, TokenFile
from service_harness import ENVIRONMENT, SERVICE, SOON, Service, certificate, eventually, small_disk
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from power_manager import PowerManager

CONTRACT = json.loads((SERVICE / "openapi.json").read_text(encoding="utf-8"))
OPERATIONS = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, methods in CONTRACT["paths"].items()
    for method, operation in methods.items()
}
OPEN = {"getHealth", "getReadiness", "getSignIn"}
BY_TICKET = {"signIn"}  # and by nothing else: any token is as good as none
WRITING = {"putDevice", "updateDevice", "addMeter", "updateMeter", "postReadings", "triggerEvent"}
FOR_ADMINS = {"deleteDevice", "deleteMeter", "deleteReadings", "getBackup"}
OF_ANY_TOKEN = {"getMe"}
OF_A_FLEET = {"getFleet", "listFleetDevices", "getFleetEnergy", "listSilentDevices"}
OF_ALL = {"getMetrics", "getFleet", "getFleetEnergy"}  # and so not for a token bound to devices
OF_A_DEVICE = (
    set(OPERATIONS)
    - OPEN
    - OF_A_FLEET
    - BY_TICKET
    - OF_ANY_TOKEN
    - {"listDevices", "followEvents", "createStreamTicket"}
)


@dataclass
class House:
    """A service with two devices, a meter each, and a token of every kind."""

    service: Service
    meters: dict[str, str]
    tokens: dict[str, str | None]

    def call(self, operation_id: str, token: str, device: str) -> httpx2.Response:
        """Make a request that would succeed with enough rights."""
        method, path, _ = OPERATIONS[operation_id]
        path = path.replace("{device_id}", device).replace("{meter_id}", self.meters[device])
        bodies: dict[str, Any] = {
            "putDevice": {"name": device},
            "updateDevice": {"target_wh": 1},
            "updateMeter": {"capacity_wh": 1},
            "addMeter": {"type": "main"},
            "postReadings": {
                "meter_id": self.meters[device],
                "voltage": 1,
                "current_draw": 1,
                "timestamp": 0,
            },
            "triggerEvent": {"type": "restore"},
            "signIn": {"ticket": "none of this service"},
        }
        params = {"device_id": device} if operation_id in ("getBudget", "listMeters") else {}
        if operation_id == "getSparklines":
            params = {"device": device}
        if operation_id == "deleteReadings":
            params = {"since": "2199-01-01T00:00:00Z"}
        with self.service.client(self.tokens[token]) as client:
            answer: httpx2.Response = client.request(
                method, path, json=bodies.get(operation_id), params=params
            )
        if answer.status_code == 204:
            self.build(device)
        return answer

    def build(self, device: str) -> None:
        """Make a device that has a meter, also where one of them was deleted."""
        with self.service.client(self.tokens["admin"]) as client:
            client.put(f"/v1/devices/{device}", json={"name": device})
            meter = client.post(f"/v1/devices/{device}/meters", json={"type": "main"}).json()
        self.meters[device] = meter["id"]


@pytest.fixture(scope="module")
def house(service: Service) -> House:
    """One service for the whole matrix."""
    tokens: dict[str, str | None] = {
        "none": None,
        "wrong": "pm_" + "x" * 43,
        "read": service.token("read"),
        "write": service.token("write"),
        "admin": service.token("admin"),
        "ours": service.token("read", "write", devices=["ours"]),
    }
    made = House(service, {}, tokens)
    for device in ("ours", "theirs"):
        made.build(device)
    return made


class TestMatrix:
    """Every route x no token, wrong, read, write, admin, bound to this device, bound to another."""

    @pytest.mark.parametrize("operation_id", OPERATIONS)
    @pytest.mark.parametrize("token", ["none", "wrong", "read", "write", "admin", "ours"])
    @pytest.mark.parametrize("device", ["ours", "theirs"])
    def test_every_route_with_every_token(
        self, house: House, operation_id: str, token: str, device: str
    ) -> None:
        """401 without a valid token, 403 without the scope or for another device, else it works.

        Of what a fleet alone has, a file has nothing.
        """
        answer = house.call(operation_id, token, device)
        expected = "2xx"
        if operation_id in OPEN:
            pass
        elif token in ("none", "wrong") or operation_id in BY_TICKET:
            expected = "401 unauthorized"
        elif operation_id in OF_ANY_TOKEN:
            pass
        elif (
            (token == "read" and operation_id in WRITING)
            or (token == "write" and operation_id not in WRITING)
            or (token != "admin" and operation_id in FOR_ADMINS)
        ):
            expected = "403 forbidden_scope"
        elif token == "ours" and (
            operation_id in OF_ALL or (operation_id in OF_A_DEVICE and device == "theirs")
        ):
            expected = "403 forbidden_device"
        elif operation_id in OF_A_FLEET:
            expected = "404 no_fleet"
        got = "2xx" if answer.is_success else f"{answer.status_code} {answer.json()['code']}"
        assert got == expected, answer.text
        is_secured = operation_id not in OPEN | BY_TICKET
        assert ("security" in OPERATIONS[operation_id][2]) == is_secured
        if answer.status_code == 401:
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")

    def test_a_bound_token_sees_its_own_only(self, house: House) -> None:
        """Lists and followers leave the others out."""
        with house.service.client(house.tokens["ours"]) as client:
            assert [device["id"] for device in client.get("/v1/devices").json()] == ["ours"]
            assert {meter["device_id"] for meter in client.get("/v1/meters").json()} == {"ours"}
            assert list(client.get("/v1/budget").json()) == ["ours"]
            client.post("/v1/devices/ours/events", json={"type": "restore"})
            events = client.get("/v1/events").json()["events"]
            assert {event["event"]["device_id"] for event in events} == {"ours"}

    @pytest.mark.parametrize(
        ("scopes", "devices", "expected"),
        [
            (["read"], None, ["read"]),
            (["write"], None, ["write"]),
            (["read", "write"], ["ours"], ["read", "write"]),
            (["admin"], None, ["read", "write", "admin"]),
            (["admin"], ["ours"], ["read", "write", "admin"]),
        ],
    )
    def test_a_token_can_ask_what_it_may(
        self, house: House, scopes: list[str], devices: list[str] | None, expected: list[str]
    ) -> None:
        """Each scope by itself, as admin is both; and the file to name in commands."""
        with house.service.client(house.service.token(*scopes, devices=devices)) as client:
            assert client.get("/v1/me").json() == {
                "name": "test",
                "scopes": expected,
                "devices": devices,
                "database": str(house.service.db) if devices is None else None,
                "source": "file",
            }

    def test_an_admin_of_some_devices_deletes_no_others(self, house: House) -> None:
        """Bound is bound."""
        with house.service.client(house.service.token("admin", devices=["ours"])) as client:
            for path in (
                "/v1/devices/theirs",
                "/v1/devices/nobody",
                f"/v1/meters/{house.meters['theirs']}",
                f"/v1/meters/{house.meters['theirs']}/readings?since=1990-01-01T00:00:00Z",
            ):
                assert client.delete(path).json()["code"] == "forbidden_device"

    def test_a_bound_token_learns_nothing_by_an_events_meter(self, house: House) -> None:
        """A meter of somebody else and one that is not there are the same here too."""
        answers = []
        with house.service.client(house.tokens["ours"]) as client:
            for meter_id in (house.meters["theirs"], "nobodys"):
                sent = {"type": "restore", "meter_id": meter_id}
                answers.append(client.post("/v1/devices/ours/events", json=sent))
        assert [answer.status_code for answer in answers] == [403, 403]
        assert answers[0].json() == answers[1].json()

    def test_a_bound_token_cannot_learn_what_exists(self, house: House) -> None:
        """A meter of somebody else and one that is not there are the same."""
        with house.service.client(house.tokens["ours"]) as client:
            theirs = client.get(f"/v1/meters/{house.meters['theirs']}")
            nobodys = client.get("/v1/meters/nobodys")
        assert theirs.json() == nobodys.json()
        assert theirs.status_code == 403

    def test_a_batch_with_one_meter_of_another_device_is_refused_whole(self, house: House) -> None:
        """Also where the first row is ours."""
        rows = [
            {"meter_id": house.meters[d], "voltage": 2, "current_draw": 1, "timestamp": 60}
            for d in house.meters
        ]
        with house.service.client(house.tokens["ours"]) as client:
            assert client.post("/v1/readings", json=rows).status_code == 403
            url = f"/v1/meters/{house.meters['ours']}/readings"
            found = client.get(url, params={"until": "1970-01-02T00:00:00Z"}).json()["readings"]
        assert all(row["voltage"] != 2 for row in found)

    @pytest.mark.parametrize("header", ["", "Bearer", "Basic eDp5", "bearer \xff", "Bearer a b"])
    def test_other_authorization_headers_are_no_token(self, house: House, header: str) -> None:
        """Whatever is in it, 401."""
        with house.service.client() as client:
            answer = client.get("/v1/devices", headers={b"Authorization": header.encode("latin-1")})
        assert answer.status_code == 401

    def test_a_token_in_the_url_is_none(self, house: House) -> None:
        """URLs end in logs and histories."""
        with house.service.client() as client:
            for name in ("token", "access_token", "ticket"):
                answer = client.get("/v1/devices", params={name: str(house.tokens["admin"])})
                assert answer.status_code == 401


class TestHostsAndOrigins:
    """DNS rebinding and pages from elsewhere."""

    @pytest.mark.parametrize(
        "host", ["evil.example", "127.0.0.1.evil.example", "", "[", "localhost@evil.example"]
    )
    def test_a_foreign_host_is_refused(self, house: House, host: str) -> None:
        """Whoever has its name resolve to this machine does not get in by it."""
        assert raw(house.service, f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n").startswith(
            ("HTTP/1.1 421", "HTTP/1.1 400")
        )

    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1", "[::1]:8080"])
    def test_loopback_names_are_allowed(self, house: House, host: str) -> None:
        """With any port, in any case."""
        assert raw(house.service, f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n").startswith(
            "HTTP/1.1 200"
        )

    @pytest.mark.parametrize(
        "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://["]
    )
    def test_a_foreign_origin_is_refused(self, house: House, origin: str) -> None:
        """On HTTP and on the WebSocket, even with a token."""
        with house.service.client(house.tokens["admin"], Origin=origin) as client:
            answer = client.get("/v1/devices")
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden_origin")
        assert "--allow-origin" in answer.json()["detail"]
        eventually(lambda: "403 forbidden_origin" in house.service.log.read_text())
        headers = {"Authorization": f"Bearer {house.tokens['admin']}"}
        with pytest.raises(InvalidStatus) as refusal:
            connect(
                house.service.stream_url,
                origin=Origin(origin),
                additional_headers=headers,
                proxy=None,
            )
        assert refusal.value.response.status_code == 403

    def test_a_foreign_host_is_refused_on_the_websocket(self, house: House) -> None:
        """The guard is the same."""
        with pytest.raises(InvalidStatus) as refusal:
            connect(house.service.stream_url.replace("127.0.0.1", "127.0.0.2"), proxy=None,
                    sock=socket.create_connection(("127.0.0.1", house.service.port)))  # fmt: skip
        assert refusal.value.response.status_code == 421

    def test_its_own_origin_is_allowed(self, house: House) -> None:
        """The dashboard that the service serves."""
        with house.service.client(house.tokens["admin"], Origin=house.service.url) as client:
            assert client.get("/v1/devices").status_code == 200

    def test_allowed_names_and_origins(self, make_service: Start) -> None:
        """Named ones get in, with CORS headers for that origin alone."""
        service = make_service(
            "--allow-origin", "https://dash.example", "--allow-host", "power.example"
        ).start()
        with service.client(
            service.token("read"), Host="power.example", Origin="https://dash.example"
        ) as client:
            answer = client.get("/v1/devices")
            for method in ("GET", "PUT", "POST", "PATCH", "DELETE"):
                preflight = client.options(
                    "/v1/devices", headers={"Access-Control-Request-Method": method}
                )
                assert preflight.status_code == 200
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "https://dash.example"
        assert answer.headers["Access-Control-Expose-Headers"] == "Retry-After, Fresh-As-Of"
        with service.client(Origin="https://evil.example") as client:
            preflight = client.options(
                "/v1/devices", headers={"Access-Control-Request-Method": "PUT"}
            )
        assert preflight.status_code == 403
        assert "Access-Control-Allow-Origin" not in preflight.headers


ROW = {
    "id": "0a348ad3",
    "name": "x",
    "scopes": ["read"],
    "devices": None,
    "created_at": "2026-01-01T00:00:00+00:00",
    "sha256": "0",
}


class TestTokens:
    """Their file, their command line, and what becomes of them."""

    def test_the_file_is_private_and_holds_no_token(self, tmp_path: Path) -> None:
        """0600, and SHA-256 only."""
        tokens = TokenFile(tmp_path / "tokens.json")
        token, grant = tokens.new("x", [Scope.READ])
        assert stat.S_IMODE(tokens.path.stat().st_mode) == 0o600
        assert token not in tokens.path.read_text()
        assert tokens.find(token) == grant
        assert tokens.find(token[:-1]) is None
        assert list(tmp_path.iterdir()) == [tokens.path], "nothing else is left"

    @pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
    def test_root_makes_the_file_for_the_services_user(self, tmp_path: Path, there: bool) -> None:
        """The earlier file's owner, or the directory's; only root can make files for others."""
        user, path = 10_001 if os.geteuid() == 0 else os.geteuid(), tmp_path / "tokens.json"
        if there:
            TokenFile(path).new("x", [Scope.READ])
        os.chown(path if there else tmp_path, user, -1)
        tokens = TokenFile(path)
        tokens.new("y", [Scope.READ])
        tokens.revoke(tokens.grants[0].id)
        assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (user, 0o600)

    def test_a_file_that_others_can_read_is_refused(self, tmp_path: Path) -> None:
        """Then the tokens may be known."""
        path = tmp_path / "tokens.json"
        TokenFile(path).new("x", [Scope.READ])
        path.chmod(0o640)
        with pytest.raises(Refused, match="chmod 600"):
            TokenFile(path)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"[]",
            b"secret",
            b"SQLite format 3\0\xff",
            b"[" * 100_000,
            b'{"tokens": 3}',
            b'{"tokens": [{"id": 1}]}',
            b'{"tokens": ["secret"]}',
            *(
                json.dumps({"tokens": [{**ROW, name: value}]}).encode()
                for name, value in (
                    ("id", 1),
                    ("name", None),
                    ("sha256", 1),
                    ("scopes", 1),
                    ("scopes", ["secret"]),
                    ("devices", "secret"),
                    ("devices", [1]),
                    ("secret", 1),
                )
            ),
        ],
    )
    def test_a_file_of_something_else_is_refused_by_name(
        self, tmp_path: Path, content: bytes
    ) -> None:
        """And not overwritten; what it has is not shown, as it may be a secret."""
        path = tmp_path / "tokens.json"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(Refused, match="expected a file of tokens") as refused:
            TokenFile(path)
        assert "secret" not in str(refused.value)
        assert path.read_bytes() == content

    def test_what_cannot_be_read_is_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A directory in the place of a file, of tokens or of the database."""
        for command in (["token", "list"], ["token", "new", "x", "--scope", "read"], []):
            for option, code in (("--tokens", 1), ("--db", 2)):
                assert cli.main([*command, option, str(tmp_path)]) == code
                assert str(tmp_path) in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_the_command_line_makes_lists_and_revokes(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The token is printed once, alone on standard output."""
        db = ["--db", str(tmp_path / "power.db")]
        words = ["token", "new", "probe", "--scope", "read", "--scope", "write", "--device", "a"]
        assert cli.main([*words, *db]) == 0
        token = capsys.readouterr().out.strip()
        grant = TokenFile(tmp_path / "power.db.tokens.json").find(token)
        assert grant is not None
        assert (grant.name, grant.scopes, grant.devices) == ("probe", ("read", "write"), ("a",))
        assert cli.main(["token", "list", *db]) == 0
        listed = capsys.readouterr().out
        head, line = listed.splitlines()
        assert head.split() == ["id", "created", "scopes", "name", "devices"]
        assert line.split() == [grant.id, grant.created_at, "read+write", "probe", "a"]
        assert token not in listed
        assert cli.main(["token", "list", "--json", *db]) == 0
        listed = capsys.readouterr().out
        assert json.loads(listed) == [
            {
                "id": grant.id,
                "name": "probe",
                "created_at": grant.created_at,
                "scopes": ["read", "write"],
                "devices": ["a"],
            }
        ]
        assert cli.main(["token", "revoke", grant.id, *db]) == 0
        assert capsys.readouterr().out == f"Token {grant.id} is revoked.\n"
        assert cli.main(["token", "revoke", grant.id, *db]) == 1
        assert TokenFile(tmp_path / "power.db.tokens.json").find(token) is None
        capsys.readouterr()
        assert cli.main(["token", "list", *db]) == 0
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(
            "power-service: there is no token yet; make one: power-service token new"
        )

    @pytest.mark.parametrize("words", [["", "--scope=read"], ["x", "--scope=read", "--device= "]])
    def test_a_name_that_is_none_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
    ) -> None:
        """An empty variable of a script makes no token, least of all one that nothing may use."""
        with pytest.raises(SystemExit, match="2"):
            cli.main(["token", "new", *words, "--db", str(tmp_path / "power.db")])
        assert "expected a name, got '" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_json_for_programs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """What the commands have done, and nothing else."""
        db = ["--db", str(tmp_path / "power.db"), "--json"]
        assert cli.main(["token", "new", "probe", "--scope", "read", *db]) == 0
        printed = capsys.readouterr()
        made = json.loads(printed.out)
        (grant,) = TokenFile(tmp_path / "power.db.tokens.json").grants
        assert TokenFile(tmp_path / "power.db.tokens.json").find(made.pop("token")) == grant
        assert made == {
            "id": grant.id,
            "name": "probe",
            "created_at": grant.created_at,
            "scopes": ["read"],
            "devices": None,
        }
        assert "printed only this once" not in printed.err
        assert cli.main(["token", "revoke", grant.id, *db]) == 0
        printed = capsys.readouterr()
        assert (json.loads(printed.out), printed.err) == ({"revoked": grant.id}, "")
        assert cli.main(["token", "list", *db]) == 0
        printed = capsys.readouterr()
        assert (json.loads(printed.out), printed.err) == ([], "")

    def test_a_disk_that_is_full(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The file is named, and stays as it was; there is no token that was not kept."""
        db = ["--db", str(tmp_path / "power.db")]
        assert cli.main(["token", "new", "first", "--scope", "read", *db]) == 0
        path = tmp_path / "power.db.tokens.json"
        before = path.read_bytes()
        capsys.readouterr()
        with small_disk(100):
            assert cli.main(["token", "new", "second", "--scope", "read", *db]) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(f"power-service: {path}: File too large")
        assert list(tmp_path.iterdir()) == [path]
        assert path.read_bytes() == before

    @pytest.mark.parametrize("form", [[], ["--json"]])
    def test_a_token_that_nobody_has_seen_is_none(self, tmp_path: Path, form: list[str]) -> None:
        """Its text could not be printed, and nothing else has it."""
        words = ["token", "new", "x", "--scope", "read", "--db", str(tmp_path / "p.db"), *form]
        command = [sys.executable, "-m", "power_service", *words]
        with open("/dev/full", "w") as full:
            run = subprocess.run(
                command,
                stdout=full,
                stderr=subprocess.PIPE,
                env=ENVIRONMENT,
                text=True,
                check=False,
            )
        assert (run.returncode, run.stderr) == (1, "power-service: No space left on device\n")
        assert TokenFile(tmp_path / "p.db.tokens.json").grants == []

    def test_what_may_be_a_slip_of_the_pen_is_said(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A database or a device that is not there; it may come later, so the token is made."""
        path = tmp_path / "power.db"
        new = ["token", "new", "x", "--scope", "read", "--device", "a", "--device", "b"]
        assert cli.main([*new, "--db", str(path)]) == 0
        assert f"{path}: there is no such database yet: " in capsys.readouterr().err
        assert not path.exists()
        with PowerManager(path) as pm:
            pm.register_device("a", "A")
        assert cli.main([*new, "--db", str(path)]) == 0
        message = capsys.readouterr().err
        assert "power-service: no device has the id 'b' yet: " in message
        assert "'a'" not in message
        assert cli.main([*new, "--tokens", str(tmp_path / "t.json")]) == 0
        assert " yet: " not in capsys.readouterr().err

    def test_two_threads_that_read_it_keep_the_latest(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A token that was revoked meanwhile is not kept: the second one waits for the first."""
        tokens = TokenFile(tmp_path / "tokens.json")
        other = TokenFile(tokens.path)
        _, grant = other.new("x", [Scope.READ])
        read, begun, go_on = tokens_module._read, threading.Event(), threading.Event()

        def slow(path: Path) -> list[Grant]:
            found = read(path)
            if not begun.is_set():
                begun.set()
                assert go_on.wait(SOON)
            return found

        monkeypatch.setattr(tokens_module, "_read", slow)
        first = threading.Thread(target=tokens.refresh)
        first.start()
        assert begun.wait(SOON)
        monkeypatch.setattr(tokens_module, "_read", read)
        other.revoke(grant.id)
        second = threading.Thread(target=tokens.refresh)
        second.start()
        second.join(0.2)  # as far as it comes
        go_on.set()
        first.join()
        second.join()
        assert tokens.grants == []

    def test_tokens_made_at_the_same_time_are_all_kept(self, tmp_path: Path) -> None:
        """Each change of the file is one whole change."""
        words = ["token", "new", "x", "--scope", "read", "--db", str(tmp_path / "p.db")]
        many = [Forked(words, tmp_path / "log", ENVIRONMENT) for _ in range(6)]
        assert [one.wait(SOON) for one in many] == [0] * 6
        assert len(TokenFile(tmp_path / "p.db.tokens.json").grants) == 6

    def test_a_revoked_token_stops_working_while_the_service_runs(self, house: House) -> None:
        """Within a second or so."""
        token, grant = house.service.tokens.new("x", [Scope.READ])
        with house.service.client(token) as client:
            assert client.get("/v1/devices").status_code == 200
            house.service.tokens.revoke(grant.id)
            eventually(lambda: client.get("/v1/devices").status_code == 401)

    def test_without_any_token_it_answers_401_and_says_how_to_make_one(
        self, make_service: Start
    ) -> None:
        """It starts, lets nobody in, and helps."""
        service = make_service().start()
        with service.client() as client:
            answer = client.get("/v1/devices")
        assert answer.status_code == 401
        assert "power-service token new" in answer.json()["detail"]
        assert "power-service token new" in service.log.read_text()

    @pytest.mark.parametrize("trouble", ["mode", "loop"])
    def test_tokens_that_cannot_be_read_are_said_to_be_so(
        self, make_service: Start, tmp_path: Path, trouble: str
    ) -> None:
        """Not that there are none, nor that this one is wrong; once they can be read it is gone."""
        service = make_service().start()
        made, unreadable = TokenFile(tmp_path / "made.json"), tmp_path / "unreadable"
        token = made.new("x", [Scope.READ])[0]
        if trouble == "loop":
            unreadable.symlink_to(service.tokens.path)
        else:
            unreadable.write_bytes(made.path.read_bytes())
            unreadable.chmod(0o640)
        unreadable.replace(service.tokens.path)
        with service.client(token) as client:
            detail = client.get("/v1/devices").json()["detail"]
            assert "cannot read its tokens" in detail
            assert "there is no token" not in detail
            assert service.log.read_text().count("the tokens cannot be read") == 1
            made.path.replace(service.tokens.path)
            assert client.get("/v1/devices").status_code == 200
        with service.client() as client:
            detail = client.get("/v1/devices").json()["detail"]
            assert detail.startswith("a bearer token is needed; ")

    @pytest.mark.parametrize("told", ["--db", "--tokens"])
    def test_the_hint_is_a_command_that_makes_a_token_for_this_service(
        self, make_service: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str
    ) -> None:
        """As it stands, from any directory."""
        elsewhere = tmp_path / "an other place"
        elsewhere.mkdir()
        options = ["--tokens", str(elsewhere / "tokens.json")] if told == "--tokens" else []
        service = make_service(*options).start()
        with service.client() as client:
            detail = client.get("/v1/devices").json()["detail"]
        command = shlex.split(detail.partition("make one: ")[2])
        assert command[0] == "power-service"
        monkeypatch.chdir(elsewhere)
        run = subprocess.run(
            [sys.executable, "-m", "power_service", *command[1:]],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=True,
        )
        with service.client(run.stdout.strip()) as client:
            assert client.get("/v1/devices").status_code == 200

    @pytest.mark.parametrize(
        ("client", "behind_proxy", "named"),
        [("127.0.0.1", False, True), ("::1", False, True), ("10.0.0.7", False, False),
         ("127.0.0.1", True, False), ("", False, False)],
    )  # fmt: skip
    def test_a_path_is_named_only_to_who_is_on_this_machine(
        self, tmp_path: Path, client: str, behind_proxy: bool, named: bool
    ) -> None:
        """Others have no use for it."""
        path = tmp_path / "power.db"
        gate = Gate(Settings(db=path, behind_proxy=behind_proxy), TokenFile(tmp_path / "none"))
        with pytest.raises(Problem, match="power-service token new") as problem:
            asyncio.run(gate.admit(None, "read", client))
        assert (str(path) in problem.value.detail) == named

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--db", "x.db", "token", "new", "n", "--scope", "read"],
            ["token", "--db", "x.db", "new", "n", "--scope", "read"],
            ["token", "new", "n", "--scope", "read", "--db", "x.db"],
            ["token", "--db", "y.db", "new", "n", "--scope", "read", "--db", "x.db"],
        ],
    )
    def test_the_database_is_named_before_or_after_the_command(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
    ) -> None:
        """In whichever place, and the last one counts."""
        monkeypatch.chdir(tmp_path)
        assert cli.main(arguments) == 0
        assert [path.name for path in tmp_path.iterdir()] == ["x.db.tokens.json"]

    def test_the_environment_names_the_database(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As for the library's command line; empty counts as unset, and --db goes first."""
        monkeypatch.chdir(tmp_path)
        for name, options in (
            ("", []),
            ("environment.db", []),
            ("other.db", ["--db", "option.db"]),
        ):
            monkeypatch.setenv("POWER_MANAGER_DB", name)
            assert cli.main(["token", "new", "x", "--scope", "read", *options]) == 0
            settings = cli._settings(cli._options(options))
            assert settings.db == Path((options or [name or "power_manager.db"])[-1])
        made = {path.name.removesuffix(".tokens.json") for path in tmp_path.iterdir()}
        assert made == {"power_manager.db", "environment.db", "option.db"}

    def test_no_auth_lets_everybody_on_this_machine_in(self, make_service: Start) -> None:
        """For a loopback address only."""
        with make_service("--no-auth").start().client() as client:
            assert client.put("/v1/devices/a", json={"name": "A"}).status_code == 200

    def test_no_token_is_ever_logged(self, make_service: Start) -> None:
        """Not from a header, a URL or a subprotocol; neither is a ticket."""
        service = make_service()
        token = service.token("admin")
        service.start()
        with service.client(token) as client:
            client.get("/v1/devices", params={"token": token})
            ticket = client.post("/v1/stream/tickets").json()["ticket"]
        with connect(f"{service.stream_url}?ticket={ticket}", proxy=None) as stream:
            stream.recv(SOON)
        offered = [Subprotocol("power.v1"), Subprotocol(f"token.{token}")]
        with connect(service.stream_url, subprotocols=offered, proxy=None) as stream:
            stream.recv(SOON)
        service.end()
        log = service.log.read_text()
        assert "GET /v1/devices 422" in log, "no route takes one"
        assert token not in log
        assert ticket not in log


class TestRefusals:
    """How the service does not start."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--no-auth", "--host", "0.0.0.0"], "loopback"),
            (["--no-auth", "--behind-proxy"], "everybody"),
            (["--host", "0.0.0.0"], "needs tokens"),
            (["--host", "::"], "needs tokens"),
            (["--host", "power.example"], "needs tokens"),
            (["--tls-cert", "x.pem"], "together"),
            (["--allow-origin", "*"], "expected a name, got '\\*'"),
            (["--db", ":memory:"], "name a file"),
        ],
    )
    def test_a_bind_that_lets_in_who_should_not_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
    ) -> None:
        """By name, before anything listens."""
        monkeypatch.chdir(tmp_path)
        settings = cli._settings(cli._options(options))
        with pytest.raises(Refused, match=message):
            settings.check(token_count=0)
        assert cli.main(options) == 2

    @pytest.mark.parametrize(
        "option",
        [
            "--port=99999",
            "--port=-1",
            "--port=http",
            "--rate=nan",
            "--rate=inf",
            "--rate=-5",
            "--burst=0",
            "--burst=-1",
            "--burst=1.5",
            "--max-connections=0",
        ],
    )
    def test_a_number_that_cannot_be_meant_is_refused(
        self, capsys: pytest.CaptureFixture[str], option: str
    ) -> None:
        """By name and value, with what would do."""
        assert cli.main([option]) == 2
        name, _, value = option.partition("=")
        message = capsys.readouterr().err
        assert f"\npower-service: {name}: expected a" in message
        assert message.endswith(f"got '{value}'\n")
        assert re.search(r"from \d+ to \d+", message)

    def test_a_dashboard_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        """A mistyped name is no service without a page."""
        command = [
            sys.executable,
            "-m",
            "power_service",
            "--db",
            "power.db",
            "--port",
            "0",
            "--dashboard",
            "nope",
        ]
        run = subprocess.run(
            command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=SOON, check=False
        )
        assert run.returncode == 2
        assert b"power-service: --dashboard nope: expected " in run.stderr

    @pytest.mark.parametrize("missing", ["--tls-cert", "--tls-key", None])
    def test_tls_files_that_will_not_do_are_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str | None
    ) -> None:
        """The one that is missing, or both where they are not what they should be."""
        paths = {"--tls-cert": tmp_path / "cert.pem", "--tls-key": tmp_path / "key.pem"}
        for option, path in paths.items():
            if option != missing:
                path.write_text("not PEM")
        options = [text for option, path in paths.items() for text in (option, str(path))]
        assert cli.main(["--db", str(tmp_path / "power.db"), *options]) == 2
        message = capsys.readouterr().err
        for option, path in paths.items():
            assert (f"{option} {path}" in message) == (missing in (option, None))

    @pytest.mark.parametrize(
        ("options", "variables", "code"),
        [
            (["--port", "TAKEN"], {}, 1),
            (["--behind-proxy", "--host", "192.0.2.1"], {}, 1),
            (["--tls-cert", "no.pem", "--tls-key", "no.pem"], {}, 2),
            (["--dashboard", "nope"], {}, 2),
            ([], {"POWER_BILLING_GRACE_HOURS": "72"}, 2),
        ],
    )
    def test_a_start_that_fails_leaves_nothing_behind(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        options: list[str],
        variables: dict[str, str],
        code: int,
    ) -> None:
        """No empty database, which the next start or a backup would take for the right one."""
        monkeypatch.chdir(tmp_path)
        for name, text in variables.items():
            monkeypatch.setenv(name, text)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            shown = [port if option == "TAKEN" else option for option in options]
            assert cli.main(["--db", "power.db", *shown]) == code
        assert list(tmp_path.iterdir()) == []

    def test_without_its_extra_it_says_what_to_install(self, tmp_path: Path) -> None:
        """The command is there as soon as the package is; -S leaves out all that is installed."""
        command = [sys.executable, "-S", "-m", "power_service", "--db", str(tmp_path / "power.db")]
        run = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        message = "power-service: pydantic is not installed: pip install '.[service]'\n"
        assert (run.returncode, run.stderr) == (1, message)

    def test_elsewhere_needs_tokens_and_tls_or_a_proxy(self) -> None:
        """Either alone is not enough."""
        tls = {"tls_cert": Path("c"), "tls_key": Path("k")}
        settings = Settings(db=Path("x"), host="0.0.0.0", **tls)  # type: ignore[arg-type]
        settings.check(token_count=1)
        Settings(db=Path("x"), host="0.0.0.0", behind_proxy=True).check(token_count=0)
        with pytest.raises(Refused, match="TLS"):
            Settings(db=Path("x"), host="0.0.0.0").check(token_count=1)
        with pytest.raises(Refused, match="tokens"):
            settings.check(token_count=0)

    def test_a_file_that_is_no_database_is_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """In one line, with exit code 1."""
        path = tmp_path / "text.db"
        path.write_text("this is not a database, however long one looks at it" * 100)
        assert cli.main(["--db", str(path), "--no-auth"]) == 1
        assert str(path) in capsys.readouterr().err


class TestLimits:
    """Rates, connections and times."""

    def test_a_bucket_fills_up_again(self) -> None:
        """A burst, then the rate; each key for itself, and the oldest is forgotten."""
        now = 0.0
        buckets = Buckets(rate=2, burst=3, size=2, clock=lambda: now)
        assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
        assert buckets.take("b") == 0
        now = 0.5
        assert [buckets.take("a") for _ in range(2)] == [0, 0.5]
        assert buckets.take("c") == 0
        assert [buckets.take("b") for _ in range(4)] == [0, 0, 0, 0.5], (
            "b was forgotten, and began anew"
        )
        assert Buckets(0, 0).take("a") == 0

    def test_too_many_requests_are_429_for_that_token_alone(self, make_service: Start) -> None:
        """With Retry-After; another token goes on."""
        # The bucket gets a request back in 1,000 s: no run of this test is as slow.
        service = make_service("--rate", "0.001", "--burst", "5")
        tokens = [service.token("read") for _ in range(2)]
        service.start()
        with service.client(tokens[0]) as client:
            answers = [client.get("/v1/devices") for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429]
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 1000
        with service.client(tokens[1]) as client:
            assert client.get("/v1/devices").status_code == 200
        with service.client("wrong") as client:
            assert eventually(lambda: client.get("/v1/devices").status_code == 429), (
                "guessing is limited too"
            )

    def test_a_ticket_is_good_once_and_not_for_long(self) -> None:
        """Then it is gone."""
        now = 0.0
        tickets = Tickets(seconds=30, size=2, clock=lambda: now)
        first = tickets.issue(EVERYBODY)
        assert tickets.redeem(first) is EVERYBODY
        assert tickets.redeem(first) is None
        late = tickets.issue(EVERYBODY)
        now = 31.0
        assert tickets.redeem(late) is None
        three = [tickets.issue(EVERYBODY) for _ in range(3)]
        assert [tickets.redeem(ticket) for ticket in three] == [None, EVERYBODY, EVERYBODY], (
            "room for two"
        )

    def test_too_many_connections_are_cut(self, make_service: Start) -> None:
        """Whoever was there before goes on."""
        service = make_service("--max-connections", "3", "--no-auth").start()
        with service.client() as client:
            assert client.get("/healthz").status_code == 200
            others = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(3)]
            others[-1].settimeout(SOON)
            assert cut(others[-1])
            assert client.get("/healthz").status_code == 200
            for other in others:
                other.close()

    def test_writers_that_wait_hold_up_no_reader_and_no_probe(self, make_service: Start) -> None:
        """Another process holds the file: excess writes are refused, all else goes on."""
        _, code = quick("max_requests=3")
        service = make_service("--no-auth", program=("-c", PATIENT + code)).start()
        statuses: list[int] = []
        with PowerManager(service.db) as other, other.transaction():
            other.register_device("a", "A")
            writers = [
                threading.Thread(target=put_device, args=(service, f"b{n}", statuses))
                for n in range(5)
            ]
            for writer in writers:
                writer.start()
            eventually(lambda: len(statuses) == 2)
            assert statuses == [503, 503]
            with service.client() as client:
                assert client.get("/v1/devices").status_code == 200
                assert client.get("/healthz").status_code == 200
                assert client.get("/readyz").status_code == 200
        for writer in writers:
            writer.join()
        assert sorted(statuses) == [200, 200, 200, 503, 503]

    def test_probes_are_answered_however_many_read(self, make_service: Start) -> None:
        """A supervisor must not restart a service that is busy."""
        service = make_service("--no-auth", program=("-c", HANGS)).start()
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                reader = stack.enter_context(
                    socket.create_connection(("127.0.0.1", service.port), timeout=SOON)
                )
                reader.sendall(b"GET /v1/devices/a HTTP/1.1\r\nHost: localhost\r\n\r\n")
            eventually(lambda: service.log.read_text().count("a reader hangs") == 2)
            with service.client() as client:
                assert client.get("/v1/devices").json()["code"] == "overloaded"
                assert client.get("/healthz").status_code == 200
                assert client.get("/readyz").status_code == 200

    @pytest.mark.parametrize(
        ("token", "parts", "status"), [("admin", 640, 413), ("read", 60, 403), (None, 60, 401)]
    )
    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_body_that_is_refused_gets_its_answer(
        self, service: Service, token: str | None, parts: int, status: int, chunked: bool
    ) -> None:
        """Also where the client has sent all of it before it looks for one."""
        size = 65_536
        head = "POST /v1/readings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        if token is not None:
            head += f"Authorization: Bearer {service.token(token)}\r\n"
        head += "Transfer-Encoding: chunked" if chunked else f"Content-Length: {parts * size}"
        part = b" " * size
        end = b""
        if chunked:
            part = b"%x\r\n%s\r\n" % (size, part)
            end = b"0\r\n\r\n"
        with socket.create_connection(("127.0.0.1", service.port), timeout=SOON) as connection:
            connection.sendall(head.encode() + b"\r\n\r\n")
            for _ in range(parts):
                connection.sendall(part)
            connection.sendall(end)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 %d " % status)

    @pytest.mark.parametrize(
        "begin",
        [b"", b"GET /healthz HTT", b"POST /v1/readings HTTP/1.1\r\nHost: localhost\r\nContent-"],
    )
    def test_a_head_that_does_not_end_is_cut(self, make_service: Start, begin: bytes) -> None:
        """Connections are not for keeping."""
        service = make_service(
            "--no-auth", program=quick("header_seconds=0.5, body_seconds=0.5")
        ).start()
        with socket.create_connection(("127.0.0.1", service.port), timeout=SOON) as slow:
            with contextlib.suppress(ConnectionError):  # where this test is the slow one
                slow.sendall(begin)
            assert cut(slow)

    def test_a_body_that_does_not_come_is_408(self, make_service: Start) -> None:
        """The body has a time of its own."""
        service = make_service("--no-auth", program=quick("body_seconds=0.5")).start()
        head = (
            "POST /v1/readings HTTP/1.1\r\nHost: localhost\r\n"
            "Content-Type: application/json\r\nContent-Length: 9\r\n"
        )
        assert raw(service, head + "\r\n{").startswith("HTTP/1.1 408")


class TestTls:
    """With certificate files, https and wss."""

    def test_http_and_the_stream(self, make_service: Start, tmp_path: Path) -> None:
        """Both over TLS."""
        options, context = certificate(tmp_path)
        service = make_service(*options)
        token = service.token("read")
        service.verify = context
        service.start()
        with service.client(token) as client:
            assert client.get("/v1/devices").json() == []
        headers = {"Authorization": f"Bearer {token}"}
        with connect(
            service.stream_url, ssl=context, additional_headers=headers, proxy=None
        ) as stream:
            assert json.loads(stream.recv(SOON))["type"] == "hello"

    def test_a_handshake_that_does_not_come_is_cut(
        self, make_service: Start, tmp_path: Path
    ) -> None:
        """It has a time of its own, and it is no line in the log."""
        options, context = certificate(tmp_path)
        service = make_service(
            *options, "--no-auth", program=quick("handshake_seconds=0.5, header_seconds=60")
        )
        service.verify = context
        service.start()
        for begin in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", service.port), timeout=SOON) as slow:
                with contextlib.suppress(ConnectionError):  # where this test is the slow one
                    slow.sendall(begin)
                assert cut(slow)
        with service.client() as client:
            assert client.get("/healthz").status_code == 200
        assert "Traceback" not in service.log.read_text()
        assert "handshake" not in service.log.read_text()

    def test_a_connection_counts_before_its_handshake(
        self, make_service: Start, tmp_path: Path
    ) -> None:
        """Whoever connects and says nothing takes a place, and no more than there are."""
        options, context = certificate(tmp_path)
        service = make_service("--max-connections", "3", *options, "--no-auth")
        service.verify = context
        service.start()
        with contextlib.ExitStack() as stack, service.client() as client:
            assert client.get("/healthz").status_code == 200
            silent = [
                stack.enter_context(
                    socket.create_connection(("127.0.0.1", service.port), timeout=SOON)
                )
                for _ in range(3)
            ]
            assert cut(silent[-1])
            assert client.get("/healthz").status_code == 200


class TestDescriptors:
    """A connection needs a descriptor, and the system has a limit of them."""

    def test_running_out_of_them_is_one_line_in_the_log(self, make_service: Start) -> None:
        """And over, when there are some again."""
        service = make_service("--no-auth", program=("-c", FEW_DESCRIPTORS)).start()
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            eventually(lambda: "no connection can be accepted" in service.log.read_text())
        with service.client() as client:
            assert client.get("/healthz").status_code == 200
        lines = service.log.read_text().splitlines()
        assert len([line for line in lines if "ERROR" in line]) == 1
        assert not [line for line in lines if "socket.accept()" in line]

    @pytest.mark.parametrize(
        ("limits", "allowed", "raised"),
        [
            ((1024, 8192), 1000, 1200),
            ((4096, 8192), 1000, None),
            ((-1, -1), 1000, None),
            ((256, -1), 1000, 1200),
            ((1024, 1024), 824, 1024),
            ((100, 100), 50, 100),
        ],
    )
    def test_connections_are_no_more_than_the_system_has_descriptors_for(
        self,
        monkeypatch: pytest.MonkeyPatch,
        limits: tuple[int, int],
        allowed: int,
        raised: int | None,
    ) -> None:
        """The rest of the service keeps some for itself."""
        calls: list[int] = []
        monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
        monkeypatch.setattr(resource, "setrlimit", lambda _, both: calls.append(both[0]))
        assert cli._connections_allowed(1000) == allowed
        assert calls == ([] if raised is None else [raised])


FEW_DESCRIPTORS = """
import resource, sys
from power_service import cli
def few(wanted):
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
    return wanted
cli._connections_allowed = few
sys.exit(cli.main())
"""


@pytest.fixture
def dashboard(tmp_path: Path) -> Path:
    """A built dashboard."""
    directory = tmp_path / "dist"
    (directory / "assets").mkdir(parents=True)
    (directory / "index.html").write_text("<!doctype html><title>Power</title>")
    (directory / "assets" / "app-1a2b.js").write_text("1;" * 1000)
    (tmp_path / "secret").write_text("x")
    (directory / "link").symlink_to(tmp_path / "secret")
    return directory


def test_the_dashboard_is_served_if_it_is_there(make_service: Start, dashboard: Path) -> None:
    """Its files and nothing else, under a content security policy."""
    with make_service("--dashboard", str(dashboard)).start().client() as client:
        page = client.get("/")
        assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        policy = page.headers["Content-Security-Policy"]
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert client.get("/", headers={"If-None-Match": page.headers["ETag"]}).status_code == 304
        script = client.get("/assets/app-1a2b.js", headers={"Accept-Encoding": "gzip"})
        assert "immutable" in script.headers["Cache-Control"]
        assert script.headers["Content-Encoding"] == "gzip"
        assert script.text == "1;" * 1000
        for path in ("/link", "/..%2fsecret", "/%2e%2e/secret", "/assets/"):
            assert client.get(path).status_code == 404


def test_a_dashboard_that_is_too_much_is_refused(
    dashboard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept in memory: somebody's home directory is not."""
    monkeypatch.setattr("power_service.dashboard._MAX_BYTES", 5)
    with pytest.raises(Refused, match="more than 5 bytes"):
        add_dashboard(FastAPI(), dashboard)


def put_device(service: Service, device_id: str, statuses: list[int]) -> None:
    """Put a device, and add the answer's status."""
    with service.client() as client:
        statuses.append(
            client.put(f"/v1/devices/{device_id}", json={"name": device_id}).status_code
        )


PATIENT = "import power_manager; power_manager.BUSY_TIMEOUT = 600.0; "
HANGS = """
import logging, sys, threading
from power_service import cli, storage
made = cli._settings
cli._settings = lambda options: made(options).model_copy(update={"max_requests": 2})
def hang(pm, device_id):
    logging.getLogger("test").warning("a reader hangs")
    threading.Event().wait()
storage.PowerManager.get_device = hang
sys.exit(cli.main())
"""


def raw(service: Service, request: str) -> str:
    """The answer to bytes as they are."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=SOON) as connection:
        connection.sendall(request.encode("latin-1"))
        return connection.recv(65_536).decode("latin-1")


def cut(connection: socket.socket) -> bool:
    """Whether the other side ends the connection."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def quick(changes: str) -> tuple[str, ...]:
    """The service with other settings than the command line can give."""
    program = f"""
import sys
from power_service import cli
made = cli._settings
cli._settings = lambda options: made(options).model_copy(update=dict({changes}))
sys.exit(cli.main())
"""
    return ("-c", program)
