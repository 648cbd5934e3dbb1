"""What goes wrong on purpose, and whose fault it is."""

from __future__ import annotations


class MqttError(Exception):
    """The program cannot go on; its text says why. The exit code is 1."""


class Misuse(Exception):
    """Options that make no sense together; the text names them. The exit code is 2."""
