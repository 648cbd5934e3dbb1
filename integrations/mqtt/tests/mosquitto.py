"""A real mosquitto for one test, on a port of loopback that is kept for it."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

PATIENCE = 60.0  # seconds that a test waits for what will come; it goes on as soon as it has


def reserved_port() -> socket.socket:
    """A socket that keeps a port of 127.0.0.1 for whoever asks for it by its number.

    It does not listen: until a server does, connections to the port are refused. Nobody else is
    given the port, neither to listen nor for a connection of his own, until the socket is closed.
    """
    sock = socket.socket()
    # A server that sets it too may listen there.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    return sock


def number_of(port: socket.socket) -> int:
    """The number of a reserved port."""
    number: int = port.getsockname()[1]
    return number


class Mosquitto:
    """A broker; a context manager that starts and ends it. `start`, `kill` and `stop` in between.

    Who does not use it as one calls `close` at the end.

    `settings`: lines of its configuration besides the listener (default: anybody may do anything).
    `listener`: lines of the listener, such as its certificates. It forgets everything when it ends.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: Sequence[str] = ("allow_anonymous true",),
        listener: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self._reserved = reserved_port()
        self.port = number_of(self._reserved)
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"listener {self.port} 127.0.0.1", *listener, *settings]
        # As root it would become the user mosquitto, who cannot read the folder of a test.
        lines += ["user root", "log_type all", "max_queued_messages 0", "set_tcp_nodelay true"]
        self._configuration = folder / "mosquitto.conf"
        self._configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._log = folder / "mosquitto.log"

    @property
    def url(self) -> str:
        """Its URL without TLS."""
        return f"mqtt://127.0.0.1:{self.port}"

    def __enter__(self) -> Mosquitto:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill it, and give its port away."""
        self.kill()
        self._reserved.close()

    def start(self) -> None:
        """Start it, and return when it listens."""
        program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/bin")
        assert program is not None, "the tests need mosquitto: apt-get install mosquitto"
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [program, "-c", str(self._configuration)], stdout=log, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self._process.poll() is None, self.log()
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.01)
        raise AssertionError(self.log())

    def stop(self) -> None:
        """End it in peace: it says goodbye to its clients, and saves what it is to keep."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def kill(self) -> None:
        """End it at once, as kill -9 does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Have it do nothing, as on a machine that hangs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wait_for(self, text: str, *, after: str) -> None:
        """Return when it has logged that after something else; the test fails if it does not."""
        end = time.monotonic() + PATIENCE
        while text not in self.log().partition(after)[2]:
            assert time.monotonic() < end, self.log()
            time.sleep(0.01)

    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text(encoding="utf-8", errors="replace")


class Listener:
    """A client that keeps what comes; a context manager. `publish` sends something of its own.

    At QoS 0 it says nothing to the broker, and so reads to its end what a killed one had sent.
    """

    def __init__(
        self,
        broker: Mosquitto,
        *filters: str,
        user: str | None = None,
        password: str | None = None,
        client_id: str = "",
        ca: Path | None = None,
        qos: int = 1,
    ) -> None:
        self._broker = broker
        self._qos = qos
        self._filters = filters
        self.messages: list[tuple[str, bytes]] = []
        self.subscriptions = 0  # one a connection
        self._news = threading.Condition(threading.RLock())
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
        )
        self._client.reconnect_delay_set(0.1, 0.1)  # type: ignore[arg-type]  # seconds
        if ca is not None:
            self._client.tls_set(str(ca))
        if user is not None:
            self._client.username_pw_set(user, password)
        self._is_subscribed = threading.Event()
        self._client.on_connect = self._subscribe
        self._client.on_subscribe = self._note_subscription
        self._client.on_message = self._take

    def _subscribe(self, client: paho.Client, *_: object) -> None:
        if self._filters:
            client.subscribe([(name, SubscribeOptions(qos=self._qos)) for name in self._filters])
        else:
            self._is_subscribed.set()

    def _note_subscription(self, *_: object) -> None:
        self._is_subscribed.set()
        with self._news:
            self.subscriptions += 1
            self._news.notify_all()

    def _take(self, client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        with self._news:
            self.messages.append((message.topic, bytes(message.payload)))
            self._news.notify_all()

    def __enter__(self) -> Listener:
        self._client.connect("127.0.0.1", self._broker.port)
        self._client.loop_start()
        assert self._is_subscribed.wait(PATIENCE), self._broker.log()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        # Paho closes the sockets by which it wakes its thread when the client is collected, and the
        # collector may come to the sockets first.
        self._client._reset_sockets()

    def of(self, topic: str) -> list[bytes]:
        """The payloads that have come on a topic."""
        with self._news:
            return [payload for one, payload in self.messages if one == topic]

    def latest(self) -> dict[str, bytes]:
        """The last payload of each topic."""
        with self._news:
            return dict(self.messages)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish something, and return when the broker has it."""
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(PATIENCE)

    def wait(self, until: Callable[[], object]) -> None:
        """Return when that is true of what has come."""
        with self._news:
            if not self._news.wait_for(until, PATIENCE):
                shown = "\n".join(f"{topic} {payload!r}" for topic, payload in self.messages[-8:])
                raise AssertionError(
                    f"it did not come; what came:\n{shown}\n{self._broker.log()[-3000:]}"
                )
