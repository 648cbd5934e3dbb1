"""A connection to a broker that reconnects by itself.

One thread connects, reads and writes until the connection ends, and connects again, each time with
a new client. It puts what happens into `inbox` as notices, so the program itself needs one thread
and no locks. No message is queued here while the broker is away: publish() then returns None, and
the caller knows what is still to be sent.
"""

from __future__ import annotations

import contextlib
import logging
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from power_mqtt.broker import Broker, said
from power_mqtt.notices import (
    END_SECONDS,
    RECEIVE_WINDOW,
    WINDOW,
    Acknowledged,
    Arrived,
    Down,
    Inbox,
    Notice,
    Receipt,
    Ticket,
    Up,
    Will,
)

_CONNECT_SECONDS = 10.0  # for the broker to greet
_FIRST_DELAY, _LAST_DELAY = 1.0, 30.0  # seconds between attempts
_IDLE_SECONDS = 1.0  # paho checks its pings that often
_SHORT_SECONDS, _SHORT_LIVES = 5.0, 3  # a connection lost so soon, so often in a row, has a reason
_SAY_AGAIN = 3600.0  # seconds after which the same problem is logged again
_log = logging.getLogger("power_mqtt")


class Connection:
    """A connection that reconnects by itself; a context manager.

    `client_id`: by it the broker tells clients apart, unless the command line gives one. It is the
    same after a restart: so the broker publishes the last will of the earlier process first.
    `filters` are subscribed to at QoS 1 each time; what comes is an Arrived in `inbox`, or goes to
    `on_message` in the network's thread. `session_seconds`: how long the broker is to keep messages
    for us while we are away (0: not at all). `manual_ack`: acknowledge() acknowledges messages.
    """

    def __init__(
        self,
        broker: Broker,
        inbox: Inbox[Notice],
        *,
        client_id: str,
        will: Will | None = None,
        filters: Sequence[str] = (),
        on_message: Callable[[Arrived], None] | None = None,
        session_seconds: int = 0,
        manual_ack: bool = False,
        says_what_it_hears: bool = False,
    ) -> None:
        self._broker = broker
        self._manual_ack = manual_ack
        self._says_what_it_hears = says_what_it_hears
        self._context = broker.context()
        self._client_id = broker.client_id or client_id
        self._inbox = inbox
        self._will = will
        self._filters = list(filters)
        self._on_message = on_message or inbox.put
        self._session_seconds = session_seconds
        self._protocols = ["5", "3.1.1"] if broker.protocol == "auto" else [broker.protocol]
        self._window = WINDOW
        self._number = 0
        self._session: _Session | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power-mqtt", daemon=True)
        self._said: dict[str, float] = {}  # problems that were logged, and when
        self._short_lives = 0  # connections in a row that were lost soon after the greeting
        self._refused: dict[str, str] = {}  # filters that the broker refused last, and why

    def __enter__(self) -> Connection:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ending.set()
        self.drop("the program ends")
        self._thread.join(END_SECONDS / 10)  # not longer: it may be looking up the broker's name

    def is_up(self) -> bool:
        """Whether the broker has greeted, and the connection is not known to have ended."""
        session = self._session
        return session is not None and session.is_up.is_set() and not session.is_over.is_set()

    def publish(self, topic: str, payload: bytes, retain: bool) -> Ticket | None:
        """Send a message at QoS 1; return its ticket, or None without a connection.

        An Acknowledged in `inbox` will have the ticket.
        """
        session = self._session
        if session is None or not self.is_up():
            return None
        return session.publish(topic, payload, retain)

    def acknowledge(self, receipt: Receipt) -> None:
        """Let the broker forget a message that came; does nothing if its connection has ended.

        With manual_ack the broker keeps every other message for `session_seconds`, and sends it
        again. Acknowledge in the order in which messages came.
        """
        session = self._session
        if session is not None:
            session.acknowledge(receipt)

    def listen(self, filters: Sequence[str]) -> None:
        """Subscribe to these filters from the next connection on."""
        self._filters = list(filters)

    def drop(self, reason: str) -> None:
        """Cut the connection and make a new one; the broker publishes the last will."""
        session = self._session
        if session is not None:
            session.cut(reason)

    def say_goodbye(self, seconds: float) -> None:
        """Disconnect, within so many seconds, so that no last will is published."""
        self._ending.set()
        session = self._session
        if session is not None:
            session.say_goodbye()
            session.is_over.wait(seconds)

    # --- The thread that connects

    def _run(self) -> None:
        delay = 0.0
        protocol = 0  # an index of self._protocols
        while not self._ending.is_set():
            self._number += 1
            session = _Session(self, self._number, self._protocols[protocol])
            was_up = session.live()
            self._session = None
            if self._ending.is_set():
                return
            if session.is_unsupported and len(self._protocols) > 1:
                self._protocols = self._protocols[1:]  # the broker said so: do not try again
                protocol = 0
                continue
            if session.is_narrow:
                continue
            if was_up and session.was_short():
                self._short_lives += 1
            elif was_up:
                self._short_lives = 0
                self._said.clear()
            if was_up and self._short_lives >= _SHORT_LIVES and not session.has_given_reason:
                # Some brokers give no reason, and two clients of one id disconnect each other for
                # ever.
                session.reason += (
                    f", again and again: the broker may not allow what we publish, or "
                    f"{self._twin_hint()}"
                )
            self._say(session.reason)
            self._inbox.put(Down(session.reason))
            # A broker that hangs up at the greeting may not know the version, or may be ending.
            hung_up = session.is_connected and not was_up and not session.is_refused
            protocol = (protocol + 1) % len(self._protocols) if hung_up else 0
            delay = _FIRST_DELAY if was_up else min(max(delay * 2, _FIRST_DELAY), _LAST_DELAY)
            # Thousands of devices lose a broker together, and must not all reconnect together.
            self._ending.wait(delay * random.uniform(0.5, 1.0))

    def _twin_hint(self) -> str:
        return (
            f"another program may use the client id {self._client_id!r} (give one of the two "
            "another --client-id, or --name)"
        )

    def _say(self, reason: str) -> None:
        """Log a problem once, and again after a while."""
        now = time.monotonic()
        if reason not in self._said or now - self._said[reason] >= _SAY_AGAIN:
            _log.warning("%s: %s; trying again", self._broker.url, reason)
            self._said[reason] = now

    def _say_up(self, protocol: str) -> None:
        """Log that the broker is there, unless it comes and goes all the time."""
        if self._short_lives < _SHORT_LIVES:
            _log.info("%s: connected, MQTT %s", self._broker.url, protocol)

    def _say_answer(self, name: str, refusal: str) -> None:
        """Log what the broker says to a filter; the same refusal once."""
        if refusal:
            if self._refused.get(name) != refusal:
                _log.error("%s: cannot subscribe to %s: %s", self._broker.url, name, refusal)
            self._refused[name] = refusal
            return
        self._refused.pop(name, None)
        if self._says_what_it_hears and self._short_lives < _SHORT_LIVES:
            _log.info("%s: listening to %s", self._broker.url, name)


