"""What a connection to a broker tells the program, and what the program tells it.

Apart from the connection itself, which needs the package paho-mqtt.
"""

from __future__ import annotations

import queue
from dataclasses import dataclass

from power_manager import StopSignals

# With manual_ack: messages that a broker of MQTT 5 sends before it waits for an acknowledgement.
RECEIVE_WINDOW = 500
WINDOW = 20  # messages that wait for the broker's acknowledgement at a time
END_SECONDS = 2.0  # within that time after a signal the program has ended


@dataclass(frozen=True)
class Up:
    """The broker has greeted; what it still holds of ours is unknown."""

    protocol: str  # "5" or "3.1.1"


@dataclass(frozen=True)
class Down:
    """The connection has ended, or could not be made."""

    reason: str


@dataclass(frozen=True)
class Acknowledged:
    """The broker has acknowledged a message, or refused it for a reason."""

    ticket: Ticket
    refusal: str = ""


Receipt = tuple[int, int]  # of a message that came: the connection's number, and its id there


@dataclass(frozen=True)
class Arrived:
    """A message of a topic that we subscribe to."""

    topic: str
    payload: bytes
    is_retained: bool  # it was published before we subscribed
    receipt: Receipt | None = None  # with manual_ack: what acknowledge() takes, at QoS 1
    is_repeated: bool = False  # the broker has sent it before, and got no acknowledgement


@dataclass(frozen=True)
class Stop:
    """The program is to end, with that exit code."""

    code: int


Ticket = tuple[int, int]  # the number of the connection, and the message's in it
Notice = Up | Down | Acknowledged | Arrived | Stop
Inbox = queue.SimpleQueue  # of Notice


@dataclass(frozen=True)
class Will:
    """What the broker publishes, retained, when it loses the connection."""

    topic: str
    payload: bytes


def stop_signals(inbox: Inbox[Notice]) -> StopSignals:
    """In its block, SIGTERM, SIGHUP and Ctrl-C are a Stop; what takes too long is ended by force.

    The exit loses nothing: the broker publishes the last will, and the cursor stays where it was.
    """
    return StopSignals(lambda code: inbox.put(Stop(code)), hard_end_s=END_SECONDS * 0.9)
