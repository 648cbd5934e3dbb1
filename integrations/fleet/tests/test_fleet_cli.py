"""The command line, and the README, whose commands and examples run as they stand."""

from __future__ import annotations

import ast
import asyncio
import graphlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import power_fleet
import pytest
from fleet_harness import INTEGRATION, carry, emptied, run_command
from hub_process import running_hub
from power_fleet import cli
from power_fleet.engine import Engine
from power_fleet.options import _Stoppable
from servers import SOON

from power_manager import PowerManager, settings_table

README = (INTEGRATION / "README.md").read_text(encoding="utf-8")
PATHS = [str(INTEGRATION), str(INTEGRATION.parents[1])]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "PYTHONUNBUFFERED": "1"}


def test_every_command_and_example_of_the_readme_runs(tmp_path: Path) -> None:
    """One after the other, beside the hub of its start; what it installs is there already."""
    commands = tmp_path / "bin"
    commands.mkdir()
    python = f'exec "{sys.executable}"'
    programs = {"python": f'{python} "$@"', "power-fleet": f'{python} -W error -m power_fleet "$@"'}
    for name, line in {**programs, "pip": "true"}.items():
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    places = [number for number, (_, block) in enumerate(blocks) if "power-fleet hub" in block]
    start = places[0]
    assert blocks[start] == ("sh", "power-fleet hub --data fleet\n")
    assert blocks[start + 1] == ("text", "ready nats://127.0.0.1:4222 http://127.0.0.1:8080\n")
    stored = "until power-fleet report edge-001 | grep 'count\": 61,'; do :; done; "
    stored += "until power-fleet latest | grep 18%; do :; done"
    parts = ["set -e -o pipefail"]
    for language, block in [*blocks[:start], *blocks[start + 2 :]]:
        if language == "sh" and "python3 -m venv" not in block:
            parts.append(block.replace("power-fleet report", f"{stored}\npower-fleet report", 1))
        elif language == "python":
            parts.append(f"python - <<'END'\n{block}END\n")
    (tmp_path / "script").write_text("\n".join(parts))
    with running_hub(tmp_path / "fleet") as hub:  # on any free port: 4222 may be somebody's
        environment = {
            **hub.environment,
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "100",
        }
        command = ["timeout", "600", "bash", "script"]
        run = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    assert run.returncode == 0, run.stdout + run.stderr
    assert '"reading_count": 61,' in run.stdout
    energy = r"^20..-..-..  workshop  battery +([\d.]+) +0.00$"
    days = re.findall(energy, run.stdout, re.MULTILINE)
    assert sum(map(float, days)) == pytest.approx(1.85, abs=0.01), (
        "two days in the hour of midnight"
    )
    assert re.search(r"^4\.86 h as of 20\d\d-.*\+00:00$", run.stdout, re.MULTILINE)
    (shown,) = [block for _, block in blocks if "device    load W" in block]
    printed = [line.split() for line in run.stdout.splitlines()]
    for line in shown.splitlines():
        words = line.split()
        if words and words[-1] == "6s":  # how long ago it was read is another each time
            words.pop()
        assert words in [other[: len(words)] for other in printed], line


def test_the_readme_has_every_setting() -> None:
    """Its table is the parser's own; every command, and what has no place in the table, is
    named.
    """
    parser = cli.make_parser()
    table = settings_table(parser)
    shown = README.partition("<!-- settings -->\n")[2].partition("\n<!-- /settings -->")[0]
    assert shown == table, table
    for name, command in {**parser.commands, "": parser}.items():
        assert f"`{name}" in README or f"power-fleet {name}" in README
        for part in (command, *command.commands.values()):
            for option in re.findall(r"--[a-z-]+", part.format_help()):
                assert f"`{option}" in README or option == "--help", option


