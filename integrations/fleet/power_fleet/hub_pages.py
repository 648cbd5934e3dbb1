"""The pages and routes of power-service inside a hub's process, in a thread with a loop of its own.

Everyone on this machine may read them, as they may send. Where there are tokens at the start they
are asked for, and others reach the pages where they reach the hub.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from power_fleet.discovery import LOOPBACK
from power_fleet.errors import Refused
from power_fleet.nats_server import Security

if TYPE_CHECKING:
    from power_service.server import Server

TOKENS = "tokens.json"
START_SECONDS = 60.0
END_SECONDS = 1.0  # for browsers to take in what is on its way
_log = logging.getLogger("power_fleet")


class Pages:
    """The pages at `url`, from start() to stop()."""

    def __init__(self, engine_url: str, data: Path, port: int, security: Security | None) -> None:
        """Read what is installed and set. Raises ModuleNotFoundError without the extra, Refused."""
        from power_service import settings as service
        from power_service.app import create_app
        from power_service.server import make_server
        from power_service.tokens import TokenFile

        tokens = data.absolute() / TOKENS
        token_count = len(TokenFile(tokens).grants)
        given: dict[str, Any] = {
            "fleet": (engine_url,),
            "hub": False,
            "tokens": tokens,
            "host": LOOPBACK,
            "port": port,
            "no_auth": not token_count,
        }
        if token_count and security is not None:
            given |= {
                "host": security.host,
                "tls_cert": security.certificate,
                "tls_key": security.key,
            }
        try:
            settings = service.read_settings(given)
            settings.check(token_count)
            self._server: Server = make_server(settings, *create_app(settings), self._say)
        except service.Refused as error:
            raise Refused(str(error)) from error
        self.url = ""
        self._error: BaseException | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="pages", daemon=True)

    def start(self) -> None:
        """Serve from now on. Raises Refused where the port cannot be had."""
        self._thread.start()
        self._started.wait(START_SECONDS)
        if not self.url:
            raise Refused(
                f"--port: the pages cannot be served there ({self._error}): "
                "name another one, or 0 for any free one"
            )

    def stop(self) -> None:
        """Serve no more; what has not ended by itself in END_SECONDS ends with the process."""
        self._server.should_exit = True
        self._thread.join(END_SECONDS)

    def _say(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._started.set()

    def _serve(self) -> None:
        try:
            asyncio.run(self._server.serve())
        except (OSError, SystemExit) as error:
            self._error = error
        finally:
            self._started.set()
