"""The root of the package's errors, and the two that a command line ends with.

Every other error stands in the module that raises it.
"""

from __future__ import annotations

from power_manager import PowerManagerError


class FleetError(PowerManagerError):
    """The base of every error that this package raises on purpose.

    The library's own errors (NotFound, InvalidValue, StorageError) are raised as they are; all of
    them are PowerManagerErrors.
    """


class Refused(FleetError):
    """It does not start like this, and would not the next time; the message says what to do."""


class WrongOptions(Refused):
    """Options that do not go together, or values that are none; the message begins with one."""
