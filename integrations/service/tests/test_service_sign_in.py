"""Getting in: what a page asks before anything else, and links that sign in once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import Start
from power_service.auth import SIGN_IN_SECONDS, Gate
from power_service.problems import Code, Problem
from power_service.settings import Settings, how_to_make_one
from power_service.storage import Storage
from power_service.tokens import Scope, Tickets, TokenFile
from service_harness import ENVIRONMENT, SOON, Service, eventually


class Clock:
    """A monotonic clock that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        """What time it is."""
        return self.now


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """The gate of a service that needs tokens and has none yet."""
    settings = Settings(db=tmp_path / "power.db")
    made = Gate(settings, TokenFile(settings.token_file))
    made.storage = Storage(settings)
    yield made
    made.storage.close()


def refused(gate: Gate, ticket: str, client: str = "127.0.0.1") -> Problem:
    """The problem with which a ticket is refused."""
    with pytest.raises(Problem) as problem:
        asyncio.run(gate.sign_in(ticket, client))
    return problem.value


class TestWhatItTakes:
    """GET /v1/sign-in."""

    def test_a_service_that_needs_tokens_says_so_and_how_to_make_one(
        self, service: Service
    ) -> None:
        """To everybody, and the command is the one that a 401 names."""
        with service.client() as nobody:
            answer = nobody.get("/v1/sign-in")
            refusal = nobody.get("/v1/devices").json()["detail"]
        assert answer.status_code == 200
        needs = answer.json()
        assert needs["token_needed"] is True
        assert f"make one: {needs['token_command']}" in refusal
        assert answer.headers["Cache-Control"] == "no-store"

    def test_a_service_without_tokens_says_so(self, make_service: Start) -> None:
        """And has no command; nobody can be signed in there."""
        with make_service("--no-auth").start().client() as client:
            assert client.get("/v1/sign-in").json() == {
                "token_needed": False,
                "token_command": None,
            }
            answer = client.post("/v1/sign-in", json={"ticket": "x"})
            assert (answer.status_code, answer.json()["code"]) == (409, "conflict")

    @pytest.mark.parametrize(
        ("client", "behind_proxy", "is_named"),
        [("127.0.0.1", False, True), ("10.0.0.7", False, False), ("127.0.0.1", True, False)],
    )
    def test_the_file_is_named_to_who_is_on_this_machine_alone(
        self, tmp_path: Path, client: str, behind_proxy: bool, is_named: bool
    ) -> None:
        """Others learn that a token is needed, and no path."""
        settings = Settings(db=tmp_path / "power.db", behind_proxy=behind_proxy)
        gate = Gate(settings, TokenFile(settings.token_file))
        assert gate.token_command(client) == (how_to_make_one(settings) if is_named else None)


