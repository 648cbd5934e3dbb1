"""What Home Assistant is told: its names, its entities and their templates, and when it is told
again.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import jinja2.sandbox
import pytest
from hypothesis import given
from hypothesis import strategies as st
from power_mqtt.discovery import (
    METER_KINDS,
    Discovery,
    Site,
    component_ids,
    device_message,
    encoded,
    meter_names,
    object_id,
)
from power_mqtt.parts import Look
from power_mqtt.payloads import event_payload, state_payload
from power_mqtt.topics import Topics

from power_manager import (
    AlertLevel,
    DeviceRecord,
    MeterType,
    PowerEvent,
    PowerEventType,
    PowerMeter,
)

SITE = Site(Topics("power", "here"), "power/bridge/here/availability", 600.0)
DEVICE = DeviceRecord("edge-001", "Edge Node")
TOPIC = "homeassistant/device/power__edge-001/config"
TIME = "2026-06-21T12:00:00.000000+00:00"
ANY_ID = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
# What Home Assistant's own pattern takes for an object id.
HA_OBJECT_ID = re.compile(r"[a-zA-Z0-9_-]+")


def a_meter(id_: str = "m1", kind: MeterType = MeterType.BATTERY, **changes: Any) -> PowerMeter:
    """A meter that was read."""
    meter = PowerMeter(id_, "edge-001", kind, 12.0, 0.5, 50.0, 80.0, updated_at=TIME)
    return dataclasses.replace(meter, **changes)


def components(*meters: PowerMeter) -> dict[str, dict[str, Any]]:
    """The components of a device with those meters."""
    found: dict[str, dict[str, Any]] = device_message(SITE, DEVICE, meters)["components"]
    return found


# --- Names


@given(st.lists(st.tuples(ANY_ID, ANY_ID), unique=True, max_size=20))
def test_no_two_devices_have_one_object_id(ids: list[tuple[str, str]]) -> None:
    """Of any prefix, and Home Assistant takes each for the name of a topic's level."""
    names = [object_id(prefix, device_id) for prefix, device_id in ids]

    assert len(set(names)) == len(names)
    assert all(HA_OBJECT_ID.fullmatch(name) for name in names)


@given(
    st.text(st.sampled_from("_-a/A0é"), max_size=6), st.text(st.sampled_from("_-a/A0é"), max_size=6)
)
def test_separator_is_in_no_encoded_id(one: str, other: str) -> None:
    """Pairs of ids differ wherever one of them does, also by underscores at an end."""
    assert "__" not in encoded(one)
    assert (object_id(one, other) == object_id(other, one)) == (one == other)


@given(st.lists(ANY_ID, unique=True, min_size=1, max_size=5))
def test_no_two_entities_have_one_unique_id(ids: list[str]) -> None:
    """In one device, whatever its meters' ids."""
    found = components(*(a_meter(id_) for id_ in ids))

    unique_ids = [component["unique_id"] for component in found.values()]
    assert len(set(unique_ids)) == len(unique_ids) == 10 * len(ids) + 4
    assert all(" " not in key for key in found)


def test_unique_ids_stay_when_names_change() -> None:
    """They are made of ids alone."""
    before = components(a_meter(name="Pack"))
    after = components(a_meter(name="Main pack"))

    assert before["m1__power"]["name"] == "Pack power"
    assert after["m1__power"]["name"] == "Main pack power"
    assert before["m1__power"]["unique_id"] == after["m1__power"]["unique_id"]
    assert before["m1__power"]["unique_id"] == "power__edge-001__m1__power"


def test_meters_of_a_device_have_names_of_their_own() -> None:
    """A meter without a name is called what it is, and a number tells two of a name apart."""
    meters = [
        a_meter("a"),
        a_meter("b"),
        a_meter("c", MeterType.UPS),
        a_meter("d", name="Battery 2"),
        a_meter("e", name="battery"),
    ]

    assert meter_names(meters) == {
        "a": "Battery",
        "b": "Battery 2",
        "c": "UPS",
        "d": "Battery 2 2",
        "e": "battery 3",
    }


# --- Entities


def test_message_of_a_device() -> None:
    """Device, origin and availability are as Home Assistant's documentation has them."""
    message = device_message(SITE, DEVICE, [a_meter()])

    assert message["device"] == {
        "identifiers": ["power__edge-001"],
        "name": "Edge Node",
        "manufacturer": "BlackRoad OS, Inc.",
        "model": "power_manager",
        "serial_number": "edge-001",
    }
    assert message["origin"]["name"] == "power-mqtt"
    assert message["availability"] == [
        {"topic": "power/bridge/here/availability"},
        {"topic": "power/edge-001/availability"},
    ]
    assert message["availability_mode"] == "all"


def test_bridge_of_one_device_has_one_availability() -> None:
    """Its last will is the device's own availability, which is named once."""
    site = Site(Topics("power", "here"), "power/edge-001/availability", 600.0)

    message = device_message(site, DEVICE, [a_meter()])

    assert message["availability"] == [{"topic": "power/edge-001/availability"}]


