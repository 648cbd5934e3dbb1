"""`power-service --demo`, and what a service without its page shows."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from conftest import Start
from hold_port import held_port
from power_service import cli
from power_service.demo import DAYS, RECENT_DAYS, Demo
from power_service.pages import HOW_TO_BUILD
from power_service.settings import Settings
from service_harness import ENVIRONMENT, SERVICE, SOON, eventually

from power_manager import PowerManager

NOW = 1_782_900_000.0  # 2026-07-01T10:00:00Z
HOUR = 3600


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a demo that began at NOW."""
    path = tmp_path_factory.mktemp("demo") / "demo.db"
    Demo(path, clock=lambda: NOW, offset_seconds=3600).make()
    return path


class TestTheFile:
    """A year of three devices."""

    def test_it_has_a_year_of_statistics_and_a_week_of_readings(self, made: Path) -> None:
        """Of each meter; and nothing is wrong with it."""
        with PowerManager(made, clock=lambda: NOW) as pm:
            assert len(pm.list_devices()) == 3
            for meter in pm.list_meters():
                hours = pm.get_statistics(meter.id, days=DAYS + 1)
                assert len(hours) >= DAYS * 24
                readings = list(pm.iter_history(meter.id, since=NOW - RECENT_DAYS * 86_400))
                assert len(readings) >= RECENT_DAYS * 24 * 30
                assert len(list(pm.iter_history(meter.id))) < len(readings) + 100
                assert meter.updated_at is not None
            assert pm.check() == []

    def test_what_goes_in_comes_out_again(self, made: Path) -> None:
        """Panel, pack and grid together are the load: no energy comes from nothing."""
        with PowerManager(made, clock=lambda: NOW) as pm:
            for device, least, most in (
                ("lake-cabin", 30, 240),
                ("weather-mast", 0.3, 4),
                ("edge-rack", 50, 90),
            ):
                total: dict[str, float] = {}
                for meter in pm.list_meters(device):
                    if meter.type == "ups":
                        continue  # in line: it measures what the supply does
                    for reading in pm.iter_history(meter.id, since=NOW - 86_400):
                        watts = reading.wattage or 0.0
                        total[reading.timestamp] = total.get(reading.timestamp, 0.0) + watts
                assert least < min(total.values()) <= max(total.values()) < most

    def test_the_year_has_something_to_show(self, made: Path) -> None:
        """Sun in summer, grid in winter, alerts, a power cut."""
        with PowerManager(made, clock=lambda: NOW) as pm:
            meters = {meter.name: meter.id for meter in pm.list_meters()}
            days = {
                name: pm.get_statistics(id_, days=DAYS, bucket="day")
                for name, id_ in meters.items()
            }

            def energy_out(name: str, month: str) -> float:
                return sum(day.energy_out_wh for day in days[name] if day.start[5:7] == month)

            assert energy_out("Roof", "05") > 2 * energy_out("Roof", "12") > 0
            assert energy_out("Grid", "12") > 2 * energy_out("Grid", "05")
            types = {event.type.value for _, event in pm.events_since(0, limit=10_000)}
            assert types == {"discharge", "low_battery", "shutdown", "restore", "charge_start"}
            assert min(day.min_charge_pct or 0.0 for day in days["UPS"]) < 60

    def test_the_same_year_comes_again(self, tmp_path: Path) -> None:
        """By its seed: a picture of it is the same tomorrow."""
        begin: list[Any] = []
        for name in ("a.db", "b.db"):
            demo = Demo(tmp_path / name, clock=lambda: NOW)
            with PowerManager(tmp_path / name) as pm:
                for device in demo._devices:
                    device.register(pm)
            rows = list(demo._rows(NOW, NOW + HOUR, 60))
            begin.append([values for _, *values in rows])
        assert begin[0] == begin[1]

    def test_it_goes_on_live(self, tmp_path: Path) -> None:
        """Each look at the clock is a reading of each meter, until it is stopped."""
        times = iter([NOW + n for n in range(1000)])
        demo = Demo(tmp_path / "p.db", clock=lambda: next(times))
        with PowerManager(tmp_path / "p.db") as pm:
            for device in demo._devices:
                device.register(pm)
            demo.start()
            eventually(lambda: all(meter.updated_at for meter in pm.list_meters()))
            demo.stop()
            assert not [t for t in threading.enumerate() if t.name == "power-demo"]