class TestTickets:
    """POST /v1/sign-in."""

    def test_a_ticket_becomes_a_token_once(self, gate: Gate) -> None:
        """It is in the file of tokens, like any other, and may read and write."""
        ticket = gate.sign_in_ticket()
        token, grant = asyncio.run(gate.sign_in(ticket, "127.0.0.1"))
        assert (grant.name, grant.scopes, grant.devices) == ("link", ("read", "write"), None)
        assert TokenFile(gate.tokens.path).find(token) == grant
        problem = refused(gate, ticket)
        assert problem.status == 401
        assert "used before" in problem.detail
        assert how_to_make_one(gate.settings) in problem.detail
        assert len(TokenFile(gate.tokens.path).grants) == 1

    def test_ten_minutes_by_a_clock_that_nobody_sets(self, gate: Gate) -> None:
        """To the second; and what is too old is gone, whatever time it is later."""
        clock = Clock()
        gate._sign_in_tickets = Tickets(SIGN_IN_SECONDS, clock=clock)
        in_time, late = gate.sign_in_ticket(), gate.sign_in_ticket()
        clock.now += SIGN_IN_SECONDS
        asyncio.run(gate.sign_in(in_time, "127.0.0.1"))
        clock.now += 0.001
        assert "older than 10 minutes" in refused(gate, late).detail
        clock.now -= 60
        assert refused(gate, late).status == 401

    def test_no_clock_that_can_be_set_makes_a_ticket_older_or_younger(self) -> None:
        """A device's clock jumps by years when it learns the time."""
        assert Tickets()._clock is time.monotonic

    def test_a_ticket_is_hashed_in_memory_and_is_no_pass_to_the_stream(self, gate: Gate) -> None:
        """Each kind of ticket does its own."""
        ticket = gate.sign_in_ticket()
        assert ticket not in str(vars(gate._sign_in_tickets))
        with pytest.raises(Problem, match="unknown, used or too old"):
            gate.admit_ticket(ticket, "read", "127.0.0.1")
        grant = gate._sign_in_tickets.redeem(ticket)
        assert grant is not None
        stream_ticket = gate.tickets.issue(grant)
        assert refused(gate, stream_ticket).status == 401

    def test_guessing_is_limited_for_each_address(self, gate: Gate) -> None:
        """As failed tokens are; who has a ticket gets in all the same from elsewhere."""
        ticket = gate.sign_in_ticket()
        statuses = {refused(gate, "guess", "10.0.0.7").status for _ in range(40)}
        assert statuses == {401, 429}
        assert refused(gate, "guess", "10.0.0.7").headers["Retry-After"] == "1"
        asyncio.run(gate.sign_in(ticket, "127.0.0.1"))

    def test_tokens_that_cannot_be_kept_are_not_given(
        self, gate: Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The client is told, and the log says why; the ticket does when they can be kept again."""
        gate.tokens.path.write_text("{}")
        gate.tokens.path.chmod(0o600)
        ticket = gate.sign_in_ticket()
        problem = refused(gate, ticket)
        assert problem.status == 503
        assert "still valid" in problem.detail
        assert "expected a file of tokens" in caplog.text
        assert gate.tokens.path.read_text() == "{}"
        gate.tokens.path.unlink()
        asyncio.run(gate.sign_in(ticket, "127.0.0.1"))

    def test_a_service_that_is_busy_uses_no_ticket_up(self, gate: Gate) -> None:
        """What could not begin can be tried again."""
        ticket = gate.sign_in_ticket()
        gate.storage._max_waiting = 0
        assert refused(gate, ticket).code is Code.OVERLOADED
        gate.storage._max_waiting = 1
        asyncio.run(gate.sign_in(ticket, "127.0.0.1"))

    def test_a_ticket_that_is_no_text_of_any_encoding_is_unknown(self, gate: Gate) -> None:
        """JSON can have half of a character; it is an error of the client's."""
        assert refused(gate, "\ud800").status == 401
        assert refused(gate, "\udc80").status == 401

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"ticket": 1},
            {"ticket": None},
            {"ticket": ""},
            {"ticket": "x" * 201},
            {"x": ""},
            [],
            "x",
        ],
    )
    def test_what_is_no_ticket_is_refused(self, service: Service, body: Any) -> None:
        """Strictly, as any body."""
        with service.client() as nobody:
            answer = nobody.post("/v1/sign-in", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_value")

    def test_an_unknown_ticket_is_401_with_a_challenge(self, service: Service) -> None:
        """As for any request without a token."""
        with service.client() as nobody:
            answer = nobody.post("/v1/sign-in", json={"ticket": "x" * 43})
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@contextlib.contextmanager
def started(tmp_path: Path, *options: str) -> Iterator[str]:
    """A service that opens its page, for as long as the block lasts: the link that it prints."""
    (tmp_path / "browser").write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    (tmp_path / "browser").chmod(0o755)
    environment = {**ENVIRONMENT, "BROWSER": f"{tmp_path}/browser %s"}
    command = [sys.executable, "-W", "error", "-m", "power_service", "--open", "--port", "0"]
    command += ["--db", str(tmp_path / "power.db"), *options]
    log = tmp_path / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("The page is at "), log.read_text()
        try:
            yield line.removeprefix("The page is at ").strip()
            eventually(lambda: (tmp_path / "opened").exists() and (tmp_path / "opened").read_text())
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=SOON)
        finally:
            process.kill()  # where the test has failed


class TestOpen:
    """`power-service --open`."""

    def test_the_link_signs_in_once_and_is_in_no_log(self, tmp_path: Path) -> None:
        """On a service that has no token yet; the browser gets the same link."""
        with started(tmp_path) as link:
            base, _, ticket = link.partition("/#/sign-in/")
            with httpx2.Client(base_url=base, trust_env=False, timeout=SOON) as client:
                assert client.get("/v1/sign-in").json()["token_needed"] is True
                signed_in = client.post("/v1/sign-in", json={"ticket": ticket}).json()
                assert (signed_in["name"], signed_in["scopes"]) == ("link", ["read", "write"])
                client.headers["Authorization"] = f"Bearer {signed_in['token']}"
                assert client.get("/v1/me").json()["scopes"] == ["read", "write"]
                again = client.post("/v1/sign-in", json={"ticket": ticket})
                assert again.status_code == 401
        assert (tmp_path / "opened").read_text() == f"{link}\n"
        log = (tmp_path / "log").read_text()
        assert "POST /v1/sign-in 200" in log
        assert ticket not in log
        assert signed_in["token"] not in log
        assert "nobody gets in" not in log

    def test_without_tokens_it_is_the_page_alone(self, tmp_path: Path) -> None:
        """There is nothing to sign in to."""
        with started(tmp_path, "--no-auth") as link:
            assert link.endswith("/")
            assert "#" not in link


class TestTokensThatGo:
    """The file of tokens is taken away while the service runs."""

    def test_two_who_find_out_at_once_say_it_once(
        self, gate: Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The poller and a request; and the next time it is said again."""

        async def both() -> None:
            await asyncio.gather(gate.refresh(), gate.refresh())

        for times in (1, 2):
            gate.tokens.new("x", [Scope.READ])
            asyncio.run(gate.refresh())
            gate.tokens.path.unlink()
            asyncio.run(both())
            assert caplog.text.count("has no token any more") == times

    def test_the_log_says_why_nobody_gets_in(self, make_service: Start, tmp_path: Path) -> None:
        """Once; and who had a token gets in again when the file is back."""
        service = make_service("--rate", "0")
        with service.client(service.token("read")) as client:
            service.start()
            assert client.get("/v1/devices").status_code == 200
            service.tokens.path.rename(tmp_path / "away")
            eventually(lambda: client.get("/v1/devices").status_code == 401)
            refusal = client.get("/v1/devices").json()["detail"]
            (tmp_path / "away").rename(service.tokens.path)
            assert client.get("/v1/devices").status_code == 200
        assert "there is no token yet; make one: power-service token new" in refusal
        assert service.log.read_text().count(f"{service.tokens.path} has no token any more") == 1
