"""Home Assistant's discovery of a device: one retained message that describes all its entities.

A component that a later message leaves out stays in Home Assistant. It is removed when a message
names it with its platform alone, and the whole device is removed when the message is empty.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from power_manager import DeviceRecord, PowerEventType, PowerMeter, PowerState, __version__
from power_mqtt.counters import IN_FIELD, METERS_FIELD, OUT_FIELD, USED_FIELD
from power_mqtt.known import Owner
from power_mqtt.mirror import Retained
from power_mqtt.parts import Look, QuietPart, Said
from power_mqtt.payloads import WITH_CHARGE, json_bytes
from power_mqtt.topics import Topics

DEFAULT_PREFIX = "homeassistant"
ORIGIN = "power-mqtt"
_SUPPORT_URL = "https://blackroad.io"
_MANUFACTURER = "BlackRoad OS, Inc."
_PLAIN = re.compile("[A-Za-z0-9-]*")  # letters of an id that stay as they are
_BIRTH = b"online"  # Home Assistant publishes this when it has started
_STATES = [state.value for state in PowerState if state != PowerState.UNKNOWN]

Component = dict[str, Any]


# --- Names


def encoded(text: str) -> str:
    """An id in letters, digits, hyphens and underscores; a discovery topic may have no others.

    Any other character becomes, for each of its bytes, an underscore and two hexadecimal digits. So
    no two ids give the same text, and two underscores in a row can separate ids.

    >>> encoded("edge-001"), encoded("Büro 2"), encoded("a_b")
    ('edge-001', 'B_C3_BCro_202', 'a_5Fb')
    """
    if _PLAIN.fullmatch(text):
        return text
    return "".join(map(_encoded_character, text))


def _encoded_character(character: str) -> str:
    if character == "-" or (character.isascii() and character.isalnum()):
        return character
    return "".join(f"_{byte:02X}" for byte in character.encode())


def object_id(prefix: str, device_id: str) -> str:
    """A device's id in Home Assistant's discovery: it stays the same when the device is renamed.

    >>> object_id("power", "edge-001")
    'power__edge-001'
    """
    return f"{encoded(prefix)}__{encoded(device_id)}"


def meter_names(meters: Iterable[PowerMeter]) -> dict[str, str]:
    """The names of a device's meters, by id; no two are the same."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for meter in meters:
        plain = meter.name or ("UPS" if meter.type == "ups" else meter.type.value.capitalize())
        name = plain
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{plain} {number}"
        taken.add(name.casefold())
        names[meter.id] = name
    return names


# --- Components


@dataclass(frozen=True)
class _Kind:
    """A kind of entity: its name, the template that reads it from JSON, and its options."""

    key: str
    name: str
    template: str
    options: Mapping[str, Any]
    platform: str = "sensor"
    needs_charge: bool = False
    is_energy: bool = False  # it is in the device's energy message


def _measured(device_class: str, unit: str, precision: int) -> dict[str, Any]:
    return {
        "device_class": device_class,
        "unit_of_measurement": unit,
        "state_class": "measurement",
        "suggested_display_precision": precision,
    }


def _is_in(field: str, *values: str) -> str:
    return f"value_json.{field} in {list(values)}"


_COUNTED = {
    "device_class": "energy",
    "unit_of_measurement": "Wh",
    "state_class": "total_increasing",
    "suggested_display_precision": 1,
}
_PROBLEM = {"device_class": "problem"}
# The alert level has a hysteresis, so it does not flap; meters that raise no alerts have a state.
_LOW = f"{_is_in('alert_level', 'low', 'critical')} or {_is_in('state', 'low', 'critical')}"
_CRITICAL = f"{_is_in('alert_level', 'critical')} or {_is_in('state', 'critical')}"

METER_KINDS = (
    _Kind("power", "power", "{{ value_json.wattage }}", _measured("power", "W", 1)),
    _Kind("voltage", "voltage", "{{ value_json.voltage }}", _measured("voltage", "V", 2)),
    _Kind("current", "current", "{{ value_json.current_draw }}", _measured("current", "A", 3)),
    _Kind(
        "charge", "charge", "{{ value_json.charge_pct }}", _measured("battery", "%", 0),
        needs_charge=True,
    ),
    _Kind(
        "state", "state", "{{ None if value_json.state == 'unknown' else value_json.state }}",
        {"device_class": "enum", "options": _STATES},
    ),
    _Kind(
        "low", "low", f"{{{{ 'ON' if {_LOW} else 'OFF' }}}}", _PROBLEM,
        platform="binary_sensor", needs_charge=True,
    ),
    _Kind(
        "critical", "critical", f"{{{{ 'ON' if {_CRITICAL} else 'OFF' }}}}", _PROBLEM,
        platform="binary_sensor", needs_charge=True,
    ),
    _Kind("energy_out", "energy out", OUT_FIELD, _COUNTED, is_energy=True),
    _Kind("energy_in", "energy in", IN_FIELD, _COUNTED, is_energy=True),
    _Kind(
        "last_reading", "last reading", "{{ value_json.time }}",
        {"device_class": "timestamp", "entity_category": "diagnostic"},
    ),
)  # fmt: skip