def test_power_sensor() -> None:
    """A sensor has its topic, template, unit, classes, precision and expiry."""
    assert components(a_meter())["m1__power"] == {
        "platform": "sensor",
        "name": "Battery power",
        "state_topic": "power/edge-001/m1/state",
        "value_template": "{{ value_json.wattage }}",
        "expire_after": 600,
        "device_class": "power",
        "unit_of_measurement": "W",
        "state_class": "measurement",
        "suggested_display_precision": 1,
        "unique_id": "power__edge-001__m1__power",
    }


def test_counters_are_for_the_energy_dashboard() -> None:
    """Energy in and out and consumption are total_increasing, in Wh."""
    found = components(a_meter())

    for key in ("m1__energy_out", "m1__energy_in", "consumption"):
        assert found[key]["state_topic"] == "power/edge-001/energy"
        assert found[key]["device_class"] == "energy"
        assert found[key]["state_class"] == "total_increasing"
        assert found[key]["unit_of_measurement"] == "Wh"


@pytest.mark.parametrize(
    ("kind", "has_charge"), [(kind, kind in ("battery", "ups")) for kind in MeterType]
)
def test_charge_and_problems_are_of_meters_that_have_a_charge(
    kind: MeterType, has_charge: bool
) -> None:
    """A solar panel has no charge, and no alert of it."""
    found = components(a_meter(kind=kind))

    for key in ("m1__charge", "m1__low", "m1__critical"):
        assert (key in found) == has_charge
    assert "m1__power" in found


def test_meter_that_was_never_read_has_no_entities() -> None:
    """There is nothing that they could say."""
    found = components(a_meter("a"), a_meter("b", updated_at=None))

    assert any(key.startswith("a__") for key in found)
    assert not any(key.startswith("b__") for key in found)


def test_component_ids_are_those_that_are_used() -> None:
    """What is removed by them is what was there."""
    found = components(a_meter("ü/1"))

    of_meter = {key: it["platform"] for key, it in found.items() if "__" in key}
    assert component_ids("ü/1") == of_meter
    assert len(of_meter) == len(METER_KINDS)


# --- Templates, as Home Assistant renders them


def render(template: str, message: object) -> str:
    """What a template makes of a message; Home Assistant's filter to_json is JSON."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment()
    environment.filters["to_json"] = json.dumps
    return environment.from_string(template).render(value_json=json.loads(json.dumps(message)))


def say(meter: PowerMeter, key: str) -> str:
    """What an entity of a meter makes of its state message."""
    return render(components(meter)[f"{meter.id}__{key}"]["value_template"], state_payload(meter))


def test_templates_of_a_state_message() -> None:
    """Each entity says its part of the state."""
    meter = a_meter()

    said = {
        key: say(meter, key)
        for key in ("power", "voltage", "current", "charge", "state", "last_reading")
    }

    assert said == {
        "power": "6.0",
        "voltage": "12.0",
        "current": "0.5",
        "charge": "80.0",
        "state": "normal",
        "last_reading": TIME,
    }


def test_unknown_is_none() -> None:
    """What is not known becomes None, which Home Assistant shows as unknown."""
    meter = a_meter(power_known=False, current_draw=0.0, voltage=0.0)
    dark = a_meter(kind=MeterType.MAIN, voltage=0.0)

    assert [say(meter, key) for key in ("power", "voltage", "current")] == ["None"] * 3
    assert say(dark, "state") == "None"


@pytest.mark.parametrize(
    ("charge", "alert", "low", "critical"),
    [
        (80.0, "none", "OFF", "OFF"),
        (20.0, "none", "ON", "OFF"),  # of a meter that raises no alerts
        (21.0, "low", "ON", "OFF"),  # the alert ends two points above
        (5.5, "critical", "ON", "ON"),
        (4.0, "none", "ON", "ON"),
    ],
)
def test_problem_sensors(charge: float, alert: Any, low: str, critical: str) -> None:
    """Low and critical are on while the alert stands, and where the state says so."""
    meter = a_meter(charge_pct=charge, alert_level=AlertLevel(alert))

    assert (say(meter, "low"), say(meter, "critical")) == (low, critical)


def test_states_are_among_the_options() -> None:
    """Home Assistant ignores an enum's value that it was not told of."""
    found = components(a_meter())["m1__state"]

    for charge in (1.0, 10.0, 50.0, 99.0):
        assert say(a_meter(charge_pct=charge), "state") in found["options"]


@given(st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()))
def test_energy_template_of_any_meter(meter_id: str) -> None:
    """An id with quotes, braces or letters of any script finds its counter, and no counter is
    None.
    """
    found = components(a_meter(meter_id))
    key = f"{encoded(meter_id)}__energy_out"
    message = {"meters": {meter_id: {"energy_out_wh": 12.5}, "other": {"energy_out_wh": 1.0}}}

    assert render(found[key]["value_template"], message) == "12.5"
    assert render(found[key]["value_template"], {"meters": {}}) == "None"


