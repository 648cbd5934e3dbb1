"""What is sent that the library has no record for, and the schemas of what is received.

The library's own dataclasses are the models of everything they describe; here is only what goes around them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, computed_field
from typing_extensions import TypedDict

import power_manager
from power_manager import (
    DeviceRecord,
    MeterType,
    PowerEvent,
    PowerReading,
    PowerState,
    PowerStatistics,
    to_microseconds,
)
from power_service.tokens import Grant, Scope

MAX_ID = 200  # characters of an id or a ticket
LAST_US = 7_289_654_399_999_999  # the last moment that a reading can have: the end of 2200
MAX_BATCH = 10_000  # readings in one request
# Text with something to see in it, and without NUL; spelled out, for \s is not the same in every language.
_BLANK = r"\u0009-\u000d\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
TEXT_PATTERN = rf"^[^\u0000]*[^\u0000{_BLANK}][^\u0000]*$"


@dataclass
class PowerMeter(power_manager.PowerMeter):
    """The library's record, with its two properties in the JSON."""

    __slots__ = ()

    @computed_field(  # type: ignore[prop-decorator]
        description="W out of the source, rounded to 4 decimals; null: not known, as power_known says"
    )
    @property
    def wattage(self) -> float | None:
        """As the library's."""
        return super().wattage

    @computed_field(description="How the meter is doing")  # type: ignore[prop-decorator]
    @property
    def state(self) -> PowerState:
        """As the library's."""
        return super().state


_METER_FIELDS = tuple(field.name for field in dataclasses.fields(power_manager.PowerMeter))


def shown(meter: power_manager.PowerMeter) -> PowerMeter:
    """A meter as it is sent."""
    return PowerMeter(*(getattr(meter, name) for name in _METER_FIELDS))


@dataclass
class ReadingPage:
    """Readings, oldest first; `next_cursor` is null on the last page."""

    readings: list[PowerReading]
    next_cursor: str | None


@dataclass
class Series:
    """Readings as arrays, one value of each for each point, oldest first; null: not known.

    Times are whole milliseconds since 1970 (UTC), as `new Date()` takes them. `reading_count` is how many readings the
    window has: where the arrays are shorter, they were thinned out.
    """

    meter_id: str
    reading_count: int
    timestamps_ms: list[int]
    voltage: list[float | None]
    current_draw: list[float | None]
    wattage: list[float | None]
    charge_pct: list[float | None]


