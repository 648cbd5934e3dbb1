"""What is said of a device, and when it is said again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from power_mqtt.parts import Availability, Look, Part, Rules, States, Totals
from power_mqtt.payloads import state_payload, totals_payload
from power_mqtt.topics import Topics

from power_manager import MeterType, PowerManager

TOPICS = Topics("power", "here")
START = 1_700_000_000.0


class Device:
    """A device with one meter in memory, whose clocks a test sets; `look` asks a part about it."""

    def __init__(self, kind: str = "battery") -> None:
        self.wall = START
        self.now = 0.0
        self.pm = PowerManager(":memory:", clock=lambda: self.wall)
        self.pm.register_device("edge", "Edge")
        self.meter_id = self.pm.add_meter("edge", kind, 50.0, "Pack").id

    def read(
        self, voltage: float | None, current: float | None, charge: float | None = 80.0
    ) -> None:
        """Store a reading of now."""
        self.pm.log_power(self.meter_id, voltage, current, charge)

    def wait(self, seconds: float) -> None:
        """Let time go by on both clocks."""
        self.wall += seconds
        self.now += seconds

    def look(self, part: Part, removed: tuple[str, ...] = ()) -> dict[str, bytes]:
        """What a part says now, by topic."""
        meters = self.pm.list_meters("edge")
        device = self.pm.get_device("edge")
        said = part.messages(Look(device, meters, removed, self.now, self.wall))
        return {one.message.topic: one.message.payload for one in said}

    def state(self, part: Part) -> dict[str, Any]:
        """The state that a part says now."""
        (payload,) = self.look(part).values()
        shown: dict[str, Any] = json.loads(payload)
        return shown


@pytest.fixture
def device() -> Device:
    """A device with a battery that was not read yet."""
    return Device()


# --- States


def test_a_state_has_watts_volts_amperes_charge_and_time(device: Device) -> None:
    """Under the names that the library has for them."""
    device.read(12.0, -0.5, 97.0)
    assert device.look(States(TOPICS, Rules())).keys() == {f"power/edge/{device.meter_id}/state"}
    assert device.state(States(TOPICS, Rules())) == {
        "name": "Pack",
        "type": "battery",
        "voltage": 12.0,
        "current_draw": -0.5,
        "wattage": -6.0,
        "charge_pct": 97.0,
        "state": "charging",
        "alert_level": "none",
        "active": True,
        "time": "2023-11-14T22:13:20.000000+00:00",
    }


@pytest.mark.parametrize(
    ("voltage", "current", "expected"),
    [
        (12.0, None, {"voltage": 12.0, "current_draw": None, "wattage": None}),
        (None, 0.5, {"voltage": None, "current_draw": 0.5, "wattage": None}),
        (None, None, {"voltage": None, "current_draw": None, "wattage": None}),
        (0.0, 0.0, {"voltage": 0.0, "current_draw": 0.0, "wattage": 0.0}),
    ],
)
def test_what_is_unknown_is_null_and_never_0(
    device: Device, voltage: float | None, current: float | None, expected: dict[str, Any]
) -> None:
    """A known 0 stays one."""
    device.read(voltage, current)
    state = device.state(States(TOPICS, Rules()))
    assert {key: state[key] for key in expected} == expected


@pytest.mark.parametrize("kind", [kind.value for kind in MeterType])
def test_a_charge_is_said_only_where_there_is_one(kind: str) -> None:
    """The mains has none, whatever the library keeps there."""
    device = Device(kind)
    device.read(12.0, 1.0)
    charge = device.state(States(TOPICS, Rules()))["charge_pct"]
    assert charge == (80.0 if kind in ("battery", "ups") else None)


def test_a_meter_that_never_measured_has_no_state(device: Device) -> None:
    """Its 0 V and 100 % are nobody's. The same after its readings were deleted."""
    states = States(TOPICS, Rules())
    assert device.look(states) == {}
    device.read(12.0, 1.0)
    assert len(device.look(states)) == 1
    device.pm.delete_readings(device.meter_id)
    assert device.look(states) == {}


def says_again(
    device: Device, rules: Rules, first: tuple[float, ...], second: tuple[float, ...]
) -> bool:
    """Whether another reading is published after a first one."""
    states = States(TOPICS, rules)
    device.read(*first)
    before = device.look(states)
    device.wait(1)
    device.read(*second)
    return device.look(states) != before


