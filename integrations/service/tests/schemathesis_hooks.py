"""What the schema cannot say: times end in 2200, thresholds have an order, and a reading must say something."""

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


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _say_something(reading: Any) -> None:
    """Give a reading a charge, where it would do but for having no value at all."""
    if isinstance(reading, dict) and {"meter_id", "voltage", "current_draw"} <= reading.keys():
        values = [reading["voltage"], reading["current_draw"], reading.get("charge_pct")]
        if values == [None, None, None]:
            reading["charge_pct"] = 50.0


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Put the thresholds in order, where both are numbers that alone would do; leave no reading without a value."""
    body = case.body
    if case.operation.method.upper() == "POST":
        for reading in body if isinstance(body, list) else [body]:
            _say_something(reading)
    if case.operation.method.upper() == "PUT" and isinstance(body, dict):
        low, critical = body.get("low_battery_threshold"), body.get("critical_battery_threshold")
        low, critical = 20.0 if low is None else low, 5.0 if critical is None else critical
        if _number(low) and _number(critical) and 0 <= low <= critical <= 100:
            body["low_battery_threshold"], body["critical_battery_threshold"] = 50.0, 25.0
