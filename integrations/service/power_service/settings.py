"""The service's settings: each once, with its option, environment variable, default and limits.

`python3 -m power_service.settings` prints them as the README's table.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from power_manager import DB_PATH, parse_count, parse_duration, parse_number
from power_service.errors import ServiceError

ALERT_TYPES = ("battery", "ups")  # the same as the collector's: both can run empty
_PREFIX = "POWER_SERVICE_"
FLEET_TOKENS = "power_fleet.tokens.json"
_DATABASE_VARIABLE = "POWER_MANAGER_DB"  # the same as that of power-manager
TOKEN_VARIABLE = "POWER_SERVICE_TOKEN"  # of `power-service backup`
# Another one is that which pydantic reads like _DATABASE_VARIABLE.
_OTHER_VARIABLES = frozenset({TOKEN_VARIABLE, "POWER_SERVICE_DB"})
# Variable, default and meaning of those that are read elsewhere.
_VARIABLES_OF_OTHERS = (
    (TOKEN_VARIABLE, "", "the token of `backup --url`, of scope admin"),
    ("FORWARDED_ALLOW_IPS", "127.0.0.1", "addresses of the proxy, separated by commas"),
)


class Refused(ServiceError):
    """The service does not start with these settings; the message says what to do."""


class OnCommandLine(NamedTuple):
    """Marks a setting that also has an option. `metavar` stands for its value in the help."""

    metavar: str = ""


def _by(parse: Callable[[str], Any]) -> BeforeValidator:
    """Reads texts by one of the library's parsers for argparse, as its command lines do."""

    def read(value: Any) -> Any:
        try:
            return parse(value) if isinstance(value, str) else value
        except argparse.ArgumentTypeError as error:
            raise ValueError(str(error)) from None

    return BeforeValidator(read)


_Names = Annotated[tuple[str, ...], NoDecode, _by(str.split)]
_Count = Annotated[int, _by(parse_count), Field(ge=1, le=1_000_000)]
_Port = Annotated[int, _by(parse_count), Field(ge=0, le=65_535)]
_Rate = Annotated[float, _by(parse_number), Field(ge=0, le=1_000_000)]
_Bytes = Annotated[int, _by(parse_count), Field(ge=1024, le=1_000_000_000)]
_Seconds = Annotated[float, _by(parse_duration), Field(ge=0.01, le=86_400)]


