"""How messages reach people: mail, HTTP, ways that are down, many at once, at night, in secret."""

from __future__ import annotations

import logging
import os
import re
import threading
from datetime import time
from pathlib import Path

import pytest
from ends import PATIENCE_S, HttpEnd, MailEnd
from hypothesis import given
from hypothesis import strategies as st
from power_notify.quiet import QuietHours, parse_quiet_hours
from power_notify.texts import INFO, Message
from power_notify.ways import LAST_RETRY_S, Way, WayError, open_ways, read_urls
from world import World, tell

from power_manager import StorageError

NIGHT = {"quiet": parse_quiet_hours("22:00-07:00")}


# --- Mail, ntfy


def test_a_mail_has_the_subject_and_the_text_as_they_are(world: World, mail: MailEnd) -> None:
    """Also where a name looks like HTML, in whatever form the mail comes."""
    world.pm.update_device("gate-01", name="Gate <b>1 & 2</b> Zürich 東")
    notifier = world.notifier(mail.url)
    world.log(4.0)
    tell(notifier)
    (sent,) = mail.mails
    assert sent["Subject"] == "Battery critical: Gate <b>1 & 2</b> Zürich 東 - 4 %"
    assert sent["To"] == "me@example.org"
    body = sent.get_body(("plain",)) or sent.get_body(("html",))
    assert body is not None
    assert body.get_content_type() == "text/plain"
    lines = body.get_content().splitlines()
    assert lines[0] == 'Gate <b>1 & 2</b> Zürich 東 (gate-01), battery "Pack"'
    assert "4 % charge, critical since 2026-11-28 12:00 (at or below 5 %)." in lines


def test_a_name_cannot_add_a_header_to_a_mail(world: World, mail: MailEnd) -> None:
    """A line feed in it is shown as its escape."""
    world.pm.update_device("gate-01", name="Gate\r\nBcc: all@example.org")
    notifier = world.notifier(mail.url)
    world.log(4.0)
    tell(notifier)
    (sent,) = mail.mails
    assert sent["Bcc"] is None
    assert "Gate\\r\\nBcc" in sent["Subject"]


def test_a_mail_server_that_refuses_is_tried_again(world: World, mail: MailEnd) -> None:
    """The mail comes once, when the server takes it."""
    notifier = world.notifier(mail.url)
    mail.reply = "451 later"
    world.log(4.0)
    tell(notifier)
    assert mail.mails == []
    mail.reply = ""
    world.pass_time(10.0)
    tell(notifier)
    tell(notifier)
    assert [sent["Subject"] for sent in mail.mails] == ["Battery critical: Gate 01 - 4 %"]


def test_ntfy_gets_title_and_text(world: World, http: HttpEnd) -> None:
    """By ntfy's own JSON, with its topic."""
    notifier = world.notifier(http.ntfy_url)
    world.log(4.0)
    tell(notifier)
    (post,) = http.posts
    assert post.title == "Battery critical: Gate 01 - 4 %"
    assert "Left: 4 %, 2.00 of 50.0 Wh" in post.text


# --- Down and up again


