"""Check that every program of the wheel keeps the one pattern of command lines.

python .ci/one_way.py          where the wheel is installed with all extras; prints what is wrong
python .ci/one_way.py --bare   where it is installed without: programs work, or name what they lack
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = "blackroad-power-manager"
_UNKNOWN = "--no-such-option"
# What stands below these headings of a help is no command.
_OTHER_HEADINGS = ("usage:", "positional arguments:", "options:", "example:", "examples:")
# Options of one name that mean different things all the same.
_DIFFERENT = {
    "--customer": "one that is billed, or for `go-live` a pair of them",
    "--fleet": "the service names the engine here, billing by --clickhouse",
    "--map": "the collector maps sources, mqtt topics",
    "--meter": "one of a device, or one of Stripe's",
}
_OPTION = re.compile(r"(?:-\w, )?(?P<name>--[\w-]+)(?: (?P<value>\S+))?(?:  +(?P<text>.*))?$")


class Ended(NamedTuple):
    """How a program ended."""

    code: int
    output: str
    errors: str


def run(program: metadata.EntryPoint, *words: str) -> Ended:
    """Run a program's main() in this process, as its console script does."""
    output, errors = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = [program.name, *words]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code: Any = program.load()()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = before
    return Ended(int(code or 0), output.getvalue(), errors.getvalue())


def commands_of(help_text: str) -> list[str]:
    """The commands that a help lists, below its own headings."""
    found = []
    heading = "usage:"
    for line in help_text.splitlines():
        if line and not line.startswith(" "):
            heading = line
        listed = re.match(r"  ([a-z][a-z-]*)(?: |$)", line)
        if listed and heading.endswith(":") and not heading.startswith(_OTHER_HEADINGS):
            found.append(listed[1])
    return found


def options_of(help_text: str) -> Iterator[tuple[str, str, str]]:
    """Each option of a help: its long name, what stands for its value, and its text."""
    lines = help_text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""]):
        found = _OPTION.match(line.strip()) if line.startswith("  -") else None
        if found:
            below = following.strip() if following.startswith(" " * 20) else ""
            yield found["name"], found["value"] or "", found["text"] or below


def problems_of_script(script: Path, name: str) -> Iterator[str]:
    """What is wrong with the console script itself, run in an empty directory."""
    version = metadata.version(PACKAGE)
    with tempfile.TemporaryDirectory() as folder:
        environment = {"PATH": os.environ["PATH"], "HOME": folder, "COLUMNS": "100"}
        shell = f'exec "{script}" "$@"'

        def ended(before: str, *words: str) -> Ended:
            command = ["bash", "-c", f"{shell} {before}", name, *words]
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True
            )
            return Ended(done.returncode, done.stdout, done.stderr)

        for option in ("--version", "-V"):
            said = ended("", option)
            if said != Ended(0, f"{name} {version}\n", ""):
                yield f"{name} {option}: expected '{name} {version}', got {said}"
        closed = ended(">&-", "--help")
        if closed.code != 1 or len(closed.errors.splitlines()) != 1:
            yield f"{name} --help without a standard output: expected 1 and a line, got {closed}"
        full = ended(">/dev/full", "--help")
        if full.code != 1 or len(full.errors.splitlines()) != 1:
            yield f"{name} --help to a full disk: expected 1 and a line, got {full}"
        if os.listdir(folder):
            yield f"{name}: --help has made {', '.join(os.listdir(folder))}"


def problems_without_extras(script: Path, name: str) -> Iterator[str]:
    """What is wrong with a program where only the standard library is there."""
    done = subprocess.run([script, "--help"], capture_output=True, text=True)
    works = done.returncode == 0 and done.stdout.startswith("usage: ") and not done.stderr
    explains = (
        done.returncode == 1
        and not done.stdout
        and re.fullmatch(
            rf"{name}: \S+ is not installed: pip install '{PACKAGE}\[\S+\]'\n", done.stderr
        )
    )
    if not works and not explains:
        yield f"{name} without extras: expected it to work, or to name what is missing, got {done}"


def problems_of_command(program: metadata.EntryPoint, *words: str) -> Iterator[str]:
    """What is wrong with a program or one of its commands, and with the commands below it."""
    shown = " ".join([program.name, *words])
    helped = run(program, *words, "--help")
    if helped.code != 0 or helped.errors:
        yield f"{shown} --help: expected 0 and no error, got {helped}"
        return
    _, _, examples = helped.output.partition("\nexample")
    lines = examples.splitlines()[1:]
    if not lines or not all(line.startswith(f"  {shown}") for line in lines):
        yield f"{shown} --help: expected it to end with examples of {shown}, got {lines}"
    for option, _, text in options_of(helped.output):
        if not text:
            yield f"{shown}: {option} has no help"
    refused = run(program, *words, _UNKNOWN)
    _, _, line = refused.errors.rstrip("\n").rpartition("\n")
    is_named = line.startswith(f"{program.name}: ")
    if refused.code != 2 or refused.output or not is_named or _UNKNOWN not in line:
        yield f"{shown} {_UNKNOWN}: expected 2, the usage and a line, got {refused}"
    if not refused.errors.startswith("usage: "):
        yield f"{shown} {_UNKNOWN}: expected the usage first, got {refused.errors!r}"
    for command in commands_of(helped.output):
        yield from problems_of_command(program, *words, command)


def values_of_options(
    program: metadata.EntryPoint, *words: str
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Each option with the command that has it and what stands for its value."""
    text = run(program, *words, "--help").output
    for option, value, _ in options_of(text):
        yield option, (" ".join([program.name, *words]), value)
    for command in commands_of(text):
        yield from values_of_options(program, *words, command)


def differing_options(programs: list[metadata.EntryPoint]) -> Iterator[str]:
    """Options of one name that take a value here, and none or another kind of value there."""
    places: dict[str, dict[str, str]] = {}
    for program in programs:
        for option, (place, value) in values_of_options(program):
            places.setdefault(option, {}).setdefault(value, place)
    for option, values in sorted(places.items()):
        if len(values) > 1 and option not in _DIFFERENT:
            said = ", ".join(f"{value or 'no value'} in {place}" for value, place in values.items())
            yield f"{option} differs: {said}"


def main(is_bare: bool) -> int:
    """Check all programs; return the exit code."""
    os.environ["COLUMNS"] = "200"
    programs = [
        program
        for program in metadata.distribution(PACKAGE).entry_points
        if program.group == "console_scripts"
    ]
    problems: list[str] = []
    for program in programs:
        script = Path(sys.executable).with_name(program.name)
        if is_bare:
            problems += problems_without_extras(script, program.name)
        else:
            problems += problems_of_script(script, program.name)
            problems += problems_of_command(program)
    if not is_bare:
        problems += differing_options(programs)
    for problem in problems:
        print(problem)
    print(f"{len(programs)} programs, {len(problems)} problems")
    return 1 if problems or not programs else 0


if __name__ == "__main__":
    sys.exit(main(is_bare=sys.argv[1:] == ["--bare"]))
