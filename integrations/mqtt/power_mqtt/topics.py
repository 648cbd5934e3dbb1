"""The topics under a prefix: which device, which meter, and what is said of it.

    PREFIX/DEVICE/availability      online or offline
    PREFIX/DEVICE/totals            what the device as a whole uses
    PREFIX/DEVICE/energy            what it and its meters have used, ever
    PREFIX/DEVICE/event             what happened to it
    PREFIX/DEVICE/METER/state       what a meter measures now
    PREFIX/bridge/NAME/availability whether the bridge is there

An id is one level of a topic. What MQTT reserves, or what is not a letter that a person sees, is
percent-encoded, and so is the percent sign: two ids never have the same level.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

BRIDGE = "bridge"  # a level that no device's id becomes
_KEPT = frozenset("-_.:@~,;=!()'*&<>[]{}|^`?\"\\")  # beside letters and digits, of ASCII
_MAX_PREFIX = 200  # characters


def level(device_or_meter_id: str) -> str:
    """The id as one level of a topic.

    >>> level("edge-001"), level("Büro 2"), level("a/b+#"), level("100%")
    ('edge-001', 'Büro%202', 'a%2Fb%2B%23', '100%25')
    """
    if device_or_meter_id == BRIDGE:
        return f"%{ord(BRIDGE[0]):02X}{BRIDGE[1:]}"
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
    """Whether a broker may refuse a topic with that character, or a person could not see it.

    By code points, not by Python's tables of letters: a topic must not change with Python's version.
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
            f"expected levels of a topic as in power or site/power, without + # and empty ones, got {text!r}"
        )
    return prefix


@dataclass(frozen=True)
class Topics:
    """The topics of one bridge. `name` is the bridge's own."""

    prefix: str
    name: str

    def bridge(self) -> str:
        """Where the bridge says whether it is there."""
        return f"{self.prefix}/{BRIDGE}/{level(self.name)}/availability"

    def availability(self, device_id: str) -> str:
        """Where a device's `online` or `offline` is."""
        return self.of_device(device_id, "availability")

    def totals(self, device_id: str) -> str:
        """Where a device's totals are."""
        return self.of_device(device_id, "totals")

    def energy(self, device_id: str) -> str:
        """Where a device's counters of energy are."""
        return self.of_device(device_id, "energy")

    def event(self, device_id: str) -> str:
        """Where a device's events come."""
        return self.of_device(device_id, "event")

    def state(self, device_id: str, meter_id: str) -> str:
        """Where a meter's present state is."""
        return self.of_meter(device_id, meter_id, "state")

    def of_device(self, device_id: str, what: str) -> str:
        """Any topic of a device."""
        return f"{self.prefix}/{level(device_id)}/{what}"

    def of_meter(self, device_id: str, meter_id: str, what: str) -> str:
        """Any topic of a meter."""
        return f"{self.prefix}/{level(device_id)}/{level(meter_id)}/{what}"
