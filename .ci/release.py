"""What a release needs to know of itself; `.github/workflows/release.yml` calls it, and so can you.

python .ci/release.py check [TAG]   the versions of all parts agree; with a tag, they are its and the changelog's
python .ci/release.py notes         the changelog's newest chapter
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_CHAPTER = re.compile(r"^## (\S+) - (\S+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def versions(root: Path) -> dict[str, str]:
    """The version that each part says it has, by the file that says it."""
    module = (root / "power_manager.py").read_text("utf-8")
    found = re.search(r'^__version__ = "(.+)"$', module, re.MULTILINE)
    said = {"power_manager.py": found[1] if found else "none"}
    for name in ("package.json", "package-lock.json"):
        path = root / "integrations/client" / name
        said[f"integrations/client/{name}"] = json.loads(path.read_text("utf-8"))["version"]
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
    """What is wrong with releasing this tree, with this tag if there is one; nothing, if it may be released."""
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
                f"CHANGELOG.md: the chapter of {version} is of {date!r}, expected the day of the release"
            )
    return wrong


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="What a release needs to know of itself.")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("check", help="whether the versions of all parts agree")
    add.add_argument("tag", nargs="?")
    commands.add_parser("notes", help="the changelog's newest chapter")
    options = parser.parse_args()
    if options.command == "notes":
        print(newest_chapter(ROOT)[2])
        return
    wrong = check(ROOT, options.tag)
    for line in wrong:
        print(line, file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
