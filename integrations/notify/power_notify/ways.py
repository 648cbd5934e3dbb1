"""Ways to people: a URL that Apprise knows, and one message at a time."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import threading
import urllib.parse
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import apprise

from power_manager import open_secret, printable
from power_notify.errors import NotifyError
from power_notify.texts import CRITICAL, GOOD, INFO, WARNING, Message

FIRST_RETRY_S = 5.0
LAST_RETRY_S = 600.0
_NOTIFY_TYPES = {
    CRITICAL: apprise.NotifyType.FAILURE,
    WARNING: apprise.NotifyType.WARNING,
    GOOD: apprise.NotifyType.SUCCESS,
    INFO: apprise.NotifyType.INFO,
}
# Their log lines may have parts of a URL: `Way` says what is wrong instead.
_OTHERS_LOGGERS = ("apprise", "urllib3", "requests")
_log = logging.getLogger("power_notify")


class WayError(NotifyError):
    """A URL, or a file of URLs, cannot be used."""


@dataclass
class _Sending:
    """A message that is being sent, and its outcome."""

    message: Message
    problem: str = ""
    has_ended: threading.Event = field(default_factory=threading.Event)


class Way:
    """One URL, and the message that is being sent to it.

    `label` is its number and scheme, as in "2 ntfy". Nothing else of it is ever shown, as any part
    of a URL may be a token. `key` names it in the file.
    """

    def __init__(self, number: int, url: str) -> None:
        scheme = url.partition("://")[0]
        self.label = f"{number} {printable(scheme)[:20] if '://' in url else '?'}"
        # Slow on purpose: the file must not help to guess a password.
        digest = hashlib.pbkdf2_hmac("sha256", url.encode(), b"power-notify", 50_000)
        self.key = digest.hex()[:16]
        self._url = url
        self._sending: _Sending | None = None
        self.started_s = 0.0  # when the message was started, by the steady clock
        self.failure_count = 0
        self.due_s = 0.0  # the earliest time of the next message, by the steady clock
        _hush_others()
        with _Listener() as heard, warnings.catch_warnings():
            # The first one imports all of Apprise's services, some of which use deprecated modules.
            warnings.simplefilter("ignore", DeprecationWarning)
            service = self._open()
        if service is None:
            why = self._scrubbed(heard.text) or "no service has such URLs"
            raise WayError(
                f"way {self.label}: Apprise refuses this URL: {why}; "
                "`apprise --details` lists the URLs that it knows"
            )
        self.target_count = len(service)

    @property
    def is_busy(self) -> bool:
        """Whether a message is being sent, or its outcome is not noted yet."""
        return self._sending is not None

    def start(self, message: Message, ring: Callable[[], None], now_s: float = 0.0) -> None:
        """Start to send a message in a thread; ring() is called when it has ended."""
        sending = _Sending(message)
        self._sending = sending
        self.started_s = now_s
        # A daemon: a server that does not answer must not keep the program from ending.
        threading.Thread(target=self._run, args=(sending, ring), daemon=True).start()

    def outcome(self, wait_s: float = 0.0) -> tuple[Message, str] | None:
        """The message and what went wrong ("": nothing), once; None while it is being sent."""
        sending = self._sending
        if sending is None or not sending.has_ended.wait(wait_s):
            return None
        self._sending = None
        return sending.message, sending.problem

    def give_up(self) -> Message | None:
        """Stop waiting for the message, and return it; if it arrives after all, it comes twice."""
        sending, self._sending = self._sending, None
        return None if sending is None else sending.message

    def send(self, message: Message) -> str:
        """Send a message; return what went wrong, or "" if it was taken."""
        with _Listener() as heard:
            try:
                service = self._open()
                is_taken = service is not None and service.notify(
                    body=message.text,
                    title=message.title,
                    notify_type=_NOTIFY_TYPES[message.severity],
                    body_format=apprise.NotifyFormat.TEXT,
                )
            except Exception as error:  # noqa: BLE001 - its services raise anything
                return self._scrubbed(f"{type(error).__name__}: {error}")
        if is_taken:
            return ""
        return self._scrubbed(heard.text) or "it was not taken, without a reason"

    def delay_s(self) -> float:
        """Seconds to wait after so many failures in a row: doubled each time, to LAST_RETRY_S."""
        return float(min(FIRST_RETRY_S * 2 ** min(self.failure_count - 1, 20), LAST_RETRY_S))

    def _run(self, sending: _Sending, ring: Callable[[], None]) -> None:
        sending.problem = self.send(sending.message)
        sending.has_ended.set()
        ring()

    def _open(self) -> apprise.NotifyBase | None:
        """A new service for each message: Apprise sleeps between two messages of one object."""
        asset = apprise.AppriseAsset(
            app_id="power-notify",
            app_desc="power-notify",
            storage_mode="memory",
            allow_templates=False,
            secure_logging=True,
        )
        return apprise.Apprise.instantiate(self._url, asset=asset)

    def _scrubbed(self, text: str) -> str:
        """The text on one line, without any part of the URL except its scheme."""
        text = printable(" ".join(text.split()))
        rest = self._url.partition("://")[2] or self._url
        pieces = set(re.split(r"[/:@?&=#,;%+]+", rest))
        pieces |= {urllib.parse.unquote(piece) for piece in pieces}
        pieces |= set(re.split(r"[/:@?&=#,;]+", urllib.parse.unquote(rest)))
        for piece in sorted(pieces, key=len, reverse=True):
            if len(piece) >= 4:  # shorter ones are ports and words
                text = text.replace(piece, "***")
        return text[:300]


class _Listener(logging.Handler):
    """Collects what Apprise logs in this thread, from warnings on, while it is entered."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._thread_id = threading.get_ident()
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """All that was collected."""
        return "; ".join(dict.fromkeys(self._texts))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's text."""
        if record.thread == self._thread_id:
            with contextlib.suppress(Exception):  # the record's text and values may not match
                self._texts.append(record.getMessage())

    def __enter__(self) -> _Listener:
        logging.getLogger("apprise").addHandler(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        logging.getLogger("apprise").removeHandler(self)


def _hush_others() -> None:
    for name in _OTHERS_LOGGERS:
        logger = logging.getLogger(name)
        logger.propagate = False
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())


def read_urls(path: str) -> list[str]:
    """The URLs of a file, one a line; empty lines and lines that begin with # are left out.

    Raises WayError if it has no URL, StorageError if every user of the machine can write it.
    """
    try:
        with open_secret(path, _log.warning) as file:
            lines = [line.strip() for line in file]
    except UnicodeDecodeError:
        raise WayError(f"{printable(path)}: expected a URL a line, in UTF-8") from None
    urls = [line for line in lines if line and not line.startswith("#")]
    if not urls:
        raise WayError(f"{printable(path)}: expected a URL a line, got none")
    return urls


def open_ways(urls: Iterable[str], paths: Sequence[str] = ()) -> list[Way]:
    """The ways of all URLs, first `urls`, then those in files, numbered so. Raises WayError."""
    every = list(urls)
    for path in paths:
        every += read_urls(path)
    ways = [Way(number, url) for number, url in enumerate(every, 1)]
    by_key: dict[str, Way] = {}
    for way in ways:
        if way.key in by_key:
            raise WayError(f"way {way.label}: the same URL as way {by_key[way.key].label}")
        by_key[way.key] = way
        if way.target_count > 1:
            _log.warning(
                "way %s has %d recipients: if one fails, all are told again: give each its own URL",
                way.label,
                way.target_count,
            )
    return ways
