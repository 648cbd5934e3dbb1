"""Time whole processes and their peak memory; run by works.py with `-S`, commands in JSON on stdin.

A process of its own, and a small one: Linux counts the memory of the process that starts another
into the other's peak.
"""

from __future__ import annotations

import json
import os
import sys
from time import perf_counter


def measure(command: list[str]) -> tuple[float, int]:
    """Seconds and peak resident bytes of one run."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    begin = perf_counter()
    pid = os.posix_spawn(
        command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, nothing, 1)]
    )
    _, status, usage = os.wait4(pid, 0)
    seconds = perf_counter() - begin
    os.close(nothing)
    if status:
        raise SystemExit(f"failed: {command}")
    return seconds, usage.ru_maxrss * 1024


def main() -> None:
    """Run the commands in turn, round after round; the first, which fills caches, is no result."""
    task = json.load(sys.stdin)
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in task["commands"]}
    for number in range(task["rounds"] + 1):
        for name, command in task["commands"].items():
            result = measure(command)
            if number:
                found[name].append(result)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
