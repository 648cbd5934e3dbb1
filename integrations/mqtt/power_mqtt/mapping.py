"""Maps: which topic is which meter, and where in a payload its values are.

A map is a TOML file with one [[topic]] for each kind of topic; the README explains the keys. Ready
maps are in the folder `maps`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timezone, tzinfo
from pathlib import Path
from typing import Any

from power_manager import (
    SECOND_US,
    InvalidValue,
    MeterType,
    check_text,
    nearest,
    parse_duration,
    parse_time,
    parse_zone,
    plausible_charge,
    printable,
    shown_time,
    to_microseconds,
)
from power_mqtt.errors import MqttError

MAPS = Path(__file__).parent / "maps"
FIELDS = ("voltage", "current", "power", "charge")
DEFAULT_JOIN_S = 2.0
DEFAULT_MAX_AGE_S = 60.0
MOST_PAYLOAD = 65_536  # bytes: what is longer is no measured value
# A payload's time that is further ahead, or earlier, is of a clock that is wrong. A reading of the
# future would be the meter's present state until then.
_MOST_AHEAD_US = 300 * SECOND_US
_EARLIEST_US = to_microseconds("2000-01-01T00:00Z")
_EARLIEST_NOW_US = to_microseconds("2026-01-01T00:00Z")  # before, this machine is wrong itself

_UNITS = {
    "voltage": {"V": 1.0, "mV": 1e-3, "kV": 1e3},
    "current": {"A": 1.0, "mA": 1e-3},
    "power": {"W": 1.0, "mW": 1e-3, "kW": 1e3},
    "charge": {"%": 1.0, "1": 100.0},
}
_UNKNOWN = ("nan", "null", "unavailable", "unknown", "")  # texts that say "not known"
_PART = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_TOPIC_KEYS = {
    "filter", "device", "device_name", "meter", "name", "capacity_wh", "requires", "values", "time",
    "zone", "nominal_voltage", "join", "max_age",
}  # fmt: skip
_VALUE_KEYS = {"path", "unit", "factor", "sign"}

Path_ = tuple[str, ...]  # keys of JSON objects and positions in arrays, the outermost first


class MapError(MqttError):
    """A map is wrong; the text names the file, the entry, and what would be right."""


class NoMeaning(MqttError):
    """A payload does not have what its entry expects; the text says why."""


@dataclass(frozen=True)
class Value:
    """Where a payload has a value, and its factor; without a path the payload is the value."""

    path: Path_
    factor: float


@dataclass(frozen=True)
class Source:
    """The meter that a message is about, as it is registered."""

    device_id: str
    device_name: str
    type: MeterType
    name: str | None
    capacity_wh: float = 0.0


@dataclass(frozen=True)
class Measured:
    """What a message says of a meter, in V, A, W and %; None in `values`: it says "unknown".

    left_out: what is not plausible, and why: a value, which is then None, or the time.
    """

    source: Source
    values: Mapping[str, float | None]
    at_us: int | None  # None: it has no time
    entry: Entry
    left_out: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Entry:
    """One [[topic]] of a map; two equal ones stay two."""

    filter: str
    device: str
    device_name: str
    type: MeterType
    name: str
    values: Mapping[str, Value]
    requires: Sequence[Path_] = ()
    time: Path_ | None = None
    zone: tzinfo | None = None
    nominal_voltage: float | None = None
    capacity_wh: float = 0.0
    join_s: float = DEFAULT_JOIN_S
    max_age_s: float = DEFAULT_MAX_AGE_S
    pattern: re.Pattern[str] = re.compile("")

    @property
    def subscription(self) -> str:
        """The filter as a broker knows it: a level with a part in it is a +.

        A + matches more than the level; `parts` looks again.
        """
        levels = ("+" if _PART.search(level) else level for level in self.filter.split("/"))
        return "/".join(levels)

    def parts(self, topic: str) -> dict[str, str] | None:
        """The named parts of a topic; None if it is not one of this entry."""
        found = self.pattern.fullmatch(topic)
        return None if found is None else found.groupdict()

    def measure(self, topic: str, payload: bytes, now_us: int | None = None) -> Measured | None:
        """What a message says; None if it is not for this entry. Raises NoMeaning.

        now_us: the time of its arrival, by which its own time is checked; None: it is not.
        """
        parts = self.parts(topic)
        if parts is None:
            return None
        if not payload:
            return None  # the topic was cleared
        document = _document(payload, any(value.path for value in self.values.values()))
        if any(_look_up(document, path) is None for path in self.requires):
            return None
        values = {}
        for name, value in self.values.items():
            found = _look_up(document, value.path, _MISSING)
            if found is not _MISSING:
                values[name] = _scaled(name, found, value.factor)
        if not values:
            raise NoMeaning("it has none of the map's values")
        left_out = []
        charge_pct = values.get("charge")
        if charge_pct is not None:
            values["charge"] = plausible_charge(charge_pct)
            if values["charge"] is None:
                left_out.append(f"charge: expected 0 to 110 %, got {charge_pct:g}")
        at_us = None if self.time is None else self._time(document)
        if at_us is not None and now_us is not None and not _is_plausible_time(at_us, now_us):
            shown = shown_time(at_us, timezone.utc)
            left_out.append(f"time: {shown} UTC: a clock that is wrong; that of arrival is taken")
            at_us = None
        return Measured(self._source(parts), values, at_us, self, left_out)

    def _source(self, parts: Mapping[str, str]) -> Source:
        device_id = _filled(self.device, parts)
        name = _filled(self.name, parts)
        device_name = _filled(self.device_name, parts) or device_id
        try:
            check_text("device id", device_id)
            check_text("device name", device_name)
            if name:
                check_text("meter name", name)
        except InvalidValue as error:
            raise NoMeaning(str(error)) from None
        return Source(device_id, device_name, self.type, name or None, self.capacity_wh)

    def _time(self, document: Any) -> int:
        found = _look_up(document, self.time or ())
        if isinstance(found, bool) or not isinstance(found, (int, float, str)):
            raise NoMeaning(f"no time at {'.'.join(self.time or ())}")
        try:
            # As seconds it would be in the far future: milliseconds, as JavaScript counts them.
            if not isinstance(found, str) and found > 1e11:
                found /= 1000
            return to_microseconds(parse_time(str(found), zone=self.zone))
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise NoMeaning(str(error)) from None


@dataclass(frozen=True)
class Keepalive:
    """What is published now and then to keep a device sending; `topic` has parts of the filters."""

    topic: str
    payload: bytes
    interval_s: float

    def topic_of(self, parts: Mapping[str, str]) -> str | None:
        """The topic; None if one of its parts is not known."""
        names = _PART.findall(self.topic)
        if not all(name in parts for name in names):
            return None
        return _filled(self.topic, parts)


@dataclass(frozen=True)
class Map:
    """The entries of one map."""

    entries: Sequence[Entry]
    keepalive: Keepalive | None = None


def ready_maps() -> list[str]:
    """The names of the ready maps."""
    return sorted(path.stem for path in MAPS.glob("*.toml"))


def load_map(name: str) -> Map:
    """A ready map by its name, or a map by its file. Raises MapError, OSError."""
    path = Path(name)
    if not path.suffix and "/" not in name:
        if name not in ready_maps():
            hint = nearest(name, ready_maps()) or f": ready are {', '.join(ready_maps())}"
            raise MapError(f"--map {printable(name)}: no such map{hint}; a file is named FILE.toml")
        path = MAPS / f"{name}.toml"
    try:
        return parse_map(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise MapError(f"{path}: not UTF-8: {error}") from None


def parse_map(text: str, where: str) -> Map:
    """A map from its text; errors begin with `where`. Raises MapError."""
    # Here, because only maps need the package tomli, and that before Python 3.11.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise MapError(f"{where}: {error}") from None
    _refuse_unknown(table, {"topic", "keepalive"}, where)
    topics = table.get("topic")
    if not isinstance(topics, list) or not topics:
        raise MapError(f"{where}: expected at least one [[topic]]")
    entries = [_entry(one, f"{where}: [[topic]] {number}") for number, one in enumerate(topics, 1)]
    keepalive = table.get("keepalive")
    if keepalive is None:
        return Map(entries)
    return Map(entries, _keepalive(keepalive, f"{where}: [keepalive]"))


def subscriptions(maps: Iterable[Map]) -> list[str]:
    """The filters to subscribe to for some maps.

    One that another covers is left out, because its messages would come twice.
    """
    every = {entry.subscription for one in maps for entry in one.entries}
    return sorted(
        filter_
        for filter_ in every
        if not any(other != filter_ and _covers(other, filter_) for other in every)
    )


def _covers(wide: str, narrow: str) -> bool:
    """Whether every topic of a filter is one of another.

    >>> [_covers("a/+", narrow) for narrow in ("a/b", "a/+", "a/b/c", "a/#")]
    [True, True, False, False]
    """
    wide_levels, narrow_levels = wide.split("/"), narrow.split("/")
    for number, level in enumerate(wide_levels):
        if level == "#":
            return True
        if number >= len(narrow_levels) or narrow_levels[number] == "#":
            return False
        if level not in ("+", narrow_levels[number]):
            return False
    return len(wide_levels) == len(narrow_levels)


# --- From TOML


def _entry(table: Any, where: str) -> Entry:
    if not isinstance(table, dict):
        raise MapError(f"{where}: expected a table")
    _refuse_unknown(table, _TOPIC_KEYS, where)
    filter_ = _text(table, "filter", where)
    pattern, parts = _pattern(filter_, where)
    texts = {}
    for key, default in (("device", None), ("device_name", ""), ("name", "")):
        texts[key] = _text(table, key, where, default)
        for part in _PART.findall(texts[key]):
            if part not in parts:
                raise MapError(f"{where}: {key}: the filter has no part {{{part}}}")
    values = table.get("values")
    if not isinstance(values, dict) or not values:
        raise MapError(f"{where}: expected values, such as values = {{ power = 'ENERGY.Power' }}")
    _refuse_unknown(values, set(FIELDS), f"{where}: values")
    time = table.get("time")
    return Entry(
        filter=filter_,
        device=texts["device"],
        device_name=texts["device_name"],
        type=_meter_type(table, where),
        name=texts["name"],
        values={name: _value(name, one, where) for name, one in values.items()},
        requires=[_path(one, f"{where}: requires") for one in _list(table, "requires", where)],
        time=None if time is None else _path(time, f"{where}: time"),
        zone=_zone(table, where),
        nominal_voltage=_number(table, "nominal_voltage", where, None),
        capacity_wh=_number(table, "capacity_wh", where, 0.0) or 0.0,
        join_s=_span(table, "join", where, DEFAULT_JOIN_S),
        max_age_s=_span(table, "max_age", where, DEFAULT_MAX_AGE_S),
        pattern=pattern,
    )


def _pattern(filter_: str, where: str) -> tuple[re.Pattern[str], set[str]]:
    """The pattern of a filter's topics, and the names of its parts."""
    levels = filter_.split("/")
    parts: list[str] = []
    shown = []
    for number, level in enumerate(levels):
        if level == "#" and number == len(levels) - 1:
            shown.append(".*")
        elif level == "+":
            shown.append("[^/]*")
        elif "#" in level or "+" in level:
            raise MapError(f"{where}: filter: + and # stand for whole levels, got {level!r}")
        else:
            parts += _PART.findall(level)
            pieces = _PART.split(level)  # text, name, text, name, ..., text
            shown.append(
                "".join(
                    f"(?P<{piece}>[^/]+?)" if odd else re.escape(piece)
                    for piece, odd in zip(pieces, [False, True] * len(pieces))
                )
            )
    if len(parts) != len(set(parts)):
        raise MapError(f"{where}: filter: a part is named twice")
    return re.compile("/".join(shown), re.DOTALL), set(parts)


