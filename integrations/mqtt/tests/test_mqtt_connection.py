"""The connection on a real mosquitto, and on brokers that are old, narrow, silent or no brokers at
all.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import queue
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from certificates import Authority
from mosquitto import PATIENCE, Listener, Mosquitto, number_of, reserved_port
from power_mqtt import connection as module
from power_mqtt import notices
from power_mqtt.broker import Broker, broker_of, parse_broker
from power_mqtt.cli import _parser
from power_mqtt.connection import Connection
from power_mqtt.errors import Misuse, MqttError
from power_mqtt.notices import (
    Acknowledged,
    Arrived,
    Down,
    Inbox,
    Notice,
    Stop,
    Up,
    Will,
    stop_signals,
)

from power_manager import StorageError


def broker_from(*words: str) -> Broker:
    """The broker that a command line names."""
    return broker_of(_parser().parse_args(["publish", *words]))


def until(inbox: Inbox[Notice], kind: type[Notice]) -> Notice:
    """The next notice of that kind; the test fails if it does not come."""
    end = time.monotonic() + PATIENCE
    while True:
        notice = inbox.get(timeout=max(end - time.monotonic(), 0.01))
        if isinstance(notice, kind):
            return notice


@contextlib.contextmanager
def connected(broker: Broker, **options: object) -> Iterator[tuple[Connection, Inbox[Notice]]]:
    """A connection and its notices."""
    inbox: Inbox[Notice] = queue.SimpleQueue()
    with Connection(broker, inbox, **{"client_id": "test", **options}) as made:  # type: ignore[arg-type]
        yield made, inbox
    made._thread.join(PATIENCE)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection comes back at once, and however slow the machine is, its life was short."""
    monkeypatch.setattr(module, "_FIRST_DELAY", 0.01)
    monkeypatch.setattr(module, "_LAST_DELAY", 0.02)
    monkeypatch.setattr(module, "_SHORT_SECONDS", 3600.0)


# --- Where the broker is


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mqtt://broker", ("broker", 1883, False, None)),
        ("mqtt://Broker.example.com:1884/", ("broker.example.com", 1884, False, None)),
        ("mqtts://broker", ("broker", 8883, True, None)),
        ("mqtts://edge%2F1@broker", ("broker", 8883, True, "edge/1")),
        ("mqtt://[::1]:1883", ("::1", 1883, False, None)),
    ],
)
def test_a_url_says_where_the_broker_is(text: str, expected: tuple[object, ...]) -> None:
    """And who we are, but never a password."""
    address = parse_broker(text)
    assert (address.host, address.port, address.is_tls, address.user) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "broker",
        "http://broker",
        "mqtt://",
        "mqtt://broker:x",
        "mqtt://broker:99999",
        "mqtt://broker/topic",
        "mqtt://broker?x=1",
    ],
)
def test_a_url_that_names_no_broker_is_refused(text: str) -> None:
    """The message shows it."""
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        parse_broker(text)
    assert repr(text) in str(caught.value)


def test_a_password_in_a_url_is_refused_and_not_shown() -> None:
    """The command line is everybody's to read."""
    with pytest.raises(argparse.ArgumentTypeError, match="--password-file") as caught:
        parse_broker("mqtts://edge:secret@broker")
    assert "secret" not in str(caught.value)


@pytest.fixture
def password(tmp_path: Path) -> Path:
    """A file with a password."""
    path = tmp_path / "password"
    path.write_text("geheim ü\n", encoding="utf-8")
    path.chmod(0o600)
    return path


def test_user_and_password_come_from_options_and_a_file(password: Path) -> None:
    """Its first line without the end."""
    broker = broker_from("--broker", "mqtts://edge@host", "--password-file", str(password))
    assert (broker.user, broker.password) == ("edge", "geheim ü")
    assert "geheim" not in broker.url


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_a_password_goes_to_loopback_without_tls(password: Path, host: str) -> None:
    """Nobody is on that way."""
    assert broker_from("--broker", f"mqtt://a@{host}", "--password-file", str(password)).password


