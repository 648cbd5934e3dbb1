"""The errors of this package."""

from __future__ import annotations

from power_manager import PowerManagerError


class MqttError(PowerManagerError):
    """The base of every error this package raises on purpose; by itself: the program cannot go on.

    The command line prints its text and exits with 1.
    """


class Misuse(MqttError):
    """Options that contradict each other, or lack one another; the text names them.

    The command line prints its text with the usage and exits with 2.
    """