def _value(name: str, given: Any, where: str) -> Value:
    where = f"{where}: values.{name}"
    table = given if isinstance(given, dict) else {"path": given}
    _refuse_unknown(table, _VALUE_KEYS, where)
    units = _UNITS[name]
    unit = table.get("unit", next(iter(units)))
    if unit not in units:
        raise MapError(f"{where}: unit: expected one of {', '.join(units)}, got {unit!r}")
    sign = table.get("sign", 1)
    if sign not in (1, -1):
        raise MapError(f"{where}: sign: expected 1 or -1, got {sign!r}")
    factor = _number(table, "factor", where, 1.0)
    return Value(_path(table.get("path", ""), where), units[unit] * sign * (factor or 1.0))


def _path(given: Any, where: str) -> Path_:
    if isinstance(given, str):
        return tuple(given.split(".")) if given else ()
    if isinstance(given, list) and given and all(isinstance(key, (str, int)) for key in given):
        return tuple(str(key) for key in given)
    raise MapError(f"{where}: expected a path such as 'ENERGY.Power', got {given!r}")


def _keepalive(table: Any, where: str) -> Keepalive:
    if not isinstance(table, dict):
        raise MapError(f"{where}: expected a table")
    _refuse_unknown(table, {"topic", "payload", "interval"}, where)
    payload = _text(table, "payload", where, "")
    topic = _text(table, "topic", where)
    return Keepalive(topic, payload.encode(), _span(table, "interval", where, 30.0))


