"""What is told and what is not: alerts, their end, their repetition, silence, and filters."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
from ends import HttpEnd
from hypothesis import given, settings
from hypothesis import strategies as st
from power_notify.news import check_devices
from power_notify.store import Store
from world import World, tell

from power_manager import NotFound, PowerEventType, PowerManager


def test_an_alert_is_told_once_and_its_end_too(world: World, http: HttpEnd) -> None:
    """Low, critical, and recovered: three messages, however often somebody looks."""
    notifier = world.notifier(http.url)
    for charge_pct in (50.0, 19.0, 18.0, 4.0, 3.9, 30.0, 31.0):
        world.log(charge_pct)
        tell(notifier)
        tell(notifier)
    assert http.titles == [
        "Battery low: Gate 01 - 19 %",
        "Battery critical: Gate 01 - 4 %",
        "Battery recovered: Gate 01 - 30 %",
    ]
    assert [post.severity for post in http.posts] == ["warning", "failure", "success"]


@pytest.mark.parametrize("delete", ["device", "meter"])
def test_an_alert_ends_when_what_it_is_about_is_deleted(
    world: World, http: HttpEnd, delete: str
) -> None:
    """Once, also if nobody looked at that moment, and only if it was told."""
    tell(world.notifier(http.url))
    world.log(4.0)
    tell(world.notifier(http.url))
    if delete == "device":
        world.pm.delete_device("gate-01")
    else:
        world.pm.delete_meter(world.pack.id)
    for _ in range(2):
        tell(world.notifier(http.url))
    assert http.titles == [
        "Battery critical: Gate 01 - 4 %",
        "Deleted: Gate 01 - its alert is over",
    ]
    assert http.posts[-1].text == (
        'Gate 01 (gate-01), battery "Pack"\nIt is no longer in the file; seen at 2026-11-28 12:00.'
    )


def test_an_alert_that_is_left_out_from_now_on_is_not_deleted(world: World, http: HttpEnd) -> None:
    """Its device is still in the file."""
    world.log(4.0)
    tell(world.notifier(http.url))
    tell(world.notifier(http.url, devices=frozenset({"pump"})))
    assert http.titles == ["Battery critical: Gate 01 - 4 %"]


def test_an_alert_that_was_not_told_has_no_end(world: World, http: HttpEnd) -> None:
    """Of a type that nobody asked for."""
    notifier = world.notifier(http.url, events=frozenset({PowerEventType.RESTORE}))
    world.log(4.0)
    tell(notifier)
    world.pm.delete_device("gate-01")
    tell(notifier)
    assert http.titles == []


def test_a_file_of_a_development_version_is_taken(world: World, http: HttpEnd) -> None:
    """Its table of alerts lacks columns, and is made anew: what stands is told once more."""
    world.log(4.0)
    tell(world.notifier(http.url))
    with world.pm.connection() as conn:
        conn.execute("ALTER TABLE power_notify_alerts RENAME COLUMN device_id TO other")
    for _ in range(2):
        tell(world.notifier(http.url))
    assert http.titles == ["Battery critical: Gate 01 - 4 %"] * 2


def test_a_device_that_is_registered_during_a_look_is_seen_at_the_next(
    world: World, http: HttpEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its meter is in the list of meters, and it is not yet in that of devices."""
    notifier = world.notifier(http.url, silent_s=60.0)
    list_meters = world.pm.list_meters

    def register_first(*arguments: object) -> object:
        monkeypatch.undo()
        world.pm.register_device("late", "Late")
        world.pm.log_power(world.pm.add_meter("late", "battery").id, 3.4, 0.5, 4.0)
        return list_meters()

    monkeypatch.setattr(world.pm, "list_meters", register_first)
    tell(notifier)
    tell(notifier)
    assert http.titles == ["Battery critical: Late - 4 %"]


def test_what_happened_before_the_first_start_is_not_told(world: World, http: HttpEnd) -> None:
    """A new follower begins with what comes, and with alerts that stand."""
    world.log(4.0)
    world.log(60.0)
    world.pm.trigger_event("pump", "restore")
    tell(world.notifier(http.url))
    assert http.titles == []


def test_an_alert_that_stands_at_the_first_start_is_told(world: World, http: HttpEnd) -> None:
    """Whoever installs it beside an empty battery hears of that."""
    world.log(4.0)
    tell(world.notifier(http.url))
    assert http.titles == ["Battery critical: Gate 01 - 4 %"]


def test_nothing_is_told_again_after_a_restart(world: World, http: HttpEnd) -> None:
    """Another object on the same file goes on where the first one stopped."""
    tell(world.notifier(http.url))
    world.log(15.0)
    tell(world.notifier(http.url))
    tell(world.notifier(http.url))
    world.log(60.0)
    tell(world.notifier(http.url))
    assert http.titles == ["Battery low: Gate 01 - 15 %", "Battery recovered: Gate 01 - 60 %"]


