"""What things are called in NATS: the streams, the consumer, and each device's subject."""

from __future__ import annotations

from urllib.parse import quote, unquote

STREAM = "POWER_FLEET"
SUBJECT = "power.fleet."  # then the device's id
CONSUMER = "sink"
DEAD_STREAM = "POWER_FLEET_DEAD"
DEAD_SUBJECT = "power.dead."  # then a secret, then the device's id


def token(device_id: str) -> str:
    """The device's id as one token of a subject.

    >>> token("edge 1.a")
    'edge%201%2Ea'
    """
    return quote(device_id, safe="").replace(".", "%2E")


def device_of(subject: str) -> str:
    """The id of the device whose subject that is."""
    return unquote(subject.removeprefix(SUBJECT))
