"""ClickHouse: shards of replicas, each reached over HTTP.

Whatever is asked goes to a replica that answers.

A device's rows are all on one shard, so that a shard answers for its devices alone, and answers
only need joining.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote

import clickhouse_connect
import urllib3.exceptions
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError
from clickhouse_connect.driver.httpclient import HttpClient
from clickhouse_connect.driver.query import QueryResult
from urllib3.util import Timeout

from power_fleet import sql
from power_fleet.errors import FleetError, WrongOptions
from power_fleet.sql import Dialect
from power_fleet.stream import address

NO_ANSWER = (urllib3.exceptions.HTTPError, OSError)
FAILURES = (ClickHouseError, *NO_ANSWER)
LOOPBACKS = ("127.0.0.1", "::1", "localhost")
THREADS = 8  # that ask at once
PING_SECONDS = 3.0  # to wait for a sign of life of a replica
LOOK_SECONDS = 2.0  # between two looks for one in the middle of a question
ANSWER_SECONDS = 120  # a question and an insert may take that long
TRUSTED_SECONDS = 1.0  # a replica that has answered so lately is asked at once
QUORUM_MS = 20_000  # that an insert waits for all replicas
TURN_SECONDS = 5.0  # to wait for another sink's insert
_OTHERS_TURN = (
    "Code: 286,"  # a table has one insert with a quorum at a time: another sink's is under way
)
QUESTION = 100_000  # bytes of names in one question; the engine takes 262,144 in all
# A question spills to the disk rather than take more memory than this for each of its parts. Rows
# of one key are in one partition, so that partitions need not be compared with each other.
_SPILL_BYTES = 400_000_000
_QUESTION_SETTINGS = {
    "do_not_merge_across_partitions_select_final": 1,
    "max_bytes_before_external_group_by": _SPILL_BYTES,
    "max_bytes_before_external_sort": _SPILL_BYTES,
}
# A device that has measured for ten years sends many months at once; what is inserted is synced,
# never only queued.
_INSERT_SETTINGS = {"max_partitions_per_insert_block": 0, "async_insert": 0}
Row = dict[str, Any]
_Rows = Sequence[Sequence[Any]]
_T = TypeVar("_T")
_P = TypeVar("_P")
_log = logging.getLogger("power_fleet")


class EngineError(FleetError, OSError):
    """No replica of a shard did it; what the last of them said."""


class Connection(Protocol):
    """One replica, as a shard uses it.

    It connects when it is first used, and again after a failure.
    """

    place: str  # its URL without user and password
    dialect: Dialect  # how it is asked

    def ping(self, seconds: float) -> bool:
        """Whether it gives a sign of life within that time.

        Raises one of FAILURES where it refuses us.
        """

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> QueryResult:
        """Ask. Raises one of FAILURES."""

    def command(
        self,
        statement: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> object:
        """Do something that has no rows for an answer. Raises one of FAILURES."""

    def insert(
        self,
        table: str,
        columns: Mapping[str, str],
        values: _Rows,
        settings: Mapping[str, Any],
        column_oriented: bool,
    ) -> None:
        """Insert rows, or columns; `columns` are their names and types. Raises one of FAILURES."""


class Server:
    """A ClickHouse server over HTTP, or `chdb://` in this process, by clickhouse-connect."""

    dialect: Dialect = sql

    def __init__(self, url: str) -> None:
        self.place = re.sub("//.*@", "//", url)
        self._options = _options(url)
        self._client: Client | None = None
        self._connecting = threading.Lock()
        self._failed_at = 0.0  # to connect, by the monotonic clock

    def ping(self, seconds: float) -> bool:
        """Whether it gives a sign of life within that time."""
        try:
            return self._connected().ping(seconds)
        except (OperationalError, *NO_ANSWER) as error:
            if self.place.startswith("chdb://"):
                raise
            _log.debug("%s: %s", self.place, error)
            return False

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> QueryResult:
        """Ask."""
        client = self._connected()
        settings = _allowed(client, _QUESTION_SETTINGS)
        return client.query(sql, dict(parameters or {}), settings=settings)

    def command(
        self,
        statement: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> object:
        """Do something that has no rows for an answer."""
        client = self._connected()
        return client.command(statement, dict(parameters or {}), settings=dict(settings or {}))

    def insert(
        self,
        table: str,
        columns: Mapping[str, str],
        values: _Rows,
        settings: Mapping[str, Any],
        column_oriented: bool,
    ) -> None:
        """Insert rows, or columns."""
        self._connected().insert(
            table,
            values,
            column_names=list(columns),
            column_type_names=list(columns.values()),
            column_oriented=column_oriented,
            settings=dict(settings),
        )

    def _connected(self) -> Client:
        """The client, made when it is first needed: that asks a server a few questions.

        Of many threads that need it at once one tries, and the others do not wait for a server that
        hangs in turn.
        """
        began = time.monotonic()
        with self._connecting:
            if self._client is None:
                if self._failed_at > began:
                    raise OSError(f"{self.place} did not answer a moment ago")
                try:
                    client = self._connect()
                except FAILURES:
                    self._failed_at = time.monotonic()
                    raise
                if isinstance(client, HttpClient):  # those had to be answered sooner
                    client.timeout = Timeout(connect=PING_SECONDS, read=ANSWER_SECONDS)
                self._client = client
            return self._client

    def _connect(self) -> Client:
        try:
            return clickhouse_connect.get_client(**self._options)
        except ClickHouseError as error:
            if not self.place.startswith("chdb://"):
                raise
            raise OSError(
                f"{self.place}: one program at a time may have it open: {error}"
            ) from error


def _options(url: str) -> dict[str, Any]:
    """The options of clickhouse_connect.get_client; raises Refused for a URL that is none."""
    if url.startswith("chdb://"):
        return {"dsn": url}
    parts = address("--clickhouse", url, "http://host:8123 or https://host:8443")
    if parts.scheme == "http" and parts.password and parts.hostname not in LOOPBACKS:
        _warn_of_plain_password(parts.hostname or "")
    return {
        "interface": parts.scheme,
        "host": parts.hostname or "",
        "port": parts.port or (8443 if parts.scheme == "https" else 8123),
        "username": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "database": parts.path.strip("/") or "default",
        "compress": False,
        "connect_timeout": int(PING_SECONDS),
        "send_receive_timeout": int(PING_SECONDS),
        "query_retries": 0,
        "autogenerate_session_id": False,
        "autogenerate_query_id": False,
        "dedicated_pool": True,
    }


@functools.lru_cache(maxsize=1000)
def _warn_of_plain_password(host: str) -> None:
    """Say it once of each host."""
    _log.warning("--clickhouse: the password goes to %s without TLS: name it with https://", host)


def _allowed(client: Client, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that the server knows, and that this user may give.

    One who only reads may give none.
    """
    known = client.server_settings
    return {
        name: value
        for name, value in settings.items()
        if name in known and not known[name].readonly
    }


