"""The life of devices, as an operator sees and changes it: lines, retirement, replacement, deletion."""

from __future__ import annotations

from power_fleet.engine import Engine

_HIGHEST_LINE = "SELECT toInt64(max(line)) FROM power_lines"


def highest_line(engine: Engine) -> int:
    """The highest line of all devices that the engine knows; 0: none. Raises EngineError."""
    return max(int(line) for (line,) in engine.ask(_HIGHEST_LINE))
