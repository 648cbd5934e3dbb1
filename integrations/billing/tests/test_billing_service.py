"""The webhook route in a real power-service process: there when configured, refused
half-configured, else absent.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from desk import DOWN, SECRET, Desk, sign, thin_event
from power_billing.keys import WEBHOOK_SECRET
from power_billing.tables import set_setting, tables
from power_billing.webhooks import GRACE, POLICY
from world import World

ROOT = Path(__file__).resolve().parents[3]
PARTS = [ROOT, ROOT / "integrations/service", ROOT / "integrations/billing"]
ROUTE = "/v1/stripe/webhook"


class Answer(NamedTuple):
    """Status and text of an answer."""

    status: int
    text: str


class Service:
    """A power-service process over a file, with webhooks unless the environment says otherwise."""

    def __init__(self, db: Path, **environ: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            _, port = probe.getsockname()
        self.port: int = port
        self.log = db.with_suffix(".log")
        clean = {
            name: text
            for name, text in os.environ.items()
            if not name.startswith(("STRIPE_", "POWER_"))
        }
        command = [sys.executable, "-m", "power_service", "--db", str(db), "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=db.parent,
                stdout=log,
                stderr=log,
                env={**clean, "PYTHONPATH": os.pathsep.join(map(str, PARTS)), **environ},
            )

    def wait_until_it_listens(self) -> None:
        """At most 30 seconds."""
        deadline = time.monotonic() + 30
        while "listening at" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def post(
        self, body: bytes, signature: str | None, path: str = ROUTE, method: str = "POST"
    ) -> Answer:
        """The service's answer to a delivery."""
        headers = {
            "Content-Type": "application/json",
            **({"Stripe-Signature": signature} if signature else {}),
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", body, headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return Answer(answer.status, answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read().decode())

    def stop(self) -> None:
        """Make sure that it is gone."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def desk(world: World) -> Desk:
    """A customer with two devices, in the file that the service has open too."""
    return Desk(world)


@pytest.fixture
def service(desk: Desk, tmp_path: Path) -> Iterator[Service]:
    """A service with webhooks, without grace."""
    running = Service(tmp_path / "power.db", **{WEBHOOK_SECRET: SECRET, GRACE: "0"})
    try:
        running.wait_until_it_listens()
        yield running
    finally:
        running.stop()


def test_deliveries_become_events(service: Service, desk: Desk) -> None:
    """A delivery, the same again, bad ones, and what the log has of them; no token is asked for."""
    body = desk.event("invoice.payment_failed", attempt_count=4, next_payment_attempt=None)
    now = int(time.time())
    assert service.post(body, sign(body, now)) == (200, "")
    assert desk.told() == DOWN
    assert service.post(body, sign(body, now)) == (200, "")
    assert desk.told() == DOWN
    # The very bytes are signed: the same JSON, written otherwise, is another body.
    assert service.post(body.replace(b'": ', b'":'), sign(body, now)).status == 401
    assert service.post(body, None).status == 401
    assert service.post(body, sign(body, now + 3600)).status == 401
    assert service.post(b"{}", sign(b"{}", now)).status == 400
    assert service.post(body, sign(body, now), method="PUT").status == 405
    log = service.log.read_text()
    assert "stripe: invoice.payment_failed evt_0: taken" in log
    assert SECRET not in log
    assert not re.search(r"Traceback|ERROR", log)


def test_the_ledgers_metrics_are_beside_the_services_own(
    service: Service, desk: Desk, tmp_path: Path
) -> None:
    """For the scraper of /metrics, with the token that it has anyway; without them where the tables
    are others'.
    """
    command = [sys.executable, "-m", "power_service", "--db", str(tmp_path / "power.db")]
    made = subprocess.run(
        [*command, "token", "new", "scraper", "--scope", "read"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PARTS))},
        capture_output=True,
        text=True,
        check=True,
    )
    headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
    request = urllib.request.Request(f"http://127.0.0.1:{service.port}/metrics", headers=headers)

    def scrape() -> str:
        with urllib.request.urlopen(request, timeout=30) as answer:
            text: str = answer.read().decode()
            return text

    text = scrape()
    assert "power_service_request_seconds" in text
    assert 'power_billing_open_events{state="conflict"} 0.0\n' in text
    assert "power_billing_last_good_run_timestamp_seconds 0.0\n" in text
    with tables(desk.pm) as conn:
        set_setting(conn, "schema", "99")
    text = scrape()
    assert "power_service_request_seconds" in text
    assert "power_billing" not in text
    assert "its billing tables are version 99" in service.log.read_text()


def test_who_is_not_stripe_takes_nothing_of_the_writer(service: Service, desk: Desk) -> None:
    """While a delivery of Stripe's waits for the file, others are refused at once: they are queued
    nowhere.
    """
    body, now = desk.event("invoice.paid"), int(time.time())
    with ThreadPoolExecutor(1) as pool:
        with desk.pm.transaction():
            waiting = pool.submit(service.post, body, sign(body, now))
            for _ in range(3):
                assert (
                    service.post(body, sign(body, now, "whsec_AnotherSecretAltogether")).status
                    == 401
                )
            assert not waiting.done()
        assert waiting.result().status == 200


def test_tables_of_a_later_version_are_a_503(service: Service, desk: Desk) -> None:
    """Nothing is stored, so Stripe shall deliver again; the log says why."""
    with tables(desk.pm) as conn:
        set_setting(conn, "schema", "99")
    body = desk.event("invoice.paid")
    assert service.post(body, sign(body, int(time.time()))).status == 503
    assert (
        "its billing tables are version 99, and this power-billing knows" in service.log.read_text()
    )


def test_the_contract_says_nothing_of_it(service: Service) -> None:
    """It is Stripe's to call, and no part of openapi.json."""
    with urllib.request.urlopen(
        f"http://127.0.0.1:{service.port}/openapi.json", timeout=30
    ) as answer:
        contract = answer.read()
    assert contract == (ROOT / "integrations/service/openapi.json").read_bytes()
    assert b"stripe" not in contract


def test_without_a_secret_there_is_no_route_and_no_sdk(tmp_path: Path) -> None:
    """Nor is Stripe's SDK even looked for: a service without billing does not have it."""
    refuse = tmp_path / "stripe.py"
    refuse.write_text("raise AssertionError('imported')\n")
    running = Service(
        tmp_path / "power.db", PYTHONPATH=os.pathsep.join(map(str, [tmp_path, *PARTS]))
    )
    try:
        running.wait_until_it_listens()
        assert running.post(b"{}", None).status == 404
    finally:
        running.stop()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({GRACE: "1"}, "POWER_BILLING_GRACE_HOURS is set and STRIPE_WEBHOOK_SECRET is not"),
        ({WEBHOOK_SECRET: "whsec_..."}, "STRIPE_WEBHOOK_SECRET: a placeholder"),
        (
            {WEBHOOK_SECRET: SECRET, POLICY: "now"},
            "POWER_BILLING_SHUTDOWN: expected final_attempt or first_failure",
        ),
    ],
)
def test_half_configured_it_does_not_start(
    tmp_path: Path, environ: dict[str, str], message: str
) -> None:
    """Exit code 2, as for options, and one line that says what is wrong."""
    running = Service(tmp_path / "power.db", **environ)
    try:
        assert running.process.wait(30) == 2
    finally:
        running.stop()
    log = running.log.read_text()
    assert f"power-service: {message}" in log
    assert "Traceback" not in log


