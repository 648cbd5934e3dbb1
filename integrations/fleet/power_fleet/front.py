"""A hub's engine over HTTP: what clients need of ClickHouse's interface, with a password.

The engine itself is chDB in this process. Each request has one of a few connections to it for
itself, and waits where all of them are taken. Whole answers are kept in memory, which a fleet that
needs no cluster has.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hmac
import json
import logging
import os
import queue
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import chdb
import lz4.frame  # type: ignore[import-untyped]  # comes along with clickhouse-connect

from power_fleet.errors import FleetError

USER = "fleet"
CONNECTIONS = 8  # to the engine; an Engine asks as many questions at once
MAX_BODY = 256 * 2**20  # bytes of a request
END_SECONDS = 0.5  # for questions that are under way at the end
IDLE_SECONDS = 300.0  # of a client's connection
_log = logging.getLogger("power_fleet")

# An insert whose rows follow it as bytes of a format: table, columns and settings, and no question
# or values.
_INSERT = re.compile(
    rb"\s*(?P<head>INSERT\s+INTO\s+[\w.`\"]+\s*(?:\([^()]*\))?)(?P<settings>\s*SETTINGS\s[^\n;]*?)?"
    rb"\s*\bFORMAT\s+(?P<format>\w+)[ \t]*\r?\n",
    re.IGNORECASE,
)
_STATE = re.compile(rb"\s*(SET|USE)\b", re.IGNORECASE)
_CODE = re.compile(r"Code: (\d+)\.")
# What clients say to the server about the connection, which is no setting of the engine.
_NO_SETTINGS = frozenset(
    {
        "query", "database", "default_format", "user", "password", "query_id", "session_id",
        "session_timeout", "session_check", "quota_key", "compress", "decompress",
        "enable_http_compression", "wait_end_of_query",
        "buffer_size", "client_protocol_version", "role", "send_progress_in_http_headers",
        "http_headers_progress_interval_ms", "cancel_http_readonly_queries_on_client_close",
    }
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VALUE = "param_"  # what the names of a question's own values begin with


_DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "lz4": lz4.frame.decompress,
    "gzip": gzip.decompress,
}


class BadRequest(FleetError):
    """What a client asks for cannot be done; the message says why."""


class _Connection:
    """A connection to the engine, and the settings that hold on it."""

    def __init__(self, path: str) -> None:
        self._chdb: Any = chdb.connect(path)  # type: ignore[no-untyped-call]
        self._settings: dict[str, str] = {}

    def answer(self, statement: bytes, parameters: Mapping[str, str]) -> bytes:
        """What the engine answers to a statement, with the parameters of its URL.

        Raises BadRequest, chDB's errors.
        """
        if parameters.get("database", "default") not in ("", "default"):
            raise BadRequest(f"a hub has one database, default; got {parameters['database']!r}")
        if not statement.strip():
            raise BadRequest("expected a statement, got none")
        if _STATE.match(statement):
            raise BadRequest("requests do not share a session: settings go into the URL of each")
        self._set(_settings(parameters))
        insert = _INSERT.match(statement)
        if insert:
            self._insert(insert, statement[insert.end() :])
            return b""
        values = {
            name.removeprefix(_VALUE): value
            for name, value in parameters.items()
            if name.startswith(_VALUE)
        }
        default_format = parameters.get("default_format", "TabSeparated")
        result = self._chdb.query(statement.decode(), default_format, params=values)
        return bytes(result.bytes() or b"")

    def _set(self, wanted: Mapping[str, str]) -> None:
        """Have just these settings.

        Clients mostly want those of the last question: then there is nothing to do.
        """
        for name in [*self._settings]:
            if name not in wanted:
                self._chdb.query(f"SET {name} = DEFAULT")
                del self._settings[name]
        for name, value in wanted.items():
            if self._settings.get(name) != value:
                quoted = value.replace("\\", "\\\\").replace("'", "\\'")
                self._chdb.query(f"SET {name} = '{quoted}'")
                self._settings[name] = value

    def _insert(self, insert: re.Match[bytes], rows: bytes) -> None:
        # Not chDB's send_insert(): of an insert that fails at its end, as on a full disk, it says
        # nothing (4.4.0).
        head, settings, format_ = (part.decode() for part in insert.groups(default=b""))
        with _as_file(rows) as path:
            self._chdb.query(f"{head} FROM INFILE '{path}' {settings} FORMAT {format_}")

    def close(self) -> None:
        """Close it."""
        self._chdb.close()


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """The path of a file with that content, which this process can read.

    It is in memory if the system can do that.
    """
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("rows"), "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        yield file.name


def _settings(parameters: Mapping[str, str]) -> dict[str, str]:
    """The engine's settings among the parameters of a URL. Raises BadRequest."""
    found = {}
    for name, value in parameters.items():
        if name in _NO_SETTINGS or name.startswith(_VALUE):
            continue
        if not _NAME.fullmatch(name):
            raise BadRequest(f"expected a setting's name, got {name!r}")
        found[name] = value
    return found