@pytest.mark.parametrize(
    ("second", "min_change", "expected"),
    [
        ((12.0, 1.0, 80.0), 0.0, False),  # the time alone is no change
        ((12.0, 1.001, 80.0), 0.0, True),
        ((12.0, 1.0, 79.9), 0.0, True),
        ((24.0, 0.5, 80.0), 0.0, True),  # other volts, the same watts
        ((12.0, 1.04, 80.0), 0.5, False),
        ((12.0, 1.05, 80.0), 0.5, True),
        ((24.0, 0.5, 80.0), 0.5, False),
        ((12.0, 1.0, 79.5), 0.5, False),
        ((12.0, 1.0, 79.0), 0.5, True),
        ((12.0, 1.0, 4.0), 100.0, True),
        ((None, 1.0, 80.0), 100.0, True),  # known before, unknown now
    ],
)
def test_a_state_is_said_again_when_it_has_changed_enough(
    device: Device, second: tuple[float, ...], min_change: float, expected: bool
) -> None:
    """By any volt, ampere and percent, or with min_change by so many watts or a point of charge."""
    assert says_again(device, Rules(min_change=min_change), (12.0, 1.0, 80.0), second) is expected


def test_small_changes_add_up(device: Device) -> None:
    """What is compared is what was published last, not the reading before."""
    states = States(TOPICS, Rules(min_change=1.0))
    said = set()
    for step in range(21):
        device.read(10.0, 1.0 + step / 100)
        device.wait(1)
        said |= set(device.look(states).values())
    assert [json.loads(payload)["wattage"] for payload in sorted(said)] == pytest.approx(
        [10.0, 11.0, 12.0]
    )


def test_another_name_or_activity_is_said_at_once(device: Device) -> None:
    """Without a reading."""
    states = States(TOPICS, Rules(min_change=100.0))
    device.read(12.0, 1.0)
    device.look(states)
    device.pm.update_meter(device.meter_id, name="Big pack", active=False)
    state = device.state(states)
    assert (state["name"], state["active"]) == ("Big pack", False)


@pytest.mark.parametrize("min_change", [0.0, 100.0])
def test_a_charge_that_nobody_knows_any_more_is_said_at_once(
    device: Device, min_change: float
) -> None:
    """It is null, not the last value; and when it is known again, that is said at once too."""
    states = States(TOPICS, Rules(min_change=min_change))
    device.read(12.0, 1.0, 80.0)
    device.look(states)
    device.wait(10.0)
    device.pm.update_meter(device.meter_id, charge_pct=None)
    assert device.state(states)["charge_pct"] is None
    device.wait(10.0)
    device.read(12.0, 1.0, 80.0)
    assert device.state(states)["charge_pct"] == 80.0


def test_that_the_same_was_measured_again_is_said_before_it_expires(device: Device) -> None:
    """Twice in that time; when nothing is measured any more, the last reading's time is the last
    word.
    """
    states = States(TOPICS, Rules(expire=100.0))
    said = []
    for _ in range(200):
        device.read(12.0, 1.0)
        said.append(device.state(states)["time"])
        device.wait(1)
    assert len(set(said)) == 4
    last = device.pm.get_meter(device.meter_id).updated_at
    for _ in range(200):
        device.wait(1)
        assert device.state(states)["time"] == last


# --- Totals


def totals(device: Device, rules: Rules) -> Totals:
    """The part that says what the device uses."""
    return Totals(
        TOPICS, rules, device.pm.power_budget_check, Availability(TOPICS, rules).is_online
    )


def test_totals_have_consumption_runtime_and_net(device: Device) -> None:
    """Two hours at 12 W out of a battery of 50 Wh at 80 %."""
    for _ in range(3):
        device.read(12.0, 1.0)
        device.wait(3600)
    assert device.state(totals(device, Rules(expire=7200.0))) == {
        "load_wattage": 12.0,
        "solar_wattage": 0.0,
        "net_wattage": -12.0,
        "total_wattage": 12.0,
        "consumption_24h_wh": 24.0,
        "target_wh": None,
        "runtime_hours": 3.33,
        "charge_pct": 80.0,
        "below_shutdown_threshold": False,
        "unknown_power_count": 0,
    }


def test_totals_are_null_while_the_watts_of_a_meter_are_unknown(device: Device) -> None:
    """A sum without one of its parts is wrong."""
    device.read(12.0, None)
    state = device.state(totals(device, Rules()))
    assert {state[key] for key in state if key.endswith("wattage")} == {None}
    assert state["unknown_power_count"] == 1


def test_a_runtime_is_null_while_the_device_is_offline(device: Device) -> None:
    """Of a reading of nine days ago nobody knows for how long it lasts."""
    rules = Rules(expire=600.0)
    device.read(12.0, 0.5, 80.0)
    part = totals(device, rules)
    assert device.state(part)["runtime_hours"] == 6.67
    device.wait(599.0)
    assert device.state(part)["runtime_hours"] == 6.67
    device.wait(1.0)
    assert device.state(part)["runtime_hours"] is None
    device.wait(9 * 86400.0)
    assert device.state(totals(device, rules))["runtime_hours"] is None
    device.read(12.0, 0.5, 80.0)
    assert device.state(part)["runtime_hours"] is not None


