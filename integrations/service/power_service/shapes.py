"""The schemas of what the service receives; the library checks the values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_ID = 200  # characters of an id or a ticket
MAX_FILE_ID = 100  # characters
LAST_US = 7_289_654_399_999_999  # the last moment that a reading can have: the end of 2200
MAX_BATCH = 10_000  # readings in one request
# Text with something to see in it, and without NUL. Spelled out: \s differs between languages.
_BLANK = r"\u0009-\u000d\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
TEXT_PATTERN = rf"^[^\u0000]*[^\u0000{_BLANK}][^\u0000]*$"


@dataclass(frozen=True)
class Shape:
    """The keys of a JSON object that is received, with their schemas; the library checks values."""

    name: str
    description: str
    required: dict[str, dict[str, Any]]
    optional: dict[str, dict[str, Any]]  # each with its default

    def schema(self) -> dict[str, Any]:
        """Its JSON schema; the bounds are the library's."""
        return {
            "title": self.name,
            "description": self.description,
            "type": "object",
            "properties": {**self.required, **self.optional},
            "required": list(self.required),
            "additionalProperties": False,
        }


_TEXT = {"type": "string", "minLength": 1, "pattern": TEXT_PATTERN}
_ID = {**_TEXT, "maxLength": MAX_ID}
_NULLABLE_TEXT = {**_TEXT, "type": ["string", "null"], "default": None}
_AMOUNT = {"type": "number", "minimum": 0, "maximum": 1e12}
_NULLABLE_NUMBER = {"type": ["number", "null"], "default": None}
_PERCENT = {**_NULLABLE_NUMBER, "minimum": 0, "maximum": 100}
_ELECTRICAL = {"type": ["number", "null"], "minimum": -1e6, "maximum": 1e6}
_TIME = {
    "anyOf": [
        {"type": "string", "format": "date-time"},
        {"type": "number", "minimum": 0, "maximum": 7_289_654_399},
        {"type": "null"},
    ],
    "default": None,
    "description": "ISO 8601 with an offset, or epoch seconds, from 1970 to 2200: a recorded "
    "reading, stored once however often it is sent. null: a live reading, taken now",
}

NEW_READING = Shape(
    "NewReading",
    "One reading: at least volts, amperes or a charge. With a timestamp it is safe to send again.",
    {
        "meter_id": _ID,
        "voltage": {**_ELECTRICAL, "description": "V; null: not known (not the same as 0)"},
        "current_draw": {
            **_ELECTRICAL,
            "description": "A out of the source; null: not known (not the same as 0)",
        },
    },
    {
        "charge_pct": {
            **_NULLABLE_NUMBER,
            "description": "%; up to 110 is full; below 0 and above 110 is not known, and counted "
            "in the answer; null: not known. Then it is the meter's last, which may be unknown",
        },
        "timestamp": _TIME,
    },
)
NEW_METER = Shape(
    "NewMeter",
    "A meter to add.",
    {"type": {"$ref": "#/components/schemas/MeterType"}},
    {
        "capacity_wh": {**_AMOUNT, "default": 0.0, "description": "Wh; 0: not known"},
        "name": {**_NULLABLE_TEXT, "maxLength": 200},
        "charge_pct": {
            **_PERCENT,
            "default": 100.0,
            "description": "%, until a reading has a charge; null: not known",
        },
    },
)
NEW_EVENT = Shape(
    "NewEvent",
    "An event that happens now.",
    {"type": {"$ref": "#/components/schemas/PowerEventType"}},
    {
        "value": {"type": "number", "default": 0.0, "description": "in the event's own unit"},
        "note": {**_NULLABLE_TEXT, "maxLength": 10_000},
        "meter_id": {
            **_NULLABLE_TEXT,
            "maxLength": 200,
            "description": "the device's meter that it is about; null: none",
        },
    },
)
DEVICE_SETTINGS = Shape(
    "DeviceSettings",
    "All values of a device; a value that is left out goes back to its default.",
    {"name": _ID},
    {
        "shutdown_threshold": {**_AMOUNT, "default": 3.0, "description": "W"},
        "target_wh": {
            **_NULLABLE_NUMBER,
            "minimum": 0,
            "maximum": 1e12,
            "description": "Wh a day; null: no budget",
        },
        "low_battery_threshold": {**_PERCENT, "description": "%; null: 20"},
        "critical_battery_threshold": {
            **_PERCENT,
            "description": "%, less than the low threshold; null: 5",
        },
        "id": {**_ID, "description": "may be left out; otherwise the same as in the path"},
    },
)


def _changes(name: str, description: str, properties: dict[str, dict[str, Any]]) -> Shape:
    """A shape of which any part may be given; without defaults, as what is left out stays."""
    return Shape(
        name,
        description,
        {},
        {
            key: {word: value for word, value in schema.items() if word != "default"}
            for key, schema in properties.items()
        },
    )


_SETTABLE = {**DEVICE_SETTINGS.required, **DEVICE_SETTINGS.optional}
DEVICE_CHANGES = _changes(
    "DeviceChanges",
    "Values of a device to change; a value that is left out stays as it is.",
    {key: schema for key, schema in _SETTABLE.items() if key != "id"},
)
METER_CHANGES = _changes(
    "MeterChanges",
    "Values of a meter to change; a value that is left out stays as it is.",
    {
        **NEW_METER.optional,
        "charge_pct": {
            "type": "null",
            "description": "null: not known from now on, until a reading has a charge",
        },
        "active": {
            "type": "boolean",
            "description": "false: retired, in no present figure until a newer reading comes",
        },
    },
)
SIGN_IN = Shape(
    "SignIn",
    "The ticket of a one-time link.",
    {"ticket": {**_ID, "description": "the text after /#/sign-in/ in the link"}},
    {},
)
SHAPES = (
    NEW_READING,
    NEW_METER,
    NEW_EVENT,
    DEVICE_SETTINGS,
    DEVICE_CHANGES,
    METER_CHANGES,
    SIGN_IN,
)
