"""What a person reads: which device and meter, since when, how much is left and for how long."""

from __future__ import annotations

from datetime import timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from power_notify.store import Item
from power_notify.texts import compose
from world import World

from power_manager import PowerManager


def message_of(world: World) -> tuple[str, list[str]]:
    """Title and lines of what is to be told now."""
    notifier = world.notifier("json://127.0.0.1:9/")
    notifier.take_in()
    message = notifier.message_for(notifier.ways[0])
    assert message is not None
    return message.title, message.text.splitlines()


def test_an_alert_in_full(world: World) -> None:
    """All that somebody needs to decide whether to get up."""
    world.log(50.0)
    world.log(4.0)
    assert message_of(world) == (
        "Battery critical: Gate 01 - 4 %",
        [
            'Gate 01 (gate-01), battery "Pack"',
            "4 % charge, critical since 2026-11-28 12:00 (at or below 5 %).",
            (
                "Left: 4 %, 2.00 of 50.0 Wh; "
                "the device's batteries last about 1 h 10 min at this load."
            ),
            "Last reading: 2026-11-28 12:00:02, 3.40 V, 0.50 A, 1.70 W, 4 %.",
        ],
    )


def test_the_charge_of_now_is_told_beside_that_of_the_alert(world: World) -> None:
    """A message that comes late says how it is by then."""
    world.notifier("json://127.0.0.1:9/")
    world.log(4.5)
    world.log(2.0)
    title, lines = message_of(world)
    assert title == "Battery critical: Gate 01 - 4.5 %"
    assert lines[2].startswith("Left: 2 %, 1.00 of 50.0 Wh; ")


@pytest.mark.parametrize(
    ("amperes", "left"),
    [
        (-1.0, "it is charging with 3.40 W."),
        (0.0, "for how long is not known."),
        (None, "for how long is not known."),
    ],
)
def test_a_runtime_that_is_not_known_is_not_told(
    world: World, amperes: float | None, left: str
) -> None:
    """Nor is one of a battery that is being charged."""
    world.pass_time(1.0)
    world.pm.log_power(world.pack.id, 3.4, amperes, 4.0)
    _, lines = message_of(world)
    assert lines[2] == f"Left: 4 %, 2.00 of 50.0 Wh; {left}"


def test_what_is_left_after_a_reading_of_long_ago_is_not_told_as_now(world: World) -> None:
    """Older than the gap over which energy is booked: nobody knows how it went on."""
    world.notifier("json://127.0.0.1:9/")
    world.log(4.0)
    world.pass_time(5400.0)
    _, lines = message_of(world)
    assert lines[2].endswith("batteries last about 1 h 10 min at this load.")
    world.log(3.0)
    world.pass_time(9 * 86400.0)
    _, lines = message_of(world)
    assert lines[2] == "Left: 3 %, 1.50 of 50.0 Wh, as it was 9 d ago; how it is now is not known."


def test_a_charge_that_is_not_known_is_not_0(world: World) -> None:
    """An alert that stands when a gauge goes away is told, and says that the rest is not known."""
    world.notifier("json://127.0.0.1:9/")
    world.log(4.0)
    world.pm.update_meter(world.pack.id, charge_pct=None)
    title, lines = message_of(world)
    assert title == "Battery critical: Gate 01 - 4 %"
    assert lines[2] == "Left: charge not known; for how long is not known."
    assert lines[3] == (
        "Last reading: 2026-11-28 12:00:01, 3.40 V, 0.50 A, 1.70 W, charge not known."
    )


def test_an_alert_of_a_charge_that_is_forgotten_goes_on(world: World) -> None:
    """It stood before anybody looked; its charge is not known, and nothing is made up for it."""
    world.log(4.0)
    world.pm.update_meter(world.pack.id, charge_pct=None)
    world.pass_time(1.0)
    world.pm.log_power(world.pack.id, 3.4, 0.5)
    title, lines = message_of(world)
    assert title == "Battery critical: Gate 01 - charge not known"
    assert lines[1].startswith("Charge not known, critical since 2026-11-28 12:00")


def test_volts_that_are_not_known_are_not_0(world: World) -> None:
    """A gauge that knows its charge alone has no watts."""
    world.pass_time(1.0)
    world.pm.log_power(world.pack.id, None, None, 4.0)
    _, lines = message_of(world)
    assert lines[3].endswith("volts or amperes not known, 4 %.")


def test_a_meter_without_capacity_has_no_watt_hours(world: World) -> None:
    """Of it only the charge is left."""
    cell = world.pm.add_meter("pump", "battery")
    world.notifier("json://127.0.0.1:9/")
    world.pm.log_power(cell.id, 3.4, 0.5, 4.0)
    title, lines = message_of(world)
    assert title == "Battery critical: Pump - 4 %"
    assert lines[0] == "Pump (pump), battery"
    assert lines[2] == "Left: 4 %; for how long is not known."