class Settings(BaseSettings):
    """All settings of the service; sizes in bytes, times in seconds.

    An argument goes before the environment variable, and that before the default; an empty variable
    counts as unset. Raises ValidationError; read_settings() says the same in one line.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        populate_by_name=True,
    )

    db: Annotated[Path, OnCommandLine("PATH")] = Field(
        default=DB_PATH,
        validation_alias=_DATABASE_VARIABLE,
        description="the database, which is made if it is missing",
    )
    fleet: Annotated[_Names, OnCommandLine("URL")] = Field(
        default=(),
        description="serve a fleet by its engine, in place of a database; once for each shard, "
        "whose replicas are separated by commas (repeatable)",
    )
    hub: Annotated[bool, OnCommandLine()] = Field(
        default=False, description="serve the fleet of the `power-fleet hub` on this machine"
    )
    tokens: Annotated[Path | None, OnCommandLine("FILE")] = Field(
        default=None,
        description="the file of tokens; if none is given, a file beside the database, or for a "
        f"fleet {FLEET_TOKENS} in the present directory",
    )
    host: Annotated[str, OnCommandLine()] = Field(
        default="127.0.0.1", description="the address to listen on"
    )
    port: Annotated[_Port, OnCommandLine()] = Field(
        default=8080, description="the port to listen on; 0: any free one, which the log names"
    )
    no_auth: Annotated[bool, OnCommandLine()] = Field(
        default=False,
        description="need no token: every user of this machine may do everything; only with a "
        "loopback address",
    )
    behind_proxy: Annotated[bool, OnCommandLine()] = Field(
        default=False,
        description="a proxy on this machine, or at the addresses in FORWARDED_ALLOW_IPS, does TLS "
        "and names the client in X-Forwarded-For and X-Forwarded-Proto",
    )
    tls_cert: Annotated[Path | None, OnCommandLine("FILE")] = Field(
        default=None, description="certificate chain for TLS, PEM"
    )
    tls_key: Annotated[Path | None, OnCommandLine("FILE")] = Field(
        default=None, description="key of the certificate, PEM"
    )
    allow_host: Annotated[_Names, OnCommandLine("NAME")] = Field(
        default=(),
        description="a host name that clients may use beside the loopback names and --host; other "
        "names get 421 (repeatable)",
    )
    allow_origin: Annotated[_Names, OnCommandLine("URL")] = Field(
        default=(),
        description="an origin whose pages may use this service (repeatable)",
    )
    rate: Annotated[_Rate, OnCommandLine("N")] = Field(
        default=100.0, description="requests a second that each token may make; 0: no limit"
    )
    burst: Annotated[_Count, OnCommandLine("N")] = Field(
        default=200, description="requests that a token may make at once"
    )
    max_connections: Annotated[_Count, OnCommandLine("N")] = Field(
        default=1000,
        description="connections at once, streams included; fewer if the system's limit of open "
        "files is lower than this and 200 more",
    )
    durability: Annotated[Literal["full", "normal"], OnCommandLine()] = Field(
        default="full",
        description="full: stored readings survive a power cut; normal: faster, and a power cut "
        "may lose the last moments",
    )
    dashboard: Annotated[Path | None, OnCommandLine("DIR")] = Field(
        default=None, description="the directory of another built dashboard"
    )
    max_requests: _Count = Field(
        default=200,
        description="requests at once that read, and as many that write; /healthz and /readyz are "
        "not counted",
    )
    max_body: _Bytes = Field(
        default=4 * 1024 * 1024, description="bytes that a request's body may have"
    )
    max_headers: _Bytes = Field(
        default=16 * 1024, description="bytes that a request's headers may have"
    )
    body_seconds: _Seconds = Field(
        default=30.0,
        description="time for a request's body to arrive, and for a client to take in each part of "
        "an answer",
    )
    header_seconds: _Seconds = Field(
        default=10.0, description="time for a request's headers to arrive"
    )
    handshake_seconds: _Seconds = Field(default=10.0, description="time for a TLS handshake")
    queue: _Count = Field(
        default=1000, description="frames that may wait for one client of the stream"
    )
    poll_seconds: _Seconds = Field(default=0.05, description="time between two looks at the file")
    reading_seconds: _Seconds = Field(
        default=0.25, description="time between two readings of a meter in the stream"
    )
    fleet_seconds: _Seconds = Field(
        default=1.0, description="time between two looks at a fleet's engine"
    )
    heartbeat_seconds: _Seconds = Field(
        default=15.0, description="time between two heartbeats of the stream"
    )
    stall_seconds: _Seconds = Field(
        default=20.0,
        description="time after which a client of the stream that takes nothing in is closed",
    )

    @property
    def auth(self) -> bool:
        """Whether a token is needed."""
        return not self.no_auth

    @property
    def is_fleet(self) -> bool:
        """Whether a fleet is served in place of a database."""
        return bool(self.fleet) or self.hub

    @property
    def token_file(self) -> Path:
        """The file of tokens: the one that is given, or one beside the database. Raises Refused."""
        if self.tokens is not None:
            return self.tokens
        if self.is_fleet:
            return Path(FLEET_TOKENS)
        if self.db.is_dir():
            raise Refused(f"--db {self.db}: this is a directory: name a file in it")
        return self.db.with_name(self.db.name + ".tokens.json")

    def check(self, token_count: int) -> None:
        """Raise Refused for a combination that is unsafe or contradicts itself."""
        loopback = is_loopback(self.host)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise Refused("--tls-cert and --tls-key go together: give both")
        if self.fleet and self.hub:
            raise Refused("--fleet and --hub: name one of them")
        if str(self.db) == ":memory:":
            raise Refused("--db: nothing else could use a database in memory: name a file")
        if self.no_auth and not loopback:
            raise Refused(
                f"--no-auth works with a loopback address only, and {self.host} is not one: "
                "make a token"
            )
        if self.no_auth and self.behind_proxy:
            raise Refused(
                "--no-auth and --behind-proxy: the proxy would let everybody in: make a token"
            )
        if "*" in self.allow_origin + self.allow_host:
            raise Refused("--allow-origin and --allow-host: expected a name, got '*'")
        if not loopback and not self.behind_proxy and (not token_count or self.tls_cert is None):
            missing = (
                "TLS (--tls-cert, --tls-key)"
                if token_count
                else f"tokens ({how_to_make_one(self)})"
            )
            raise Refused(
                f"other machines can reach {self.host}: it needs {missing}, or --behind-proxy"
            )


def how_to_make_one(settings: Settings) -> str:
    """The command that makes a token for this service; it works from any directory."""
    by_tokens = settings.tokens is not None or settings.is_fleet
    file = settings.token_file if by_tokens else settings.db
    option = "--tokens" if by_tokens else "--db"
    return (
        f"power-service token new NAME --scope read {option} {shlex.quote(os.path.abspath(file))}"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# --- Options and variables


def option_of(name: str) -> str | None:
    """The option of a setting; None if it has only a variable."""
    return f"--{name.replace('_', '-')}" if _mark(name) is not None else None


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return _DATABASE_VARIABLE if name == "db" else _PREFIX + name.upper()


def _mark(name: str) -> OnCommandLine | None:
    marks = [
        part for part in Settings.model_fields[name].metadata if isinstance(part, OnCommandLine)
    ]
    return marks[0] if marks else None


def _is_switch(field: FieldInfo) -> bool:
    return field.annotation is bool


def add_options(
    parser: argparse.ArgumentParser,
    names: Iterable[str] | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Add the options of these settings, or of all; the result has only those that are given.

    `texts` go before the settings' own descriptions.
    """
    for name in Settings.model_fields if names is None else names:
        option = option_of(name)
        if option is None:
            continue
        field = Settings.model_fields[name]
        kind: dict[str, Any] = {"metavar": _metavar(name)}
        if _is_switch(field):
            kind = {"action": "store_const", "const": True}
        elif _choices(field):
            kind = {"choices": _choices(field)}
        elif field.default == ():
            kind["action"] = "append"
        text = (texts or {}).get(name) or str(field.description)
        text += f" (default: ${variable_of(name)}{_else_default(name)})"
        parser.add_argument(option, dest=name, default=argparse.SUPPRESS, help=text, **kind)


