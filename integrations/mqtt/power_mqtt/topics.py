"""The topics under a prefix.

    PREFIX/DEVICE/availability      online or offline
    PREFIX/DEVICE/totals            what the device as a whole uses now
    PREFIX/DEVICE/energy            counters of what it and its meters have used
    PREFIX/DEVICE/event             what happened to it
    PREFIX/DEVICE/METER/state       what a meter measures now
    PREFIX/bridge/NAME/availability online or offline

An id is one level of a topic. What MQTT reserves, what a person cannot see and the percent sign are
percent-encoded: two ids never give the same level.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

BRIDGE = "bridge"  # no device's id gives this level
_KEPT = frozenset("-_.:@~,;=!()'*&<>[]{}|^`?\"\\")  # beside letters and digits, of ASCII
_PLAIN = re.compile("[A-Za-z0-9_.:-]*")  # which stays as it is
_MAX_PREFIX = 200  # characters


def level(device_or_meter_id: str) -> str:
    """The id as one level of a topic.

    >>> level("edge-001"), level("Büro 2"), level("a/b+#"), level("100%")
    ('edge-001', 'Büro%202', 'a%2Fb%2B%23', '100%25')
    """
    if device_or_meter_id == BRIDGE:
        return f"%{ord(BRIDGE[0]):02X}{BRIDGE[1:]}"
    if _PLAIN.fullmatch(device_or_meter_id):  # as most are, and each message needs some
        return device_or_meter_id
    return "".join(map(_encoded, device_or_meter_id))


def _encoded(character: str) -> str:
    if _is_kept(character):
        return character
    return "".join(f"%{byte:02X}" for byte in character.encode())


def _is_kept(character: str) -> bool:
    if character.isascii():
        return character.isalnum() or character in _KEPT
    return not _is_unwanted(ord(character))


def _is_unwanted(code: int) -> bool:
    """Whether a broker may refuse a topic with that character, or a person cannot see it.

    By code points, because Python's tables of letters, and so the topic, change with its version.
    """
    if code <= 0xA0:  # the C1 controls and the no-break space
        return True
    if code in (0x2028, 0x2029):  # ends of lines
        return True
    if 0xD800 <= code <= 0xDFFF:  # halves of a pair: no UTF-8 has them
        return True
    return 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE  # not characters


def parse_prefix(text: str) -> str:
    """A prefix of topics, one or more levels, for argparse; one slash at its end is dropped.

    >>> parse_prefix("power/"), parse_prefix("site/a/power")
    ('power', 'site/a/power')
    """
    prefix = text.removesuffix("/")
    levels = prefix.split("/")
    if (
        not all(levels)
        or len(prefix) > _MAX_PREFIX
        or prefix.startswith("$")
        or not all(_is_kept(character) for character in prefix if character not in "/ %$")
    ):
        raise argparse.ArgumentTypeError(
            f"expected levels of a topic such as power or site/power, none empty or with + or #, "
            f"got {text!r}"
        )
    return prefix


@dataclass(frozen=True)
class Topics:
    """The topics of one bridge. `name` is the bridge's own."""

    prefix: str
    name: str

    def bridge(self) -> str:
        """The topic of the bridge's `online` or `offline`."""
        return f"{self.prefix}/{BRIDGE}/{level(self.name)}/availability"

    def availability(self, device_id: str) -> str:
        """The topic of a device's `online` or `offline`."""
        return self.of_device(device_id, "availability")

    def totals(self, device_id: str) -> str:
        """The topic of a device's totals."""
        return self.of_device(device_id, "totals")

    def energy(self, device_id: str) -> str:
        """The topic of a device's energy counters."""
        return self.of_device(device_id, "energy")

    def event(self, device_id: str) -> str:
        """The topic of a device's events."""
        return self.of_device(device_id, "event")

    def state(self, device_id: str, meter_id: str) -> str:
        """The topic of a meter's present state."""
        return self.of_meter(device_id, meter_id, "state")

    def of_device(self, device_id: str, what: str) -> str:
        """Any topic of a device."""
        return f"{self.prefix}/{level(device_id)}/{what}"

    def of_meter(self, device_id: str, meter_id: str, what: str) -> str:
        """Any topic of a meter."""
        return f"{self.prefix}/{level(device_id)}/{level(meter_id)}/{what}"
