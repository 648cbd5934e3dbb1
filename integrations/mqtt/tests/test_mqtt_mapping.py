"""Maps: the ready ones on samples of what those devices send, and what is refused."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from power_mqtt.intake import entries_for
from power_mqtt.joining import Joiner, Message, Reading
from power_mqtt.mapping import (
    MOST_PAYLOAD,
    Map,
    MapError,
    NoMeaning,
    load_map,
    parse_map,
    ready_maps,
    subscriptions,
)

PLAIN = """[[topic]]
filter = "{device}/power"
device = "{device}"
meter = "main"
values = { power = "" }
"""


def readings(one: Map, *messages: tuple[str, object]) -> list[Reading]:
    """What a map makes of messages that come at the same time."""
    joiner = Joiner([one])
    made: list[Reading] = []
    for topic, content in messages:
        payload = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        for entry in entries_for(one, topic):
            measured = entry.measure(topic, payload)
            if measured is not None:
                made += joiner.add(measured, Message(None), 0.0, 0)
    made += joiner.due(0.0, is_end=True)
    return [reading for reading in made if not reading.is_empty]


def shown(found: list[Reading]) -> list[tuple[Any, ...]]:
    """Device, meter's type and name, and rounded values."""
    return [
        (
            one.source.device_id,
            str(one.source.type),
            one.source.name,
            *(
                None if v is None else round(v, 4)
                for v in (one.voltage, one.current_draw, one.charge_pct)
            ),
        )
        for one in found
    ]


# Made up, in the form that each maker's documentation gives.
SAMPLES: dict[str, list[tuple[list[tuple[str, object]], list[tuple[Any, ...]]]]] = {
    "tasmota": [
        (
            [
                (
                    "tele/fridge/SENSOR",
                    {
                        "Time": "2026-11-28T10:00:00",
                        "ENERGY": {
                            "Total": 1.9,
                            "Power": 46,
                            "ApparentPower": 92,
                            "Voltage": 230,
                            "Current": 0.4,
                        },
                    },
                )
            ],
            [("fridge", "main", None, 230.0, 0.2, None)],
        ),
        (
            [("tele/lamp/SENSOR", {"ENERGY": {"Power": 23}})],
            [("lamp", "main", None, 230.0, 0.1, None)],
        ),
        (
            [("tele/buoy/SENSOR", {"INA219": {"Voltage": 4.5, "Current": 0.02, "Power": 0.09}})],
            [("buoy", "main", "INA219", 4.5, 0.02, None)],
        ),
        ([("tele/door/SENSOR", {"Time": "2026-11-28T10:00:00", "Switch1": "ON"})], []),
    ],
    "shelly": [
        (
            [("shellies/shelly1pm-A1B2/relay/0/power", "46.00")],
            [("shelly1pm-A1B2", "main", "relay 0", 230.0, 0.2, None)],
        ),
        (
            [
                ("shellies/shellyem3-C3/emeter/1/power", "-115.5"),
                ("shellies/shellyem3-C3/emeter/1/voltage", "231.0"),
            ],
            [("shellyem3-C3", "main", "phase 1", 231.0, -0.5, None)],
        ),
        (
            [
                (
                    "shellyplus1pm-d4/status/switch:0",
                    {"id": 0, "output": True, "apower": 46.0, "voltage": 230.0, "current": 0.25},
                )
            ],
            [("shellyplus1pm-d4", "main", "switch 0", 230.0, 0.2, None)],
        ),
        ([("shellyplus1-e5/status/switch:0", {"id": 0, "output": True})], []),
        (
            [
                (
                    "shellypro3em-f6/status/em:0",
                    {"a_voltage": 230.0, "a_current": 1.0, "a_act_power": 230.0, "b_voltage": 229.0,
                     "b_current": 2.0, "b_act_power": -229.0, "total_act_power": 1.0},
                )
            ],
            [
                ("shellypro3em-f6", "main", "phase a", 230.0, 1.0, None),
                ("shellypro3em-f6", "main", "phase b", 229.0, -1.0, None),
            ],
        ),
    ],
    "esphome": [
        (
            [
                ("pump/sensor/voltage/state", "229.9"),
                ("pump/sensor/current/state", "1.0"),
                ("pump/sensor/power/state", "229.9"),
            ],
            [("pump", "main", None, 229.9, 1.0, None)],
        ),
        (
            [
                ("shed/sensor/inverter_voltage/state", "48"),
                ("shed/sensor/inverter_current/state", "2"),
            ],
            [("shed", "main", "inverter", 48.0, 2.0, None)],
        ),
        (
            [
                ("cabin/sensor/battery_level/state", "81"),
                ("cabin/sensor/battery_voltage/state", "3.9"),
            ],
            [("cabin", "battery", None, 3.9, None, 81.0)],
        ),
        ([("cabin/sensor/battery_level/state", "nan")], []),
    ],
    "zigbee2mqtt": [
        (
            [
                (
                    "zigbee2mqtt/washer",
                    {
                        "power": 460,
                        "voltage": 230,
                        "current": 2.1,
                        "state": "ON",
                        "linkquality": 90,
                    },
                )
            ],
            [("washer", "main", None, 230.0, 2.0, None)],
        ),
        (
            [("zigbee2mqtt/window", {"battery": 97, "voltage": 3005, "contact": True})],
            [("window", "battery", None, 3.005, None, 97.0)],
        ),
        ([("zigbee2mqtt/bulb", {"state": "ON", "brightness": 215})], []),
    ],
    "victron": [
        (
            [
                ("N/c0619ab1/battery/512/Dc/0/Voltage", {"value": 26.4}),
                ("N/c0619ab1/battery/512/Dc/0/Current", {"value": 10.0}),
                ("N/c0619ab1/battery/512/Soc", {"value": 81.5}),
            ],
            [("c0619ab1", "battery", "battery 512", 26.4, -10.0, 81.5)],
        ),
        (
            [
                ("N/c0619ab1/solarcharger/279/Pv/V", {"value": 50.0}),
                ("N/c0619ab1/solarcharger/279/Yield/Power", {"value": 100}),
            ],
            [("c0619ab1", "solar", "solarcharger 279", 50.0, 2.0, None)],
        ),
        ([("N/c0619ab1/battery/512/Soc", {"value": None})], []),
        ([("N/c0619ab1/battery/512/Soc", "")], []),
    ],
    "opendtu": [
        (
            [
                ("solar/114172220000/0/voltage", "230.0"),
                ("solar/114172220000/0/current", "1.2"),
                ("solar/114172220000/0/power", "230.0"),
            ],
            [("114172220000", "solar", "AC", 230.0, 1.0, None)],
        ),
        ([("solar/114172220000/1/power", "120.0"), ("solar/114172220000/name", "Roof")], []),
    ],
}  # fmt: skip
CASES = [(name, *sample) for name, samples in SAMPLES.items() for sample in samples]


