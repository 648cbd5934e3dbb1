"""What the service can be told: each by a variable of the environment, most by an option of the command line too."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from power_manager import DB_PATH
from power_service.settings import Refused, Settings

_PREFIX = "POWER_SERVICE_"
_YES = ("1", "true", "yes", "on")
_NO = ("0", "false", "no", "off")


@dataclass(frozen=True)
class Option:
    """One setting: `field` of Settings, and how its value is read from text.

    name: of the option and of the variable. `switch`: an option without a value that sets the field to this one.
    `repeats`: it may be given more than once, in the variable separated by spaces.
    """

    field: str
    name: str
    help: str
    read: Callable[[str], Any] = str
    metavar: str | None = None
    switch: bool | None = None
    repeats: bool = False
    on_command_line: bool = True

    @property
    def variable(self) -> str:
        """The variable of the environment."""
        if self.field == "db":
            return "POWER_MANAGER_DB"  # as for the library's own command line
        return _PREFIX + self.name.replace("-", "_").upper()

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add it to a command line; where it is not given there, the result does not have it."""
        settings: dict[str, Any] = {"dest": self.field, "default": argparse.SUPPRESS}
        if self.switch is not None:
            settings |= {"action": "store_const", "const": self.switch}
        else:
            settings |= {"type": self.read, "metavar": self.metavar or self.name.upper()}
            if self.repeats:
                settings["action"] = "append"
        parser.add_argument(f"--{self.name}", help=self._shown_help(), **settings)

    def _shown_help(self) -> str:
        default = _DEFAULTS.get(self.field)
        if self.switch is not None or default is None or default == ():
            return self.help
        return f"{self.help} (default: {default})"

    def from_text(self, text: str) -> Any:
        """The value of a variable. Raises Refused."""
        try:
            if self.switch is not None:
                return self.switch if _is_yes(text) else not self.switch
            if self.repeats:
                return tuple(self.read(part) for part in text.split())
            return self.read(text)
        except argparse.ArgumentTypeError as error:
            raise Refused(f"{self.variable}: {error}") from None


def _is_yes(text: str) -> bool:
    if text.lower() not in _YES + _NO:
        raise argparse.ArgumentTypeError(f"expected 1 or 0, got {text!r}")
    return text.lower() in _YES


def _number(kind: Callable[[str], float], low: float, high: float) -> Callable[[str], float]:
    """What reads a number, and refuses one beyond these bounds; NaN is beyond any."""

    def number(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if low <= value <= high:
                return value
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"expected {what} from {low} to {high}, got {text!r}")

    return number


def _durability(text: str) -> str:
    if text not in ("full", "normal"):
        raise argparse.ArgumentTypeError(f"expected full or normal, got {text!r}")
    return text


_COUNT = _number(int, 1, 1_000_000)
_BYTES = _number(int, 1024, 1_000_000_000)
_SECONDS = _number(float, 0.01, 86_400)
_DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(Settings)
    if field.default is not dataclasses.MISSING
}

DATABASE = Option(
    "db",
    "db",
    "the database; made where it is missing (default: $POWER_MANAGER_DB, else power_manager.db here)",
    Path,
    "FILE",
)
TOKENS = Option("tokens", "tokens", "the tokens (default: beside the database)", Path, "FILE")


def _variable_only(name: str, help: str, read: Callable[[str], Any]) -> Option:  # noqa: A002
    return Option(name, name.replace("_", "-"), help, read, on_command_line=False)


OPTIONS = (
    DATABASE,
    TOKENS,
    Option("host", "host", "the address to listen at"),
    Option("port", "port", "0: any free one", _number(int, 0, 65_535)),
    Option(
        "auth",
        "no-auth",
        "let everybody on this machine in; for loopback addresses only",
        switch=False,
    ),
    Option(
        "behind_proxy",
        "behind-proxy",
        "a proxy on this machine does TLS, and says who the client is",
        switch=True,
    ),
    Option("tls_cert", "tls-cert", "certificate chain, PEM", Path, "FILE"),
    Option("tls_key", "tls-key", "its key, PEM", Path, "FILE"),
    Option(
        "allowed_hosts",
        "allow-host",
        "a name clients use; may be repeated",
        metavar="NAME",
        repeats=True,
    ),
    Option(
        "allowed_origins",
        "allow-origin",
        "pages from elsewhere; may be repeated",
        metavar="URL",
        repeats=True,
    ),
    Option(
        "dashboard",
        "dashboard",
        "the built dashboard (default: the one that comes along)",
        Path,
        "DIR",
    ),
    Option("durability", "durability", "full or normal, as PowerManager's", _durability, "HOW"),
    Option(
        "rate",
        "rate",
        "requests a second for each token; 0: any",
        _number(float, 0, 1_000_000),
    ),
    Option("burst", "burst", "requests a token may save up", _COUNT),
    Option("max_connections", "max-connections", "streams included", _COUNT, "COUNT"),
    _variable_only("max_requests", "that read, and as many that write, at once", _COUNT),
    _variable_only("max_body", "bytes of a request's body", _BYTES),
    _variable_only("max_headers", "bytes of a request's headers", _BYTES),
    _variable_only("body_seconds", "for a body, and for each part of an answer", _SECONDS),
    _variable_only("header_seconds", "for a request's head", _SECONDS),
    _variable_only("handshake_seconds", "for TLS to begin", _SECONDS),
    _variable_only("queue", "frames that may wait for a client of the stream", _COUNT),
    _variable_only("poll_seconds", "between two looks at the file", _SECONDS),
    _variable_only("reading_seconds", "between two readings of a meter in the stream", _SECONDS),
    _variable_only("heartbeat_seconds", "between two heartbeats of the stream", _SECONDS),
    _variable_only(
        "stall_seconds", "after which a client that takes nothing in is closed", _SECONDS
    ),
)


def settings_of(given: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """What the command line says, else the environment, else the default. Raises Refused."""
    values: dict[str, Any] = {"db": DB_PATH}
    for option in OPTIONS:
        if option.field in given:
            value = given[option.field]
            values[option.field] = tuple(value) if option.repeats else value
        elif environ.get(option.variable):  # empty counts as unset
            values[option.field] = option.from_text(environ[option.variable])
    return Settings(**values)
