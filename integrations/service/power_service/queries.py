"""The query of a request: a parameter that is unknown, or that comes twice, is refused.

A mistyped `until` would otherwise delete, and a mistyped `days` answer for, more than was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import QueryParams

from power_service.problems import Code, Problem

Known = Mapping[str, bool]  # by name, whether the parameter may be repeated


def of_contract(document: dict[str, Any]) -> dict[str, Known]:
    """By operationId, the parameters in the query of each route."""
    return {
        operation["operationId"]: {
            parameter["name"]: parameter["schema"].get("type") == "array"
            for parameter in operation.get("parameters", [])
            if parameter["in"] == "query"
        }
        for methods in document["paths"].values()
        for operation in methods.values()
    }


def check_query(query: QueryParams, known: Known) -> None:
    """Raise Problem 422 for a parameter that is not known, or that comes twice and may not."""
    for name in query:
        if name not in known:
            there = f"expected one of {', '.join(known)}" if known else "there are none here"
            raise Problem(Code.INVALID_VALUE, f"{name[:80]!r}: unknown parameter: {there}")
        count = len(query.getlist(name))
        if count > 1 and not known[name]:
            raise Problem(Code.INVALID_VALUE, f"{name}: expected it once, got it {count} times")
