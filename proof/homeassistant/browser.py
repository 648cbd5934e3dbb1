"""Pictures of Home Assistant's pages, by Chromium without a display."""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

_SHIFT = """(() => {
  const Real = Date, shift = SHIFT;
  class Shifted extends Real {
    constructor(...given) { given.length ? super(...given) : super(Real.now() + shift); }
    static now() { return Real.now() + shift; }
  }
  window.Date = Shifted;
  localStorage.setItem("hassTokens", TOKENS);
  localStorage.setItem("dockedSidebar", '"always_hidden"');
})();"""


class Browser:
    """A Chromium that is driven by its debugging protocol."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0

    def ask(self, method: str, **fields: Any) -> Any:
        """The result of one command."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": fields}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == self._number:
                return answer.get("result", {})

    def sign_in(self, url: str, token: str, now: float) -> None:
        """Open every page as a user of that token, at that time (epoch seconds)."""
        tokens = {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": 10**9,
            "expires": 10**14,
            "refresh_token": "",
            "hassUrl": url,
            "clientId": f"{url}/",
        }
        shift = round((now - time.time()) * 1000)
        script = _SHIFT.replace("SHIFT", str(shift), 1)
        script = script.replace("TOKENS", json.dumps(json.dumps(tokens)))
        self.ask("Page.addScriptToEvaluateOnNewDocument", source=script)

    def picture(self, url: str, target: Path, width: int, height: int, seconds: float) -> None:
        """Take a picture of a page, when it has had that long to load."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.ask("Page.navigate", url=url)
        time.sleep(seconds)
        shot = self.ask("Page.captureScreenshot", format="png")
        target.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(port: int) -> Iterator[Browser]:
    """A Chromium on that port."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--lang=en",
            f"--user-data-dir={profile}",
            f"--remote-debugging-port={port}",
            "about:blank",
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with connect(_page(port), max_size=None) as socket:
                made = Browser(socket)
                made.ask("Page.enable")
                yield made
        finally:
            process.terminate()
            process.wait(20)


def _page(port: int) -> str:
    """The address of the one page."""
    end = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as answer:
                for target in json.load(answer):
                    if target["type"] == "page":
                        return str(target["webSocketDebuggerUrl"])
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(0.2)
