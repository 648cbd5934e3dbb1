"""Pictures of Home Assistant's pages, by Chromium without a display."""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
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

# What a page shows, its components' own trees among it.
_TEXT = """(() => {
  const found = [];
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) found.push(node.nodeValue);
    if (node.shadowRoot) walk(node.shadowRoot);
    node.childNodes.forEach(walk);
  };
  walk(document.body);
  return found.join(" ");
})()"""
_CANNOT_CONNECT = "Unable to connect to Home Assistant"
_SHOWN_SECONDS = 30.0  # within which a page has to show what is expected
_DRAWN_SECONDS = 3.0  # after which its charts have been drawn, too


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

    def picture(
        self,
        url: str,
        target: Path,
        size: tuple[int, int],
        expected: str,
        wait: Callable[[float], None],
    ) -> bool:
        """Take a picture of a page that shows the expected text; whether it came to show it.

        size: width and height in pixels. wait: called with seconds. Without the text there is no
        picture, and what was at `target` stays.
        """
        width, height = size
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        end = time.monotonic() + _SHOWN_SECONDS
        self.ask("Page.navigate", url=url)
        while time.monotonic() < end:
            wait(1.0)
            if expected in self._text():
                wait(_DRAWN_SECONDS)
                shot = self.ask("Page.captureScreenshot", format="png")
                if expected in self._text():
                    target.write_bytes(base64.b64decode(shot["data"]))
                    return True
            # Home Assistant hangs up on a page that gives no sign of life for 55 of its seconds,
            # which can be less than one of ours.
            if _CANNOT_CONNECT in self._text():
                self.ask("Page.navigate", url=url)
        return False

    def _text(self) -> str:
        answer = self.ask("Runtime.evaluate", expression=_TEXT, returnByValue=True)
        return str(answer.get("result", {}).get("value", ""))


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
