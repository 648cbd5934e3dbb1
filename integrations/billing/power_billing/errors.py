"""The one error of this package; parameters raise the library's InvalidValue and NotFound."""


class BillingError(Exception):
    """Billing cannot go on like this; the message says what to do. What was decided so far is kept."""
