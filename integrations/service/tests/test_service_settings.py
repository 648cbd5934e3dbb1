"""Settings: each in one place, with its option, its variable, its default and its limits."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import Start
from power_service import cli
from power_service.settings import (
    Refused,
    Settings,
    add_options,
    option_of,
    read_settings,
    table,
    unknown_variables,
    variable_of,
)
from service_harness import SERVICE

# Of each setting a value as text, and as it is read.
VALUES: dict[str, tuple[str, Any]] = {
    "db": ("e.db", Path("e.db")),
    "fleet": ("http://a:1,http://b:1 chdb://c", ("http://a:1,http://b:1", "chdb://c")),
    "hub": ("1", True),
    "tokens": ("t.json", Path("t.json")),
    "host": ("::1", "::1"),
    "port": ("81", 81),
    "no_auth": ("yes", True),
    "behind_proxy": ("1", True),
    "tls_cert": ("c.pem", Path("c.pem")),
    "tls_key": ("k.pem", Path("k.pem")),
    "allow_host": ("a.example  b.example", ("a.example", "b.example")),
    "allow_origin": ("https://a.example", ("https://a.example",)),
    "rate": ("2.5", 2.5),
    "burst": ("7", 7),
    "max_connections": ("8", 8),
    "durability": ("normal", "normal"),
    "dashboard": ("dist", Path("dist")),
    "max_requests": ("9", 9),
    "max_body": ("2048", 2048),
    "max_headers": ("4096", 4096),
    "body_seconds": ("1.5", 1.5),
    "header_seconds": ("2.5", 2.5),
    "handshake_seconds": ("3.5", 3.5),
    "queue": ("5", 5),
    "poll_seconds": ("0.5", 0.5),
    "reading_seconds": ("0.75", 0.75),
    "fleet_seconds": ("1.75", 1.75),
    "heartbeat_seconds": ("3", 3.0),
    "stall_seconds": ("1m30s", 90.0),
}
NAMES = list(Settings.model_fields)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is set by whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(("POWER_SERVICE_", "POWER_MANAGER_")):
            monkeypatch.delenv(name)


def given(*options: str) -> Settings:
    """The settings of a command line."""
    return read_settings(vars(cli._options(list(options))))


class TestWhereAValueComesFrom:
    """The command line, else the environment, else the default."""

    def test_every_setting_is_tried_here(self) -> None:
        """A new one needs a line in VALUES."""
        assert list(VALUES) == NAMES

    @pytest.mark.parametrize("name", NAMES)
    def test_its_variable_sets_it(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """And it alone; empty it counts as unset."""
        text, value = VALUES[name]
        monkeypatch.setenv(variable_of(name), text)
        assert read_settings({}) == Settings().model_copy(update={name: value})
        monkeypatch.setenv(variable_of(name), "")
        assert getattr(read_settings({}), name) == Settings.model_fields[name].default

    @pytest.mark.parametrize("name", [name for name in NAMES if option_of(name)])
    def test_its_option_goes_before_its_variable(
        self, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """Whatever that says."""
        text, value = VALUES[name]
        other = {"no_auth": "0", "behind_proxy": "0", "durability": "full", "port": "1"}
        monkeypatch.setenv(variable_of(name), other.get(name, "3"))
        option = str(option_of(name))
        options = [option] if value is True else [f"{option}={part}" for part in text.split()]
        assert getattr(given(*options), name) == value

    def test_a_setting_without_an_option_has_a_variable_alone(self) -> None:
        """The command line does not know it."""
        with pytest.raises(SystemExit, match="2"):
            given("--max-body", "2048")

    def test_some_options_alone(self) -> None:
        """For a command that uses those only."""
        parser = argparse.ArgumentParser()
        add_options(parser, ["db", "tokens"])
        assert set(vars(parser.parse_args(["--db", "x"]))) == {"db"}
        assert "--port" not in parser.format_help()


class TestWhatIsRefused:
    """By option or variable, with what would do, and exit code 2."""

    @pytest.mark.parametrize(
        ("variable", "value", "expected"),
        [
            ("POWER_SERVICE_PORT", "http", "a whole number from 0 to 65535"),
            ("POWER_SERVICE_RATE", "nan", "a number from 0 to 1000000"),
            ("POWER_SERVICE_NO_AUTH", "maybe", "1 or 0"),
            ("POWER_SERVICE_DURABILITY", "some", "full or normal"),
            ("POWER_SERVICE_MAX_BODY", "0", "a whole number from 1024 to 1000000000"),
            ("POWER_SERVICE_QUEUE", "1e3", "a whole number from 1 to 1000000"),
            ("POWER_SERVICE_POLL_SECONDS", "inf", "a duration such as 30s, from 0.01 s to 24h"),
            ("POWER_SERVICE_PORT", "8_080", "a whole number from 0 to 65535"),
        ],
    )
    def test_a_variable(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str,
        value: str, expected: str,
    ) -> None:  # fmt: skip
        """A value that cannot be meant."""
        monkeypatch.setenv(variable, value)
        assert cli.main(["token", "list"]) == 2
        usage, _, message = capsys.readouterr().err.rpartition("power-service: ")
        assert message == f"{variable}: expected {expected}, got {value!r}\n"
        assert re.match("usage: .* token list ", usage)

    def test_an_option_that_is_right_hides_a_variable_that_is_not(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What does not count is not read."""
        monkeypatch.setenv("POWER_SERVICE_PORT", "http")
        assert given("--port", "80").port == 80
        with pytest.raises(Refused, match=r"^--port: expected .*, got '-1'$"):
            given("--port=-1")

    def test_a_variable_that_is_none_of_the_service_is_said(self, make_service: Start) -> None:
        """It may be a mistyped one; the service begins all the same."""
        assert unknown_variables(map(variable_of, NAMES)) == []
        assert unknown_variables(["PATH", "POWER_SERVICE_TOKEN"]) == []
        assert unknown_variables(["POWER_SERVICE_PROT"]) == ["POWER_SERVICE_PROT"]
        service = make_service("--no-auth", program=("-c", MISTYPED)).start()
        assert "POWER_SERVICE_PROT is not a setting" in service.log.read_text()


