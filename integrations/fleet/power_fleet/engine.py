"""ClickHouse: shards of replicas, each reached over HTTP. Whatever is asked goes to a replica that answers.

A device's rows are all on one shard, so that a shard answers for its devices alone, and answers only need joining.
"""

from __future__ import annotations

import logging
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote

import clickhouse_connect
import urllib3.exceptions
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from clickhouse_connect.driver.httpclient import HttpClient

from power_fleet.stream import Refused, address

FAILURES = (ClickHouseError, urllib3.exceptions.HTTPError, OSError)
THREADS = 8  # that ask at once
PING_SECONDS = 4.0  # to wait for a sign of life of a replica, before it is asked anything
TRUSTED_SECONDS = 1.0  # a replica that has answered so lately is asked at once
TURN_SECONDS = 5.0  # to wait for another sink's insert
_OTHERS_TURN = (
    "Code: 286,"  # a table has one insert with a quorum at a time: another sink's is under way
)
QUESTION = 100_000  # bytes of names in one question; the engine takes 262,144 in all
Row = dict[str, Any]
_Rows = Sequence[Sequence[Any]]
_T = TypeVar("_T")
_P = TypeVar("_P")
_log = logging.getLogger("power_fleet")


class EngineError(OSError):
    """No replica of a shard did it; what the last of them said."""


class _HttpClient(HttpClient):
    """clickhouse_connect's client without its first questions.

    They ask for columns of system.settings that ClickHouse 18 does not have, to learn what is not needed here: times
    are whole numbers, and every setting that is sent is known to both.
    """

    def _init_common_settings(self, tz_source: Any) -> None:
        self._dst_safe = self._apply_server_tz = True
        self.params.update(self._validate_settings(self._ch_settings))


def connect(url: str) -> Client:
    """A client for http://[user[:password]@]host[:port][/database], or https. Does not connect yet."""
    if url.startswith("chdb://"):
        return clickhouse_connect.get_client(dsn=url)
    parts = address("--clickhouse", url, "http://host:8123 or https://host:8443")
    return _HttpClient(
        parts.scheme, parts.hostname or "", parts.port or (8443 if parts.scheme == "https" else 8123),
        unquote(parts.username or ""), unquote(parts.password or ""), parts.path.strip("/") or "default",
        compress=False, connect_timeout=5, send_receive_timeout=120, query_retries=0,
        autogenerate_session_id=False, autogenerate_query_id=False, dedicated_pool=True,
    )  # fmt: skip


@dataclass
class _Contact:
    """What a shard knows of one of its replicas."""

    place: str  # its URL without user and password
    answered_at: float = -TRUSTED_SECONDS  # by the monotonic clock


def _place(url: str) -> str:
    return re.sub("//.*@", "//", url)


class Shard:
    """The replicas of one shard: the one that answered last is asked first.

    A replica that hangs costs PING_SECONDS, not the time that a long question may take: each is asked for a sign of
    life first.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._contacts = {connect(url): _Contact(_place(url)) for url in urls}
        self.clients = list(self._contacts)
        # Every replica named must have an insert before it counts: then each of them can answer alone. Blocks that
        # look the same are inserted all the same, or a retry would not wait for the quorum its first attempt missed.
        quorum = len(urls)
        self._settings: dict[str, Any] = {
            "insert_quorum": quorum,
            "insert_quorum_timeout": 20_000,
            "insert_deduplicate": 0,
        }
        if quorum == 1:
            self._settings = {}

    @property
    def replicated(self) -> bool:
        """Whether its tables are replicated."""
        return len(self.clients) > 1

    def query(self, sql: str, **parameters: Any) -> list[Sequence[Any]]:
        """The rows of an answer. Raises EngineError."""
        return self._try(lambda client: list(client.query(sql, parameters).result_rows))

    def select(self, sql: str, **parameters: Any) -> list[Row]:
        """The rows of an answer, their values by the names of the columns. Raises EngineError."""
        return self._try(lambda client: list(client.query(sql, parameters).named_results()))

    def insert_columns(
        self, table: str, columns: dict[str, str], values: Sequence[Sequence[Any]]
    ) -> None:
        """Insert values column by column, in the order of columns: names and types.

        Returns when all replicas have them. Raises EngineError.
        """
        names, types = list(columns), list(columns.values())
        self._in_turn(
            lambda client: client.insert(
                table,
                values,
                column_names=names,
                column_type_names=types,
                column_oriented=True,
                settings=self._settings,
            )
        )

    def insert(self, table: str, columns: dict[str, str], rows: _Rows) -> None:
        """Insert rows; columns are names and types. Returns when all replicas have them. Raises EngineError."""
        names, types = list(columns), list(columns.values())
        self._in_turn(
            lambda client: client.insert(
                table, rows, column_names=names, column_type_names=types, settings=self._settings
            )
        )

    def insert_from(self, table: str, sql: str, **parameters: Any) -> None:
        """Insert the answer to a question, its columns in the table's order. Raises EngineError."""
        statement = f"INSERT INTO {table} {sql}"
        self._in_turn(lambda client: client.command(statement, parameters, settings=self._settings))

    def _in_turn(self, insert: Callable[[Client], object]) -> None:
        """Insert; where another sink's insert is under way, wait for it."""
        deadline = time.monotonic() + TURN_SECONDS
        while True:
            try:
                self._try(insert)
                return
            except EngineError as error:
                if _OTHERS_TURN not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _try(self, call: Callable[[Client], _T]) -> _T:
        error: Exception | None = None
        for client in self.clients:
            try:
                self._check_alive(client)
                answer = call(client)
            except FAILURES as failure:
                _log.debug("a replica failed: %s", failure)
                error = failure
                self.clients = [*(other for other in self.clients if other is not client), client]
            else:
                self._contacts[client].answered_at = time.monotonic()
                return answer
        raise EngineError(str(error)) from error

    def _check_alive(self, client: Client) -> None:
        """Raise OSError where a replica gives no sign of life."""
        contact = self._contacts[client]
        if time.monotonic() - contact.answered_at < TRUSTED_SECONDS:
            return
        if not client.ping(PING_SECONDS):
            raise OSError(f"{contact.place} gives no sign of life")


class Engine:
    """All shards. `urls`: one text for each shard, its replicas separated by commas, always in the same order."""

    def __init__(self, urls: Sequence[str]) -> None:
        if not urls:
            raise Refused("--clickhouse: give it once for each shard")
        self.shards = [Shard([url.strip() for url in shard.split(",")]) for shard in urls]

    def shard_of(self, device_id: str) -> int:
        """The number of the shard that holds a device: the same for every program that names the shards alike."""
        return zlib.crc32(device_id.encode()) % len(self.shards)

    def ask(self, sql: str, **parameters: Any) -> list[Sequence[Any]]:
        """The rows of all shards' answers, the first shard's first. Raises EngineError."""
        return [
            row
            for rows in at_once(lambda shard: shard.query(sql, **parameters), self.shards)
            for row in rows
        ]


def at_once(call: Callable[[_P], _T], places: Sequence[_P]) -> list[_T]:
    """What `call` returns for each of the places, in their order; they are asked at the same time."""
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(call, places))


def parts(names: Sequence[_P], size: Callable[[_P], int]) -> Iterator[Sequence[_P]]:
    """The same in parts that can be named in one question; size is that of a name in bytes."""
    start = total = 0
    for number, name in enumerate(names):
        total += size(name)
        if total > QUESTION and number > start:
            yield names[start:number]
            start, total = number, size(name)
    if names:
        yield names[start:]
