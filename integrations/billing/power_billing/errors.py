"""The root of this package's errors. For bad parameters it raises the library's own.

Those are InvalidValue and NotFound; all derive from the library's PowerManagerError.
"""

from power_manager import PowerManagerError


class BillingError(PowerManagerError):
    """Billing cannot continue; the message says what to do. What was decided so far is kept."""


class CannotSayNow(BillingError):
    """The biller could say what it has for an hour, but does not do so now."""