def _meter_type(table: Mapping[str, Any], where: str) -> MeterType:
    given = _text(table, "meter", where)
    try:
        return MeterType(given)
    except ValueError:
        known = ", ".join(MeterType)
        raise MapError(f"{where}: meter: expected one of {known}, got {given!r}") from None


def _zone(table: Mapping[str, Any], where: str) -> tzinfo | None:
    try:
        return parse_zone(_text(table, "zone", where, "local"))
    except argparse.ArgumentTypeError as error:
        raise MapError(f"{where}: zone: {error}") from None


def _span(table: Mapping[str, Any], key: str, where: str, default: float) -> float:
    try:
        return parse_duration(str(table.get(key, default)))
    except argparse.ArgumentTypeError as error:
        raise MapError(f"{where}: {key}: {error}") from None


def _text(table: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if not isinstance(value, str) or (default is None and not value):
        raise MapError(f"{where}: {key}: expected a text, got {value!r}")
    return value


def _number(table: Mapping[str, Any], key: str, where: str, default: float | None) -> float | None:
    value = table.get(key, default)
    if value is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or (value <= 0 and value != default):
        raise MapError(f"{where}: {key}: expected a number above 0, got {value!r}")
    return float(value)


def _list(table: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = table.get(key, [])
    if not isinstance(value, list):
        raise MapError(f"{where}: {key}: expected a list, got {value!r}")
    return value


def _refuse_unknown(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in table:
        if key not in known:
            hint = nearest(key, known) or f": expected one of {', '.join(sorted(known))}"
            raise MapError(f"{where}: unknown key {key!r}{hint}")


# --- From payloads

_MISSING = object()


def _document(payload: bytes, is_json: bool) -> Any:
    if len(payload) > MOST_PAYLOAD:
        raise NoMeaning(f"it has {len(payload)} bytes, more than {MOST_PAYLOAD}")
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError:
        raise NoMeaning("it is not UTF-8") from None
    if not is_json:
        return text
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise NoMeaning("it is not JSON") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises NoMeaning if it has a name twice, and nobody knows which is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise NoMeaning(f"it has the name {printable(twice)[:60]!r} twice")
    return found


def _look_up(document: Any, path: Path_, missing: Any = None) -> Any:
    """What is at a path of a document; `missing` where nothing is."""
    for key in path:
        if isinstance(document, dict) and key in document:
            document = document[key]
        elif isinstance(document, list) and key.isdecimal() and int(key) < len(document):
            document = document[int(key)]
        else:
            return missing
    return document


def _scaled(name: str, found: Any, factor: float) -> float | None:
    """A value in its unit; None for one that says that it is not known. Raises NoMeaning."""
    if found is None:
        return None
    number = read_number(found)
    if number is None:
        if isinstance(found, str) and found.strip().lower() in _UNKNOWN:
            return None
        raise NoMeaning(f"{name}: no number: {printable(str(found))[:60]}")
    return number * factor


def _is_plausible_time(at_us: int, now_us: int) -> bool:
    if now_us < _EARLIEST_NOW_US:
        return True  # the payload knows better
    return _EARLIEST_US <= at_us <= now_us + _MOST_AHEAD_US


def read_number(found: Any) -> float | None:
    """A JSON value or a text as a finite number; None if it is none.

    >>> [read_number(found) for found in (1, "2.5", True, "nan", "on")]
    [1.0, 2.5, None, None, None]
    """
    if isinstance(found, bool) or not isinstance(found, (int, float, str)):
        return None
    if isinstance(found, str) and (len(found) > 40 or "_" in found):
        return None
    try:
        number = float(found)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _filled(template: str, parts: Mapping[str, str]) -> str:
    return _PART.sub(lambda found: parts[found[1]], template)