def _else_default(name: str) -> str:
    """The end of a help text: what counts if neither option nor variable is given."""
    if name == "db":
        return f", else {DB_PATH} here"
    return f", else {_default(name)}" if _default(name) else ""


def _choices(field: FieldInfo) -> tuple[str, ...]:
    """The words that a setting can be; empty for any other setting."""
    choices = get_args(field.annotation)
    return choices if all(isinstance(choice, str) for choice in choices) else ()


def read_settings(given: Mapping[str, Any]) -> Settings:
    """The settings from the command line, else the environment, else the default.

    Raises Refused, which names the value and what would be right.
    """
    # By its alias, if a field has one: otherwise the environment's value would be a second one.
    values = {
        str(field.validation_alias or name): given[name]
        for name, field in Settings.model_fields.items()
        if name in given
    }
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place = first["loc"][0]
        name = "db" if place == _DATABASE_VARIABLE else str(place)
        where = option_of(name) if name in given else variable_of(name)
        raise Refused(f"{where}: expected {_expected(name)}, got {first['input']!r}") from None


def _expected(name: str) -> str:
    """The values that a setting can have, in words."""
    field = Settings.model_fields[name]
    if _is_switch(field):
        return "1 or 0"
    if _choices(field):
        return " or ".join(_choices(field))
    bounds = {
        key: getattr(part, key)
        for part in field.metadata
        for key in ("ge", "le")
        if hasattr(part, key)
    }
    if not bounds:
        return "text"
    if name.endswith("_seconds"):
        return f"a duration such as 30s, from {bounds['ge']} s to 24h"
    kind = "a whole number" if field.annotation is int else "a number"
    return f"{kind} from {bounds['ge']} to {bounds['le']}"


def unknown_variables(environ: Iterable[str]) -> list[str]:
    """Variables that are named like settings but are not: most likely mistyped."""
    known = {variable_of(name) for name in Settings.model_fields} | _OTHER_VARIABLES
    return sorted(name for name in environ if name.startswith(_PREFIX) and name not in known)


# --- The README's table


def table() -> str:
    """Every setting as a row of a Markdown table."""
    lines = ["| option | variable | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        option = option_of(name)
        shown = f"`{option} {_metavar(name)}".rstrip() + "`" if option else ""
        lines.append(
            f"| {shown} | `{variable_of(name)}` | {_default(name)} | {field.description} |"
        )
    for variable, default, text in _VARIABLES_OF_OTHERS:
        lines.append(f"|  | `{variable}` | {default} | {text} |")
    return "\n".join(lines)


def _metavar(name: str) -> str:
    """The word that stands for an option's value; "" for a switch."""
    mark = _mark(name)
    field = Settings.model_fields[name]
    if mark is None or _is_switch(field):
        return ""
    return mark.metavar or r"\|".join(_choices(field)) or name.upper()


def _default(name: str) -> str:
    """The default of a setting, in words; "" if there is none."""
    field = Settings.model_fields[name]
    if _is_switch(field):
        return "off"
    if field.default in (None, ()):
        return ""
    if name.endswith("_seconds"):
        return f"{field.default:g}s"
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


if __name__ == "__main__":
    print(table())
