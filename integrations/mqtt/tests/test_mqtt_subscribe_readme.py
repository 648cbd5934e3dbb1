"""What the README says of `subscribe` and `sniff` is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from power_mqtt.cli import _parser
from power_mqtt.joining import Joiner, Message
from power_mqtt.mapping import parse_map, ready_maps
from power_mqtt.subscribe import DEFAULT_COMMIT_EVERY_S, DEFAULT_SESSION_S, Pace

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
CHAPTER = README.partition("## Into the file")[2].partition("\n## ")[0]


def test_the_example_of_a_map_is_one() -> None:
    """And measures what its comments say."""
    text = re.search(r"```toml\n(.*?)```", CHAPTER, re.DOTALL)
    assert text is not None
    one = parse_map(text[1], "README")
    payload = b'{"at": 1700000000, "bms": {"cells": [{"mv": 3300}], "amps": 2, "soc": 80}}'
    measured = one.entries[0].measure("shed/bms-7/left/state", payload)
    assert measured is not None
    (reading,) = Joiner([one]).add(measured, Message(None), 0.0, 0)
    assert (reading.source.device_id, reading.source.name) == ("bms-7", "left")
    assert reading.voltage == pytest.approx(52.8)
    assert (reading.current_draw, reading.charge_pct) == (-2.0, 80.0)
    assert one.keepalive is not None
    assert one.keepalive.topic_of({}) == "shed/ask"


def test_the_ready_maps_of_the_readme_are_there() -> None:
    """All of them, and no other."""
    table = CHAPTER.partition("| map |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == ready_maps()


def test_every_command_of_the_readme_is_understood() -> None:
    """With options that there are."""
    blocks = re.findall(r"```text\n(.*?)```", CHAPTER, re.DOTALL)
    lines = [line.partition(" > ")[0] for block in blocks for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "power-mqtt"
        assert _parser().parse_args(words[1:]).command == words[1]


def test_the_numbers_of_the_readme_are_those_of_the_program() -> None:
    """A minute, a day, 400 and 16 messages."""
    assert (DEFAULT_COMMIT_EVERY_S, DEFAULT_SESSION_S) == (60.0, 86_400.0)
    for protocol, most in (("5", 400), ("3.1.1", 16)):
        pace = Pace(60.0, 0.0)
        pace.connected(protocol)
        pace.arrived(0.0)
        assert (pace.is_due(0.0, most - 1, 1, False), pace.is_due(0.0, most, 1, False)) == (
            False,
            True,
        )