@pytest.mark.parametrize(("name", "messages", "expected"), CASES)
def test_a_ready_map_understands_what_its_devices_send(
    name: str, messages: list[tuple[str, object]], expected: list[tuple[Any, ...]]
) -> None:
    """Each device in its own words, and nothing of what is no measurement."""
    assert shown(readings(load_map(name), *messages)) == expected


def test_every_ready_map_has_a_sample() -> None:
    """None is untried."""
    assert ready_maps() == sorted(SAMPLES)


def test_a_filter_that_another_covers_is_left_out() -> None:
    """Some brokers send a message once for each filter that it matches."""
    assert subscriptions([load_map("esphome")]) == ["+/sensor/+/state"]
    own = parse_map(PLAIN.replace("{device}/power", "tele/{device}/#"), "m")
    assert subscriptions([load_map("tasmota"), own]) == ["tele/+/#"]


def test_units_factors_and_signs() -> None:
    """Millivolts, a factor of one's own, and amperes that count the other way."""
    one = parse_map(
        '[[topic]]\nfilter = "x"\ndevice = "d"\nmeter = "battery"\n[topic.values]\n'
        'voltage = { path = "a.0", unit = "mV" }\n'
        'current = { path = ["b.c", "d"], factor = 0.1, sign = -1 }\n'
        'charge = { path = "e", unit = "1" }\n',
        "here",
    )
    found = readings(one, ("x", {"a": [12_500], "b.c": {"d": "15"}, "e": 0.25}))
    assert shown(found) == [("d", "battery", None, 12.5, -1.5, 25.0)]