def test_a_ups_is_called_one(world: World) -> None:
    """Where the writer has it raise alerts; the device's own threshold is told."""
    world.pm.update_device("pump", low_battery_threshold=50.0)
    ups = world.pm.add_meter("pump", "ups", name="APC")
    world.notifier("json://127.0.0.1:9/")
    with PowerManager(world.path, alert_types=["ups"], clock=lambda: world.now_s) as writer:
        writer.log_power(ups.id, 230.0, 0.5, 40.0)
    title, lines = message_of(world)
    assert title == "UPS low: Pump - 40 %"
    assert lines[1] == "40 % charge, low since 2026-11-28 12:00 (at or below 50 %)."


def test_an_event_without_a_meter_has_its_note(world: World) -> None:
    """And says nothing of a charge, whatever its value."""
    world.notifier("json://127.0.0.1:9/")
    world.pm.trigger_event("pump", "low_battery", 7.0, "by hand\nsecond line")
    title, lines = message_of(world)
    assert title == "Low battery: Pump - by hand\\nsecond line"
    assert lines == ["Pump (pump)", "At 2026-11-28 12:00.", "Note: by hand\\nsecond line"]


def test_a_main_meter_has_no_charge(world: World) -> None:
    """In the file it has the 100 % it was registered with."""
    main = world.pm.add_meter("pump", "main", name="Inlet")
    world.pm.log_power(main.id, 12.0, 1.0)
    world.notifier("json://127.0.0.1:9/")
    world.pm.trigger_event("pump", "restore", note="mains is back", meter_id=main.id)
    _, lines = message_of(world)
    assert lines[0] == 'Pump (pump), main meter "Inlet"'
    assert lines[3] == "Last reading: 2026-11-28 12:00:00, 12.0 V, 1.00 A, 12.0 W."


def test_a_long_note_is_cut(world: World) -> None:
    """A text message is short; the file has all of it."""
    world.notifier("json://127.0.0.1:9/")
    world.pm.trigger_event("pump", "shutdown", note="x" * 5000)
    title, lines = message_of(world)
    assert len(title) < 120
    assert len(lines[2]) == len("Note: ") + 300
    assert lines[2].endswith("…")


def test_two_or_three_have_a_paragraph_each(world: World) -> None:
    """With its own head."""
    world.notifier("json://127.0.0.1:9/")
    world.pm.trigger_event("pump", "restore", note="mains is back")
    world.log(4.0)
    title, lines = message_of(world)
    assert title == "Battery critical: Gate 01 - 4 %, and 1 more"
    assert lines[0] == "Battery critical: Gate 01 - 4 %"
    assert lines[lines.index("") + 1] == "Restore: Pump - mains is back"


def test_silence_and_its_end_in_full(world: World) -> None:
    """Since when, in local time."""
    items = [
        Item("silent", "pump", "Pump", "2026-11-28T12:00:00+00:00", 2100.0, sequence=1),
        Item("back", "pump", "Pump", "2026-11-28T15:00:00+00:00", 10800.0, sequence=2),
    ]
    texts = [compose(world.pm, [item], timezone.utc, world.now_s).text for item in items]
    assert texts == [
        "Pump (pump)\nNo reading since 2026-11-28 12:00.",
        "Pump (pump)\nReadings come again, the newest of 2026-11-28 15:00.",
    ]
    both = compose(world.pm, items, timezone.utc, world.now_s)
    assert both.title == "Back: Pump - after 3 h, and 1 more"
    assert both.severity == "good"


@given(
    name=st.text(min_size=1, max_size=200),
    value=st.floats(allow_nan=False, allow_infinity=False),
    note=st.one_of(st.none(), st.text(min_size=1, max_size=10_000)),
    kind=st.sampled_from(
        ["low_battery", "restore", "silent", "back", "recovered", "deleted", "charge_start"]
    ),
    count=st.integers(1, 50),
)
def test_any_item_gives_a_title_of_one_line_and_a_text_that_is_short(
    name: str, value: float, note: str | None, kind: str, count: int
) -> None:
    """Whatever names and notes are made of."""
    at = "2026-11-28T12:00:00+00:00"
    label = "battery" if kind == "recovered" else None
    with PowerManager(":memory:") as pm:
        items = [
            Item(kind, "id", name, at, abs(value) % 1e9, None, label, note, sequence=number)
            for number in range(1, count + 1)
        ]
        message = compose(pm, items, timezone.utc, 0.0)
    assert message.title.splitlines() == [message.title]
    assert message.last_sequence == count
    assert len(message.text.splitlines()) <= 21
