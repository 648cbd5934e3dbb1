"""Secrets: from the environment or a file, checked for placeholders, shown nowhere."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from power_billing.errors import BillingError
from power_manager import StorageError, open_secret

API_KEY = "STRIPE_API_KEY"
API_URL = "POWER_BILLING_STRIPE_URL"  # another address of Stripe's API, for tests
WEBHOOK_SECRET = "STRIPE_WEBHOOK_SECRET"
_SHAPES = {  # what Stripe's look like, and how to say so
    API_KEY: (r"(sk|rk)_(live|test)_[A-Za-z0-9]{16,}", "sk_live_, rk_live_, sk_test_ or rk_test_"),
    WEBHOOK_SECRET: (r"whsec_[A-Za-z0-9+/=]{16,}", "whsec_"),
}
_log = logging.getLogger("power_billing")
_PLACEHOLDER = re.compile(
    r"x{6}|(your|insert).?(key|secret)|change.?me|replace|placeholder|example|1234567|abcdefg|(.)\3{7}",
    re.IGNORECASE,
)


class Secret:
    """A text that repr, str and a traceback's locals do not show; only `reveal()` returns it."""

    __slots__ = ("_name", "_text")

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text

    def __repr__(self) -> str:
        return f"<{self._name}>"

    def reveal(self) -> str:
        """The text itself, for the one call that needs it."""
        return self._text


def is_set(environ: Mapping[str, str], name: str) -> bool:
    """Whether the secret is given at all; an empty variable counts as unset."""
    return bool(environ.get(name) or environ.get(f"{name}_FILE"))


def read_secret(environ: Mapping[str, str], name: str) -> Secret:
    """The secret of that name: from the variable NAME, or from the file that NAME_FILE names.

    Raises BillingError, which never quotes it: for none, for both, for a placeholder, for what has
    another shape, and for a file that every user of the machine can write. One that every user can
    read is warned of.
    """
    return _checked(name, _read(environ, name))


def read_secrets(environ: Mapping[str, str], name: str) -> tuple[Secret, ...]:
    """One secret or several, separated by white space or commas; otherwise as read_secret()."""
    texts = re.split(r"[\s,]+", _read(environ, name))
    return tuple(_checked(name, text) for text in texts)


def _read(environ: Mapping[str, str], name: str) -> str:
    text = environ.get(name, "")
    file = environ.get(f"{name}_FILE", "")
    if bool(text) == bool(file):
        found = "both are set" if text else "neither is set"
        raise BillingError(
            f"{name} or {name}_FILE (a file that holds it): {found}; set one of them"
        )
    if not file:
        return text.strip()
    variable = f"{name}_FILE"
    try:
        with open_secret(file, lambda said: _log.warning("%s: %s", variable, said)) as opened:
            return opened.read().strip()
    except StorageError as error:  # every user can put another secret there
        raise BillingError(f"{variable}: {error}") from None
    except (OSError, ValueError) as error:
        raise BillingError(f"{variable}: {file} cannot be read: {type(error).__name__}") from None


def _checked(name: str, text: str) -> Secret:
    shape, expected = _SHAPES[name]
    if not re.fullmatch(shape, text) or _PLACEHOLDER.search(text):
        raise BillingError(
            f"{name}: a placeholder, or not such a secret: Stripe's begin with {expected}"
        )
    return Secret(name, text)
