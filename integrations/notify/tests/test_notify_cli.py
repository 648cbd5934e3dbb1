"""The command line: what it prints, how it ends, and that killing it loses nothing."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ends import PATIENCE_S, HttpEnd
from power_notify import cli
from power_notify.news import Clocks
from power_notify.notifier import END_WITHIN_S, follow
from world import World

import power_manager
from power_manager import PowerManagerError, StopSignals, StorageError, not_installed

PART = Path(__file__).resolve().parents[1]
README = (PART / "README.md").read_text(encoding="utf-8")


class Ran(NamedTuple):
    """How the command line ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The lines of the output, which are JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


def run(world: World, capsys: pytest.CaptureFixture[str], *words: str) -> Ran:
    """Run the command line by the world's clock."""
    argv = ["--db", str(world.path), "--time-zone", "UTC", *words]
    try:
        code = cli.main(argv, world.clocks)
    except SystemExit as ended:
        code = int(ended.code or 0)
    shown = capsys.readouterr()
    return Ran(code, shown.out, shown.err)


def start(world: World, *words: str) -> subprocess.Popen[str]:
    """A process of its own, that looks often and never pauses."""
    paths = [str(Path(power_manager.__file__).parent), str(PART)]
    return subprocess.Popen(
        [sys.executable, "-m", "power_notify", "--db", str(world.path), *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def messages(log: str) -> list[str]:
    """Level and text of each log line, which begins with a time."""
    pattern = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (\w+) power_notify: (.*)")
    found = [pattern.fullmatch(line) for line in log.splitlines()]
    return [" ".join(line.groups()) if line else "another line" for line in found]


FAST = ("--interval", "0.02s", "--pause", "0")


# --- Once


def test_once_tells_and_ends(
    world: World, http: HttpEnd, capsys: pytest.CaptureFixture[str]
) -> None:
    """As cron wants it: 0 where everything was told."""
    assert run(world, capsys, "--to", http.url, "--once").code == 0
    world.log(4.0)
    code, out, err = run(world, capsys, "--to", http.url, "--once")
    assert (code, out) == (0, "")
    assert messages(err) == ["INFO way 1 json: told: Battery critical: Gate 01 - 4 %"]
    assert run(world, capsys, "--to", http.url, "--once") == (0, "", "")
    world.log(60.0)
    assert run(world, capsys, "--to", http.url, "--once", "--quiet") == (0, "", "")
    assert http.titles == ["Battery critical: Gate 01 - 4 %", "Battery recovered: Gate 01 - 60 %"]


def test_once_fails_where_a_way_is_down_and_keeps_what_waits(
    world: World, http: HttpEnd, other_http: HttpEnd, capsys: pytest.CaptureFixture[str]
) -> None:
    """1, and told the next time; by the other way at once and once."""
    ways = ["--to", http.url, "--to", other_http.url, "--once"]
    http.status = 500
    world.log(4.0)
    code, _, err = run(world, capsys, *ways)
    assert code == 1
    assert "way 1 json did not take a message, which is kept: " in err
    assert "power-notify: some messages were not taken" in err
    http.status = 200
    assert run(world, capsys, *ways).code == 0
    assert http.titles == other_http.titles == ["Battery critical: Gate 01 - 4 %"]


def test_once_in_quiet_hours_is_a_success(
    world: World, http: HttpEnd, capsys: pytest.CaptureFixture[str]
) -> None:
    """What waits for the morning is where it should be."""
    world.set_time(28, 23)
    world.log(15.0)
    words = ["--to", http.url, "--once", "--quiet-hours", "22:00-07:00"]
    assert run(world, capsys, *words).code == 0
    assert http.posts == []
    world.set_time(29, 7)
    assert run(world, capsys, *words).code == 0
    assert http.titles == ["Battery low: Gate 01 - 15 %"]


def test_once_sends_as_many_messages_as_it_takes(
    world: World, http: HttpEnd, capsys: pytest.CaptureFixture[str]
) -> None:
    """A message holds a thousand events."""
    run(world, capsys, "--to", http.url, "--once")
    with world.pm.transaction():
        for _ in range(1500):
            world.pm.trigger_event("pump", "restore")
    codes = [run(world, capsys, "--to", http.url, "--once").code for _ in range(2)]
    assert codes == [0, 0]
    assert [title.split(", and ")[1] for title in http.titles] == ["999 more", "499 more"]


# --- Test, dry run


def test_test_tells_everyone_and_says_who_was_not(
    world: World, http: HttpEnd, other_http: HttpEnd, capsys: pytest.CaptureFixture[str]
) -> None:
    """It needs no file."""
    other_http.status = 403
    words = ["--db", "/nowhere/power.db", "--to", http.url, "--to", other_http.url, "--test"]
    code, out, _ = run(world, capsys, *words)
    assert code == 1
    told, refused = out.splitlines()
    assert told == "way 1 json: told"
    assert re.match(r"way 2 json: not told: .*403", refused)
    assert http.titles == ["Test of power-notify"]
    assert "/nowhere/power.db" in http.posts[0].text


def test_a_dry_run_prints_and_keeps_nothing(
    world: World, http: HttpEnd, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next real run tells the same."""
    world.log(4.0)
    with world.pm.connection() as conn:
        before = list(conn.iterdump())
    first, second = (run(world, capsys, "--to", http.url, "--dry-run") for _ in range(2))
    assert first == second
    assert first.code == 0
    assert first.out.startswith(
        "way 1 json: would be told now\nBattery critical: Gate 01 - 4 %\n\n"
    )
    assert http.posts == []
    with world.pm.connection() as conn:
        assert list(conn.iterdump()) == before
    assert run(world, capsys, "--to", http.url, "--once").code == 0
    assert http.titles == ["Battery critical: Gate 01 - 4 %"]


def test_a_dry_run_in_quiet_hours_says_what_waits(
    world: World, http: HttpEnd, capsys: pytest.CaptureFixture[str]
) -> None:
    """By number."""
    world.set_time(28, 23)
    world.log(15.0)
    words = ["--to", http.url, "--dry-run", "--quiet-hours", "22:00-07:00"]
    assert run(world, capsys, *words).out == (
        "way 1 json: nothing to tell now; 1 until the end of quiet hours\n"
    )


def test_a_test_in_json_is_an_object_a_line_for_each_way(
    world: World, http: HttpEnd, other_http: HttpEnd, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is that without --json."""
    other_http.status = 403
    ran = run(world, capsys, "--to", http.url, "--to", other_http.url, "--test", "--json")
    assert ran.code == 1
    told, refused = ran.objects
    assert told == {"way": "1 json", "is_told": True, "problem": None}
    assert "403" in refused.pop("problem")
    assert refused == {"way": "2 json", "is_told": False}


def test_a_dry_run_in_json_says_the_same_as_in_words(
    world: World, http: HttpEnd, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message, or how many events wait for the end of the quiet hours."""
    words = ["--to", http.url, "--dry-run", "--quiet-hours", "22:00-07:00"]
    nothing = {"title": None, "text": None, "severity": None, "would_be_told": False}
    (quiet,) = run(world, capsys, *words, "--json").objects
    assert quiet == {"way": "1 json", **nothing, "waiting_count": 0}
    world.set_time(28, 23)
    world.log(15.0)
    (later,) = run(world, capsys, *words, "--json").objects
    assert later == {"way": "1 json", **nothing, "waiting_count": 1}
    world.log(4.0)
    (now,) = run(world, capsys, *words, "--json").objects
    keys = "`, `".join(list(now)[:-1])
    assert f"`{keys}` and `waiting_count`" in README.replace("\n", " ")
    assert now["would_be_told"] is True
    assert (now["severity"], now["waiting_count"]) == ("critical", 0)
    in_words = run(world, capsys, *words).out
    assert in_words == f"way 1 json: would be told now\n{now['title']}\n\n{now['text']}\n\n"
    assert http.posts == []


# --- Usage


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected somebody to tell: give --to URL or --to-file FILE"),
        (["--to", "json://x", "--event", "low_batery"], "did you mean low_battery?"),
        (["--to", "json://x", "--quiet-hours", "22-7"], "such as 22:00-07:00, got '22-7'"),
        (["--to", "json://x", "--silent-after", "0"], "a duration above 0"),
        (["--to", "json://x", "--repeat", "soon"], "such as 90s, 15m, 1h30m or 7d, got 'soon'"),
        (["--to", "json://x", "--time-zone", "Europe/Berln"], "did you mean Europe/Berlin?"),
        (["--to", "json://x", "--once", "--test"], "not allowed with argument"),
        (["--to", "json://x", "--name", ""], "expected a name of 1 to 100 letters"),
        (["--too", "json://x"], "unknown option --too: did you mean --to"),
        (["--to", "json://x", "--json"], "--json: only with --test or --dry-run"),
        (["--to", "json://x", "--json", "--once"], "--json: only with --test or --dry-run"),
    ],
)
def test_wrong_usage_is_2_and_says_what_would_do(
    world: World, capsys: pytest.CaptureFixture[str], words: Sequence[str], message: str
) -> None:
    """On standard error, after the usage."""
    code, out, err = run(world, capsys, *words)
    assert (code, out) == (2, "")
    assert message in err


def test_errors_are_one_line_and_1(
    world: World, http: HttpEnd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is missing, a device that is, a list that is."""
    missing = str(tmp_path / "missing")
    for words, message in (
        (
            ["--db", missing, "--to", http.url],
            "no such file: name the file of the readings with --db",
        ),
        (
            ["--device", "gate-1", "--to", http.url],
            "no device has the id 'gate-1': did you mean gate-01",
        ),
        (["--to-file", missing], "No such file or directory"),
    ):
        code, out, err = run(world, capsys, *words)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("power-notify: ")
        assert message in err
    assert not Path(missing).exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_its_options(
    shell: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a script that is printed whatever else is missing on the line."""
    code, script, err = run(world, capsys, "--completion", shell)
    assert (code, err) == (0, "")
    assert script == power_manager.completion_script(cli._parser(), shell, "power-notify") + "\n"
    assert "quiet-hours" in script


def test_its_help_says_how_a_shell_loads_what_completes_its_options(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each shell."""
    code, out, _ = run(world, capsys, "--help")
    assert code == 0
    assert 'eval "$(power-notify --completion bash)"' in out


def test_repeat_without_a_time_is_an_hour() -> None:
    """Before another option too."""
    options = cli._parser().parse_args(["--repeat", "--to", "json://x"])
    assert options.repeat == 3600.0
    assert cli._parser().parse_args(["--repeat", "2h"]).repeat == 7200.0


def test_a_missing_apprise_is_said_in_one_line(world: World, tmp_path: Path) -> None:
    """With the extra that brings it."""
    (tmp_path / "apprise.py").write_text("raise ModuleNotFoundError(name='apprise')\n")
    paths = [str(tmp_path), str(Path(power_manager.__file__).parent), str(PART)]
    ended = subprocess.run(
        [sys.executable, "-m", "power_notify", "--to", "json://x", "--test"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == f"power-notify: {not_installed('apprise', 'notify')}\n"


# --- Running


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_though_a_server_does_not_answer(
    world: World, http: HttpEnd, number: signal.Signals, code: int
) -> None:
    """What was under way is told after the next start."""
    http.hold.clear()
    process = start(world, "--to", http.url, *FAST)
    with process:
        world.log(4.0)
        http.wait_for_request()
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == code  # the server is silent for longer
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    http.hold.set()
    http.wait_for(1)
    http.posts.clear()
    with start(world, "--to", http.url, "--once") as process:
        process.communicate(timeout=PATIENCE_S)
    assert "Battery critical: Gate 01 - 4 %" in http.titles


def test_a_signal_ends_it_though_the_file_is_locked(
    world: World, http: HttpEnd, other_http: HttpEnd
) -> None:
    """It does not wait ten seconds for the lock, and end with an error then."""
    for end in (http, other_http):
        end.hold.clear()
    with start(world, "--to", http.url, "--to", other_http.url, *FAST) as process:
        world.log(4.0)
        http.wait_for_request()
        other_http.wait_for_request()
        with world.pm.transaction():
            http.hold.set()  # its outcome cannot be noted
            process.terminate()
            assert process.wait(PATIENCE_S) == 0


def test_the_end_by_force_comes_within_the_time_that_is_promised() -> None:
    """What is left of the two seconds is for the end of the process."""
    assert "SIGTERM ends it with 0 within 2 seconds" in README
    assert 1.5 < END_WITHIN_S < 2.0


def test_a_running_one_tells_what_another_process_writes(world: World, http: HttpEnd) -> None:
    """A line of the log says that a message was taken."""
    with start(world, "--to", http.url, *FAST) as process:
        watchdog = threading.Timer(PATIENCE_S, process.kill)
        watchdog.start()
        assert process.stderr is not None
        world.log(4.0)
        log = process.stderr.readline()
        world.log(60.0)
        log += process.stderr.readline()
        watchdog.cancel()
        process.terminate()
        _, rest = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert http.titles == ["Battery critical: Gate 01 - 4 %", "Battery recovered: Gate 01 - 60 %"]
    assert messages(log + rest) == [f"INFO way 1 json: told: {title}" for title in http.titles]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_any_moment_lose_nothing(world: World, http: HttpEnd, seed: int) -> None:
    """Each event is told, and again only if a kill fell between sending and noting."""
    chance = random.Random(seed)
    count = kill_count = 0
    with start(world, "--to", http.url, "--once") as process:
        process.communicate(timeout=PATIENCE_S)
    for _ in range(9):
        http.requested.clear()
        http.status = chance.choice([200, 200, 500])
        for _ in range(chance.randrange(3)):  # twenty at most: a message lists no more
            world.pm.trigger_event("pump", "restore", note=f"<{count}>")
            count += 1
        process = start(world, "--to", http.url, *FAST)
        if chance.random() < 0.7 and count:
            http.requested.wait(2)
        time.sleep(chance.random() * 0.05)  # the moment of the kill is what is tried out
        process.kill()
        process.communicate(timeout=PATIENCE_S)
        kill_count += 1
    http.status = 200
    with start(world, "--to", http.url, "--once") as process:
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    told = [int(number) for post in http.posts for number in set(re.findall(r"<(\d+)>", post.text))]
    assert set(told) == set(range(count))
    repeated = [post.text for post in http.posts]
    assert len(repeated) - len(set(repeated)) <= kill_count
    assert world.pm.check() == []


def test_a_file_that_is_replaced_ends_it(world: World, http: HttpEnd, tmp_path: Path) -> None:
    """With an error at the next look, so that a service manager starts it again."""
    notifier = world.notifier(http.url)
    notifier.look()
    (tmp_path / "elsewhere").mkdir()
    for path in tmp_path.glob("power.db*"):
        path.rename(tmp_path / "elsewhere" / path.name)
    with pytest.raises(PowerManagerError, match="deleted or replaced"):
        notifier.look()


def test_a_file_that_stays_out_of_reach_ends_it(
    world: World, http: HttpEnd, caplog: pytest.LogCaptureFixture
) -> None:
    """After a minute of trying: a table that is gone stands for a disk that fails."""
    notifier = world.notifier(http.url, timing={"interval_s": 0.001})
    with world.pm.connection() as conn:
        conn.execute("ALTER TABLE power_notify_items RENAME TO power_notify_elsewhere")
    world.pm.trigger_event("pump", "restore")
    seconds = itertools.count(0, 20)
    with StopSignals() as signals, pytest.raises(StorageError, match="power_notify_items"):
        follow(notifier, signals, Clocks(lambda: world.now_s, lambda: float(next(seconds))))
    assert next(seconds) > 60
    assert caplog.text.count("trying again") == 1
