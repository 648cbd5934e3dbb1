"""Home Assistant's own interfaces: REST for states, its WebSocket for registries and statistics."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


class Api:
    """A running Home Assistant at `url`; `token` is one that does not end within the proof."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url
        self.token = token

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/onboarding", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            return error.code == 404  # onboarded before
        except OSError:
            return False

    def wait(self, seconds: float) -> None:
        """Wait until it answers."""
        end = time.monotonic() + seconds
        while not self.is_up():
            if time.monotonic() > end:
                raise SystemExit(f"Home Assistant does not answer at {self.url}")
            time.sleep(0.2)

    def onboard(self) -> None:
        """Make its first user, and a token."""
        client_id = f"{self.url}/"
        user = {
            "client_id": client_id,
            "name": "Proof",
            "username": "proof",
            "password": "proof",
            "language": "en",
        }
        code = self._post("/api/onboarding/users", json.dumps(user))["auth_code"]
        grant = {"client_id": client_id, "grant_type": "authorization_code", "code": code}
        self.token = self._post("/auth/token", urllib.parse.urlencode(grant))["access_token"]
        self.token = self.ask("auth/long_lived_access_token", client_name="proof", lifespan=3650)

    def states(self) -> dict[str, dict[str, Any]]:
        """Every entity's state, by its id."""
        request = urllib.request.Request(f"{self.url}/api/states", headers=self._headers())
        with urllib.request.urlopen(request, timeout=30) as answer:
            return {state["entity_id"]: state for state in json.load(answer)}

    def ask(self, kind: str, **fields: Any) -> Any:
        """The result of one command of the WebSocket."""
        for _ in range(20):
            # Home Assistant waits ten of its seconds for the token, which is not long where time
            # runs faster.
            with contextlib.suppress(ConnectionClosed):
                return self._ask(kind, fields)
        raise SystemExit(f"Home Assistant hangs up when it is asked for {kind}")

    def _ask(self, kind: str, fields: dict[str, Any]) -> Any:
        url = self.url.replace("http", "ws", 1) + "/api/websocket"
        with connect(url, max_size=None, open_timeout=30) as socket:
            socket.recv(timeout=30)  # it asks for a token
            socket.send(json.dumps({"type": "auth", "access_token": self.token}))
            answer = json.loads(socket.recv(timeout=30))
            if answer["type"] != "auth_ok":
                raise SystemExit(f"Home Assistant refuses the token: {answer}")
            socket.send(json.dumps({"id": 1, "type": kind, **fields}))
            answer = json.loads(socket.recv(timeout=60))
        if not answer["success"]:
            raise SystemExit(f"Home Assistant refuses {kind}: {answer['error']}")
        return answer["result"]

    def entities(self) -> dict[str, dict[str, Any]]:
        """Its registry of MQTT entities, by their unique ids."""
        entries = self.ask("config/entity_registry/list")
        return {entry["unique_id"]: entry for entry in entries if entry["platform"] == "mqtt"}

    def devices(self) -> dict[str, dict[str, Any]]:
        """Its registry of devices, by their MQTT identifiers."""
        found: dict[str, dict[str, Any]] = {}
        for device in self.ask("config/device_registry/list"):
            for domain, id_ in device["identifiers"]:
                if domain == "mqtt":
                    found[id_] = device
        return found

    def hourly(self, entity_ids: list[str], start: str) -> dict[str, list[dict[str, Any]]]:
        """Long-term statistics of those entities from `start` on, by hour, in Wh."""
        found: dict[str, list[dict[str, Any]]] = self.ask(
            "recorder/statistics_during_period",
            start_time=start,
            statistic_ids=entity_ids,
            period="hour",
            types=["state", "sum", "change"],
            units={"energy": "Wh"},
        )
        return found

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def _post(self, path: str, body: str) -> Any:
        kind = "application/json" if body.startswith("{") else "application/x-www-form-urlencoded"
        headers = {"Content-Type": kind, **self._headers()}
        request = urllib.request.Request(self.url + path, body.encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
