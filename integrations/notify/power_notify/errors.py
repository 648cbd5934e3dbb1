"""The root of this package's errors."""

from __future__ import annotations

from power_manager import PowerManagerError


class NotifyError(PowerManagerError):
    """The base of every error that this package raises on purpose."""
