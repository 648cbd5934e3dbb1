"""A house whose time runs faster: a broker, Home Assistant and the bridge, each by itself."""

from __future__ import annotations

import glob
import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_ENTRY: dict[str, object] = {
    "created_at": "2026-01-01T00:00:00+00:00",
    "modified_at": "2026-01-01T00:00:00+00:00",
    "disabled_by": None,
    "discovery_keys": {},
    "domain": "mqtt",
    "entry_id": "01JPROOF0000000000000000MQ",
    "minor_version": 2,
    "options": {},
    "pref_disable_new_entities": False,
    "pref_disable_polling": False,
    "source": "user",
    "subentries": [],
    "title": "mosquitto",
    "unique_id": None,
    "version": 1,
}


def free_port() -> int:
    """A port of the loopback that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class FastClock:
    """What time it is in the house; epoch seconds. speed: seconds a real second."""

    def __init__(self, start: datetime, speed: float) -> None:
        self.start = start.timestamp()
        self.real_start = time.time()
        self.speed = speed

    def __call__(self) -> float:
        """The time now."""
        return self.start + (time.time() - self.real_start) * self.speed

    def wait_until(self, instant: float) -> None:
        """Sleep until then."""
        time.sleep(max((instant - self()) / self.speed, 0.0))

    def shown(self) -> str:
        """The time of the day."""
        return datetime.fromtimestamp(self(), timezone.utc).strftime("%H:%M")


class Program:
    """A program that is started and ended more than once; its output goes to a file."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, command: list[str], env: dict[str, str] | None = None) -> None:
        """Start it."""
        with open(self._log, "ab") as file:
            self._process = subprocess.Popen(
                command, env={**os.environ, **(env or {})}, stdout=file, stderr=subprocess.STDOUT
            )

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it, and wait."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Broker(Program):
    """A mosquitto without persistence: when it ends, all that it retained is gone."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "mosquitto.log")
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        self._config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\n")

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self.run(["mosquitto", "-c", str(self._config)])
        end = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)


class HomeAssistant(Program):
    """A Home Assistant that is connected to the broker."""

    def __init__(self, folder: Path, hass: str, broker: Broker, clock: FastClock) -> None:
        super().__init__(folder / "homeassistant.log")
        self._hass = hass
        self._clock = clock
        self._config = folder / "config"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        storage = self._config / ".storage"
        storage.mkdir(parents=True)
        (self._config / "configuration.yaml").write_text(
            f"http:\n  server_host: 127.0.0.1\n  server_port: {port}\n"
            "api:\nfrontend:\nconfig:\nhistory:\nenergy:\nrecorder:\n  commit_interval: 1\n"
        )
        entry = {**_ENTRY, "data": {"broker": "127.0.0.1", "port": broker.port, "discovery": True}}
        _store(storage, "core.config_entries", 1, 5, {"entries": [entry]})
        _store(storage, "onboarding", 4, 1, {"done": ["core_config", "analytics", "integration"]})

    def start(self) -> None:
        """Start it, at the time of the house."""
        (library,) = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
        now = datetime.fromtimestamp(self._clock(), timezone.utc)
        env = {
            "LD_PRELOAD": library,
            "FAKETIME": f"@{now:%Y-%m-%d %H:%M:%S} x{self._clock.speed:g}",
            "TZ": "UTC",
        }
        self.run([self._hass, "-c", str(self._config), "--skip-pip"], env)


def _store(storage: Path, key: str, version: int, minor: int, data: object) -> None:
    content = {"version": version, "minor_version": minor, "key": key, "data": data}
    (storage / key).write_text(json.dumps(content))


class Bridge(Program):
    """power-mqtt, which publishes a file."""

    def __init__(self, folder: Path, db: Path, broker: Broker, clock: FastClock) -> None:
        super().__init__(folder / "power-mqtt.log")
        self._db = db
        self._broker = broker
        self._clock = clock

    def start(self) -> None:
        """Start it, at the time of the house."""
        clock = self._clock
        times = [str(value) for value in (clock.speed, clock.real_start, clock.start)]
        arguments = ["publish", "--db", str(self._db), "--name", "proof", "--expire", "2h"]
        arguments += ["--broker", f"mqtt://127.0.0.1:{self._broker.port}"]
        path = os.pathsep.join([str(ROOT), str(ROOT / "integrations" / "mqtt")])
        self.run(
            [sys.executable, str(HERE / "scaled.py"), *times, *arguments], {"PYTHONPATH": path}
        )
