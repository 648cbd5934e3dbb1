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

ROOT = Path(__file__).resolve().parents[1]
_VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
_CHAPTER = re.compile(r"^## (\S+) - (\S+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def versions(root: Path) -> dict[str, str]:
    """The version that each part says it has, by the file that says it."""
    module = (root / "power_manager.py").read_text("utf-8")
    found = _VERSION.search(module)
    said = {"power_manager.py": found[1] if found else "none"}
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
            said[path.relative_to(root).as_posix()] = found[1]
    version, _, _ = newest_chapter(root)
    said["CHANGELOG.md"] = version
    return said


def newest_chapter(root: Path) -> tuple[str, str, str]:
    """Version, date (or "unreleased") and text of the changelog's first chapter."""
    found = _CHAPTER.search((root / "CHANGELOG.md").read_text("utf-8"))
    if found is None:
        raise SystemExit("CHANGELOG.md: expected a chapter headed '## VERSION - DATE'")
    version, date, text = found.groups()
    return version, date, text.strip()


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
        _, date, _ = newest_chapter(root)
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
        _, _, text = newest_chapter(ROOT)
        print(text)
        return
    wrong = check(ROOT, options.tag)
    for line in wrong:
        print(line, file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