class _Session:
    """One connection from its start to its end, with a client of its own."""

    def __init__(self, owner: Connection, number: int, protocol: str) -> None:
        self._owner = owner
        self._number = number
        self._protocol = protocol
        self.is_connected = False  # there was a TCP connection
        self.is_up = threading.Event()  # the broker has greeted
        self.is_over = threading.Event()
        self.is_refused = False  # it has refused us
        self.is_unsupported = False  # it has refused this version of MQTT
        self.is_narrow = False  # the broker takes fewer messages at a time than we would send
        self.reason = ""  # why it ended
        self.has_given_reason = False  # the broker has said why
        self._up_at = 0.0
        self._is_cut = False
        self._filters: list[str] = []  # what was asked for
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._client = self._make_client()

    def _make_client(self) -> paho.Client:
        owner, broker = self._owner, self._owner._broker
        is_five = self._protocol == "5"
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=owner._client_id,
            clean_session=None if is_five else owner._session_seconds == 0,
            protocol=MQTTProtocolVersion.MQTTv5 if is_five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=owner._manual_ack,
        )
        if broker.user is not None:
            client.username_pw_set(broker.user, broker.password)
        if owner._context is not None:
            client.tls_set_context(owner._context)
        if owner._will is not None:
            client.will_set(owner._will.topic, owner._will.payload, qos=1, retain=True)
        client.connect_timeout = _CONNECT_SECONDS / 2
        client.max_inflight_messages_set(owner._window)
        client.on_socket_register_write = self._wake
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    def live(self) -> bool:
        """Connect, and return when the connection has ended: whether the broker had greeted."""
        owner, broker = self._owner, self._owner._broker
        owner._session = self
        try:
            self._client.connect(broker.host, broker.port, **self._connect_options())
            self.is_connected = True
            self._exchange()
        except (OSError, ValueError) as error:
            self.reason = f"cannot connect: {said(error)}"
        except Exception as error:  # noqa: BLE001 - paho has met bytes that are not MQTT
            _log.debug("paho failed", exc_info=error)
            self.reason = f"the broker sent what is not MQTT: {said(error)}"
        finally:
            self.is_over.set()
            sock = self._client.socket()
            if isinstance(sock, socket.socket):  # the connection was cut, or paho failed
                sock.close()
            self._waker.close()
            self._woken.close()
        return self.is_up.is_set()

    def _exchange(self) -> None:
        """Read and write until the connection has ended.

        Paho's own thread for this would end without an error message if paho fails.
        """
        client = self._client
        greeting_until = time.monotonic() + _CONNECT_SECONDS
        while not self._is_cut and (sock := client.socket()) is not None:
            writers = [sock] if client.want_write() else []
            is_pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
            seconds = 0.0 if is_pending else _IDLE_SECONDS
            readable, writable, _ = select.select([sock, self._woken], writers, [], seconds)
            if self._woken in readable:
                self._woken.recv(1000)
            if sock in readable or is_pending:
                client.loop_read()
            if writable or client.want_write():
                client.loop_write()
            client.loop_misc()
            if not self.is_up.is_set() and time.monotonic() >= greeting_until:
                self.cut("the broker does not answer")

    def _wake(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # full: it is awake; closed: it has ended
            self._waker.send(b"x")

    def _connect_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"keepalive": round(self._owner._broker.keepalive)}
        if self._protocol == "5":
            seconds = self._owner._session_seconds
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = seconds
            if self._owner._manual_ack:
                properties.ReceiveMaximum = RECEIVE_WINDOW
            options |= {"clean_start": seconds == 0, "properties": properties}
        return options

    def publish(self, topic: str, payload: bytes, retain: bool) -> Ticket | None:
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return None
        return (self._number, info.mid)

    def acknowledge(self, receipt: Receipt) -> None:
        number, mid = receipt
        if number == self._number and not self.is_over.is_set():
            self._client.ack(mid, 1)

    def was_short(self) -> bool:
        """Whether it was lost soon after the greeting."""
        return time.monotonic() - self._up_at < _SHORT_SECONDS

    def cut(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._is_cut = True
        self._wake()

    def say_goodbye(self) -> None:
        self._client.disconnect()

    # --- Callbacks, in the thread of the connection

    def _on_connect(
        self, client: paho.Client, userdata: object, flags: Any, reason_code: Any, properties: Any
    ) -> None:
        if reason_code.is_failure:
            self.is_refused = True
            self.is_unsupported = reason_code.getName() == "Unsupported protocol version"
            self.reason = f"the broker refuses us: {reason_code}"
            return
        most = getattr(properties, "ReceiveMaximum", WINDOW)
        if most < self._owner._window:
            # Paho keeps to what was set before it connected, and does not look at this.
            self._owner._window = most
            self.is_narrow = True
            client.disconnect()
            return
        if self._owner._filters:
            self._subscribe(client)
        self._owner._say_up(self._protocol)
        self._up_at = time.monotonic()
        self.is_up.set()
        self._owner._inbox.put(Up(self._protocol))

    def _subscribe(self, client: paho.Client) -> None:
        filters = self._filters = self._owner._filters
        if self._protocol == "5":
            client.subscribe([(name, SubscribeOptions(qos=1)) for name in filters])
        else:
            client.subscribe([(name, 1) for name in filters])

    def _on_disconnect(
        self, client: paho.Client, userdata: object, flags: Any, reason_code: Any, properties: Any
    ) -> None:
        if not self.reason and flags.is_disconnect_packet_from_server:
            self.has_given_reason = True
            self.reason = f"the broker has ended the connection: {reason_code}"
            if reason_code.getName() == "Session taken over":
                self.reason += f": {self._owner._twin_hint()}"
        elif not self.reason:
            self.reason = "the connection was lost"
        self.is_over.set()

    def _on_publish(
        self, client: paho.Client, userdata: object, mid: int, reason_code: Any, properties: Any
    ) -> None:
        refusal = str(reason_code) if reason_code.is_failure else ""
        self._owner._inbox.put(Acknowledged((self._number, mid), refusal))

    def _on_subscribe(
        self, client: paho.Client, userdata: object, mid: int, reason_codes: Any, properties: Any
    ) -> None:
        for name, reason_code in zip(self._filters, reason_codes):
            self._owner._say_answer(name, str(reason_code) if reason_code.is_failure else "")

    def _on_message(self, client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        try:
            needs_acknowledging = self._owner._manual_ack and message.qos == 1
            receipt = (self._number, message.mid) if needs_acknowledging else None
            arrived = Arrived(
                message.topic, bytes(message.payload), message.retain, receipt, message.dup
            )
            self._owner._on_message(arrived)
        except Exception:  # noqa: BLE001 - a bad message must not end the connection
            _log.exception("a message could not be taken in")
