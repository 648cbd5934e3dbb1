"""What the service is told: each setting once, with its option, its variable of the environment, default and limits.

`python -m power_service.settings` prints them as the table of the README.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from power_manager import DB_PATH

_PREFIX = "POWER_SERVICE_"
FLEET_TOKENS = "power_fleet.tokens.json"
_DATABASE_VARIABLE = "POWER_MANAGER_DB"  # as for the library's own command line
# Of `power-service backup`; and one that pydantic reads like _DATABASE_VARIABLE.
_OTHER_VARIABLES = frozenset({"POWER_SERVICE_TOKEN", "POWER_SERVICE_DB"})


class Refused(Exception):
    """The service does not start like this; the message says what to do."""


class OnCommandLine(NamedTuple):
    """Marks a setting that has an option too. `metavar`: what stands for its value in the help."""

    metavar: str = ""


def _words(value: Any) -> Any:
    return value.split() if isinstance(value, str) else value


_Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
_Count = Annotated[int, Field(ge=1, le=1_000_000)]
_Bytes = Annotated[int, Field(ge=1024, le=1_000_000_000)]
_Seconds = Annotated[float, Field(ge=0.01, le=86_400)]


class Settings(BaseSettings):
    """Everything the service can be told; sizes in bytes, times in seconds.

    What is given goes before the environment, and that before the default; an empty variable counts as unset. Raises
    ValidationError: read_settings() says the same in one line.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        populate_by_name=True,
    )

    db: Annotated[Path, OnCommandLine("FILE")] = Field(
        default=DB_PATH,
        validation_alias=_DATABASE_VARIABLE,
        description="the database; made where it is missing",
    )
    fleet: Annotated[_Names, OnCommandLine("URL")] = Field(
        default=(),
        description="the engine of a fleet, in place of a database; once for each shard, its replicas separated by "
        "commas, in the variable shards separated by spaces",
    )
    hub: Annotated[bool, OnCommandLine()] = Field(
        default=False, description="the fleet of the `power-fleet hub` that runs on this machine"
    )
    tokens: Annotated[Path | None, OnCommandLine("FILE")] = Field(
        default=None,
        description="the tokens; where none is named, beside the database, and of a fleet power_fleet.tokens.json here",
    )
    host: Annotated[str, OnCommandLine()] = Field(
        default="127.0.0.1", description="the address to listen at"
    )
    port: Annotated[int, Field(ge=0, le=65_535), OnCommandLine()] = Field(
        default=8080, description="0: any free one, named in the log"
    )
    no_auth: Annotated[bool, OnCommandLine()] = Field(
        default=False, description="let everybody on this machine in; for loopback addresses only"
    )
    behind_proxy: Annotated[bool, OnCommandLine()] = Field(
        default=False,
        description="a proxy on this machine, or at the addresses in FORWARDED_ALLOW_IPS, does TLS, and says in "
        "X-Forwarded-For and -Proto who the client is",
    )
    tls_cert: Annotated[Path | None, OnCommandLine("FILE")] = Field(
        default=None, description="certificate chain, PEM"
    )
    tls_key: Annotated[Path | None, OnCommandLine("FILE")] = Field(
        default=None, description="its key, PEM"
    )
    allow_host: Annotated[_Names, OnCommandLine("NAME")] = Field(
        default=(),
        description="a name that clients use beside the loopback names and that of --host; may be repeated, in the "
        "variable separated by spaces; others get 421",
    )
    allow_origin: Annotated[_Names, OnCommandLine("URL")] = Field(
        default=(),
        description="pages from elsewhere, by name, which may use this service; may be repeated",
    )
    rate: Annotated[float, Field(ge=0, le=1_000_000), OnCommandLine()] = Field(
        default=100.0, description="requests a second for each token; 0: no limit"
    )
    burst: Annotated[_Count, OnCommandLine()] = Field(
        default=200, description="requests that a token may save up"
    )
    max_connections: Annotated[_Count, OnCommandLine("COUNT")] = Field(
        default=1000,
        description="streams included, each from accept on; fewer where the system's limit of open files, less 200, "
        "is lower",
    )
    durability: Annotated[Literal["full", "normal"], OnCommandLine("HOW")] = Field(
        default="full", description="full or normal, as the library's"
    )
    dashboard: Annotated[Path | None, OnCommandLine("DIR")] = Field(
        default=None, description="a built dashboard in place of the one that comes along"
    )
    max_requests: _Count = Field(
        default=200,
        description="requests that read at once, and as many that write; /healthz and /readyz beside them",
    )
    max_body: _Bytes = Field(default=4 * 1024 * 1024, description="bytes of a request's body")
    max_headers: _Bytes = Field(default=16 * 1024, description="bytes of a request's headers")
    body_seconds: _Seconds = Field(
        default=30.0, description="for a body, and for a client to take in each part of an answer"
    )
    header_seconds: _Seconds = Field(default=10.0, description="for a request's head")
    handshake_seconds: _Seconds = Field(default=10.0, description="for TLS to begin")
    queue: _Count = Field(
        default=1000, description="frames that may wait for one client of the stream"
    )
    poll_seconds: _Seconds = Field(default=0.05, description="between two looks at the file")
    reading_seconds: _Seconds = Field(
        default=0.25, description="between two readings of a meter in the stream"
    )
    fleet_seconds: _Seconds = Field(
        default=1.0, description="between two looks at the engine of a fleet"
    )
    heartbeat_seconds: _Seconds = Field(
        default=15.0, description="between two heartbeats of the stream"
    )
    stall_seconds: _Seconds = Field(
        default=20.0,
        description="after which a client of the stream that takes nothing in is closed",
    )

    @property
    def auth(self) -> bool:
        """Whether a token is needed."""
        return not self.no_auth

    @property
    def is_fleet(self) -> bool:
        """Whether a fleet is served, and no database."""
        return bool(self.fleet) or self.hub

    @property
    def token_file(self) -> Path:
        """The file of tokens: as told, or beside the database."""
        if self.tokens is None and self.is_fleet:
            return Path(FLEET_TOKENS)
        return self.tokens or self.db.with_name(self.db.name + ".tokens.json")

    def check(self, token_count: int) -> None:
        """Raise Refused for a combination that would let in who should not get in."""
        loopback = is_loopback(self.host)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise Refused("--tls-cert and --tls-key go together: give both")
        if self.fleet and self.hub:
            raise Refused("--fleet and --hub: name one of them")
        if str(self.db) == ":memory:":
            raise Refused("--db: a database in memory has no other users: name a file")
        if self.no_auth and not loopback:
            raise Refused(
                f"--no-auth is for loopback addresses only, and {self.host} is none: make a token"
            )
        if self.no_auth and self.behind_proxy:
            raise Refused(
                "--no-auth and --behind-proxy: the proxy would let everybody in: make a token"
            )
        if "*" in self.allow_origin + self.allow_host:
            raise Refused("--allow-origin and --allow-host take names, not '*'")
        if not loopback and not self.behind_proxy and (not token_count or self.tls_cert is None):
            missing = (
                "TLS (--tls-cert, --tls-key)"
                if token_count
                else f"tokens ({how_to_make_one(self)})"
            )
            raise Refused(
                f"{self.host} can be reached from elsewhere: it needs {missing}, or --behind-proxy"
            )


