"""The pages of a hub, and a made-up fleet to look at on them."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fleet_harness import NOW, run_command
from hub_process import GRACE_S, HubProcess, device, is_gone, readings_of, running_hub, send_to
from power_fleet import demo, demo_removal, read
from power_fleet.discovery import HUB_VARIABLE
from power_fleet.errors import FleetError, Refused
from power_fleet.fleet import Fleet
from power_fleet.stream import Nats
from power_fleet.subjects import STREAM
from servers import SOON, eventually

# --- Pages


def get(url: str, token: str = "") -> tuple[int, bytes]:
    """Status and body of an answer."""
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=SOON) as answer:
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
            assert time.monotonic() - begin < GRACE_S
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


# --- And gone again


def devices_of(hub: HubProcess) -> set[str]:
    """The ids that `power-fleet devices` lists."""
    listed = hub.run("devices", "--json")
    assert listed.returncode == 0, listed.stderr
    return {one["device_id"] for one in json.loads(listed.stdout)}


def test_a_made_up_fleet_is_taken_away(one_hub: HubProcess) -> None:
    """By the command that the demo prints at its end; devices that a demo has not made stay,
    whatever they are called.
    """
    pm = device(one_hub.data.parent / "like.db", "demo-9999")
    send_to(one_hub, pm)
    pm.close()
    eventually(lambda: readings_of(one_hub, "demo-9999") == 60)
    sent = one_hub.run("demo", "--devices", "12", "--once")
    assert sent.returncode == 0, sent.stderr
    assert sent.stderr.endswith(
        "\npower-fleet: 12 made-up devices stay in the fleet: "
        "`power-fleet demo --remove` deletes what a demo has sent\n"
    )
    made = "12 made-up devices (demo-0001 to demo-0012)"
    refused = one_hub.run("demo", "--remove")  # waits for what is on its way, and asks
    assert refused.returncode == 1
    question = f"power-fleet: Delete everything of {made} from the fleet? "
    assert refused.stderr == f"{question}There is no terminal to ask: give --yes\n"
    before = devices_of(one_hub)
    removed = one_hub.run("demo", "--remove", "--yes")
    assert (removed.returncode, removed.stderr) == (0, "")
    assert removed.stdout == f"everything of {made} is deleted\n"
    after = devices_of(one_hub)
    assert before - after == {f"demo-{number:04}" for number in range(1, 13)}
    assert "demo-9999" in after
    assert readings_of(one_hub, "demo-0001") == 0
    again = one_hub.run("demo", "--remove", "--yes")
    assert (again.returncode, again.stdout) == (0, "no made-up devices: nothing was changed\n")


def test_what_is_not_stored_yet_is_waited_for(nats: Nats) -> None:
    """What has been sent of a made-up device would bring it back; another's does not matter."""

    async def work() -> None:
        connection = await nats.connect("test")
        js = connection.jetstream(timeout=SOON)
        await js.publish("power.fleet.demo-x", b"another's", stream=STREAM)
        await demo_removal.await_stored(nats, 0.5)
        await js.publish("power.fleet.demo-0001", b"one", stream=STREAM)
        with pytest.raises(FleetError, match=r"made-up devices are not stored yet \(1\)"):
            await demo_removal.await_stored(nats, 0.5)
        await connection.close()

    asyncio.run(work())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--remove", "--devices", "3"], "leave out --devices, --once"),
        (["--remove", "--once"], "leave out --devices, --once"),
        (["--yes"], "--yes: give it together with --remove"),
    ],
)
def test_removing_takes_no_options_of_sending(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would mean nothing, and --yes nothing without it."""
    assert run_command("demo", *arguments) == 2
    assert message in capsys.readouterr().err