def series_of(meter_id: str, reading_count: int, points: list[PowerReading]) -> Series:
    """A meter's points, by field."""
    return Series(
        meter_id=meter_id,
        reading_count=reading_count,
        timestamps_ms=[to_microseconds(point.timestamp) // 1000 for point in points],
        voltage=[point.voltage for point in points],
        current_draw=[point.current_draw for point in points],
        wattage=[point.wattage for point in points],
        charge_pct=[point.charge_pct for point in points],
    )


@dataclass
class IngestResult:
    """How many readings came, and how many of them were new."""

    received: int
    stored: int


@dataclass
class SequencedEvent:
    """An event with its place in the file's sequence, by which a follower resumes."""

    sequence: int
    event: PowerEvent


@dataclass
class EventPage:
    """Events in order of their sequence; go on with `next_after` as `after`."""

    events: list[SequencedEvent]
    next_after: int


@dataclass
class Runtime:
    """Hours until the device's batteries are empty; null where unknown, or not draining."""

    device_id: str
    estimated_runtime_hours: float | None


@dataclass
class StreamTicket:
    """A pass for one connection to the stream, good for `expires_in` seconds."""

    ticket: str
    expires_in: float


@dataclass
class Deleted:
    """How many readings went."""

    deleted: int


@dataclass
class Me:
    """Who is asking: what the token may do. `scopes` has each one by itself; `devices` is null for all of them.

    `database` is the file that this service has, for commands on its machine; null for a token bound to devices, and
    where a fleet is served. `source` says which of them it is: nobody writes to a fleet here, so that `scopes` has no
    more than read there, whatever else the token has.
    """

    name: str
    scopes: list[Literal["read", "write", "admin"]]
    devices: list[str] | None
    database: str | None
    source: Literal["file", "fleet"]


def scopes_of(grant: Grant) -> list[Literal["read", "write", "admin"]]:
    """Each scope by itself: an admin has them all."""
    return [scope.value for scope in Scope if grant.has(scope.value)]


@dataclass
class SignInNeeds:
    """What it takes to get in. `token_command` makes a token, on the service's machine.

    It is null where no token is needed, and for who asks from elsewhere: it names the file that the service uses.
    """

    token_needed: bool
    token_command: str | None


@dataclass
class SignedIn:
    """A new token for who came with a one-time link: it is shown this once. It counts until it is revoked."""

    token: str
    name: str
    scopes: list[Literal["read", "write", "admin"]]


@dataclass
class Sparklines:
    """What devices used, as mean watts of each of 24 whole UTC hours, by device id; null: not known.

    Each list has the hours in order of time: the first begins at `start`, each next one `step_seconds` later, and the
    hour under way is not among them. A device that is not registered is left out.
    """

    start: str
    step_seconds: int
    devices: dict[str, list[float | None]]


# --- A fleet


class FleetAlarm(TypedDict):
    """Something about a device that a person should look at, and since when: it stands until it is over.

    `kind` is power-fleet's: silent, cloned, two files, restored, replaced, and others that a later version may add.
    """

    kind: str
    since: str
    note: str


class FleetDevice(TypedDict):
    """What the fleet knows of a device beside its record; null: nothing has said.

    `version` is that of the program on it which sends its file, `opened_at` when that began to, and `last_seen` when
    something of it came last, both by the stream's clock.
    """

    device_id: str
    site: str
    version: str | None
    opened_at: str | None
    last_seen: str | None
    alarms: list[FleetAlarm]


class FleetState(TypedDict):
    """How far the engine is: all that the devices had sent by `fresh_as_of` is in every answer; null: nobody knows.

    `waiting_messages` are in the stream and not in the engine yet, `dead_letters` will never be; null: the service
    does not know the stream.
    """

    fresh_as_of: str | None
    waiting_messages: int | None
    dead_letters: int | None


class SiteEnergy(TypedDict):
    """Energy of the meters of one type at one site on one UTC day."""

    day: str
    site: str
    type: MeterType
    energy_out_wh: float
    energy_in_wh: float


class SilentDevice(TypedDict):
    """A device that has sent nothing for long, and when something of it came last, by the stream's clock."""

    device_id: str
    last_seen: str


@dataclass
class Health:
    """The service answers, or is ready to."""

    status: Literal["ok", "ready"]


# The library returns the budget and the report as mappings; their contract is in its README.


class DeviceBudget(TypedDict):
    """One device's entry of the library's power_budget_check."""

    total_wattage: float
    battery_count: int
    solar_count: int
    avg_charge_pct: float | None
    estimated_runtime_hours: float | None
    states: list[PowerState]
    load_wattage: float
    solar_wattage: float
    net_wattage: float
    energy_24h_wh: float
    consumption_24h_wh: float
    target_wh: float | None
    within_target: bool | None
    below_shutdown_threshold: bool
    unknown_power_count: int


class UnknownDevice(TypedDict):
    """The entry of a device that is not registered."""

    error: str


Budget = dict[str, DeviceBudget | UnknownDevice]


class _MeterHead(TypedDict):
    meter_id: str
    name: str | None
    type: MeterType
    reading_count: int


class MeterReport(_MeterHead, total=False):
    """A meter in a report; without readings in the period only the first four keys.

    The wattages are null where no reading of the period has both volts and amperes, the charges where none has one.
    """

    current_state: PowerState
    avg_wattage: float | None
    min_wattage: float | None
    max_wattage: float | None
    min_charge_pct: float | None
    max_charge_pct: float | None
    energy_out_wh: float
    energy_in_wh: float
    energy_wh: float


class ReportTotals(TypedDict):
    """A device's energies over the period of a report; consumption has a ups only where there is no main meter."""

    consumption_wh: float
    main_wh: float
    solar_wh: float
    battery_out_wh: float
    battery_in_wh: float
    ups_wh: float
    self_sufficiency_pct: float | None


class Report(TypedDict):
    """The library's export_report."""

    device_id: str
    device_name: str
    period_days: float
    generated_at: str
    meters: list[MeterReport]
    totals: ReportTotals
    event_count: int
    events: list[PowerEvent]


# --- The stream


@dataclass
class HelloMessage:
    """The first frame: `recovered` says whether every event after the `after` that was asked for follows.

    Where it is false, fetch what you show again: nothing was asked for, or the file is another one. Sequences count
    within one line of history of a file: keep `file_id` beside the last one, and send both to resume.
    """

    type: Literal["hello"]
    resumed_from: int
    oldest: int
    latest: int
    recovered: bool
    file_id: str


@dataclass
class EventMessage:
    """An event; reconnect with the last `sequence` as `after`."""

    type: Literal["event"]
    sequence: int
    event: PowerEvent


@dataclass
class ReadingMessage:
    """A meter's latest reading; at most one each 250 ms, the ones between are left out."""

    type: Literal["reading"]
    device_id: str
    reading: PowerReading


@dataclass
class MeterMessage:
    """A meter's present state: of each meter after the hello frame, then whenever it changes."""

    type: Literal["meter"]
    meter: PowerMeter


@dataclass
class DeviceMessage:
    """A device that was registered, or whose values changed."""

    type: Literal["device"]
    device: DeviceRecord


@dataclass
class DeletedMessage:
    """Something was deleted, for good.

    `device`: a device; a message for each of its meters comes too. `meter`: a meter with all that is its. `readings`:
    those of a meter from `since` on and before `until`; null is no limit.
    """

    type: Literal["deleted"]
    kind: Literal["device", "meter", "readings"]
    device_id: str
    meter_id: str | None = None
    since: str | None = None
    until: str | None = None


@dataclass
class HeartbeatMessage:
    """Nothing else to say. Every event up to `latest` that concerns this client has been sent before."""

    type: Literal["heartbeat"]
    latest: int
    timestamp: str


StreamMessage = Annotated[
    HelloMessage
    | EventMessage
    | ReadingMessage
    | MeterMessage
    | DeviceMessage
    | DeletedMessage
    | HeartbeatMessage,
    Field(discriminator="type"),
]

for _record in (
    DeviceRecord,
    power_manager.PowerMeter,
    PowerMeter,
    PowerReading,
    PowerEvent,
    PowerStatistics,
    DeletedMessage,
):
    # Every key is always sent, whatever its default; set from here, for the library knows nothing of pydantic.
    config = ConfigDict(json_schema_serialization_defaults_required=True)
    setattr(_record, "__pydantic_config__", config)  # noqa: B010

DEVICE: TypeAdapter[DeviceRecord] = TypeAdapter(DeviceRecord)
DEVICES: TypeAdapter[list[DeviceRecord]] = TypeAdapter(list[DeviceRecord])
METER: TypeAdapter[PowerMeter] = TypeAdapter(PowerMeter)
METERS: TypeAdapter[list[PowerMeter]] = TypeAdapter(list[PowerMeter])
PAGE: TypeAdapter[ReadingPage] = TypeAdapter(ReadingPage)
SERIES: TypeAdapter[Series] = TypeAdapter(Series)
STATISTICS: TypeAdapter[list[PowerStatistics]] = TypeAdapter(list[PowerStatistics])
EVENT: TypeAdapter[PowerEvent] = TypeAdapter(PowerEvent)
EVENTS: TypeAdapter[list[PowerEvent]] = TypeAdapter(list[PowerEvent])
EVENT_PAGE: TypeAdapter[EventPage] = TypeAdapter(EventPage)
INGEST: TypeAdapter[IngestResult] = TypeAdapter(IngestResult)
TICKET: TypeAdapter[StreamTicket] = TypeAdapter(StreamTicket)
DELETED: TypeAdapter[Deleted] = TypeAdapter(Deleted)
ME: TypeAdapter[Me] = TypeAdapter(Me)
FLEET_DEVICES: TypeAdapter[list[FleetDevice]] = TypeAdapter(list[FleetDevice])
FLEET_STATE: TypeAdapter[FleetState] = TypeAdapter(FleetState)
SITE_ENERGIES: TypeAdapter[list[SiteEnergy]] = TypeAdapter(list[SiteEnergy])
SILENT_DEVICES: TypeAdapter[list[SilentDevice]] = TypeAdapter(list[SilentDevice])
SIGN_IN_NEEDS: TypeAdapter[SignInNeeds] = TypeAdapter(SignInNeeds)
SIGNED_IN: TypeAdapter[SignedIn] = TypeAdapter(SignedIn)
SPARKLINES: TypeAdapter[Sparklines] = TypeAdapter(Sparklines)
RUNTIME: TypeAdapter[Runtime] = TypeAdapter(Runtime)
HEALTH: TypeAdapter[Health] = TypeAdapter(Health)
BUDGET: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
MESSAGE: TypeAdapter[Any] = TypeAdapter(StreamMessage)


# --- What is received


@dataclass(frozen=True)
class Shape:
    """The keys of a JSON object that is received, with their schemas. Their values are the library's to judge."""

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
    "description": "ISO 8601 with an offset, or epoch seconds, from 1970 to 2200: a recorded reading, stored once "
    "however often it is sent. null: a live one, now",
}