def how_to_make_one(settings: Settings) -> str:
    """The command that makes a token for this service, from whichever directory it is run."""
    by_tokens = settings.tokens is not None or settings.is_fleet
    file = settings.token_file if by_tokens else settings.db
    option = "--tokens" if by_tokens else "--db"
    return (
        f"power-service token new NAME --scope read {option} {shlex.quote(os.path.abspath(file))}"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# --- Options and variables


def option_of(name: str) -> str | None:
    """The option of a setting; None for one that has a variable alone."""
    return f"--{name.replace('_', '-')}" if _mark(name) is not None else None


def variable_of(name: str) -> str:
    """The variable of a setting."""
    return _DATABASE_VARIABLE if name == "db" else _PREFIX + name.upper()


def _mark(name: str) -> OnCommandLine | None:
    marks = [
        part for part in Settings.model_fields[name].metadata if isinstance(part, OnCommandLine)
    ]
    return marks[0] if marks else None


def _is_switch(field: FieldInfo) -> bool:
    return field.annotation is bool


def add_options(parser: argparse.ArgumentParser, names: Iterable[str] | None = None) -> None:
    """Add the options of these settings, or of all that have one; what is not given there, the result does not have."""
    for name in Settings.model_fields if names is None else names:
        option, mark = option_of(name), _mark(name)
        if option is None or mark is None:
            continue
        field = Settings.model_fields[name]
        kind: dict[str, Any] = {"metavar": mark.metavar or name.upper()}
        if _is_switch(field):
            kind = {"action": "store_const", "const": True}
        elif field.default == ():
            kind["action"] = "append"
        parser.add_argument(
            option, dest=name, default=argparse.SUPPRESS, help=_help(name, field), **kind
        )


def _help(name: str, field: FieldInfo) -> str:
    text = str(field.description)
    if name == "db":
        text += f" (default: ${_DATABASE_VARIABLE}, else {DB_PATH} here)"
    elif not _is_switch(field) and field.default not in (None, ()):
        text += f" (default: {field.default})"
    return text


def read_settings(given: Mapping[str, Any]) -> Settings:
    """What the command line says, else the environment, else the default. Raises Refused, naming what would do."""
    # By the alias, where there is one: the environment's value has that name, and would stand beside another one.
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
    """What a value has to be."""
    field = Settings.model_fields[name]
    if _is_switch(field):
        return "1 or 0"
    choices = get_args(field.annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return " or ".join(choices)
    bounds = {
        key: getattr(part, key)
        for part in field.metadata
        for key in ("ge", "le")
        if hasattr(part, key)
    }
    if not bounds:
        return "text"
    kind = "a whole number" if field.annotation is int else "a number"
    return f"{kind} from {bounds['ge']} to {bounds['le']}"


def unknown_variables(environ: Iterable[str]) -> list[str]:
    """Variables that are named like settings and are none: mistyped, most likely."""
    known = {variable_of(name) for name in Settings.model_fields} | _OTHER_VARIABLES
    return sorted(name for name in environ if name.startswith(_PREFIX) and name not in known)


# --- The README's table


def table() -> str:
    """Every setting as a line of Markdown: option, variable, default, what it does."""
    lines = ["| option | variable | default | |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        option = option_of(name)
        shown = f"`{option}`" if option else ""
        lines.append(
            f"| {shown} | `{variable_of(name)}` | {_default(field)} | {field.description} |"
        )
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    if _is_switch(field):
        return "off"
    if field.default in (None, ()):
        return ""
    if isinstance(field.default, float):
        return f"`{field.default:g}`"
    return f"`{field.default}`"


if __name__ == "__main__":
    print(table(), end="")