class Connections:
    """A few connections to the engine, of which each caller has one for itself."""

    def __init__(self, path: str, count: int = CONNECTIONS) -> None:
        self._all = [_Connection(path) for _ in range(count)]
        self._free: queue.LifoQueue[_Connection] = queue.LifoQueue()
        for connection in self._all:
            self._free.put(connection)

    @contextlib.contextmanager
    def one(self) -> Iterator[_Connection]:
        """A connection; waits where all are taken."""
        connection = self._free.get()
        try:
            yield connection
        finally:
            self._free.put(connection)

    def close(self, seconds: float) -> None:
        """Close them, each when it is free.

        Those that are still in use after that time stay open.
        """
        deadline = time.monotonic() + seconds
        with contextlib.suppress(queue.Empty):
            for _ in self._all:
                self._free.get(timeout=max(deadline - time.monotonic(), 0.01)).close()


class _Handler(BaseHTTPRequestHandler):
    """One client's connection."""

    protocol_version = "HTTP/1.1"
    server_version = "power-fleet"
    timeout = IDLE_SECONDS
    server: Front

    def setup(self) -> None:
        super().setup()
        # An answer is two small writes, and the second one must not wait for the client to confirm
        # the first.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_GET(self) -> None:
        """A question in the URL, or /ping."""
        if urlsplit(self.path).path == "/ping":
            self._send(200, b"Ok.\n")
        else:
            self._answer(b"")

    def do_POST(self) -> None:
        """A statement in the body, or in the URL with data in the body."""
        try:
            body = self._plain(self._body())
        except BadRequest as error:
            self.close_connection = True  # a part of the body may still be on its way
            self._send(400, f"{error}\n".encode())
            return
        self._answer(body)

    def _answer(self, body: bytes) -> None:
        parameters = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        if not self._is_known(parameters):
            error = "Code: 516. DB::Exception: Authentication failed. (AUTHENTICATION_FAILED)\n"
            self._send(403, error.encode(), {"X-ClickHouse-Exception-Code": "516"})
            return
        parts = [part for part in (parameters.get("query", "").encode(), body) if part]
        try:
            with self.server.connections.one() as connection:
                rows = connection.answer(b"\n".join(parts), parameters)
        except BadRequest as error:
            self._send(501, f"Code: 48. DB::Exception: {error} (NOT_IMPLEMENTED)\n".encode())
        except (
            RuntimeError,
            ValueError,
            UnicodeDecodeError,
        ) as error:  # chDB's own are RuntimeErrors
            text = str(error)
            code = _CODE.search(text)
            self._send(
                500, f"{text}\n".encode(), {"X-ClickHouse-Exception-Code": code[1] if code else "0"}
            )
        else:
            self._send(
                200, rows, {"X-ClickHouse-Summary": json.dumps({}), "X-ClickHouse-Timezone": "UTC"}
            )

    def _is_known(self, parameters: Mapping[str, str]) -> bool:
        """Whether the client has said the password, in one of the three ways that there are."""
        user = self.headers.get("X-ClickHouse-User") or parameters.get("user", "")
        password = self.headers.get("X-ClickHouse-Key") or parameters.get("password", "")
        scheme, _, encoded = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic":
            with contextlib.suppress(ValueError):
                user, _, password = base64.b64decode(encoded).decode().partition(":")
        right = f"{USER}:{self.server.password}".encode()
        return hmac.compare_digest(f"{user}:{password}".encode(), right)

    def _body(self) -> bytes:
        """The whole body. Raises BadRequest where it is too long."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return b"".join(self._chunks())
        length = _length(self.headers.get("Content-Length") or "0", 10)
        if length > MAX_BODY:
            raise BadRequest(f"a request may have {MAX_BODY} bytes, this one has {length}")
        return self.rfile.read(length)

    def _plain(self, body: bytes) -> bytes:
        """The body without its compression.

        Raises BadRequest where that is none that is known, or broken.
        """
        encoding = self.headers.get("Content-Encoding", "identity").lower()
        if encoding == "identity":
            return body
        if encoding not in _DECOMPRESS:
            raise BadRequest(
                f"expected a body as it is, or as {' or '.join(_DECOMPRESS)}, got {encoding!r}"
            )
        try:
            return _DECOMPRESS[encoding](body)
        except (RuntimeError, OSError, EOFError) as error:
            raise BadRequest(f"the body is no {encoding}: {error}") from error

    def _chunks(self) -> Iterator[bytes]:
        total = 0
        while True:
            size = _length(self.rfile.readline(100).decode("latin-1").partition(";")[0], 16)
            total += size
            if total > MAX_BODY:
                raise BadRequest(f"a request may have {MAX_BODY} bytes")
            chunk = self.rfile.read(size)
            self.rfile.readline(100)
            if not size:
                return
            yield chunk

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Say nothing: questions may hold what only the asker should see."""


def _length(text: str, base: int) -> int:
    """Text as a number of bytes. Raises BadRequest."""
    digits = text.strip()
    try:
        if digits.isalnum():  # neither a sign nor 1_000
            return int(digits, base)
    except ValueError:
        pass
    raise BadRequest(f"expected a number of bytes, got {text!r}")


class Front(ThreadingHTTPServer):
    """The engine at `url`, on a loopback port (0: any free one), from start() to stop()."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, path: str, password: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.password = password
        self.connections = Connections(path)
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, name="engine", daemon=True
        )

    @property
    def url(self) -> str:
        """What --clickhouse takes; it holds the password."""
        return f"http://{USER}:{self.password}@127.0.0.1:{self.server_port}"

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests."""
        self.shutdown()
        self.server_close()
        self.connections.close(END_SECONDS)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is no error of ours."""
        _log.debug("a client of the engine: %s", client_address, exc_info=True)
