"""What the loopback Stripe's parts share: the check of parameters, and the form of errors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

Answer = tuple[int, Any, dict[str, str]]
# By flat name: whether it must be there, and what its text must match. `items[]` stands for
# items[0], items[1] and so on, `metadata[]` for every key of it.
Schema = dict[str, tuple[bool, str]]


@dataclass
class Refusal(Exception):
    """An answer of Stripe's that is an error."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    type: str = "invalid_request_error"
    headers: dict[str, str] = field(default_factory=dict)

    def answer(self) -> Answer:
        """The error as Stripe writes it."""
        parts = {"type": self.type, "message": self.message, "param": self.param, "code": self.code}
        return (
            self.status,
            {"error": {k: v for k, v in parts.items() if v is not None}},
            self.headers,
        )


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """JSON as flat names, like those of a form: {"a": {"b": 1}} is {"a[b]": 1}."""
    if isinstance(value, dict):
        parts = [flat(part, f"{name}[{key}]" if name else key) for key, part in value.items()]
        return {key: text for part in parts for key, text in part.items()}
    return {name: value}


def check(schema: Schema, values: dict[str, Any]) -> None:
    """Raise what Stripe answers to a missing, an unknown, or a wrong parameter."""
    seen = set()
    for name, text in values.items():
        general = re.sub(r"\[\d+\]|(?<=^metadata)\[.+\]", "[]", name)
        if general not in schema:
            raise Refusal(400, f"Received unknown parameter: {name}", name, "parameter_unknown")
        _, pattern = schema[general]
        if not isinstance(text, str) or not re.fullmatch(pattern, text):
            raise Refusal(400, f"Invalid {name}: {text!r}", name, "parameter_invalid")
        seen.add(general)
    for name, (required, _) in schema.items():
        if required and name not in seen:
            raise Refusal(400, f"Missing required param: {name}.", name, "parameter_missing")