class TestTheCommand:
    """No token, no Node."""

    @pytest.mark.parametrize(("sig", "expected"), [(signal.SIGINT, 130), (signal.SIGHUP, 0)])
    def test_it_serves_prints_the_address_and_leaves_nothing(
        self, tmp_path: Path, sig: int, expected: int
    ) -> None:
        """The page, live data, and an end by Ctrl-C, or as the terminal is closed."""
        environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path), "BROWSER": f"{tmp_path}/browser %s"}
        (tmp_path / "browser").write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
        (tmp_path / "browser").chmod(0o755)
        command = [sys.executable, "-W", "error", "-c", SHORT_YEAR, "--demo", "--open"]
        with subprocess.Popen(
            [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            printed = [process.stdout.readline() for _ in range(3)]
            assert [shape(line) for line in printed] == [shape(line) for line in shown()]
            url = printed[1].partition("The demo is at ")[2].strip()
            with httpx2.Client(base_url=url, trust_env=False, timeout=SOON) as client:
                assert client.get("/").headers["Content-Type"].startswith("text/html")
                before = client.get("/v1/meters").json()
                assert len(before) == 7
                assert len(client.get("/v1/budget").json()) == 3
                eventually(
                    lambda: all(
                        now["updated_at"] > then["updated_at"]
                        for now, then in zip(client.get("/v1/meters").json(), before)
                    )
                )
            eventually((tmp_path / "opened").exists)
            process.send_signal(sig)
            _, errors = process.communicate(timeout=SOON)
        assert (process.returncode, errors) == (expected, "")
        assert not list(tmp_path.glob("power-demo-*"))

    def test_an_end_while_a_call_hangs_leaves_nothing(self, tmp_path: Path) -> None:
        """The process ends without it; the directory goes all the same."""
        environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
        command = [sys.executable, "-W", "error", "-c", HANGING_REPORT, "--demo", "--port", "0"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
        ) as process:
            assert process.stdout is not None
            printed = [process.stdout.readline() for _ in range(3)]
            url = printed[1].partition("The demo is at ")[2].strip()
            address = urlsplit(url)
            with socket.create_connection((address.hostname or "", address.port or 0)) as client:
                request = "GET /v1/devices/lake-cabin/report HTTP/1.1\r\nHost: localhost\r\n\r\n"
                client.sendall(request.encode())
                eventually((tmp_path / "hanging").exists)
                assert list(tmp_path.glob("power-demo-*")) != []
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=SOON)
        assert process.returncode == 0
        assert [path.name for path in tmp_path.iterdir()] == ["hanging"]

    @pytest.mark.parametrize("before", [signal.SIG_IGN, signal.SIG_DFL])
    def test_under_nohup_it_stays(self, before: signal.Handlers) -> None:
        """A SIGHUP that is ignored goes on being ignored; and what was before comes back."""
        as_found = signal.signal(signal.SIGHUP, before)
        try:
            with cli._sighup_as_sigterm():
                is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGHUP) is before
        finally:
            signal.signal(signal.SIGHUP, as_found)
        assert is_ignored == (before is signal.SIG_IGN)

    @pytest.mark.parametrize("sig", ["SIGTERM", "SIGHUP"])
    def test_an_end_while_the_year_is_made_leaves_nothing(self, tmp_path: Path, sig: str) -> None:
        """Exit code 0, as at any other time."""
        environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
        command = [sys.executable, "-c", END_WHILE_MAKING.format(sig), "--demo", "--port", "0"]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (run.returncode, run.stderr) == (0, "")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--db", "x.db"], "leave out --db"),
            (["--tokens", "x.json"], "leave out --tokens"),
            (["--host", "0.0.0.0"], "loopback"),
            (["--behind-proxy"], "everybody"),
        ],
    )
    def test_it_serves_nothing_else_and_nobody_else(
        self, capsys: pytest.CaptureFixture[str], options: list[str], message: str
    ) -> None:
        """Without tokens only this machine gets in, and no file of the user's is written to."""
        assert cli.main(["--demo", *options]) == 2
        assert message in capsys.readouterr().err

    def test_without_the_extra_it_says_so_before_it_makes_anything(self, tmp_path: Path) -> None:
        """-S leaves out whatever is installed."""
        environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
        command = [sys.executable, "-S", "-m", "power_service", "--demo"]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (run.returncode, run.stdout) == (1, "")
        assert run.stderr == "power-service: pydantic is not installed: pip install '.[service]'\n"

    def test_an_interrupt_while_the_year_is_made_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And ends as the shell expects."""

        def interrupted(_: Demo) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Demo, "make", interrupted)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        assert cli.main(["--demo", "--port", "0"]) == 130
        assert list(tmp_path.iterdir()) == []

    def test_a_port_in_use_is_replaced_unless_it_was_chosen(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The demo says so, and takes a free one; a port that is free stays."""
        with held_port() as held:
            port = held.getsockname()[1]
            settings = Settings(port=port, no_auth=True)
            with socket.create_server(("127.0.0.1", port)):
                assert cli._with_free_port(settings, is_port_given=False).port == 0
                assert capsys.readouterr().out == (
                    f"Port {port} is taken by another program: the demo takes a free one.\n"
                )
                assert cli.main(["--demo", "--port", str(port)]) == 1
            assert capsys.readouterr() == ("", IN_USE.format(port))
            assert cli._with_free_port(settings, is_port_given=False).port == port


