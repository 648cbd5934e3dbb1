"""Check whether a release can be made, and print its notes; for `.github/workflows/release.yml`.

python .ci/release.py check [TAG]   do the versions of all parts agree, also with the tag?
python .ci/release.py notes         the changelog's newest chapter
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
_VERSION = re.compile(r'^__version__ = "(?P<version>.+)"$', re.MULTILINE)
_CHAPTER = re.compile(
    r"^## (?P<version>\S+) - (?P<date>\S+)\n(?P<text>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL
)


class Chapter(NamedTuple):
    """A chapter of the changelog: its version, its date (or "unreleased") and its text."""

    version: str
    date: str
    text: str


def versions(root: Path) -> dict[str, str]:
    """The version that each part says it has, by the file that says it."""
    module = (root / "power_manager.py").read_text("utf-8")
    found = _VERSION.search(module)
    said = {"power_manager.py": found["version"] if found else "none"}
    for package in ("client", "dashboard"):
        for file in ("package.json", "package-lock.json"):
            name = f"integrations/{package}/{file}"
            said[name] = json.loads((root / name).read_text("utf-8"))["version"]
    contract = json.loads((root / "integrations/service/openapi.json").read_text("utf-8"))
    said["integrations/service/openapi.json"] = contract["info"]["version"]
    # Packages take their version from power_manager; one that has its own must agree.
    for path in sorted(root.glob("integrations/*/power_*/__init__.py")):
        found = _VERSION.search(path.read_text("utf-8"))
        if found:
            said[path.relative_to(root).as_posix()] = found["version"]
    said["CHANGELOG.md"] = newest_chapter(root).version
    return said


def newest_chapter(root: Path) -> Chapter:
    """The changelog's first chapter."""
    found = _CHAPTER.search((root / "CHANGELOG.md").read_text("utf-8"))
    if found is None:
        raise SystemExit("CHANGELOG.md: expected a chapter headed '## VERSION - DATE'")
    return Chapter(found["version"], found["date"], found["text"].strip())


def check(root: Path, tag: str | None) -> list[str]:
    """What keeps this tree from being released, with this tag if there is one."""
    said = versions(root)
    version = said["power_manager.py"]
    wrong = [
        f"{name} says {other}, power_manager.py {version}"
        for name, other in said.items()
        if other != version
    ]
    if tag is not None:
        if tag != f"v{version}":
            wrong.append(f"the tag is {tag}, expected v{version}")
        date = newest_chapter(root).date
        if re.fullmatch(r"\d{4}-\d\d-\d\d", date) is None:
            wrong.append(
                f"CHANGELOG.md: expected the day of the release beside {version}, got {date!r}"
            )
    return wrong


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Check whether a release can be made.")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("check", help="do the versions of all parts agree?")
    add.add_argument("tag", nargs="?")
    commands.add_parser("notes", help="print the changelog's newest chapter")
    options = parser.parse_args()
    if options.command == "notes":
        print(newest_chapter(ROOT).text)
        return
    wrong = check(ROOT, options.tag)
    for line in wrong:
        print(line, file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