DEVICE_KINDS = (
    _Kind(
        "consumption", "Consumption", f"{{{{ value_json.{USED_FIELD} }}}}", _COUNTED,
        is_energy=True,
    ),
    _Kind("net_power", "Net power", "{{ value_json.net_wattage }}", _measured("power", "W", 1)),
    _Kind("runtime", "Runtime", "{{ value_json.runtime_hours }}", _measured("duration", "h", 1)),
)  # fmt: skip

_EVENT_TEMPLATE = "{{ dict(value_json, event_type=value_json.type) | to_json }}"


@dataclass(frozen=True)
class Site:
    """The topics of a bridge, and for how many seconds its values hold.

    `availability`: the topic of the bridge itself, or of its device if it is for one device.
    """

    topics: Topics
    availability: str
    expire: float


def device_message(
    site: Site,
    device: DeviceRecord,
    meters: Sequence[PowerMeter],
    gone: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The discovery message of a device; `gone`: components to remove, with their platforms.

    A meter has entities from its first reading on.
    """
    id_ = object_id(site.topics.prefix, device.id)
    own = site.topics.availability(device.id)
    components: dict[str, Component] = {}
    for key, platform in (gone or {}).items():
        components[key] = {"platform": platform}
    names = meter_names(meters)
    for meter in meters:
        if meter.updated_at is not None:
            components.update(_meter_components(site, device, meter, names[meter.id]))
    components.update(_device_components(site, device))
    for key, component in components.items():
        if len(component) > 1:
            component["unique_id"] = f"{id_}__{key}"
    return {
        "device": {
            "identifiers": [id_],
            "name": device.name,
            "manufacturer": _MANUFACTURER,
            "model": "power_manager",
            "serial_number": device.id,
        },
        "origin": {"name": ORIGIN, "sw_version": __version__, "support_url": _SUPPORT_URL},
        "availability": [{"topic": topic} for topic in dict.fromkeys((site.availability, own))],
        "availability_mode": "all",
        "components": components,
    }


def component_ids(meter_id: str) -> dict[str, str]:
    """Every component that a meter can have, with its platform."""
    return {f"{encoded(meter_id)}__{kind.key}": kind.platform for kind in METER_KINDS}


def _meter_components(
    site: Site, device: DeviceRecord, meter: PowerMeter, name: str
) -> Iterator[tuple[str, Component]]:
    for kind in METER_KINDS:
        if kind.needs_charge and meter.type not in WITH_CHARGE:
            continue
        topic = site.topics.state(device.id, meter.id)
        template = kind.template
        if kind.is_energy:
            topic = site.topics.energy(device.id)
            # An id is any text; JSON's quotes and escapes are also those of a template.
            quoted = json.dumps(meter.id, ensure_ascii=False)
            template = (
                f"{{{{ value_json.{METERS_FIELD}.get({quoted}, {{}}).get('{kind.template}') }}}}"
            )
        yield (
            f"{encoded(meter.id)}__{kind.key}",
            _component(kind, f"{name} {kind.name}", topic, template, site.expire),
        )


def _device_components(site: Site, device: DeviceRecord) -> Iterator[tuple[str, Component]]:
    for kind in DEVICE_KINDS:
        topic = site.topics.totals(device.id)
        if kind.is_energy:
            topic = site.topics.energy(device.id)
        yield kind.key, _component(kind, kind.name, topic, kind.template, site.expire)
    yield (
        "event",
        {
            "platform": "event",
            "name": "Event",
            "state_topic": site.topics.event(device.id),
            "value_template": _EVENT_TEMPLATE,
            "event_types": [kind.value for kind in PowerEventType],
            "qos": 1,
        },
    )


def _component(kind: _Kind, name: str, topic: str, template: str, expire: float) -> Component:
    return {
        "platform": kind.platform,
        "name": name,
        "state_topic": topic,
        "value_template": template,
        # Beside the last will, by which a bridge that stops is known.
        "expire_after": math.ceil(expire),
        **kind.options,
    }


# --- The part of the bridge


@dataclass
class _Told:
    """A discovery message, and what it was made from."""

    device: DeviceRecord
    meters: dict[str, tuple[object, ...]]  # by id, what the message depends on
    removed: set[str]  # deleted meters
    said: Said


class Discovery(QuietPart):
    """The discovery message of every device that has readings; `prefix`: Home Assistant's.

    What the broker retains is read first: a meter may have been deleted while no bridge ran.
    """

    def __init__(self, site: Site, prefix: str, device_ids: Callable[[], Iterable[str]]) -> None:
        self._site = site
        self._prefix = prefix
        self._device_ids = device_ids
        self._is_heard = False
        self._devices: dict[str, str] = {}  # device ids by the topics of their messages
        self._told: dict[str, _Told] = {}
        self._gone: dict[str, dict[str, str]] = {}  # by device: components that are to be removed
        self._named: dict[str, dict[str, str]] = {}  # by device: those that the broker retained

    def topic(self, device_id: str) -> str:
        """The topic of a device's discovery message."""
        return f"{self._prefix}/device/{object_id(self._site.topics.prefix, device_id)}/config"

    def filters(self) -> list[str]:
        """Home Assistant's birth message, and our own messages of before."""
        self._devices = {self.topic(id_): id_ for id_ in self._device_ids()}
        return [self._birth(), *self._devices]

    def _birth(self) -> str:
        return f"{self._prefix}/status"

    def arrived(self, topic: str, payload: bytes, is_retained: bool) -> bool:
        """If Home Assistant has started, send everything again: it may have missed messages.

        A retained birth message is from before.
        """
        if topic == self._birth():
            return payload == _BIRTH and not is_retained
        device_id = self._devices.get(topic)
        if is_retained and not self._is_heard and device_id is not None:
            self._named[device_id] = _named_components(payload)
        return False

    def heard(self) -> None:
        """Replace the messages from here on."""
        self._is_heard = True

    def messages(self, look: Look) -> Iterator[Said]:
        """One message, for a device whose meters have measured something."""
        if not self._is_heard:
            yield Said(
                Retained(self.topic(look.device.id), b""), Owner(look.device.id), is_left=True
            )
            return
        if all(meter.updated_at is None for meter in look.meters):
            self.forget(look.device.id)
            return
        facts = {meter.id: _facts(meter) for meter in look.meters}
        told = self._told.get(look.device.id)
        if told is None or not self._holds(told, look, facts):
            gone = self._gone_components(told, look)
            payload = device_message(self._site, look.device, look.meters, gone)
            message = Retained(self.topic(look.device.id), json_bytes(payload))
            said = Said(message, Owner(look.device.id))
            told = _Told(look.device, facts, set(look.removed_meter_ids), said)
            self._told[look.device.id] = told
        yield told.said

    def _holds(self, told: _Told, look: Look, facts: dict[str, tuple[object, ...]]) -> bool:
        """Whether the message of before still holds."""
        is_same = told.device == look.device and told.meters == facts
        return is_same and told.removed.issuperset(look.removed_meter_ids)

    def _gone_components(self, told: _Told | None, look: Look) -> dict[str, str]:
        """Components to remove that Home Assistant may know; each message names them again."""
        gone = self._gone.setdefault(look.device.id, {})
        gone.update(self._named.pop(look.device.id, {}))
        removed = set(look.removed_meter_ids)
        if told is not None:
            removed |= told.meters.keys()
        for meter_id in removed:
            gone.update(component_ids(meter_id))
        present = device_message(self._site, look.device, look.meters)["components"]
        for key in gone.keys() & present.keys():
            del gone[key]
        return gone

    def forget(self, device_id: str) -> None:
        """Drop what was said of it."""
        self._told.pop(device_id, None)
        self._gone.pop(device_id, None)
        self._named.pop(device_id, None)


def _facts(meter: PowerMeter) -> tuple[object, ...]:
    """What the discovery of a meter depends on, beside its id."""
    return meter.name, meter.type, meter.updated_at is not None


def _named_components(payload: bytes) -> dict[str, str]:
    """The components that a discovery message of this package makes, with their platforms."""
    try:
        message = json.loads(payload)
        if message["origin"]["name"] != ORIGIN:
            return {}
        named = {key: (it["platform"], len(it)) for key, it in message["components"].items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        key: platform
        for key, (platform, fields) in named.items()
        if fields > 1 and platform in ("sensor", "binary_sensor", "event")
    }