def test_what_happens_while_it_does_not_run_is_told_later(world: World, http: HttpEnd) -> None:
    """Low, recovered and low again while nobody looked are two alerts."""
    tell(world.notifier(http.url))
    world.log(15.0)
    tell(world.notifier(http.url))
    for charge_pct in (60.0, 14.0):
        world.log(charge_pct)
    tell(world.notifier(http.url))
    assert http.titles == ["Battery low: Gate 01 - 15 %", "Battery low: Gate 01 - 14 %"]


def test_an_alert_that_a_writer_repeats_is_told_once(tmp_path: Path, http: HttpEnd) -> None:
    """With alert_repeat=0 the file has an event for each reading."""
    with World(tmp_path / "other.db") as world:
        notifier = world.notifier(http.url)
        with PowerManager(world.path, alert_repeat=0, clock=lambda: world.now_s) as writer:
            for charge_pct in (15.0, 14.0, 13.0, 4.0, 3.0):
                world.pass_time(1.0)
                writer.log_power(world.pack.id, 3.4, 0.5, charge_pct)
                tell(notifier)
            assert len(writer.get_events("gate-01")) == 5
    assert http.titles == ["Battery low: Gate 01 - 15 %", "Battery critical: Gate 01 - 4 %"]


def test_an_alert_that_stands_is_told_again_by_repeat(world: World, http: HttpEnd) -> None:
    """After each hour, with the charge of that moment, until it has ended."""
    notifier = world.notifier(http.url, repeat_s=3600.0)
    world.log(15.0)
    tell(notifier)
    world.pass_time(3500.0)
    tell(notifier)
    world.pass_time(100.0)
    world.log(12.0)
    tell(notifier)
    world.pass_time(3600.0)
    tell(world.notifier(http.url, repeat_s=3600.0))
    world.log(60.0)
    world.pass_time(7200.0)
    tell(notifier)
    assert http.titles == [
        "Battery low: Gate 01 - 15 %",
        "Battery still low: Gate 01 - 12 %",
        "Battery still low: Gate 01 - 12 %",
        "Battery recovered: Gate 01 - 60 %",
    ]


def test_a_fall_back_from_critical_to_low_is_no_news(world: World, http: HttpEnd) -> None:
    """But the next fall to critical is, and so is the end."""
    notifier = world.notifier(http.url)
    for charge_pct in (4.0, 10.0, 3.0, 40.0):
        world.log(charge_pct)
        tell(notifier)
    assert http.titles == [
        "Battery critical: Gate 01 - 4 %",
        "Battery critical: Gate 01 - 3 %",
        "Battery recovered: Gate 01 - 40 %",
    ]


def test_events_are_chosen_by_type(world: World, http: HttpEnd) -> None:
    """With low_battery alone a low battery is not told; a critical one is, and its end too."""
    notifier = world.notifier(http.url, events=frozenset({PowerEventType.LOW_BATTERY}))
    for charge_pct in (15.0, 40.0, 4.0, 40.0):
        world.log(charge_pct)
        tell(notifier)
    world.pm.trigger_event("pump", "shutdown")
    tell(notifier)
    assert http.titles == ["Battery critical: Gate 01 - 4 %", "Battery recovered: Gate 01 - 40 %"]


def test_a_charger_that_goes_on_is_told_only_if_asked_for(world: World, http: HttpEnd) -> None:
    """charge_start is the one event that is left out by default."""
    usual = world.notifier(http.url)
    world.pm.trigger_event(
        "gate-01", "charge_start", 40.0, "Pack: charging", meter_id=world.pack.id
    )
    tell(usual)
    assert http.titles == []
    asked = world.notifier(http.url, name="all", events=frozenset(PowerEventType))
    world.pm.trigger_event(
        "gate-01", "charge_start", 40.0, "Pack: charging", meter_id=world.pack.id
    )
    tell(asked)
    assert http.titles == ["Charging: Gate 01 - Pack: charging"]


def test_devices_are_chosen_by_id(world: World, http: HttpEnd) -> None:
    """Of another device nothing is told: no event, no alert, no silence."""
    chosen = world.notifier(http.url, devices=frozenset({"pump"}), silent_s=60.0)
    world.log(4.0)
    world.pm.trigger_event("pump", "shutdown", note="flat")
    world.pass_time(600.0)
    tell(chosen)
    assert http.titles == ["Shutdown: Pump - flat"]


def test_a_mistyped_device_is_refused(world: World) -> None:
    """It would never be heard of."""
    with pytest.raises(NotFound, match="'gate-1': did you mean gate-01"):
        check_devices(world.pm, ["gate-01", "gate-1"])