class TestWithoutThePage:
    """The dashboard was not built."""

    def test_the_page_at_the_root_says_what_to_do(self, make_service: Start) -> None:
        """In three lines, under a policy that lets nothing run; and the log has a word of it."""
        service = make_service("--no-auth", program=("-c", NO_DASHBOARD)).start()
        with service.client() as client:
            page = client.get("/")
        assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        for line in HOW_TO_BUILD:
            assert line.replace("&", "&amp;") in page.text
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "<script" not in page.text
        assert "the dashboard was not built" in service.log.read_text()

    def test_its_lines_are_those_of_the_dashboards_readme(self) -> None:
        """Their folders are there, and their commands too."""
        readme = (SERVICE.parent / "dashboard/README.md").read_text(encoding="utf-8")
        for folder in re.findall(r"cd (\S+)", " ".join(HOW_TO_BUILD)):
            assert (SERVICE.parents[1] / folder / "package.json").is_file()
        assert HOW_TO_BUILD[-1] in readme


def shown() -> list[str]:
    """What the project's README shows of the command."""
    readme = (SERVICE.parents[1] / "README.md").read_text(encoding="utf-8")
    text = readme.partition("power-service --demo\n")[2]
    return text.partition("```")[0].splitlines(keepends=True)


def shape(line: str) -> str:
    """A line without the names that are others each time."""
    return re.sub(r":\d+/|\S*/power-demo-\w+/", "...", line)


IN_USE = (
    "power-service: cannot listen at 127.0.0.1:{}: another program has this port: end it, or "
    "choose another with --port (0: any free one)\n"
)
# The README's test serves the whole year, which takes seconds to make.
SHORT_YEAR = """
import signal, sys
from power_service import cli, demo
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
demo.DAYS = demo.RECENT_DAYS = 1
sys.exit(cli.main())
"""
HANGING_REPORT = """
import os, sys, threading
from power_manager import PowerManager
from power_service import cli, demo
demo.DAYS = demo.RECENT_DAYS = 1
def hang(*_, **__):
    open(os.path.join(os.environ["TMPDIR"], "hanging"), "w").close()
    threading.Event().wait()
PowerManager.export_report = hang
sys.exit(cli.main())
"""
END_WHILE_MAKING = """
import os, signal, sys
from power_service import cli, demo
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
demo.Demo.make = lambda self: os.kill(os.getpid(), signal.{})
sys.exit(cli.main())
"""
NO_DASHBOARD = """
import sys
from power_service import cli, dashboard
dashboard._BESIDE = ()
sys.exit(cli.main())
"""