def test_every_command_has_examples_that_it_takes() -> None:
    """What the help shows as examples can be typed."""
    parser = cli.make_parser()
    for command in parser.commands.values():
        for part in command.commands.values() or [command]:
            for example in part.examples:
                words = example.removeprefix(parser.prog).split()
                if words[0] not in ("help", "completion"):  # they print and exit
                    assert callable(parser.parse_args(words).run)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["forward"], 2, "--nats: name the servers, here or in $POWER_FLEET_NATS; or start a hub"),
        (["sink", "--nats", "nats://127.0.0.1:9"], 2, "--clickhouse: name the shards"),
        (["schema", "--clickhouse", "127.0.0.1:8123"], 2, "expected http://host:8123"),
        (
            ["forward", "--nats", "nats://far.example:4222", "--user", "a", "--password-file", "b"],
            2,
            "give --ca",
        ),
        (["forward", "--nats", "nats://127.0.0.1:99999"], 2, "--nats: expected nats://host:4222"),
        (["stream", "--nats", "nats://u:hidden@far.example:4222"], 2, "--password-file"),
        (["stream", "--nats", "u:hidden@far.example:4222"], 2, "--nats: expected nats://host:4222"),
        (
            ["budget", "--clickhouse", "http://u:hidden@127.0.0.1:99999"],
            2,
            "--clickhouse: expected http://host:8123",
        ),
        (["forward", "--nats", "nats://127.0.0.1:9", "--db", "/nowhere/a.db"], 1, "/nowhere/a.db"),
        (["budget", "--clickhouse", "http://u:hidden@127.0.0.1:9"], 1, "127.0.0.1"),
        (
            ["forward", "--nats", "nats://127.0.0.1:9", "--db", "typo.db"],
            1,
            "typo.db: no such file",
        ),
        (["stream", "--nats", "nats://127.0.0.1:9"], 1, ""),
    ],
    ids=lambda value: "-".join(value)[:30] if isinstance(value, list) else "",
)
def test_errors_are_one_line(
    arguments: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On standard error, with what would do, without a secret; usage is 2, anything else 1."""
    for name in ("POWER_FLEET_NATS", "POWER_FLEET_CLICKHOUSE", "POWER_FLEET_HUB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/nowhere")
    assert run_command(*arguments) == code
    out, err = capsys.readouterr()
    line = err.strip().splitlines()[-1]
    assert out == ""
    assert line.startswith("power-fleet: ")
    assert message in line
    assert "hidden" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["forward", "--interval", "0"],
            "argument --interval: expected a duration from 0.1s to 1d, got '0'",
        ),
        (
            ["forward", "--interval", "nan"],
            "expected a duration such as 90s, 15m, 1h30m or 7d, got 'nan'",
        ),
        (["sink", "--max-wait", "-1"], "expected a duration such as"),
        (["stream", "--max-bytes", "-1"], "expected a whole number of at least 1, got '-1'"),
        (["stream", "--replicas", "0"], "expected a whole number of at least 1"),
        (["report", "edge-1", "--days", "many"], "expected a number above 0, got 'many'"),
        (["report", "edge-1", "--days", "0"], "expected a number above 0, got '0'"),
        (["silent", "--for", "-1"], "expected a duration such as 90s, 15m, 1h30m or 7d, got '-1'"),
        (["energy", "--days", "0"], "expected a whole number of at least 1, got '0'"),
        (["forward", "--intervl", "5"], "unknown option --intervl: did you mean --interval?"),
        (["forwrad"], "unknown command 'forwrad': did you mean forward?"),
        (
            ["hub", "--data", "d", "--nats-port", "65536"],
            "expected a whole number from 0 to 65535, got '65536'",
        ),
        (["hub"], "the following arguments are required: --data"),
        (["dead"], "usage: "),
        (["dead", "lst"], "unknown command 'lst': did you mean list?"),
        (["dead", "read", "0"], "expected a whole number of at least 1, got '0'"),
    ],
)  # fmt: skip
def test_wrong_words_and_numbers_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names what was typed and what would do; nothing runs for ever or without a
    limit.
    """
    with pytest.raises(SystemExit) as found:
        cli.main(arguments)
    assert found.value.code == 2
    assert message in capsys.readouterr().err


def test_without_its_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """`pip install .` brings the command without what it needs: one line says so, and help
    works.
    """
    PowerManager(tmp_path / "a.db").close()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = f"import sys; sys.path[:0] = {PATHS!r}; from power_fleet import cli; "
        code += f"sys.exit(cli.main({list(arguments)!r}))"
        command = [sys.executable, "-S", "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = run("forward", "--db", str(tmp_path / "a.db"))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "power-fleet: nats-py is not installed: pip install '.[fleet]'\n"
    for arguments in (["--help"], ["--version"], ["help", "sink"]):
        shown = run(*arguments)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout


def test_the_environment_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for the library and the collector; the option goes before it, and empty counts as
    unset.
    """
    for value, arguments, expected in (
        ("here.db", [], "here.db"),
        ("here.db", ["--db", "there.db"], "there.db"),
        ("", [], "power_manager.db"),
    ):  # fmt: skip
        monkeypatch.setenv("POWER_MANAGER_DB", value)
        assert cli.make_parser().parse_args(["forward", *arguments]).db == Path(expected)


def test_a_report_of_nobody(old_urls: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown device is an error that names it."""
    urls = [part for url in old_urls for part in ("--clickhouse", url)]
    assert cli.main(["report", "nobody", *urls]) == 1
    assert "'nobody'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sig", "code"),
    [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)],
    ids=["SIGTERM", "SIGHUP", "Ctrl-C"],
)
@pytest.mark.parametrize("command", ["forward", "sink", "close"])
def test_a_signal_ends_it_with_nothing_there(
    command: str, sig: signal.Signals, code: int, tmp_path: Path
) -> None:
    """Without any server they wait and try again, and a signal ends them, within 2 seconds and a
    little.
    """
    PowerManager(tmp_path / "a.db").close()
    stream = ["--nats", "nats://127.0.0.1:9"]
    engine = ["--clickhouse", "http://127.0.0.1:9"]
    options = {
        "forward": [*stream, "--db", str(tmp_path / "a.db")],
        "sink": [*stream, *engine],
        "close": engine,
    }[command]
    program = [sys.executable, "-W", "error", "-m", "power_fleet"]
    arguments = [*program, command, "--verbose", *options]  # says what is the same as before too
    with subprocess.Popen(arguments, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            attempts = 0
            while attempts < 2:
                line = process.stderr.readline()
                assert line, "it ended"
                attempts += "again in" in line
            process.send_signal(sig)
            rest = process.stderr.read()
            assert process.wait(SOON) == code, rest
        finally:
            process.kill()


def test_what_is_stuck_ends_the_hard_way() -> None:
    """A thread in a dead network does not hold up the end for longer than END_SECONDS."""
    code = """
import asyncio, threading, power_fleet.options as options
async def work():
    print("works", flush=True)
    await asyncio.to_thread(threading.Event().wait)
options.run_until_signal(work())
"""
    command = [sys.executable, "-W", "error", "-c", code]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "works\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(SOON) == 0
        finally:
            process.kill()


def test_a_signal_before_the_work_begins_ends_it_too() -> None:
    """It is not begun; one that comes after its end does nothing."""
    did: list[str] = []

    async def work() -> None:
        did.append("began")

    stoppable = _Stoppable(work())
    stoppable.stop(0)
    asyncio.run(stoppable.run())
    assert did == []
    stoppable = _Stoppable(work())
    asyncio.run(stoppable.run())
    stoppable.stop(0)
    assert did == ["began"]


@pytest.fixture
def one_device(new_urls: list[str], tmp_path: Path) -> list[str]:
    """An engine with one device of one meter, as options of the command line."""
    emptied(new_urls)
    with PowerManager(tmp_path / "a.db") as pm:
        pm.register_device("edge-1", "Edge", target_wh=50.0)
        pack = pm.add_meter("edge-1", "battery", 50.0, "Pack", charge_pct=70.0)
        now = time.time()
        rows = [(pack.id, 4.0, 0.5, 70.0, now - 60 * minute) for minute in range(60, -1, -1)]
        pm.log_many(rows)
        carry(pm, Engine(new_urls), site="hall")
    return ["--clickhouse", new_urls[0]]


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["budget"], ["device  load W  ", r"edge-1 +2.00 +0 +-2.00 +70% "]),
        (
            ["latest"],
            ["meter +type +state ", r"edge-1/Pack +battery +normal +70% +2.00 +4.00 +0.50 "],
        ),
        (
            ["energy", "--days", "2"],
            ["UTC day +site +type +out Wh +in Wh", r"hall +battery +[\d.]+ +0"],
        ),
        (["silent", "--for", "0"], ["device +last seen +silent for", r"edge-1  20\d\d-"]),
        (["silent", "--for", "70000d"], ["no device is silent"]),
    ],
    ids=["budget", "latest", "energy", "silent", "nobody-is-silent"],
)
def test_answers_are_tables(
    arguments: list[str],
    lines: list[str],
    one_device: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """For people, as the library shows them; how fresh they are is on standard error."""
    assert cli.main([*arguments, *one_device]) == 0
    out, err = capsys.readouterr()
    for line in lines:
        assert re.search(line, out), out
    assert err == "not known how fresh it is: no sink has run yet\n"


@pytest.mark.parametrize("command", ["budget", "latest", "energy", "silent"])
def test_answers_are_json_for_programs(
    command: str, one_device: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json each is one JSON text."""
    assert cli.main([command, "--json", *one_device]) == 0
    value = json.loads(capsys.readouterr().out)
    first = value["edge-1"] if command == "budget" else value[0]
    keys = {"budget": "load_wattage", "latest": "wattage", "energy": "site", "silent": "last_seen"}
    assert keys[command] in first


@pytest.mark.parametrize(
    ("command", "shown"),
    [("budget", "^edge-1 .*\nedge-2 .* no such id"), ("latest", "^edge-1/Pack ")],
)
def test_an_answer_about_nobody_is_an_error(
    command: str, shown: str, one_device: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that are known are shown, the other is named, and the exit code says that one is
    missing.
    """
    assert cli.main([command, "edge-1", "edge-2", *one_device]) == 1
    out, err = capsys.readouterr()
    assert re.search(shown, out, re.MULTILINE)
    assert err.endswith("no device has the id 'edge-2': none of that id has been forwarded\n")


def test_messages_without_readings_are_not_taken_for_life(
    new_urls: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What reads the meters has died, or never ran, and the forwarder starts again and again."""
    emptied(new_urls)
    with PowerManager(tmp_path / "a.db") as pm:
        for device_id, days in (("edge-1", 0), ("edge-2", 9), ("edge-3", None), ("edge-4", None)):
            pm.register_device(device_id, "Edge")
            meter = pm.add_meter(device_id, "main")
            if days is not None:
                pm.log_power(meter.id, 12.0, 1.0, timestamp=time.time() - days * 86400)
            if device_id == "edge-4":
                pm.update_meter(meter.id, active=False)
        carry(pm, Engine(new_urls), clock=time.time)
    assert cli.main(["silent", "--clickhouse", new_urls[0]]) == 0
    out, err = capsys.readouterr()
    assert out == "no device is silent\n"
    said = err.splitlines()[-1]
    assert said.startswith("power-fleet: messages come without new readings from ")
    assert said.endswith(" from edge-2 (read 9 d ago), edge-3 (never read)")
    assert cli.main(["budget", "--clickhouse", new_urls[0]]) == 0
    lines = capsys.readouterr().out.splitlines()
    verdicts = {line.split()[0]: line for line in lines}
    assert verdicts["edge-1"].endswith("  ok")
    assert verdicts["edge-2"].endswith("  stale 9d")
    assert verdicts["edge-3"].endswith("  no readings")


def test_what_nobody_has_is_not_said_of_all(
    one_device: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """There are meters, though none of the device that is asked about."""
    assert cli.main(["latest", "edge-2", *one_device]) == 1
    out, err = capsys.readouterr()
    assert out == "no meters of these devices\n"
    assert "no device has the id 'edge-2'" in err


def test_the_public_names_are_there_when_they_are_asked_for() -> None:
    """Each is that of its module, and in the README; the package alone imports none of them."""
    code = (
        "import sys, power_fleet; sys.exit(any(n.startswith('power_fleet.') for n in sys.modules))"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, env=ENVIRONMENT, check=False).returncode == 0
    assert set(power_fleet.__all__) == {*power_fleet._MODULES, "__version__"}
    assert set(power_fleet.__all__) <= set(dir(power_fleet))
    for name, module in power_fleet._MODULES.items():
        found = getattr(power_fleet, name)
        assert (found.__module__, found.__name__) == (f"power_fleet.{module}", name)
        assert f"`{name}`" in README
    with pytest.raises(AttributeError, match="has no attribute 'fleets'"):
        power_fleet.fleets  # noqa: B018 - looked up for its error


def test_a_forwarder_loads_no_clickhouse_client() -> None:
    """A device has neither the memory nor the need."""
    code = "import sys, power_fleet.cli; sys.exit('clickhouse_connect' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=False).returncode == 0
    )


def test_modules_import_one_way() -> None:
    """No module needs one that needs it, for its types neither."""
    sources = {file.stem: file for file in (INTEGRATION / "power_fleet").glob("*.py")}
    needed: dict[str, set[str]] = {name: set() for name in sources}
    for name, file in sources.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                words = [f"{node.module}.{alias.name}".split(".") for alias in node.names]
                needed[name] |= {word[1] for word in words if word[0] == "power_fleet"}
    assert needed["schema"] >= {"engine", "tables"}
    graphlib.TopologicalSorter(needed).prepare()  # raises CycleError
