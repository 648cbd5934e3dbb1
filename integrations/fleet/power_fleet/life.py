"""The life of devices, as an operator sees and changes it: lines, retirement, replacement, deletion."""

from __future__ import annotations

from power_fleet.engine import Engine

_HIGHEST_LINE = "SELECT toInt64(max(line)) FROM power_lines"


def highest_line(engine: Engine) -> int:
    """The highest line of all devices that the engine knows; 0: none, or it has no tables yet. Raises EngineError."""
    highest = 0
    for shard in engine.shards:
        ((is_there,),) = shard.query("EXISTS TABLE power_lines")
        if is_there:
            ((line,),) = shard.query(_HIGHEST_LINE)
            highest = max(highest, int(line))
    return highest