def test_totals_are_computed_once_an_interval_and_only_for_news(device: Device) -> None:
    """They cost queries."""
    asked = []

    def budget(ids: Any) -> Any:
        asked.append(device.now)
        return device.pm.power_budget_check(ids)

    part = Totals(TOPICS, Rules(interval=5.0), budget, lambda _: True)
    assert device.look(part) == {}
    for second in range(20):
        device.read(12.0, 1.0 + second / 10)
        device.look(part)
        device.wait(1)
    assert asked == [0, 5, 10, 15]
    for _ in range(20):
        device.look(part)
        device.wait(1)
    assert asked == [0, 5, 10, 15, 20]


@pytest.mark.parametrize(
    "change",
    [
        lambda pm: pm.update_device("edge", target_wh=100.0),
        lambda pm: pm.add_meter("edge", "solar"),
        lambda pm: pm.update_meter(pm.list_meters()[0].id, active=False),
    ],
    ids=["target", "another meter", "inactive"],
)
def test_totals_follow_what_they_are_made_of(
    device: Device, change: Callable[[PowerManager], object]
) -> None:
    """Also without a reading."""
    part = totals(device, Rules())
    device.read(12.0, 1.0)
    before = device.look(part)
    change(device.pm)
    device.wait(10)
    calls = device.look(part)
    assert calls.keys() == before.keys()
    assert part._totals["edge"].made_at == device.now


def test_a_device_that_is_deleted_under_a_look_has_no_totals(device: Device) -> None:
    """The next look does not have it."""
    part = Totals(
        TOPICS,
        Rules(),
        lambda ids: {id_: {"error": "no such device"} for id_ in ids},
        lambda _: True,
    )
    device.read(12.0, 1.0)
    assert device.look(part) == {}


# --- Availability


def there(device: Device, part: Part) -> str:
    """What is said of the device."""
    ((topic, payload),) = device.look(part).items()
    assert topic == "power/edge/availability"
    return payload.decode()


def test_a_device_is_online_until_it_was_silent_for_too_long(device: Device) -> None:
    """Whatever its readings say, as long as they come."""
    part = Availability(TOPICS, Rules(expire=60.0))
    assert there(device, part) == "offline"
    device.read(12.0, 1.0)
    assert there(device, part) == "online"
    device.wait(59)
    assert there(device, part) == "online"
    device.wait(1)
    assert there(device, part) == "offline"
    device.read(12.0, 1.0)
    assert there(device, part) == "online"


def test_a_reading_is_as_old_as_it_says_when_the_bridge_begins(device: Device) -> None:
    """The device may have died a week ago."""
    device.read(12.0, 1.0)
    device.wait(50)
    part = Availability(TOPICS, Rules(expire=60.0))
    assert there(device, part) == "online"
    device.wait(10)
    assert there(device, part) == "offline"


def test_a_log_that_is_imported_is_old_news(device: Device) -> None:
    """It does not bring a device back."""
    part = Availability(TOPICS, Rules(expire=60.0))
    device.read(12.0, 1.0)
    device.wait(3600)
    device.pm.log_power(device.meter_id, 12.0, 1.0, timestamp=device.wall - 1800)
    assert there(device, part) == "offline"


@pytest.mark.parametrize("jump", [-50 * 365 * 86400.0, 50 * 365 * 86400.0])
def test_a_clock_that_jumps_by_years_changes_nothing(device: Device, jump: float) -> None:
    """Its readings keep coming, so it is there."""
    part = Availability(TOPICS, Rules(expire=60.0))
    device.read(12.0, 1.0)
    assert there(device, part) == "online"
    device.wall += jump
    for _ in range(100):
        assert there(device, part) == "online"
        device.wait(1)
        device.read(12.0, 1.0)
    device.wait(60)
    assert there(device, part) == "offline"


def test_payloads_have_a_key_for_every_value_of_the_budget() -> None:
    """Nothing that people act on is left out by accident: what is not said is named here."""
    device = Device()
    device.read(12.0, 1.0)
    budget = device.pm.power_budget_check(["edge"])["edge"]
    said = {"runtime_hours": "estimated_runtime_hours", "charge_pct": "avg_charge_pct"}
    keys = {said.get(key, key) for key in totals_payload(budget)}
    assert budget.keys() - keys == {
        "battery_count",
        "solar_count",
        "states",  # each meter's own topic has it
        # by another rule than consumption; two such numbers would be taken for one
        "energy_24h_wh",
        "within_target",
    }
    meter = device.pm.get_meter(device.meter_id)
    assert state_payload(meter)["wattage"] == meter.wattage
