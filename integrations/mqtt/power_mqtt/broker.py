"""Where the broker is, who we are to it, whom we trust, and what the command line says of all that."""

from __future__ import annotations

import argparse
import functools
import ipaddress
import logging
import os
import ssl
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from power_manager import CommandParser, parse_duration
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
    ca: Path | None = None  # None: the certificates that this machine trusts anyway
    certificate: Path | None = None
    key: Path | None = None
    client_id: str | None = None
    protocol: str = "auto"  # one of PROTOCOLS
    keepalive: float = DEFAULT_KEEPALIVE  # seconds

    @property
    def url(self) -> str:
        """How it is called in messages; never with a password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.is_tls else 'mqtt'}://{host}:{self.port}"

    def context(self) -> ssl.SSLContext | None:
        """Whom to trust and what to show; None without TLS. Raises MqttError."""
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
    raise OSError(
        "the key is encrypted: give one without a passphrase, in a file for its owner only"
    )


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
        # Not shown: it would be in the log next.
        raise argparse.ArgumentTypeError(
            "a password in a URL can be read by every user of the machine: use --password-file FILE"
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
    """Add the options that say where the broker is, to a command that talks to one."""
    add = command.add_argument
    from_environment = os.environ.get(BROKER) or None
    add("--broker", metavar="URL", default=from_environment, type=parse_broker,
        help=f"mqtt://HOST, or mqtts://HOST for TLS (default: ${BROKER})")  # fmt: skip
    add("--user", metavar="NAME", help="who we are to the broker; also as mqtts://NAME@HOST")
    add(
        "--password-file",
        metavar="FILE",
        type=Path,
        help="a file with the password in its first line",
    )
    add("--ca", metavar="FILE", type=Path,
        help="trust the certificates in FILE (default: those that this machine trusts)")  # fmt: skip
    add("--cert", metavar="FILE", type=Path, help="our own certificate, PEM")
    add("--key", metavar="FILE", type=Path, help="its key (default: it is in the file of --cert)")
    add("--client-id", metavar="ID", help="our client id (default: one that stays the same)")
    add("--protocol", metavar="VERSION", choices=PROTOCOLS, default="auto",
        help="of MQTT: 5, 3.1.1, or auto: 5 where the broker has it (default)")  # fmt: skip
    add("--keepalive", metavar="TIME", type=functools.partial(parse_duration, above=0),
        default=DEFAULT_KEEPALIVE,
        help="the broker takes us for gone after 1.5 times that silence (default: 30s)")  # fmt: skip


def broker_of(args: argparse.Namespace) -> Broker:
    """The broker that a command line names. Raises Misuse, MqttError, OSError."""
    address: Address | None = args.broker
    if address is None:
        raise Misuse(
            f"--broker: name the broker, as in mqtts://broker.example.com, here or in ${BROKER}"
        )
    if args.user and address.user and args.user != address.user:
        raise Misuse(f"--user {args.user!r}: the URL has another one, {address.user!r}")
    user = args.user or address.user
    password = None if args.password_file is None else _password(args.password_file)
    if password is not None and user is None:
        raise Misuse("--password-file: name the user too, with --user NAME")
    if password is not None and not address.is_tls and not _is_loopback(address.host):
        raise Misuse(
            f"a password goes to {address.host!r} with TLS only, for anybody on the way could read it: "
            "use mqtts://"
        )
    tls_options = {"--ca": args.ca, "--cert": args.cert, "--key": args.key}
    for option, value in tls_options.items():
        if value is not None and not address.is_tls:
            raise Misuse(f"{option}: only with mqtts://")
    if args.key is not None and args.cert is None:
        raise Misuse("--key: name the certificate too, with --cert FILE")
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
        with open(path, encoding="utf-8") as file:
            password = file.readline().rstrip("\r\n")
            mode = os.fstat(file.fileno()).st_mode
    except UnicodeDecodeError:
        raise MqttError(f"--password-file {path}: expected text in UTF-8") from None
    if not password:
        raise MqttError(f"--password-file {path}: its first line is empty")
    if mode & 0o007:
        _log.warning("%s: every user of this machine can read it: chmod 600", path)
    return password


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def said(error: BaseException) -> str:
    """What an error says, without its number."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS failed: {error.reason.lower().replace('_', ' ')}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
