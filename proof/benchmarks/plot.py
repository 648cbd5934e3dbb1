"""growth.svg: the figures of (i) as three plots with logarithmic axes."""

from __future__ import annotations

from math import ceil, floor, log10
from pathlib import Path

_WIDTH = 300
_HEIGHT = 260
_LEFT = 62
_TOP = 48
_GAP = 80
_COLOURS = {
    "power_manager": "#d62728",
    "floor": "#000000",
    "naive": "#7f7f7f",
    "rrdtool": "#1f77b4",
    "diskcache": "#ff7f0e",
    "sqlite-utils": "#2ca02c",
    "dataset": "#9467bd",
    "tinydb": "#8c564b",
    "duckdb": "#e377c2",
    "sqlalchemy": "#17becf",
}

Line = list[tuple[float, float]]


def _short(power: int) -> str:
    return f"{10.0**power:g}" if -3 <= power <= 3 else f"1e{power}"


def _panel(number: int, title: str, lines: dict[str, Line]) -> list[str]:
    """One plot; its left edge is by its number."""
    left = _LEFT + number * (_WIDTH + _GAP)
    points = [(log10(x), log10(y)) for line in lines.values() for x, y in line if y > 0]
    low_x = floor(min(x for x, _ in points))
    high_x = ceil(max(x for x, _ in points))
    low_y = floor(min(y for _, y in points))
    high_y = ceil(max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / max(high_x - low_x, 1) * _WIDTH
        return left + across, _TOP + _HEIGHT - (y - low_y) / max(high_y - low_y, 1) * _HEIGHT

    out = [f'<text x="{left}" y="{_TOP - 14}" font-weight="bold">{title}</text>']
    for power in range(low_x, high_x + 1):
        x, y = place(power, low_y)
        out.append(f'<path d="M{x:.1f} {_TOP}V{y:.1f}" stroke="#ddd"/>')
        out.append(
            f'<text x="{x:.1f}" y="{y + 17:.1f}" text-anchor="middle">{_short(power)}</text>'
        )
    for power in range(low_y, high_y + 1):
        x, y = place(low_x, power)
        out.append(f'<path d="M{x:.1f} {y:.1f}h{_WIDTH}" stroke="#ddd"/>')
        out.append(
            f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{_short(power)}</text>'
        )
    for name, line in lines.items():
        places = [place(log10(x), log10(y)) for x, y in line if y > 0]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        width = 3 if name == "power_manager" else 1.5
        colour = _COLOURS[name]
        out.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
        )
        out += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{width + 0.5}" fill="{colour}"/>'
            for x, y in places
        ]
    middle = left + _WIDTH / 2
    below = _TOP + _HEIGHT + 36
    out.append(f'<text x="{middle}" y="{below}" text-anchor="middle">readings in the file</text>')
    return out


def write(path: Path, figures: dict[str, list[list[float]]]) -> None:
    """Draw (i): for each contender its rows of readings, seconds of one and of a report, bytes."""
    panels = (
        ("one reading, us", 1, 1e6),
        ("report over all of them, ms", 2, 1e3),
        ("bytes a reading on disk", 3, 1.0),
    )
    width = _LEFT + 3 * (_WIDTH + _GAP) + 70
    height = _TOP + _HEIGHT + 56
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for number, (title, column, scale) in enumerate(panels):
        lines = {
            name: [(row[0], row[column] * scale) for row in rows] for name, rows in figures.items()
        }
        out += _panel(number, title, lines)
    left = _LEFT + 3 * (_WIDTH + _GAP) - _GAP + 18
    for place, name in enumerate(figures):
        y = _TOP + 12 + 20 * place
        out.append(f'<path d="M{left} {y}h22" stroke="{_COLOURS[name]}" stroke-width="3"/>')
        out.append(f'<text x="{left + 28}" y="{y + 4}">{name}</text>')
    path.write_text("\n".join([*out, "</svg>", ""]), encoding="utf-8")