# What connects to a URL, by its scheme. Another program may add one of its own.
CONNECTIONS: dict[str, Callable[[str], Connection]] = {
    "http": Server,
    "https": Server,
    "chdb": Server,
}


def connect(url: str) -> Connection:
    """A connection to http://[user[:password]@]host[:port][/database], https, or chdb://path.

    Nothing is asked yet.
    """
    make = CONNECTIONS.get(url.partition("://")[0], Server)  # which refuses what it does not know
    return make(url)


class Shard:
    """The replicas of one shard: the one that answered last is asked first.

    A replica that hangs costs some seconds, not the time that a long question may take: each is
    asked for a sign of life first, and every LOOK_SECONDS while it works. A server that works says
    nothing else for as long as it likes.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.clients = [connect(url) for url in urls]
        self._answered_at: dict[str, float] = {}  # by place, by the monotonic clock
        # Every replica named must have an insert before it counts: then each of them can answer
        # alone. Blocks that look the same are inserted all the same, or a retry would not wait for
        # the quorum its first attempt missed.
        self._settings: dict[str, Any] = dict(_INSERT_SETTINGS)
        if len(urls) > 1:
            self._settings |= {
                "insert_quorum": len(urls),
                "insert_quorum_timeout": QUORUM_MS,
                "insert_deduplicate": 0,
            }

    @property
    def replicated(self) -> bool:
        """Whether its tables are replicated."""
        return len(self.clients) > 1

    @property
    def dialect(self) -> Dialect:
        """How its servers are asked: they are of one kind."""
        return self.clients[0].dialect

    def select(self, sql: str, **parameters: Any) -> list[Row]:
        """The rows of an answer, their values by the names of the columns. Raises EngineError."""
        return self._try(lambda client: list(client.query(sql, parameters).named_results()))

    def insert(self, table: str, columns: Mapping[str, str], rows: _Rows) -> None:
        """Insert rows; columns are names and types.

        Returns when all replicas have them. Raises EngineError.
        """
        self._in_turn(lambda client: client.insert(table, columns, rows, self._settings, False))

    def insert_columns(self, table: str, columns: Mapping[str, str], values: _Rows) -> None:
        """Insert values column by column, in the order of `columns`: names and types.

        Returns when all replicas have them. Raises EngineError.
        """
        self._in_turn(lambda client: client.insert(table, columns, values, self._settings, True))

    def insert_from(self, table: str, sql: str, **parameters: Any) -> None:
        """Insert the answer to a question, its columns in the table's order. Raises EngineError."""
        statement = f"INSERT INTO {table} {sql}"
        self._in_turn(lambda client: client.command(statement, parameters, self._settings))

    def change(self, statement: str, **parameters: Any) -> None:
        """Change rows that are there, on all replicas; return when it is done.

        Raises EngineError.
        """
        self._try(lambda client: client.command(statement, parameters, {"mutations_sync": 2}))

    def do(self, statement: str) -> None:
        """Do something on one replica, from which the others have it. Raises EngineError."""
        self._try(lambda client: client.command(statement))

    def everywhere(self, statement: str) -> None:
        """Do something on every replica, which all have to answer. Raises EngineError."""
        for client in self.clients:
            try:
                client.command(statement)
            except FAILURES as error:
                raise EngineError(f"{client.place}: {error}") from error

    def _in_turn(self, insert: Callable[[Connection], object]) -> None:
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

    def _try(self, call: Callable[[Connection], _T]) -> _T:
        error: Exception | None = None
        for client in self.clients:
            try:
                self._check_alive(client)
                answer = self._watched(client, call) if self.replicated else call(client)
            except FAILURES as failure:
                _log.debug("a replica failed: %s", failure)
                error = failure
                self._answered_at.pop(client.place, None)
                self.clients = [*(other for other in self.clients if other is not client), client]
            else:
                self._answered_at[client.place] = time.monotonic()
                return answer
        raise EngineError(str(error)) from error

    def _watched(self, client: Connection, call: Callable[[Connection], _T]) -> _T:
        """What the replica answers; raises OSError where it gives no sign of life meanwhile.

        What waits for one that hangs is left behind, and ends by itself after ANSWER_SECONDS.
        """
        answer = _started(lambda: call(client))
        while not wait([answer], LOOK_SECONDS).done:
            if not client.ping(PING_SECONDS):
                raise OSError(f"{client.place} hangs")
        return answer.result()

    def _check_alive(self, client: Connection) -> None:
        """Raise OSError where a replica gives no sign of life."""
        answered_at = self._answered_at.get(client.place)
        if answered_at is not None and time.monotonic() - answered_at < TRUSTED_SECONDS:
            return
        if not client.ping(PING_SECONDS):
            raise OSError(f"{client.place} gives no sign of life")