@pytest.mark.parametrize("host", ["broker", "192.168.1.2", "localhost.example.com", "[fe80::1]"])
def test_a_password_goes_nowhere_else_without_tls(password: Path, host: str) -> None:
    """Whatever the name looks like."""
    with pytest.raises(Misuse, match="without TLS anybody"):
        broker_from("--broker", f"mqtt://a@{host}", "--password-file", str(password))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "--broker: name the broker"),
        (["--broker", "mqtts://a@b", "--user", "c"], "--user 'c'"),
        (["--broker", "mqtt://b", "--ca", "x"], "--ca: needs TLS: use mqtts"),
        (["--broker", "mqtt://b", "--cert", "x"], "--cert: needs TLS: use mqtts"),
        (["--broker", "mqtts://b", "--key", "x"], "--key: name its certificate"),
        (["--broker", "mqtts://b", "--keepalive", "20h"], "--keepalive: expected 1s to 65535s"),
    ],
)
def test_options_at_odds_are_refused(
    words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by its name."""
    monkeypatch.delenv("POWER_MQTT_BROKER", raising=False)
    with pytest.raises(Misuse, match=expected):
        broker_from(*words)


def test_a_password_without_a_user_is_refused(password: Path) -> None:
    """MQTT 3.1.1 has no such thing."""
    with pytest.raises(Misuse, match="--user NAME"):
        broker_from("--broker", "mqtts://b", "--password-file", str(password))


def test_the_broker_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the database can."""
    monkeypatch.setenv("POWER_MQTT_BROKER", "mqtt://there:1234")
    assert broker_from().url == "mqtt://there:1234"


def test_a_password_that_everybody_can_read_is_used_with_a_warning(
    password: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A word about it, in the log."""
    password.chmod(0o644)
    broker_from("--broker", "mqtts://a@b", "--password-file", str(password))
    assert "every user of this machine can read it" in caplog.text


def test_a_password_that_everybody_can_change_is_refused(password: Path) -> None:
    """Who can write it would choose what goes to the broker."""
    password.chmod(0o602)
    with pytest.raises(StorageError, match="every user of this machine can write it"):
        broker_from("--broker", "mqtts://a@b", "--password-file", str(password))


def test_an_empty_password_is_refused(password: Path) -> None:
    """The file was not written yet."""
    password.write_text("\n")
    with pytest.raises(MqttError, match="its first line is empty"):
        broker_from("--broker", "mqtts://a@b", "--password-file", str(password))


def test_a_password_that_is_no_text_is_refused(password: Path) -> None:
    """Some other file was named."""
    password.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MqttError, match="expected text in UTF-8"):
        broker_from("--broker", "mqtts://a@b", "--password-file", str(password))


def test_a_key_with_a_passphrase_is_refused_and_not_asked_for(tmp_path: Path) -> None:
    """A service has no terminal at which it could be typed."""
    certificate, key = Authority(tmp_path).sign("edge-001")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked],
        check=True, capture_output=True,
    )  # fmt: skip
    words = ["--broker", "mqtts://b", "--cert", str(certificate), "--key", str(locked)]
    with pytest.raises(MqttError, match="the key is encrypted"):
        broker_from(*words).context()


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """By option and file, before anything is connected."""
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    for option, path in itertools.product(["--ca", "--cert"], [wrong, tmp_path / "none"]):
        broker = broker_from("--broker", "mqtts://b", option, str(path))
        with pytest.raises(MqttError, match=f"{option} {path}"):
            broker.context()


# --- On a real broker


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_messages_are_acknowledged_by_their_tickets(broker: Mosquitto, protocol: str) -> None:
    """In both versions of MQTT."""
    to = Broker("127.0.0.1", broker.port, protocol=protocol)
    with Listener(broker, "a/#") as listener, connected(to) as (made, inbox):
        assert until(inbox, Up) == Up(protocol)
        tickets = {made.publish(f"a/{number}", b"%d" % number, False) for number in range(100)}
        assert None not in tickets
        acknowledged = {until(inbox, Acknowledged).ticket for _ in tickets}  # type: ignore[union-attr]
        assert acknowledged == tickets
        listener.wait(lambda: len(listener.messages) == 100)


def test_what_arrives_says_whether_it_is_old_news(broker: Mosquitto) -> None:
    """A retained message was there before."""
    with Listener(broker) as other:
        other.publish("a/old", b"1", retain=True)
        with connected(Broker("127.0.0.1", broker.port), filters=["a/#"]) as (_, inbox):
            assert until(inbox, Arrived) == Arrived("a/old", b"1", True)
            other.publish("a/new", b"2")
            assert until(inbox, Arrived) == Arrived("a/new", b"2", False)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_session_that_is_kept_gets_what_came_meanwhile(broker: Mosquitto, protocol: str) -> None:
    """With session_seconds the broker keeps it; without, what came is gone."""
    to = Broker("127.0.0.1", broker.port, protocol=protocol)
    with Listener(broker) as other:
        for seconds, expected in ((3600, b"missed"), (0, b"here")):
            options = {
                "filters": ["a/#"],
                "session_seconds": seconds,
                "client_id": f"kept {seconds}",
            }
            other.publish("a/first", b"first", retain=True)
            with connected(to, **options) as (made, inbox):
                until(inbox, Arrived)
                made.say_goodbye(PATIENCE)
            other.publish("a/first", b"", retain=True)
            other.publish("a", b"missed")
            with connected(to, **options) as (made, inbox):
                until(inbox, Up)
                other.publish("a/first", b"here", retain=True)
                arrived = until(inbox, Arrived)
                while isinstance(arrived, Arrived) and not arrived.payload:
                    arrived = until(inbox, Arrived)  # that the first one was cleared
                assert isinstance(arrived, Arrived)
                assert arrived.payload == expected


def test_a_message_that_cannot_be_taken_in_does_not_end_the_connection(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and the next one comes."""
    taken: queue.SimpleQueue[Arrived] = queue.SimpleQueue()

    def take(arrived: Arrived) -> None:
        if arrived.payload == b"bad":
            raise ValueError("no good")
        taken.put(arrived)

    options = {"filters": ["a"], "on_message": take}
    with Listener(broker) as other:
        other.publish("a", b"first", retain=True)
        with connected(Broker("127.0.0.1", broker.port), **options):
            assert taken.get(timeout=PATIENCE).payload == b"first"
            other.publish("a", b"bad")
            other.publish("a", b"good")
            assert taken.get(timeout=PATIENCE).payload == b"good"
    assert "a message could not be taken in" in caplog.text


def test_a_connection_comes_back_when_the_broker_does(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """Meanwhile nothing is taken, and the trouble is said once."""
    with connected(Broker("127.0.0.1", broker.port)) as (made, inbox):
        until(inbox, Up)
        broker.kill()
        until(inbox, Down)
        assert made.publish("a", b"1", False) is None
        for _ in range(5):
            until(inbox, Down)
        broker.start()
        until(inbox, Up)
        assert made.publish("a", b"1", False) is not None
    assert sum("Connection refused" in record.getMessage() for record in caplog.records) == 1


def test_a_connection_that_comes_and_goes_is_not_said_each_time(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """A week of it would fill the disk; what has been said is said again after an hour."""
    caplog.set_level("INFO", "power_mqtt")
    with connected(Broker("127.0.0.1", broker.port)) as (made, inbox):
        for _ in range(20):
            until(inbox, Up)
            made.drop("test")
            until(inbox, Down)
    assert len(caplog.records) <= 6


def test_the_last_will_is_published_when_the_connection_is_cut(broker: Mosquitto) -> None:
    """And not after a goodbye."""
    will = Will("there", b"offline")
    with Listener(broker, "there") as listener:
        with connected(Broker("127.0.0.1", broker.port), will=will) as (made, inbox):
            until(inbox, Up)
            made.say_goodbye(PATIENCE)
        with connected(Broker("127.0.0.1", broker.port), will=will) as (made, inbox):
            until(inbox, Up)
            assert listener.messages == []
        listener.wait(lambda: listener.messages == [("there", b"offline")])


def test_another_program_with_the_same_client_id_is_named_as_the_trouble(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """Two that throw each other out would never find out why."""
    with connected(Broker("127.0.0.1", broker.port), client_id="twin") as (_, inbox):
        until(inbox, Up)
        with Listener(broker, client_id="twin"):
            reasons = [str(until(inbox, Down)) for _ in range(3)]
        assert "another program may use the client id 'twin'" in reasons[-1]
        # Some versions of mosquitto say at once why they end the connection.
        assert "twin" not in reasons[0] or "Session taken over" in reasons[0]


def test_a_broker_that_says_that_the_session_was_taken_over_is_quoted() -> None:
    """At the first time: it need not happen again and again."""

    def take_over(sock: socket.socket, greeting: bytes) -> None:
        sock.sendall(bytes([0x20, 3, 0, 0, 0]))
        # With a reason string: paho-mqtt 2.1 reads the code of a longer packet alone.
        sock.sendall(bytes([0xE0, 8, 0x8E, 6, 0x1F, 0, 3]) + b"bye")
        sock.shutdown(socket.SHUT_WR)

    with (
        Impostor(take_over) as other,
        connected(Broker("127.0.0.1", other.port), client_id="twin") as (_, inbox),
    ):
        notice = until(inbox, Down)
        assert isinstance(notice, Down)
        assert notice.reason.startswith(
            "the broker has ended the connection: Session taken over: another program may use the "
            "client id 'twin'"
        )


def test_a_broker_that_wants_fewer_messages_at_a_time_gets_fewer(tmp_path: Path) -> None:
    """MQTT 5 says how many, and ends the connection of whoever sends more."""
    settings = ["allow_anonymous true", "max_inflight_messages 3"]
    with Mosquitto(tmp_path / "narrow", settings=settings) as narrow:
        with connected(Broker("127.0.0.1", narrow.port)) as (made, inbox):
            until(inbox, Up)
            tickets = {made.publish("a", b"%d" % number, False) for number in range(50)}
            assert {until(inbox, Acknowledged).ticket for _ in tickets} == tickets  # type: ignore[union-attr]
        assert made._window == 3


def test_a_wrong_password_is_said_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker whose users are set up later lets us in then."""
    with Mosquitto(tmp_path / "closed", settings=["allow_anonymous false"]) as closed:
        to = Broker("127.0.0.1", closed.port, user="a", password="b")
        with connected(to) as (_, inbox):
            notice = until(inbox, Down)
            assert isinstance(notice, Down)
            assert notice.reason == "the broker refuses us: Not authorized"
            until(inbox, Down)
    assert caplog.text.count("Not authorized") == 1


# --- On others


class Impostor:
    """Something that listens on a port and answers the first bytes of each connection in its own
    way.
    """

    def __init__(self, answer: Callable[[socket.socket, bytes], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._answer = answer
        self._sockets: list[socket.socket] = []
        self.greetings: list[bytes] = []

    def __enter__(self) -> Impostor:
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(sock)
            with contextlib.suppress(OSError):  # who has connected may be gone already
                greeting = sock.recv(1000)
                if greeting:
                    self.greetings.append(greeting)
                    self._answer(sock, greeting)

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._listener.close()
        for sock in self._sockets:
            sock.close()


def version_of(greeting: bytes) -> int:
    """The version of MQTT that a CONNECT asks for: 4 is 3.1.1."""
    return greeting[greeting.index(b"MQTT") + 4]


def refuse_five(sock: socket.socket, greeting: bytes) -> None:
    """A broker of 3.1.1 that says what it does not know, as its standard has it."""
    code = 1 if version_of(greeting) == 5 else 0
    sock.sendall(bytes([0x20, 2, 0, code]))
    if code:
        sock.close()


def refuse_five_by_its_own_code(sock: socket.socket, greeting: bytes) -> None:
    """One that knows how 5 says it."""
    if version_of(greeting) == 5:
        sock.sendall(bytes([0x20, 3, 0, 0x84, 0]))
        sock.close()
    else:
        sock.sendall(bytes([0x20, 2, 0, 0]))


def hang_up_on_five(sock: socket.socket, greeting: bytes) -> None:
    """One that says nothing."""
    if version_of(greeting) == 5:
        sock.close()
    else:
        sock.sendall(bytes([0x20, 2, 0, 0]))


@pytest.mark.parametrize("answer", [refuse_five, refuse_five_by_its_own_code, hang_up_on_five])
def test_an_old_broker_is_spoken_to_in_3_1_1(
    answer: Callable[[socket.socket, bytes], None],
) -> None:
    """Whichever way it says that it does not know 5."""
    with Impostor(answer) as old, connected(Broker("127.0.0.1", old.port)) as (_, inbox):
        assert until(inbox, Up) == Up("3.1.1")
        assert [version_of(greeting) for greeting in old.greetings] == [5, 4]


def test_a_version_that_was_asked_for_is_the_only_one(tmp_path: Path) -> None:
    """`--protocol 5` does not fall back."""
    broker = Broker("127.0.0.1", 0, protocol="5")
    with Impostor(refuse_five) as old:
        broker = Broker("127.0.0.1", old.port, protocol="5")
        with connected(broker) as (_, inbox):
            for _ in range(3):
                notice = until(inbox, Down)
                assert notice == Down("the broker refuses us: Unsupported protocol version")
        assert {version_of(greeting) for greeting in old.greetings} == {5}


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x20\x02\x00",
        b"\x20\x7f" + b"\xff" * 127,
        b"\x00" * 50,
        b"\xff" * 50,
    ],
)
def test_what_is_no_broker_is_a_trouble_and_not_the_end(answer: bytes) -> None:
    """The thread of the connection lives on, and says that it cannot connect."""

    def serve(sock: socket.socket, greeting: bytes) -> None:
        sock.sendall(answer)
        sock.close()

    with Impostor(serve) as other, connected(Broker("127.0.0.1", other.port)) as (made, inbox):
        for _ in range(3):
            until(inbox, Down)
        assert not made.is_up()


def test_a_broker_that_does_not_greet_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, which is short here."""
    monkeypatch.setattr(module, "_CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(module, "_IDLE_SECONDS", 0.05)
    with (
        Impostor(lambda sock, greeting: None) as mute,
        connected(Broker("127.0.0.1", mute.port)) as (_, inbox),
    ):
        assert until(inbox, Down) == Down("the broker does not answer")


def test_a_name_that_nobody_has_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """It may have one tomorrow."""
    with connected(Broker("no-such-broker.invalid", 1883)) as (_, inbox):
        notice = until(inbox, Down)
        assert isinstance(notice, Down)
        assert notice.reason.startswith("cannot connect: ")


def test_plain_mqtt_to_a_port_of_nothing_is_refused_in_words() -> None:
    """The reason is the system's."""
    with (
        reserved_port() as port,
        connected(Broker("127.0.0.1", number_of(port))) as (_, inbox),
    ):
        assert until(inbox, Down) == Down("cannot connect: Connection refused")


def refuse_filters(sock: socket.socket, greeting: bytes) -> None:
    """A broker of 3.1.1 that allows no subscription, and then hangs up."""
    sock.sendall(bytes([0x20, 2, 0, 0]))
    subscribe = sock.recv(1000)
    if subscribe:
        sock.sendall(bytes([0x90, 3, subscribe[2], subscribe[3], 0x80]))
        sock.shutdown(socket.SHUT_WR)


def test_a_filter_that_is_refused_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """And not at every connection: there may be hundreds of both."""
    with (
        Impostor(refuse_filters) as strict,
        connected(Broker("127.0.0.1", strict.port, protocol="3.1.1"), filters=["a/#"]) as (
            _,
            inbox,
        ),
    ):
        for _ in range(10):
            until(inbox, Down)
    assert caplog.text.count("cannot subscribe to a/#: ") == 1


def test_what_is_heard_is_not_said_each_time_if_the_connection_comes_and_goes(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """As the connection itself."""
    caplog.set_level("INFO", "power_mqtt")
    options = {"filters": ["a/#"], "says_what_it_hears": True}
    with Listener(broker) as other:
        other.publish("a/there", b"1", retain=True)
        with connected(Broker("127.0.0.1", broker.port), **options) as (made, inbox):
            for _ in range(10):
                until(inbox, Arrived)  # after the answer to the filter
                made.drop("test")
                until(inbox, Down)
    assert caplog.text.count("listening to a/#") == 3


# --- Signals


def test_the_end_by_force_comes_within_the_time_that_is_promised() -> None:
    """What is left of the two seconds is for the end of the process."""
    hard_end_s = stop_signals(queue.SimpleQueue())._hard_end_s
    assert hard_end_s is not None
    assert 1.5 < hard_end_s < notices.END_SECONDS == 2.0


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 0)]
)
def test_a_signal_is_a_stop_with_the_code_of_its_kind(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is told from a supervisor's SIGTERM."""
    monkeypatch.setattr(notices, "END_SECONDS", 100.0)  # not the end of the tests
    inbox: Inbox[Notice] = queue.SimpleQueue()
    with stop_signals(inbox):
        os.kill(os.getpid(), number)
        assert inbox.get(timeout=PATIENCE) == Stop(code)


def test_an_mqtt_string_is_what_the_impostors_take_it_for() -> None:
    """The helper of these tests reads a CONNECT as the standard has it."""
    packet = b"\x10\x0c" + struct.pack("!H", 4) + b"MQTT" + bytes([5])
    assert version_of(packet) == 5
