"""Records that the service sends beside the library's.

The library's own dataclasses are the models of all that they describe.
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


@dataclass
class PowerMeter(power_manager.PowerMeter):
    """The library's record, with its two properties in the JSON."""

    __slots__ = ()

    @computed_field(  # type: ignore[prop-decorator]
        description="W out of the source, rounded to 4 decimals; null where power_known is false"
    )
    @property
    def wattage(self) -> float | None:
        """As the library's."""
        return super().wattage

    @computed_field(description="The meter's state")  # type: ignore[prop-decorator]
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
    """Readings as one array for each field, oldest first; null: not known.

    Times are whole milliseconds since 1970 (UTC), as `new Date()` takes them. `reading_count` says
    how many readings the window has; where the arrays are shorter, readings were left out.
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
    """How many readings were received, and how many of them were new and stored.

    Of `implausible_charges` the charge was below 0 or above 110 %, as a gauge's -1 or 255 for one
    that it does not know: these readings have come without a charge.
    """

    received: int
    stored: int
    implausible_charges: Annotated[int, Field(description="Number of readings")]


@dataclass
class SequencedEvent:
    """An event with its sequence number in the file, from which a follower resumes."""

    sequence: int
    event: PowerEvent


@dataclass
class EventPage:
    """Events in order of their sequence; pass `next_after` as the next `after`, with `file_id`.

    Where `recovered` is false, events after the given `after` may be missing, because the file is
    another one or has lost them: fetch again what you show.
    """

    events: list[SequencedEvent]
    next_after: int
    recovered: bool
    file_id: str


@dataclass
class Runtime:
    """Hours until the device's batteries are empty; null: not known, or not discharging."""

    device_id: str
    estimated_runtime_hours: float | None


@dataclass
class StreamTicket:
    """A ticket for one connection to the stream, valid for `expires_in` seconds."""

    ticket: str
    expires_in: float


@dataclass
class Deleted:
    """How many readings were deleted."""

    deleted: int


@dataclass
class Me:
    """What the token may do. `scopes` names each scope; `devices` is null where all are allowed.

    `database` is the service's file, to name in commands on its machine; null for a token bound to
    devices and for a fleet. `source` says whether a file or a fleet is served. A fleet is read-only
    here, so `scopes` then has at most `read`, whatever else the token has.
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
    """Whether a token is needed. `token_command` is the command that makes one.

    It names the service's file, so it is null for clients on other machines, and where no token is
    needed.
    """

    token_needed: bool
    token_command: str | None


@dataclass
class SignedIn:
    """A new token, made for a one-time link. It is shown only once, and is valid until revoked."""

    token: str
    name: str
    scopes: list[Literal["read", "write", "admin"]]


@dataclass
class Sparklines:
    """Mean watts that each device used in 24 whole UTC hours, by device id; null: not known.

    The first hour begins at `start`, each next one `step_seconds` later; the present hour is left
    out. A device that is not registered is left out.
    """

    start: str
    step_seconds: int
    devices: dict[str, list[float | None]]


# --- A fleet


class FleetAlarm(TypedDict):
    """Something about a device that a person should look at, and since when.

    `kind` is power-fleet's: silent, cloned, two files, restored, replaced; later versions may add
    others.
    """

    kind: str
    since: str
    note: str


class FleetDevice(TypedDict):
    """What the fleet knows of a device beside its record; null: not known.

    `version` is that of the program that sends the device's file, `opened_at` when that program
    started, and `last_seen` when its last message came, both by the stream's clock.
    """

    device_id: str
    site: str
    version: str | None
    opened_at: str | None
    last_seen: str | None
    alarms: list[FleetAlarm]


class FleetState(TypedDict):
    """How fresh the answers of the engine are: they include all that devices sent by `fresh_as_of`.

    `waiting_messages` are in the stream and not yet in the engine; `dead_letters` can never be
    stored. Null: not known; the last two where the service does not know the stream.
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
    """A device that has sent nothing for long, and when its last message came (stream's clock)."""

    device_id: str
    last_seen: str


@dataclass
class Health:
    """`ok`: the service answers; `ready`: it can use its database."""

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
    """A meter in a report; without readings in the period it has the first four keys only.

    Wattages are null where no reading of the period has both volts and amperes, charges where no
    reading has a charge.
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
    """A device's energies over a report's period; a ups counts only if there is no main meter."""

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
    """The first frame: `recovered` says whether every event after the given `after` follows.

    Where it is false, no `after` was given or the file is another one: fetch again what you show.
    Sequences count within one line of history of a file: keep `file_id` with the last sequence, and
    send both to resume.
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
    """A meter's latest reading; at most one every 250 ms, those between are left out."""

    type: Literal["reading"]
    device_id: str
    reading: PowerReading


@dataclass
class MeterMessage:
    """A meter's present state: sent after the hello frame, then whenever it changes."""

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

    `device`: a device; each of its meters has a message of its own. `meter`: a meter with its
    readings and statistics. `readings`: those of a meter from `since` on and before `until`; null
    is no limit.
    """

    type: Literal["deleted"]
    kind: Literal["device", "meter", "readings"]
    device_id: str
    meter_id: str | None = None
    since: str | None = None
    until: str | None = None


@dataclass
class HeartbeatMessage:
    """The stream is alive. Every event up to `latest` that concerns this client has been sent."""

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
    # Every key is always sent, whatever its default. The library itself knows nothing of pydantic.
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
