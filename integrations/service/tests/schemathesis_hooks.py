"""What the schema cannot say: ends of time, the order of thresholds, readings without values."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import schemathesis
from hypothesis import strategies as st

_FIRST, _LAST = datetime.fromisoformat("1970-01-02"), datetime.fromisoformat("2199-12-30")
schemathesis.openapi.format(
    "date-time",
    st.datetimes(_FIRST, _LAST, timezones=st.just(timezone.utc)).map(datetime.isoformat),
)


@schemathesis.serializer("application/x-ndjson")
def ndjson(context: Any, value: Any) -> bytes:
    """An array as lines; what is none as a line that is no reading either."""
    lines = value if isinstance(value, list) else [[value]]
    return "\n".join(json.dumps(line) for line in lines).encode()


_THRESHOLDS = ("low_battery_threshold", "critical_battery_threshold")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _say_something(reading: Any) -> None:
    """Give a reading a charge, where it would do but for having no value at all."""
    if isinstance(reading, dict) and {"meter_id", "voltage", "current_draw"} <= reading.keys():
        charge = reading.get("charge_pct")
        is_none = charge is None or (_number(charge) and not 0 <= charge <= 110)
        if is_none and (reading["voltage"], reading["current_draw"]) == (None, None):
            reading["charge_pct"] = 50.0


def _order_thresholds(body: dict[str, Any], is_whole: bool) -> None:
    """Put valid thresholds in order; a device has a value for the one that is left out."""
    given = [body[name] for name in _THRESHOLDS if name in body]
    if not given or not all(value is None or _number(value) for value in given):
        return
    low, critical = (body.get(name) for name in _THRESHOLDS)
    low, critical = 20.0 if low is None else low, 5.0 if critical is None else critical
    if 0 <= low <= 100 and 0 <= critical <= 100 and (low <= critical or not is_whole):
        body.update(zip(_THRESHOLDS, (50.0, 25.0)))


def _order_times(query: dict[str, Any]) -> None:
    """Let since be before until, where both are times."""
    try:
        since, until = (datetime.fromisoformat(query[name]) for name in ("since", "until"))
    except (KeyError, TypeError, ValueError):
        return
    if since == until:
        del query["until"]
    elif since > until:
        query["since"], query["until"] = query["until"], query["since"]


def _window_of_one_kind(query: dict[str, Any]) -> None:
    """Leave the days out, where since or until is given too."""
    if not {"since", "until"}.isdisjoint(query):
        query.pop("days", None)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Make whole what the schema lets apart."""
    body, method = case.body, case.operation.method.upper()
    if method == "POST":
        for reading in body if isinstance(body, list) else [body]:
            _say_something(reading)
    if method in ("PUT", "PATCH") and isinstance(body, dict):
        _order_thresholds(body, is_whole=method == "PUT")
    if method == "DELETE" and isinstance(case.query, dict):
        _order_times(case.query)
    if case.operation.path.endswith("/statistics") and isinstance(case.query, dict):
        _window_of_one_kind(case.query)