class Engine:
    """All shards.

    `urls`: one text for each shard, its replicas separated by commas, always in the same order.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        if not urls:
            raise WrongOptions("--clickhouse: give it once for each shard")
        self.shards = [Shard([url.strip() for url in shard.split(",")]) for shard in urls]

    def shard_of(self, device_id: str) -> int:
        """The number of the shard that holds a device.

        The same for every program that names the shards alike.
        """
        return zlib.crc32(device_id.encode()) % len(self.shards)

    def select(self, sql: str, **parameters: Any) -> list[Row]:
        """The rows of all shards' answers by the names of columns, the first shard's first.

        Raises EngineError.
        """
        answers = at_once(lambda shard: shard.select(sql, **parameters), self.shards)
        return [row for rows in answers for row in rows]


def _started(call: Callable[[], _T]) -> Future[_T]:
    """A call under way, in a thread that the end of the program does not wait for."""
    future: Future[_T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer is waited for
            future.set_exception(error)

    threading.Thread(target=work, name="a question", daemon=True).start()
    return future


def at_once(call: Callable[[_P], _T], places: Sequence[_P]) -> list[_T]:
    """What `call` returns for each of the places, in their order.

    They are asked at the same time.
    """
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


def named_parts(names: Sequence[str], times: int = 1) -> Iterator[Sequence[str]]:
    """The names in parts for one question each, which names them that many times."""
    return parts(names, lambda name: times * (len(repr(name).encode()) + 2))