def test_without_the_package_it_does_not_start(tmp_path: Path) -> None:
    """A variable is there and the package is not: the error names both, and what to install."""
    # Stands before an installed one, and says what Python would say if there were none.
    (tmp_path / "power_billing.py").write_text("raise ModuleNotFoundError(name='power_billing')\n")
    path = os.pathsep.join(map(str, [tmp_path, *PARTS]))
    running = Service(tmp_path / "power.db", PYTHONPATH=path, **{POLICY: "first_failure"})
    try:
        assert running.process.wait(30) == 2
    finally:
        running.stop()
    message = f"{POLICY} is set, but power_billing is not installed: pip install '.[billing]'"
    assert message in running.log.read_text()


def test_deliveries_need_no_sdk(desk: Desk, tmp_path: Path) -> None:
    """The signature is checked without it: 30 MB that a service need not have."""
    (tmp_path / "stripe.py").write_text("raise ModuleNotFoundError(name='stripe')\n")
    path = os.pathsep.join(map(str, [tmp_path, *PARTS]))
    running = Service(
        tmp_path / "power.db", PYTHONPATH=path, **{WEBHOOK_SECRET: SECRET, GRACE: "0"}
    )
    try:
        running.wait_until_it_listens()
        body = desk.event("invoice.overdue")
        assert running.post(body, sign(body, int(time.time()))) == (200, "")
    finally:
        running.stop()
    assert desk.told() == DOWN


def test_thin_events_are_taken(service: Service, desk: Desk) -> None:
    """From a destination of their own, which may have a secret of its own."""
    body = thin_event("v1.billing.meter.error_report_triggered", "evt_thin_1")
    assert service.post(body, sign(body, int(time.time()))) == (200, "")
    assert "evt_thin_1: the next report fetches it" in service.log.read_text()


FAILED_INVOICE = (
    b'{"id": "evt_1", "type": "invoice.payment_failed", "created": 1, "data": {"object": '
    b'{"id": "in_1", "customer": "cus_1", "attempt_count": %s}}}'
)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 3000,
        b'{"id": "evt_1", "type": "invoice.paid", "created": 9223372036854775808}',
        b'{"id": "evt_\\ud800", "type": "invoice.paid", "created": 1}',
        FAILED_INVOICE % b'"three"',
        FAILED_INVOICE % b"1e30",
    ],
    ids=["deep", "beyond 2^63", "lone surrogate", "a word", "1e30"],
)
def test_odd_signed_events_are_a_400(service: Service, body: bytes) -> None:
    """Never a 500, and no traceback in the log."""
    assert service.post(body, sign(body, int(time.time()))).status == 400
    assert "Traceback" not in service.log.read_text()
