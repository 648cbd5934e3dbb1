"""The root of the service's errors."""

from __future__ import annotations

from power_manager import PowerManagerError


class ServiceError(PowerManagerError):
    """The base of every error that this package raises on purpose."""