@pytest.mark.parametrize(
    ("time", "expected_us"),
    [
        (1_700_000_000, 1_700_000_000_000_000),
        (1_700_000_000_500, 1_700_000_000_500_000),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000_000),
        ("2023-11-14T23:13:20", 1_700_000_000_000_000),
    ],
)
def test_a_payload_can_say_its_time(time: object, expected_us: int) -> None:
    """In seconds or milliseconds, with an offset, or in the map's zone; then it is no live
    reading.
    """
    one = parse_map(
        PLAIN.replace('power = ""', 'voltage = "p"') + 'time = "t"\nzone = "Europe/Berlin"\n', "m"
    )
    (found,) = readings(one, ("d/power", {"p": 1, "t": time}))
    assert (found.at_us, found.is_live) == (expected_us, False)


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"on", "power: no number: on"),
        (b"\xff", "not UTF-8"),
        (b"1" * (MOST_PAYLOAD + 1), "bytes, more than"),
    ],
)
def test_a_payload_without_meaning_says_why(payload: bytes, why: str) -> None:
    """For the log."""
    (entry,) = parse_map(PLAIN, "m").entries
    with pytest.raises(NoMeaning, match=why):
        entry.measure("d/power", payload)


def test_an_object_with_a_name_twice_has_no_meaning() -> None:
    """Nobody knows which of the two is meant."""
    (entry,) = parse_map(PLAIN.replace('power = ""', 'power = "p"'), "m").entries
    with pytest.raises(NoMeaning, match="it has the name 'p' twice"):
        entry.measure("d/power", b'{"x": 0, "p": 1, "p": 2}')


@given(st.binary(max_size=300), st.sampled_from(ready_maps()))
def test_no_payload_breaks_a_map(payload: bytes, name: str) -> None:
    """It is measured, not for it, or has no meaning."""
    for entry in load_map(name).entries:
        topic = "/".join("x" if level == "+" else level for level in entry.subscription.split("/"))
        with contextlib.suppress(NoMeaning):
            entry.measure(topic, payload)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
        ),
        max_leaves=20,
    )
)
def test_no_json_breaks_a_map(document: object) -> None:
    """Numbers where objects are expected, and the other way round; NaN and Infinity."""
    for name, topic in (("tasmota", "tele/d/SENSOR"), ("zigbee2mqtt", "zigbee2mqtt/d")):
        for wrapped in (document, {"ENERGY": document, "power": document, "battery": document}):
            for entry in entries_for(load_map(name), topic):
                try:
                    measured = entry.measure(topic, json.dumps(wrapped).encode())
                except NoMeaning:
                    continue
                for value in () if measured is None else measured.values.values():
                    assert value is None or abs(value) < float("inf")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected at least one \[\[topic\]\]"),
        ("x = [", "here: "),
        (PLAIN.replace("meter", "metre"), "unknown key 'metre': did you mean meter?"),
        (
            PLAIN.replace('"main"', '"mains"'),
            "meter: expected one of main, battery, solar, ups, got 'mains'",
        ),
        (PLAIN.replace('device = "{device}"', 'device = "{dev}"'), "the filter has no part {dev}"),
        (PLAIN.replace("{ power", "{ watts"), "unknown key 'watts'"),
        (
            PLAIN.replace('power = ""', 'power = { path = "", unit = "A" }'),
            "unit: expected one of W, mW, kW, got 'A'",
        ),
        (
            PLAIN.replace('power = ""', 'power = { path = "", sign = 2 }'),
            "sign: expected 1 or -1, got 2",
        ),
        (PLAIN.replace("{device}/power", "a+/power"), r"\+ and # stand for whole levels"),
        (PLAIN.replace("{device}/power", "{device}/{device}"), "a part is named twice"),
        (PLAIN + 'join = "soon"\n', "join: expected a duration"),
        (PLAIN + "nominal_voltage = -1\n", "nominal_voltage: expected a number above 0, got -1"),
        (PLAIN + 'zone = "Europe/Berln"\n', "did you mean Europe/Berlin?"),
    ],
)  # fmt: skip
def test_a_map_that_is_none_is_refused_by_name_and_entry(text: str, message: str) -> None:
    """With what would do."""
    with pytest.raises(MapError, match=message):
        parse_map(text, "here")


def test_a_map_that_is_not_there_is_named() -> None:
    """With the nearest ready one."""
    with pytest.raises(MapError, match="no such map: did you mean tasmota"):
        load_map("tasmotta")
    with pytest.raises(OSError, match="No such file"):
        load_map("/nowhere/my.toml")


@given(
    st.text(
        alphabet=st.characters(exclude_characters="/+#\0", exclude_categories=["Cs"]),
        min_size=1,
        max_size=30,
    )
)
def test_a_part_is_what_stands_in_the_topic(device: str) -> None:
    """Whatever letters, and no slash."""
    (entry,) = parse_map(PLAIN, "m").entries
    assert entry.parts(f"{device}/power") == {"device": device}
    assert entry.parts(f"{device}/x/power") is None
    assert entry.subscription == "+/power"