def test_two_followers_of_one_file_are_told_apart_by_name(
    world: World, http: HttpEnd, other_http: HttpEnd
) -> None:
    """Each has its own place, ways and choice."""
    first = world.notifier(http.url, name="admin")
    second = world.notifier(other_http.url, name="owner", devices=frozenset({"pump"}))
    world.log(4.0)
    world.pm.trigger_event("pump", "restore")
    tell(first)
    tell(second)
    assert http.titles == ["Battery critical: Gate 01 - 4 %, and 1 more"]
    assert other_http.titles == ["Restore: Pump"]


def test_a_message_that_waits_says_that_its_meter_was_deleted(world: World, http: HttpEnd) -> None:
    """Its end is in the same message, and comes first: nobody has to get up for it."""
    notifier = world.notifier(http.url)
    world.log(15.0)
    tell(notifier)
    http.status = 503
    world.log(4.0)
    tell(notifier)
    world.pm.delete_meter(world.pack.id)
    http.status = 200
    world.pass_time(10.0)
    tell(notifier)
    assert http.titles == [
        "Battery low: Gate 01 - 15 %",
        "Deleted: Gate 01 - its alert is over, and 1 more",
    ]
    assert http.posts[1].severity == "success"
    assert "The meter has been deleted since." in http.posts[1].text


def test_a_deleted_device_can_still_be_told_of(world: World, http: HttpEnd) -> None:
    """Its events wait under the name that it had."""
    notifier = world.notifier(http.url)
    world.pm.trigger_event("pump", "shutdown", note="flat")
    http.status = 503
    tell(notifier)
    world.pm.delete_device("pump")
    http.status = 200
    world.pass_time(10.0)
    tell(notifier)
    assert http.titles == ["Shutdown: Pump - flat"]


def test_an_inactive_meter_neither_ends_nor_repeats_its_alert(world: World, http: HttpEnd) -> None:
    """A pack that was taken out has not recovered; back in, it goes on."""
    notifier = world.notifier(http.url, repeat_s=60.0)
    world.log(4.0)
    tell(notifier)
    world.pm.update_meter(world.pack.id, active=False)
    world.pass_time(600.0)
    tell(notifier)
    assert len(http.posts) == 1
    world.log(80.0)
    tell(notifier)
    assert http.titles[1:] == ["Battery recovered: Gate 01 - 80 %"]


def test_an_alert_among_thousands_of_events_is_told_once(world: World, http: HttpEnd) -> None:
    """Also if most of them are not told, and the battery is as it was after the last one."""
    notifier = world.notifier(http.url)
    for charge_pct in (4.0, 60.0, 3.0):
        with world.pm.transaction():
            for _ in range(999):
                world.pm.trigger_event("pump", "charge_start")
            world.log(charge_pct)
    tell(notifier)
    (post,) = http.posts
    assert post.title == "Battery critical: Gate 01 - 4 %, and 1 more"
    assert "Battery critical: Gate 01 - 3 %" in post.text


# --- Silence


def test_a_silent_device_is_told_once_and_when_it_is_back(world: World, http: HttpEnd) -> None:
    """After ten minutes without a reading; a restart in between says nothing."""
    notifier = world.notifier(http.url, silent_s=600.0)
    world.log(50.0)
    tell(notifier)
    world.pass_time(599.0)
    tell(notifier)
    assert http.titles == []
    world.pass_time(1.0)
    tell(notifier)
    world.pass_time(3000.0)
    notifier = world.notifier(http.url, silent_s=600.0)
    tell(notifier)
    world.log(49.0)
    tell(notifier)
    assert http.titles == [
        "Silent: Gate 01 - no reading for 10 min",
        "Back: Gate 01 - after 1 h",
    ]


def test_a_device_that_came_back_while_nobody_looked_is_back(world: World, http: HttpEnd) -> None:
    """The next start tells."""
    world.log(50.0)
    world.pass_time(900.0)
    tell(world.notifier(http.url, silent_s=600.0))
    world.log(49.0)
    tell(world.notifier(http.url, silent_s=600.0))
    assert http.titles == [
        "Silent: Gate 01 - no reading for 15 min",
        "Back: Gate 01 - after 15 min",
    ]


def test_a_device_that_never_had_a_reading_is_not_silent(world: World, http: HttpEnd) -> None:
    """Nor is one whose meters are all inactive."""
    notifier = world.notifier(http.url, silent_s=60.0)
    world.log(50.0)
    world.pm.update_meter(world.pack.id, active=False)
    world.pass_time(3600.0)
    tell(notifier)
    assert http.titles == []