MISTYPED = """
import os, sys
from power_service import cli
os.environ["POWER_SERVICE_PROT"] = "1"
sys.exit(cli.main())
"""


class TestTheReadme:
    """It is made from the settings."""

    def test_its_table_is_the_one_of_the_settings(self) -> None:
        """As `python -m power_service.settings` prints it."""
        readme = (SERVICE / "README.md").read_text(encoding="utf-8")
        assert f"<!-- settings -->\n{table()}\n<!-- /settings -->" in readme, table()

    def test_every_switch_of_the_command_line_alone_is_named(self) -> None:
        """Those that are no settings."""
        readme = (SERVICE / "README.md").read_text(encoding="utf-8")
        options = set(re.findall(r"--[a-z-]+", cli._parser().format_help()))
        others = options - {option_of(name) for name in NAMES} - {"--help", "--version", "--scope"}
        assert "--url" in readme
        assert others == {"--quiet", "--demo", "--open"}
        for option in others:
            assert f"`{option}`" in readme


class TestTheCommandLine:
    """As all command lines of the project."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["tokn"], "did you mean token?"),
            (["--prt", "1"], "did you mean --port?"),
            (["token", "nw"], "did you mean new?"),
            (["--max-conn", "1"], "did you mean --max-connections?"),
        ],
    )
    def test_a_mistyped_word_is_answered_with_the_nearest(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ) -> None:
        """And exit code 2."""
        with pytest.raises(SystemExit, match="2"):
            cli.main(arguments)
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        "arguments", ["-V", "--version", "help", "help token", "completion fish"]
    )
    def test_help_version_and_completion(
        self, capsys: pytest.CaptureFixture[str], arguments: str
    ) -> None:
        """Printed, with exit code 0."""
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments.split())
        assert ended.value.code in (0, None)
        assert "power" in capsys.readouterr().out

    def test_every_example_is_one_that_is_understood(self) -> None:
        """Those of the help."""
        main = cli._parser()
        parsers = [main]
        for parser in parsers:
            for name, command in parser.commands.items():
                if name not in ("help", "completion"):  # they print
                    parsers.append(command)
            for example in parser.examples:
                assert cli._options(example.removeprefix(main.prog).split()).run is not None
