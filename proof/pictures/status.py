#!/usr/bin/env python3
"""Draw what `status` and `report --text` print for the demo's data: status.svg, from a real run.

    python proof/pictures/status.py            # write the picture
    python proof/pictures/status.py --check    # exit with 1 if it is not what would be written

The demo is made at a fixed time, so that the picture changes only with what is printed.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
import time
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
import power_manager

PICTURE = Path(__file__).with_suffix(".svg")
NOW = "2026-06-21T21:10:00Z"
COLUMNS = 92
COMMANDS = ["status", "report demo-001 --text"]
CELL_WIDTH, LINE_HEIGHT, MARGIN = 8.4, 19, 16  # pixels, at a font size of 14
COLOURS = {"31": "#ff7b72", "32": "#56d364", "33": "#e3b341", "34": "#79c0ff", "2": "#8b949e"}
TEXT, BACKGROUND = "#e6edf3", "#0d1117"


class Terminal(io.StringIO):
    """A stream that says of itself that it is a terminal."""

    def isatty(self) -> bool:
        """Whether it is one: yes."""
        return True


def printed() -> str:
    """What the commands print on a terminal in colour, each below a prompt with itself."""
    os.environ.update(TZ="UTC", COLUMNS=str(COLUMNS), TERM="xterm")
    os.environ.pop("NO_COLOR", None)
    time.tzset()
    seconds = power_manager.to_microseconds(NOW) / power_manager.SECOND_US
    terminal = Terminal()
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stderr(io.StringIO()):
        database = ["--db", str(Path(place, "demo.db"))]
        with contextlib.redirect_stdout(io.StringIO()):
            assert power_manager.main([*database, "demo"], clock=lambda: seconds) == 0
        with contextlib.redirect_stdout(terminal):
            for command in COMMANDS:
                print(f"\x1b[2m$\x1b[0m power-manager {command}")
                code = power_manager.main([*database, *command.split()], clock=lambda: seconds)
                assert code == 0, command
                print()
    return terminal.getvalue().rstrip("\n")


def blocks(run: str, x: float, y: float, colour: str) -> str:
    """A block character, or several that are alike, as a rectangle: fonts leave gaps."""
    code = ord(run[0])
    width = CELL_WIDTH * len(run)
    height = LINE_HEIGHT - 3  # lines of bars stay apart
    top = y - 13
    if code == ord("░"):
        return rectangle(x, top, width, height, colour, opacity=0.25)
    if 0x2581 <= code <= 0x2588:  # from the bottom up, in eighths
        part = height * (code - 0x2580) / 8
        return rectangle(x, top + height - part, width, part, colour)
    return rectangle(x, top, CELL_WIDTH * (0x2590 - code) / 8, height, colour)  # from the left


def rectangle(
    x: float, y: float, width: float, height: float, colour: str, opacity: float = 1
) -> str:
    """An SVG rectangle; solid ones overlap a little, so that no seams are seen."""
    faint = f' opacity="{opacity}"' if opacity < 1 else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width + 0.1 * (not faint):.1f}" '
        f'height="{height:.1f}" fill="{colour}"{faint}/>'
    )


def drawn_line(line: str, y: float) -> list[str]:
    """A line of terminal output as SVG elements."""
    elements = []
    column = 0
    colour, weight = TEXT, ""
    for code, text in re.findall(r"\x1b\[(\d+)m|([^\x1b]+)", line):
        if code:
            colour = COLOURS.get(code, TEXT)
            weight = ' font-weight="bold"' if code == "1" else ""
        for run in re.findall(r"█+|░+|[▁-▏]|[^▁-▏░]+", text):
            x = MARGIN + column * CELL_WIDTH
            column += power_manager.text_width(run)
            if "▁" <= run[0] <= "▏" or run[0] == "░":
                elements.append(blocks(run, x, y, colour))
                continue
            for word in re.finditer(r"\S+(?: \S+)*", run):  # each at its own place, in any font
                place = x + word.start() * CELL_WIDTH
                length = len(word[0]) * CELL_WIDTH
                elements.append(
                    f'<text x="{place:.1f}" y="{y}" fill="{colour}"{weight} '
                    f'textLength="{length:.1f}">{escape(word[0])}</text>'
                )
    return elements


def picture() -> str:
    """The whole of the SVG."""
    lines = printed().split("\n")
    width = 2 * MARGIN + COLUMNS * CELL_WIDTH
    height = 2 * MARGIN + len(lines) * LINE_HEIGHT
    elements = []
    for number, line in enumerate(lines):
        elements += drawn_line(line, MARGIN + 14 + number * LINE_HEIGHT)
    font = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'font-family="{font}" font-size="14" role="img">'
    )
    return "\n".join(
        [
            head,
            f"<title>power-manager {' and '.join(COMMANDS)}</title>",
            f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>',
            *elements,
            "</svg>\n",
        ]
    )


def main() -> int:
    """Write the picture, or compare it; return the exit code."""
    text = picture()
    if sys.argv[1:] == ["--check"]:
        if PICTURE.read_text(encoding="utf-8") == text:
            return 0
        print(f"{PICTURE} is not what is printed now: run {Path(__file__).name}", file=sys.stderr)
        return 1
    PICTURE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