def test_a_clock_that_jumps_makes_nobody_silent(world: World, http: HttpEnd) -> None:
    """After boot a device without a clock can move by years, while readings come."""
    notifier = world.notifier(http.url, silent_s=60.0)
    for jump_s in (0.0, 3e8, 0.0, -2e8, 0.0):
        world.now_s += jump_s
        tell(notifier)
        world.log(50.0)
        tell(notifier)
        world.pass_time(30.0)
        tell(notifier)
    assert http.titles == []


def test_a_device_whose_clock_is_ahead_can_fall_silent(world: World, http: HttpEnd) -> None:
    """What counts is when its readings change, not what they say of the time."""
    notifier = world.notifier(http.url, silent_s=600.0)
    ahead_s = world.now_s + 10 * 86400
    world.pm.log_power(world.pack.id, 3.4, 0.5, 50.0, timestamp=ahead_s)
    tell(notifier)
    world.pass_time(600.0)
    tell(notifier)
    assert http.titles == ["Silent: Gate 01 - no reading for 10 min"]


def test_silence_is_not_told_unless_asked_for(world: World, http: HttpEnd) -> None:
    """Without --silent-after a device may be quiet for a year."""
    notifier = world.notifier(http.url)
    world.log(50.0)
    world.pass_time(3e7)
    tell(notifier)
    assert http.titles == []


# --- Restored files


def test_a_restored_backup_tells_nothing_of_the_past(
    world: World, http: HttpEnd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What waited in the backup was told long ago; what comes after the restore is told."""
    notifier = world.notifier(http.url)
    http.status = 503
    world.pm.trigger_event("pump", "restore", note="old")
    tell(notifier)
    world.pm.backup(tmp_path / "backup.db")
    http.status = 200
    world.pass_time(10.0)
    tell(notifier)
    world.pm.trigger_event("pump", "restore", note="newer")
    world.pass_time(10.0)
    tell(notifier)
    world.pm.restore(tmp_path / "backup.db")
    tell(notifier)
    assert "1 that waited are dropped" in caplog.text
    world.pm.trigger_event("pump", "restore", note="newest")
    world.pass_time(10.0)
    tell(notifier)
    assert http.titles == ["Restore: Pump - old", "Restore: Pump - newer", "Restore: Pump - newest"]


def test_a_backup_restored_while_it_does_not_run_is_noticed_too(
    world: World, http: HttpEnd, tmp_path: Path
) -> None:
    """Also one from before the first start, which does not know the follower."""
    world.pm.trigger_event("pump", "restore", note="before all")
    world.pm.backup(tmp_path / "first.db")
    tell(world.notifier(http.url))
    world.pm.restore(tmp_path / "first.db")
    tell(world.notifier(http.url))
    assert http.titles == []


def test_a_restore_makes_nobody_silent(world: World, http: HttpEnd, tmp_path: Path) -> None:
    """The backup is old, the device is not: it has until the limit to be heard."""
    notifier = world.notifier(http.url, silent_s=600.0)
    world.log(50.0)
    world.pm.backup(tmp_path / "backup.db")
    for _ in range(10):
        world.pass_time(300.0)
        world.log(50.0)
        tell(notifier)
    world.pm.restore(tmp_path / "backup.db")
    tell(notifier)
    assert http.titles == []
    world.pass_time(600.0)
    tell(notifier)
    assert http.titles == ["Silent: Gate 01 - no reading for 10 min"]


# --- Properties


@settings(max_examples=40)
@given(
    steps=st.lists(
        st.one_of(
            st.floats(0, 100).map(lambda charge: ("log", round(charge, 1))),
            st.sampled_from([("event", 0.0), ("look", 0.0), ("restart", 0.0)]),
        ),
        max_size=30,
    )
)
def test_each_event_is_told_exactly_once_whatever_the_order(
    steps: list[tuple[str, float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Readings, events, looks and restarts in any order: what is told is what the events say."""
    with World(tmp_path_factory.mktemp("world") / "power.db") as world:
        notifier = world.notifier("json://127.0.0.1:9/")
        numbers = itertools.count()
        for step, value in steps:
            if step == "log":
                world.log(value)
            elif step == "event":
                world.pm.trigger_event("pump", "restore", note=f"number {next(numbers)}")
            elif step == "look":
                notifier.take_in()
            else:
                notifier = world.notifier("json://127.0.0.1:9/")
        notifier.take_in()
        (way,) = notifier.ways
        told = Store(world.pm, "main").waiting(way.key)
        expected = Counter(
            (str(event.type), event.timestamp, event.note) for _, event in world.pm.events_since(0)
        )
        assert Counter((i.kind, i.at, i.note) for i in told if i.kind != "recovered") == expected
        recovered = [item.at for item in told if item.kind == "recovered"]
        assert len(recovered) == len(set(recovered))