def test_a_way_that_is_down_gets_everything_later_as_one_message(
    world: World, http: HttpEnd, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost, nothing comes twice, and the log says both once."""
    caplog.set_level(logging.INFO, "power_notify")
    notifier = world.notifier(http.url)
    http.stop()
    for number in range(3):
        world.pm.trigger_event("pump", "restore", note=f"number {number}")
        world.pass_time(700.0)
        tell(notifier)
    assert http.posts == []
    http.start()
    world.pass_time(700.0)
    tell(notifier)
    tell(notifier)
    (post,) = http.posts
    assert post.title == "Restore: Pump - number 0, and 2 more"
    assert [f"number {number}" in post.text for number in range(3)] == [True] * 3
    downs = [r.message for r in caplog.records if "did not take a message" in r.message]
    assert len(downs) == 1
    assert "way 1 json works again, after 35 min" in caplog.messages


def test_a_dead_way_neither_holds_up_nor_doubles_the_others(
    world: World, http: HttpEnd, other_http: HttpEnd
) -> None:
    """Each way has its own place."""
    notifier = world.notifier(http.url, other_http.url)
    http.status = 500
    for number in range(3):
        world.pm.trigger_event("pump", "restore", note=f"number {number}")
        world.pass_time(700.0)
        tell(notifier)
    http.status = 200
    world.pass_time(700.0)
    tell(notifier)
    assert other_http.titles == [f"Restore: Pump - number {number}" for number in range(3)]
    assert http.titles == ["Restore: Pump - number 0, and 2 more"]


def test_a_way_that_does_not_answer_does_not_hold_up_the_others(
    world: World, http: HttpEnd, other_http: HttpEnd
) -> None:
    """Each is told by a thread of its own, one message at a time."""
    notifier = world.notifier(http.url, other_http.url)
    http.hold.clear()
    for number in range(2):
        world.pm.trigger_event("pump", "restore", note=f"number {number}")
        rung = threading.Event()
        notifier.look(rung.set)
        assert rung.wait(PATIENCE_S)
        notifier.settle()
        assert other_http.titles[-1] == f"Restore: Pump - number {number}"
        world.pass_time(30.0)
    http.hold.set()
    notifier.settle(PATIENCE_S)
    tell(notifier)
    assert http.titles == ["Restore: Pump - number 0", "Restore: Pump - number 1"]


def test_a_way_that_never_answers_is_given_up_and_tried_again(
    world: World, http: HttpEnd, caplog: pytest.LogCaptureFixture
) -> None:
    """After two minutes, which the log says: alerts must get out by then."""
    notifier = world.notifier(http.url)
    http.hold.clear()
    world.pm.trigger_event("pump", "restore")
    notifier.look()
    http.wait_for_request()
    world.pass_time(119.0)
    notifier.look()
    assert caplog.messages == []
    world.pass_time(1.0)
    notifier.look()
    assert (
        "way 1 json did not take a message, which is kept: no answer for 2 min" in caplog.messages
    )
    http.hold.set()
    http.wait_for(1)
    world.pass_time(10.0)
    tell(notifier)
    assert http.titles == ["Restore: Pump"] * 2
    assert notifier.waiting_count(notifier.ways[0]) == 0


def test_what_was_taken_is_not_sent_again_while_the_file_cannot_be_written(
    world: World, http: HttpEnd
) -> None:
    """A table that is gone stands for a full disk; once there is room, it is noted."""
    notifier = world.notifier(http.url)
    world.pm.trigger_event("pump", "restore")
    notifier.look()
    http.wait_for(1)
    with world.pm.connection() as conn:
        conn.execute("ALTER TABLE power_notify_ways RENAME TO power_notify_elsewhere")
    with pytest.raises(StorageError, match="power_notify_ways"):
        notifier.settle(PATIENCE_S)
    for _ in range(3):
        world.pass_time(700.0)
        with pytest.raises(StorageError, match="power_notify_ways"):
            notifier.look()
    with world.pm.connection() as conn:
        conn.execute("ALTER TABLE power_notify_elsewhere RENAME TO power_notify_ways")
    tell(notifier)
    assert http.titles == ["Restore: Pump"]
    assert notifier.waiting_count(notifier.ways[0]) == 0


def test_a_message_from_before_a_restore_takes_nothing_that_came_after_it(
    world: World, http: HttpEnd, tmp_path: Path
) -> None:
    """It was on its way meanwhile: the restored file has other events under its numbers."""
    notifier = world.notifier(http.url)
    notifier.look()
    world.pm.backup(tmp_path / "backup.db")
    for number in range(3):
        world.pm.trigger_event("pump", "restore", note=f"before {number}")
    http.hold.clear()
    notifier.look()
    http.wait_for_request()
    world.pm.restore(tmp_path / "backup.db")
    notifier.look()
    http.hold.set()
    notifier.settle(PATIENCE_S)
    world.pm.trigger_event("pump", "restore", note="after")
    tell(notifier)
    assert http.titles == ["Restore: Pump - before 0, and 2 more", "Restore: Pump - after"]


def test_tries_are_further_and_further_apart(world: World, http: HttpEnd) -> None:
    """5 s, twice that, and so on up to ten minutes; after a success from the beginning."""
    notifier = world.notifier(http.url)
    (way,) = notifier.ways
    http.status = 500
    world.pm.trigger_event("pump", "restore")
    delays = []
    for _ in range(10):
        tell(notifier)
        delays.append(way.due_s - world.steady_s)
        world.pass_time(delays[-1])
    assert delays == [5, 10, 20, 40, 80, 160, 320, LAST_RETRY_S, LAST_RETRY_S, LAST_RETRY_S]
    http.status = 200
    tell(notifier)
    assert way.failure_count == 0
    assert len(http.posts) == 1


def test_a_way_is_not_tried_before_its_time(world: World, http: HttpEnd) -> None:
    """Looks in between leave it in peace, and the next look is when it is due."""
    notifier = world.notifier(http.url)
    http.status = 500
    world.pm.trigger_event("pump", "restore")
    tell(notifier)
    http.status = 200
    world.pass_time(4.0)
    tell(notifier)
    assert http.posts == []
    assert notifier.next_look_s() == 1.0
    world.pass_time(1.0)
    tell(notifier)
    assert len(http.posts) == 1


def test_a_new_way_begins_with_what_comes(world: World, http: HttpEnd, other_http: HttpEnd) -> None:
    """What another way still waits for is not for it."""
    http.status = 500
    world.pm.event_follower("power-notify main")
    world.pm.trigger_event("pump", "restore", note="before")
    tell(world.notifier(http.url))
    notifier = world.notifier(http.url, other_http.url)
    world.pm.trigger_event("pump", "restore", note="after")
    tell(notifier)
    assert other_http.titles == ["Restore: Pump - after"]


def test_a_url_with_another_password_takes_over_what_waits(world: World, http: HttpEnd) -> None:
    """What the wrong one could not tell is not lost with it."""
    wrong = http.url.replace("//", "//me:wrong@")
    http.status = 401
    notifier = world.notifier(wrong)
    world.pm.trigger_event("pump", "restore", note="while it was wrong")
    tell(notifier)
    http.status = 200
    tell(world.notifier(http.url.replace("//", "//me:right@")))
    assert http.titles == ["Restore: Pump - while it was wrong"]


# --- Many at once


def test_many_at_once_are_one_message_in_order_of_need(world: World, http: HttpEnd) -> None:
    """The worst leads, a line each, and what has no room is counted."""
    notifier = world.notifier(http.url)
    for number in range(30):
        world.pm.register_device(f"d{number}", f"Device {number}")
        world.pm.trigger_event(f"d{number}", "restore")
    world.log(4.0)
    tell(notifier)
    (post,) = http.posts
    lines = post.text.splitlines()
    assert post.title == "Battery critical: Gate 01 - 4 %, and 30 more"
    assert lines[0] == "2026-11-28 12:00  Battery critical: Gate 01 - 4 %"
    assert len(lines) == 21
    assert lines[-1].startswith("and 11 more")
    assert len(post.text) < 2000


def test_after_a_message_a_pause(world: World, http: HttpEnd) -> None:
    """The first is told at once, what comes in the next 30 s as one."""
    notifier = world.notifier(http.url, timing={"pause_s": 30.0})
    for number in range(5):
        world.pm.trigger_event("pump", "restore", note=f"number {number}")
        tell(notifier)
        world.pass_time(5.0)
    assert http.titles == ["Restore: Pump - number 0"]
    world.pass_time(5.0)
    tell(notifier)
    assert http.titles[1:] == ["Restore: Pump - number 1, and 3 more"]


def test_thousands_that_wait_all_go(world: World, http: HttpEnd) -> None:
    """A message tells of a thousand at most; the next one goes on."""
    notifier = world.notifier(http.url)
    with world.pm.transaction():
        for _ in range(2500):
            world.pm.trigger_event("pump", "restore")
    for _ in range(5):
        tell(notifier)
    counts = [int(title.split(", and ")[1].split()[0]) + 1 for title in http.titles]
    assert sum(counts) == 2500
    assert notifier.waiting_count(notifier.ways[0]) == 0


def test_an_alert_that_is_over_by_then_is_no_alarm(world: World, http: HttpEnd) -> None:
    """Told together with its end, it comes after it and says so."""
    notifier = world.notifier(http.url)
    world.log(4.0)
    notifier.take_in()
    world.log(60.0)
    tell(notifier)
    (post,) = http.posts
    assert post.title == "Battery recovered: Gate 01 - 60 %, and 1 more"
    assert post.severity == "success"
    assert "Battery critical: Gate 01 - 4 % (over)" in post.text


def test_reminders_that_gather_are_one(world: World, http: HttpEnd) -> None:
    """A way that was down for a day hears of a standing alert once, and that it still stands."""
    notifier = world.notifier(http.url, repeat_s=3600.0)
    http.stop()
    world.log(15.0)
    for _ in range(24):
        tell(notifier)
        world.pass_time(3600.0)
    http.start()
    tell(notifier)
    (post,) = http.posts
    assert post.title == "Battery low: Gate 01 - 15 %, and 1 more"


# --- Quiet hours


def test_in_quiet_hours_only_what_is_critical_is_told(world: World, http: HttpEnd) -> None:
    """A low battery waits until seven; a critical one does not, and takes along what waits."""
    notifier = world.notifier(http.url, timing=NIGHT)
    world.set_time(28, 23)
    world.log(15.0)
    tell(notifier)
    world.set_time(29, 6, 59)
    tell(notifier)
    assert http.titles == []
    world.set_time(29, 7)
    tell(notifier)
    assert http.titles == ["Battery low: Gate 01 - 15 %"]
    world.set_time(29, 22)
    world.pm.trigger_event("pump", "restore")
    tell(notifier)
    assert len(http.titles) == 1
    world.log(4.0)
    tell(notifier)
    assert http.titles[1:] == ["Battery critical: Gate 01 - 4 %, and 1 more"]


def test_a_critical_battery_that_has_recovered_wakes_nobody(world: World, http: HttpEnd) -> None:
    """While the way was down it came and went: that waits until the morning."""
    notifier = world.notifier(http.url, timing=NIGHT)
    world.set_time(28, 23)
    http.status = 503
    world.log(4.0)
    tell(notifier)
    world.log(60.0)
    http.status = 200
    world.pass_time(60.0)
    tell(notifier)
    assert http.titles == []
    world.set_time(29, 8)
    tell(notifier)
    assert http.titles == ["Battery recovered: Gate 01 - 60 %, and 1 more"]


def test_quiet_hours_are_those_of_the_zone(world: World, http: HttpEnd) -> None:
    """At 21:30 UTC it is night in Berlin, where it is 22:30."""
    from power_manager import parse_zone

    notifier = world.notifier(http.url, timing={**NIGHT, "zone": parse_zone("Europe/Berlin")})
    world.set_time(28, 21, 30)
    world.log(15.0)
    tell(notifier)
    assert http.titles == []
    world.set_time(29, 6)
    tell(notifier)
    assert "low since 2026-11-28 22:30" in http.posts[0].text


@given(st.times(), st.times(), st.times())
def test_a_moment_is_either_in_quiet_hours_or_in_the_others(
    start: time, end: time, moment: time
) -> None:
    """From A to B and from B to A are the whole day."""
    if start != end:
        both = QuietHours(start, end).contains(moment), QuietHours(end, start).contains(moment)
        assert sorted(both) == [False, True]


@pytest.mark.parametrize("text", ["", "22-7", "22:00", "24:00-07:00", "22:60-07:00", "07:00-07:00"])
def test_quiet_hours_that_are_none_are_refused(text: str) -> None:
    """With an example of what would do."""
    import argparse

    with pytest.raises(argparse.ArgumentTypeError, match="such as 22:00-07:00"):
        parse_quiet_hours(text)


# --- URLs and secrets


def test_no_part_of_a_url_is_in_a_label_or_a_problem(http: HttpEnd) -> None:
    """Not if the server refuses it, nor if there is none, nor if Apprise does not know it."""
    user, password, token, other = secrets = "s3cr3tuser", "pass word", "t0pictoken", "0therpart"
    http.status = 403
    inner = f"127.0.0.1:{http.port}/{token}/{other}"
    way = Way(7, f"json://{user}:{password.replace(' ', '%20')}@{inner}?+X-Key={other}")
    assert way.label == "7 json"
    problem = way.send(Message("title", "text", INFO))
    http.stop()
    problem += way.send(Message("title", "text", INFO))
    with pytest.raises(WayError) as refused:
        Way(1, f"nothing://{user}:{token}@host/{other}")
    for text in (problem, str(refused.value)):
        assert not any(secret in text for secret in [*secrets, "pass%20word"]), text
    assert "403" in problem


@pytest.mark.parametrize("url", ["nfty://joe:hunter2@example.org/x", "joe:hunter2 a://b c"])
def test_a_url_of_a_mistyped_scheme_is_refused_without_any_of_it(url: str) -> None:
    """Apprise's own text has the user, and the first and last letter of the password."""
    with pytest.raises(WayError) as refused:
        Way(1, url)
    text = str(refused.value)
    assert "Apprise refuses this URL: " in text
    assert not re.search(r"joe|h\.\.\.2|hunter|example|/x|@", text), text


def test_a_url_that_is_none_is_refused_without_showing_it() -> None:
    """Somebody may have pasted a password."""
    with pytest.raises(WayError, match=r"way 1 \?: Apprise refuses this URL") as refused:
        open_ways(["hunter2hunter2"])
    assert "hunter2" not in str(refused.value)


def test_the_file_holds_no_url(world: World, http: HttpEnd) -> None:
    """A way is known there by a digest."""
    url = http.url.replace("//", "//someuser:somepassword@")
    notifier = world.notifier(url)
    world.log(4.0)
    tell(notifier)
    world.pm.backup(world.path.with_name("copy.db"))
    content = world.path.with_name("copy.db").read_bytes()
    assert b"somepassword" not in content
    assert notifier.ways[0].key.encode() in content


def test_the_same_url_twice_is_refused(http: HttpEnd) -> None:
    """Everything would come twice."""
    with pytest.raises(WayError, match="way 2 json: the same URL as way 1 json"):
        open_ways([http.url, http.url])


def test_a_url_with_several_recipients_is_said_to_be_one_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If one of them fails, all are told again."""
    open_ways(["ntfy://127.0.0.1/one-topic/other-topic"])
    assert "way 1 ntfy has 2 recipients" in caplog.text


def test_urls_come_from_a_file(tmp_path: Path) -> None:
    """One a line; empty lines and comments are left out."""
    path = tmp_path / "urls"
    path.write_text("# people\n\n  json://one \njson://two\n")
    path.chmod(0o640)
    assert read_urls(str(path)) == ["json://one", "json://two"]


def test_a_file_that_every_user_can_write_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who writes it chooses who is told; one that every user can read is warned of."""
    path = tmp_path / "urls"
    path.write_text("json://one\n")
    path.chmod(0o602)
    with pytest.raises(StorageError, match="every user of this machine can write it"):
        read_urls(str(path))
    path.chmod(0o604)
    assert read_urls(str(path)) == ["json://one"]
    assert "every user of this machine can read it" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# nobody\n", "expected a URL a line, got none"),
        (b"\xff\xfe", "expected a URL a line, in UTF-8"),
    ],
)
def test_a_file_without_urls_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """Nobody would be told."""
    path = tmp_path / "urls"
    path.write_bytes(content)
    os.chmod(path, 0o600)
    with pytest.raises(WayError, match=message):
        read_urls(str(path))


def test_a_service_that_raises_is_a_way_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of Apprise's many services may end the program."""
    way = Way(1, "json://127.0.0.1:9/sometoken")

    def explode(_url: str, **_options: object) -> None:
        raise RuntimeError("no luck with sometoken")

    monkeypatch.setattr("apprise.Apprise.instantiate", explode)
    assert way.send(Message("title", "text", INFO)) == "RuntimeError: no luck with ***"


def test_the_bell_rings_when_a_message_is_taken(world: World, http: HttpEnd) -> None:
    """So that its outcome is noted at once, and not at the next look."""
    notifier = world.notifier(http.url)
    rung = threading.Event()
    world.pm.trigger_event("pump", "restore")
    notifier.look(rung.set)
    assert rung.wait(PATIENCE_S)
    notifier.settle()
    assert notifier.waiting_count(notifier.ways[0]) == 0