def test_event_template() -> None:
    """An event has its type where Home Assistant looks for it, and all else as attributes."""
    component = components(a_meter())["event"]
    event = PowerEvent("e1", "edge-001", PowerEventType.SHUTDOWN, 3.5, TIME, 'Bye "x"\n', "m1")
    payload = event_payload(7, event, "f", "Pack")

    said = json.loads(render(component["value_template"], payload))

    assert said == {**payload, "event_type": "shutdown"}
    assert said["event_type"] in component["event_types"]


# --- The part of the bridge


def part() -> Discovery:
    """A part for one device."""
    made = Discovery(SITE, "homeassistant", lambda: ["edge-001"])
    assert made.filters() == ["homeassistant/status", TOPIC]
    return made


def look(
    discovery: Discovery,
    *meters: PowerMeter,
    removed: Sequence[str] = (),
    device: DeviceRecord = DEVICE,
) -> dict[str, dict[str, Any]]:
    """The components of what the part says; empty if it says nothing."""
    said = list(discovery.messages(Look(device, meters, removed, 0.0, 0.0)))
    if not said:
        return {}
    (one,) = said
    assert one.message.topic == TOPIC
    assert one.owner.device_id == "edge-001"
    assert not one.is_left
    found: dict[str, dict[str, Any]] = json.loads(one.message.payload)["components"]
    return found


def test_nothing_is_replaced_before_the_broker_has_said_what_it_holds() -> None:
    """Until then the message there stays as it is."""
    (one,) = part().messages(Look(DEVICE, [a_meter()], [], 0.0, 0.0))

    assert one.is_left


def test_same_message_while_nothing_changes() -> None:
    """A reading changes nothing of what Home Assistant has to know; a name does."""
    discovery = part()
    discovery.heard()
    meter = a_meter()
    (first,) = discovery.messages(Look(DEVICE, [meter], [], 0.0, 0.0))
    later = a_meter(voltage=11.0, updated_at="2026-06-21T12:00:01.000000+00:00")
    (second,) = discovery.messages(Look(DEVICE, [later], [], 1.0, 1.0))
    (third,) = discovery.messages(Look(DEVICE, [a_meter(name="Pack")], [], 2.0, 2.0))

    assert first is second
    assert first is not third


def test_device_whose_meters_were_never_read_is_not_announced() -> None:
    """And one whose meters are all gone is announced no more."""
    discovery = part()
    discovery.heard()

    assert look(discovery, a_meter(updated_at=None)) == {}
    assert look(discovery, a_meter()) != {}
    assert look(discovery) == {}


@pytest.mark.parametrize("how", ["seen", "known", "retained"])
def test_deleted_meter_is_removed(how: str) -> None:
    """Its components are named with their platform alone: seen to go, or gone while no bridge
    ran.
    """
    discovery = part()
    removed: list[str] = []
    if how == "retained":
        payload = json.dumps(device_message(SITE, DEVICE, [a_meter("a"), a_meter("b")]))
        discovery.arrived(TOPIC, payload.encode(), True)
    discovery.heard()
    if how == "seen":
        look(discovery, a_meter("a"), a_meter("b"))
    if how == "known":
        removed = ["b"]

    found = look(discovery, a_meter("a"), removed=removed)

    stubs = {key: it for key, it in found.items() if len(it) == 1}
    assert stubs == {key: {"platform": of} for key, of in component_ids("b").items()}
    assert (
        look(discovery, a_meter("a")) == found
    )  # until the bridge ends: somebody may have missed it


def test_removed_component_that_is_back_is_no_stub() -> None:
    """A meter that was taken for gone, and is there, has its entities."""
    discovery = part()
    discovery.heard()
    look(discovery, a_meter("a"), a_meter("b"), removed=["b"])

    found = look(discovery, a_meter("a"), a_meter("b"))

    assert all(len(component) > 1 for component in found.values())


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{",
        b'{"components": {"x": {"platform": "sensor", "name": "x"}}}',
        (
            b'{"origin": {"name": "zigbee2mqtt"}, '
            b'"components": {"x": {"platform": "sensor", "name": "x"}}}'
        ),
        b'{"origin": {"name": "power-mqtt"}, "components": [1]}',
        b'{"origin": {"name": "power-mqtt"}, "components": {"x": 5}}',
        (
            b'{"origin": {"name": "power-mqtt"}, '
            b'"components": {"x": {"platform": "lock", "name": "x"}}}'
        ),
        b'{"origin": {"name": "power-mqtt"}, "components": {"x": {"platform": "sensor"}}}',
        b'{"origin": {"name": "power-mqtt"}, "components": {"x": {"platform": [], "name": "x"}}}',
    ],
)
def test_what_somebody_else_has_put_there_removes_nothing(payload: bytes) -> None:
    """Only a message of this package says which components there were."""
    discovery = part()
    discovery.arrived(TOPIC, payload, True)
    discovery.heard()

    assert look(discovery, a_meter("a")) == components(a_meter("a"))


def test_birth_of_home_assistant_has_everything_sent_again() -> None:
    """A birth that the broker has retained is old news, and so is its end."""
    discovery = part()

    assert discovery.arrived("homeassistant/status", b"online", False)
    assert not discovery.arrived("homeassistant/status", b"online", True)
    assert not discovery.arrived("homeassistant/status", b"offline", False)
