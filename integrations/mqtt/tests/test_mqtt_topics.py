"""Topics: valid for every id, and no two ids the same one."""

from __future__ import annotations

import argparse
import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from paho.mqtt.client import Client
from power_mqtt.topics import Topics, level, parse_prefix

from power_manager import InvalidValue, PowerManager

# What the library takes as an id: text without NUL and lone surrogates, not blank, of 1 to 200
# characters.
AWKWARD = "/+#%$ \t\n\x01\x7f\x85\xa0\u2028\ufdd0\uffff\U0001ffffbridgeéé中ब्रि🔋%2F"
ids = st.text(
    st.one_of(
        st.sampled_from(AWKWARD),
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
    ),
    min_size=1,
    max_size=200,
).filter(lambda text: bool(text.strip()))
topics = Topics("power", "here")


def every_topic(device_id: str, meter_id: str) -> list[str]:
    """All that is published about a device and a meter."""
    return [
        topics.availability(device_id),
        topics.totals(device_id),
        topics.event(device_id),
        topics.state(device_id, meter_id),
    ]


@given(ids, ids)
@example("bridge", "here")
@example("a/b", "+")
@example("/" * 200, "\U0001ffff" * 200)
def test_any_id_gives_a_valid_topic(device_id: str, meter_id: str) -> None:
    """Its levels are as many as they should be, without wildcards, and in the length that MQTT
    has.
    """
    for topic in every_topic(device_id, meter_id):
        Client._raise_for_invalid_topic(topic.encode())
        assert topic.count("/") in (2, 3)
        assert not set(topic) & set("+#\0\n ")
        assert len(topic.encode()) < 65536


@given(ids, ids)
@example("a/b", "a%2Fb")
@example("é", "é")
@example("bridge", "%62ridge")
@example(" ", "%20")
def test_no_two_ids_give_the_same_level(one: str, other: str) -> None:
    """Also where one of them is what the other becomes."""
    assert (level(one) == level(other)) == (one == other)


@given(ids, ids, ids, ids)
@example("bridge", "here", "a", "b")
@example("a", "b", "a", "availability")
def test_no_two_things_have_the_same_topic(
    one: str, meter: str, other: str, other_meter: str
) -> None:
    """Devices, meters and the bridge itself never meet, whatever they are called."""
    said = {("device", one, *topic.split("/")[2:]): topic for topic in every_topic(one, meter)}
    said |= {
        ("device", other, *topic.split("/")[2:]): topic for topic in every_topic(other, other_meter)
    }
    said["bridge",] = topics.bridge()
    for (name, topic), (other_name, other_topic) in itertools.combinations(said.items(), 2):
        assert topic != other_topic, (name, other_name)


def test_no_device_is_taken_for_a_bridge() -> None:
    """Whoever reads below the bridges' level finds bridges alone."""
    below = topics.bridge().rpartition("here")[0]
    for topic in every_topic("bridge", "here"):
        assert not topic.startswith(below)


@given(ids)
def test_a_level_can_be_turned_back(text: str) -> None:
    """What is percent-encoded is UTF-8, as in a URL."""
    from urllib.parse import unquote

    assert unquote(level(text), errors="strict") == text


def test_plain_ids_stay_as_they_are() -> None:
    """A person finds them again: letters of any script, digits, and what stands in names."""
    for text in ("edge-001", "Büro_2", "中文", "node.example.com:80", "a@b", "🔋"):
        assert level(text) == text


@pytest.mark.parametrize("text", ["power", "power/", "site/a/power", "Küche"])
def test_a_prefix_is_one_or_more_levels(text: str) -> None:
    """One slash at its end is dropped."""
    assert parse_prefix(text) == text.removesuffix("/")


@pytest.mark.parametrize(
    "text", ["", "/", "a//b", "/a", "a/+", "#", "$SYS", "a\0", "a\n", "\ud800", "x" * 201]
)
def test_a_prefix_that_no_broker_takes_is_refused(text: str) -> None:
    """The message shows it."""
    with pytest.raises(argparse.ArgumentTypeError, match="expected levels of a topic"):
        parse_prefix(text)


def test_the_library_takes_no_id_that_would_give_an_empty_level() -> None:
    """So there is nothing to encode."""
    with PowerManager(":memory:") as pm, pytest.raises(InvalidValue):
        pm.register_device("", "nothing")
