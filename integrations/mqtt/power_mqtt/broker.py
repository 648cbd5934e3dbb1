"""The broker: its address, who we are to it, whom we trust; and the options that say so."""

from __future__ import annotations

import argparse
import functools
import ipaddress
import logging
import ssl
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from power_manager import CommandParser, open_secret, parse_duration
from power_mqtt.errors import Misuse, MqttError

BROKER = "POWER_MQTT_BROKER"  # the variable of the environment
PORTS = {"mqtt": 1883, "mqtts": 8883}
PROTOCOLS = ("auto", "5", "3.1.1")
DEFAULT_KEEPALIVE = 30.0  # seconds
_log = logging.getLogger("power_mqtt")


@dataclass(frozen=True)
class Broker:
    """Where the broker is, who we are to it, and whom we trust."""

    host: str
    port: int
    is_tls: bool = False
    user: str | None = None
    password: str | None = None
    ca: Path | None = None  # None: the certificates that this machine trusts
    certificate: Path | None = None
    key: Path | None = None
    client_id: str | None = None
    protocol: str = "auto"  # one of PROTOCOLS
    keepalive: float = DEFAULT_KEEPALIVE  # seconds

    @property
    def url(self) -> str:
        """Its address as messages show it, never with a password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.is_tls else 'mqtt'}://{host}:{self.port}"

    def context(self) -> ssl.SSLContext | None:
        """Whom to trust, and our own certificate; None without TLS. Raises MqttError."""
        if not self.is_tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as error:
            raise MqttError(f"--ca {self.ca}: {said(error)}") from error
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key, _refuse_encrypted)
            except OSError as error:
                named = f"--cert {self.certificate}"
                if self.key is not None:
                    named += f", --key {self.key}"
                raise MqttError(f"{named}: {said(error)}") from error
        return context


def _refuse_encrypted() -> str:
    # Without this OpenSSL would ask at the terminal, and a service has none.
    raise OSError("the key is encrypted: use one without a passphrase, in a file of mode 600")


@dataclass(frozen=True)
class Address:
    """What a broker's URL says."""

    host: str
    port: int
    is_tls: bool
    user: str | None


def parse_broker(text: str) -> Address:
    """A broker's URL for argparse: mqtt://HOST, mqtts://USER@HOST:PORT.

    >>> parse_broker("mqtts://edge-001@broker.example.com")
    Address(host='broker.example.com', port=8883, is_tls=True, user='edge-001')
    """
    try:
        url = urllib.parse.urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}: {text!r}") from None
    if url.password is not None:
        # The error does not show it: it would be in a log next.
        raise argparse.ArgumentTypeError(
            "every user of the machine can read a password in a URL: use --password-file FILE"
        )
    if (
        url.scheme not in PORTS
        or not host
        or url.path not in ("", "/")
        or url.query
        or url.fragment
    ):
        raise argparse.ArgumentTypeError(
            f"expected mqtt://[USER@]HOST[:PORT], or mqtts:// for TLS, got {text!r}"
        )
    user = None if url.username is None else urllib.parse.unquote(url.username)
    return Address(host, port or PORTS[url.scheme], url.scheme == "mqtts", user or None)


def add_broker_options(command: CommandParser) -> None:
    """Add the options that name the broker, to a command that connects to one."""
    add = command.add_argument
    command.add_setting(
        "--broker",
        variable=BROKER,
        metavar="URL",
        type=parse_broker,
        text="the broker: mqtt://HOST[:PORT], or mqtts://HOST[:PORT] for TLS",
    )
    add("--user", metavar="NAME", help="the user's name at the broker; also as mqtts://NAME@HOST")
    add(
        "--password-file",
        metavar="FILE",
        type=Path,
        help="a file whose first line is the password; without TLS it is sent to loopback only",
    )
    add(
        "--ca",
        metavar="FILE",
        type=Path,
        help="trust the certificates in FILE (default: those that this machine trusts)",
    )
    add(
        "--cert",
        metavar="FILE",
        type=Path,
        help="our own certificate (PEM), for brokers that require one",
    )
    add(
        "--key",
        metavar="FILE",
        type=Path,
        help="the key of --cert (default: in the file of --cert)",
    )
    add(
        "--client-id",
        metavar="ID",
        help="the client id (default: one that stays the same for the same file and --name)",
    )
    add(
        "--protocol",
        metavar="VERSION",
        choices=PROTOCOLS,
        default="auto",
        help="the version of MQTT: 5, 3.1.1, or auto, which is 5 and then 3.1.1 if the broker "
        "does not know 5 (default: auto)",
    )
    add(
        "--keepalive",
        metavar="TIME",
        type=functools.partial(parse_duration, above=0),
        default=DEFAULT_KEEPALIVE,
        help="after 1.5 times as long without a sign from us the broker publishes the last will "
        "(default: 30s)",
    )


def broker_of(args: argparse.Namespace) -> Broker:
    """The broker that a command line names. Raises Misuse, MqttError, StorageError, OSError."""
    address: Address | None = args.broker
    if address is None:
        raise Misuse(
            f"--broker: name the broker, such as mqtts://broker.example.com, here or in ${BROKER}"
        )
    if args.user and address.user and args.user != address.user:
        raise Misuse(f"--user {args.user!r}: the URL names another user, {address.user!r}")
    user = args.user or address.user
    password = None if args.password_file is None else _password(args.password_file)
    if password is not None and user is None:
        raise Misuse("--password-file: name the user too, with --user NAME")
    if password is not None and not address.is_tls and not _is_loopback(address.host):
        raise Misuse(
            f"--password-file: without TLS anybody on the way to {address.host!r} could read the "
            "password: use mqtts://"
        )
    tls_options = {"--ca": args.ca, "--cert": args.cert, "--key": args.key}
    for option, value in tls_options.items():
        if value is not None and not address.is_tls:
            raise Misuse(f"{option}: needs TLS: use mqtts://")
    if args.key is not None and args.cert is None:
        raise Misuse("--key: name its certificate too, with --cert FILE")
    if not 1 <= args.keepalive <= 65535:
        raise Misuse(f"--keepalive: expected 1s to 65535s, got {args.keepalive:g} s")
    return Broker(
        address.host,
        address.port,
        address.is_tls,
        user,
        password,
        args.ca,
        args.cert,
        args.key,
        args.client_id,
        args.protocol,
        args.keepalive,
    )


def _password(path: Path) -> str:
    try:
        with open_secret(path, _log.warning) as file:
            password = file.readline().rstrip("\r\n")
    except UnicodeDecodeError:
        raise MqttError(f"--password-file {path}: expected text in UTF-8") from None
    if not password:
        raise MqttError(f"--password-file {path}: its first line is empty")
    return password


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def said(error: BaseException) -> str:
    """The text of an error, without its number."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS failed: {error.reason.lower().replace('_', ' ')}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
