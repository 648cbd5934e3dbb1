"""Where messages arrive: a real HTTP and a real mail server on loopback, on free ports."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import json
import socket
import threading
from dataclasses import dataclass
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session

PATIENCE_S = 60.0  # that a test waits for what will come; it goes on as soon as it has
# Apprise's own limits of an answer are four seconds, in which a busy machine does nothing.
_LIMITS = f"cto={PATIENCE_S:g}&rto={PATIENCE_S * 4:g}"


@dataclass(frozen=True)
class Post:
    """One message that came by HTTP, whether json:// or ntfy:// sent it."""

    path: str
    title: str
    text: str
    severity: str


class HttpEnd:
    """Keeps posts. `status` is what it answers; `hold` keeps answers back until it is set.

    Its port is its own from the beginning to the end, also while it does not listen.
    """

    def __init__(self) -> None:
        self.posts: list[Post] = []
        self.status = 200
        self._reserved = socket.socket()
        # So that a server that sets it too may listen there; nobody else is given the port.
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port: int = self._reserved.getsockname()[1]
        self.hold = threading.Event()
        self.hold.set()
        self.requested = threading.Event()
        self.arrived = threading.Condition()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """As json:// sends to it."""
        return f"json://127.0.0.1:{self.port}/hook?{_LIMITS}"

    @property
    def ntfy_url(self) -> str:
        """As ntfy:// sends to it."""
        return f"ntfy://127.0.0.1:{self.port}/power-topic?{_LIMITS}"

    @property
    def titles(self) -> list[str]:
        """Of all posts so far."""
        return [post.title for post in self.posts]

    def start(self) -> None:
        """Listen, each time on the same port."""
        end = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with contextlib.suppress(ConnectionError):  # who sends may have been killed
                    self.answer()

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                end.requested.set()
                end.hold.wait(PATIENCE_S * 2)
                if end.status == 200:
                    end.keep(_post_of(self.path, json.loads(body)))
                self.send_response(end.status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_arguments: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def keep(self, post: Post) -> None:
        """Keep a post, and wake who waits for one."""
        with self.arrived:
            self.posts.append(post)
            self.arrived.notify_all()

    def wait_for(self, count: int) -> None:
        """Wait until so many posts are there."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.posts) >= count, PATIENCE_S), self.titles

    def wait_for_request(self) -> None:
        """Wait until a request has come, whether it was answered or not."""
        assert self.requested.wait(PATIENCE_S)

    def __enter__(self) -> HttpEnd:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.hold.set()
        self.stop()
        self._reserved.close()


def _post_of(path: str, body: dict[str, Any]) -> Post:
    severity = body.get("type", "")
    return Post(path, body["title"], body["message"], severity)


class MailEnd:
    """Keeps mails; `reply` refuses them where it is not empty."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.reply = ""

    @property
    def url(self) -> str:
        """As mailto:// sends to it."""
        return (
            f"mailto://127.0.0.1:{self.port}?from=gate@example.org&to=me@example.org&mode=insecure"
        )

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        """Take one mail; aiosmtpd calls it."""
        if self.reply:
            return self.reply
        content = envelope.content
        assert isinstance(content, bytes)
        mail = email.message_from_bytes(content, policy=email.policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 taken"

    def __enter__(self) -> MailEnd:
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._is_ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(PATIENCE_S)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        server = await self._loop.create_server(self._connect, "127.0.0.1", 0)
        self.port: int = server.sockets[0].getsockname()[1]
        self._is_ready.set()
        await self._end.wait()
        server.close()

    def _connect(self) -> SMTP:
        return SMTP(self, loop=self._loop)
