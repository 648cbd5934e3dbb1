"""The README's commands run and print what it shows; its table and the unit are true."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from power_notify import cli

import power_manager
from power_manager import settings_table

PART = Path(__file__).resolve().parents[1]
README = (PART / "README.md").read_text(encoding="utf-8")
UNIT = (PART / "power-notify.service").read_text(encoding="utf-8")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One in which only these commands have been installed."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, module in (("power-manager", "power_manager"), ("power-notify", "power_notify")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (commands / name).chmod(0o755)
    return {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(Path(power_manager.__file__).parent), str(PART)]),
        "COLUMNS": "80",
    }


def shown(text: str) -> str:
    """An output in which every time is the same."""
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "2026-11-28 12:00", re.sub(r":\d\d,", ":00,", text))


def test_the_first_example_prints_what_the_readme_shows(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """From the registration to the message."""
    setup = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[1]
    example = re.search(r"^```console\n\$ (.*?)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert example is not None
    command, expected = example.groups()
    subprocess.run(
        ["bash", "-ec", setup], cwd=tmp_path, env=environment, check=True, capture_output=True
    )
    ended = subprocess.run(
        ["bash", "-ec", command],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert shown(ended.stdout).strip() == expected.strip()


def test_the_table_of_options_is_that_of_the_help() -> None:
    """None is missing, none is made up."""
    table = settings_table(cli._parser())
    assert f"<!-- settings -->\n{table}\n<!-- /settings -->" in README, table


def test_the_defaults_of_the_readme_are_those_of_the_program() -> None:
    """30 s, 5 s, an hour, main."""
    options = cli._parser().parse_args(["--repeat"])
    defaults = (options.pause, options.interval, options.repeat, options.name)
    assert defaults == (30.0, 5.0, 3600.0, "main")


def test_every_url_of_the_readme_is_one_that_apprise_knows() -> None:
    """With the placeholders that are not of the right form filled in."""
    from power_notify.ways import Way

    table = README.partition("## Whom\n")[2].partition("\n\nOther users")[0]
    urls = re.findall(r"`([a-z]+://[^`]+)`", table)
    assert len(urls) >= 6
    for url in urls:
        filled = url.replace("bottoken", "123456789:" + "a" * 35).replace("chatid", "12345678")
        for part, length in (("tokenA", 9), ("tokenB", 9), ("tokenC", 24)):
            filled = filled.replace(part, "A1b2C3d4E5f6G7h8I9j0K1l2"[:length].upper())
        assert Way(1, filled).target_count == 1


def test_the_unit_starts_the_program_with_options_that_it_takes() -> None:
    """And so do the ones that the README puts beside it."""
    line = re.search(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)
    beside = re.search(r"^echo 'OPTIONS=(.*)' \|", README, re.MULTILINE)
    assert line is not None
    assert beside is not None
    (program,) = line.groups()
    (more,) = beside.groups()
    words = shlex.split(program.replace("$OPTIONS", more))
    options = cli._parser().parse_args(words[1:])
    assert options.silent_after == 1800.0
    assert options.to_file == ["${CREDENTIALS_DIRECTORY}/urls"]