NEW_READING = Shape(
    "NewReading",
    "One reading: volts, amperes or a charge at least. With a timestamp it may be sent again without harm.",
    {
        "meter_id": _ID,
        "voltage": {**_ELECTRICAL, "description": "V; null: not known, which is not 0"},
        "current_draw": {
            **_ELECTRICAL,
            "description": "A out of the source; null: not known, which is not 0",
        },
    },
    {
        "charge_pct": {
            **_NULLABLE_NUMBER,
            "description": "%, clamped to 0..100; null: the meter's last, which may be unknown",
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
            "description": "%, until a reading brings a charge; null: not known",
        },
    },
)
NEW_EVENT = Shape(
    "NewEvent",
    "An event to record, now.",
    {"type": {"$ref": "#/components/schemas/PowerEventType"}},
    {
        "value": {"type": "number", "default": 0.0, "description": "in the event's own unit"},
        "note": {**_NULLABLE_TEXT, "maxLength": 10_000},
        "meter_id": {
            **_NULLABLE_TEXT,
            "maxLength": 200,
            "description": "which of the device's meters it is about; null: none",
        },
    },
)
DEVICE_SETTINGS = Shape(
    "DeviceSettings",
    "A device as it is to be; what is left out goes back to its default.",
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
        "id": {**_ID, "description": "may be left out; else the same as in the path"},
    },
)


def _changes(name: str, description: str, properties: dict[str, dict[str, Any]]) -> Shape:
    """Of what can be given, any part; no defaults, for what is left out stays as it is."""
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
    "What is to change of a device; what is left out stays as it is.",
    {key: schema for key, schema in _SETTABLE.items() if key != "id"},
)
METER_CHANGES = _changes(
    "MeterChanges",
    "What is to change of a meter; what is left out stays as it is.",
    {
        **NEW_METER.optional,
        "charge_pct": {
            "type": "null",
            "description": "null: not known from now on, until a reading brings a charge",
        },
        "active": {
            "type": "boolean",
            "description": "false: it counts in no present figure, until a reading becomes its present state",
        },
    },
)
SIGN_IN = Shape(
    "SignIn",
    "What a one-time link has.",
    {"ticket": {**_ID, "description": "what stands behind /#/sign-in/ in the link"}},
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
