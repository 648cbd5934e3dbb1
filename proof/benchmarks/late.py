"""What late readings, wrong clocks and upgrades cost the library; run by works.py, prints JSON.

Everything is measured with durability "normal", so that the disk's syncs, which are the same for
all of it, do not hide what the library does. Where a cost must be linear, it is measured for so
many readings and for twice as many.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from readings import START, day_of_values

import proof.first_release

_HOUR = 3600.0
# Which newer readings there are, and how many seconds later they begin.
_NEWER = {"": None, ", newer ones there": 10 * _HOUR, ", newer ones in its hour": 60.0}
_ORDERS = ("ascending", "descending", "random", "one instant")


def load(path: str) -> Any:
    """The library in that file, which may be an older one."""
    spec = importlib.util.spec_from_file_location("power_manager", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["power_manager"] = module
    spec.loader.exec_module(module)
    return module


class Scene:
    """A database with one meter and a clock that is set."""

    def __init__(self, library: Any, path: Path, seed: int) -> None:
        self.now = START
        self.values = day_of_values(seed)
        self.path = path
        self.pm = library.PowerManager(path, durability="normal", clock=lambda: self.now)
        self.pm.register_device("bench", "Benchmark")
        self.meter = self.new_meter()

    def new_meter(self) -> str:
        """Another meter without readings."""
        return str(self.pm.add_meter("bench", "battery", 120.0).id)

    def rows(self, begin: float, count: int, step: float) -> list[tuple[Any, ...]]:
        """Recorded readings from a time on."""
        length = len(self.values)
        return [(self.meter, *self.values[i % length], begin + i * step) for i in range(count)]

    def live(self, meter: str, number: int) -> float:
        """Log one live reading; its seconds."""
        volts, amperes, charge = self.values[number % len(self.values)]
        begin = perf_counter()
        self.pm.log_power(meter, volts, amperes, charge)
        return perf_counter() - begin

    def finish(self) -> None:
        """Check the file, and close it."""
        problems = self.pm.check()
        self.pm.close()
        if problems:
            raise SystemExit(f"the file is not as it should be: {problems[:3]}")


def appended(scene: Scene, sizes: dict[str, int]) -> dict[str, Any]:
    """Live readings 5 s apart, each the newest."""
    times = []
    for number in range(sizes["single"]):
        scene.now += 5
        times.append(scene.live(scene.meter, number))
    return {"appended": median(times)}


def late(scene: Scene, sizes: dict[str, int]) -> dict[str, Any]:
    """Single late readings into a day at 5 s, whose hours are all full."""
    scene.pm.log_many(scene.rows(START, 17_280, 5))
    chance = random.Random(1)
    times = []
    for _ in range(sizes["single"] // 4):
        at = START + chance.randrange(1, 16_000) * 5 + chance.uniform(0.5, 4.5)
        begin = perf_counter()
        scene.pm.log_power(scene.meter, 12.0, 1.0, 50.0, timestamp=at)
        times.append(perf_counter() - begin)
    return {"late": median(times)}


def backlog(scene: Scene, sizes: dict[str, int]) -> dict[str, Any]:
    """Days at 5 s in a random order, in one log_many."""
    rows = scene.rows(START, sizes["backlog"], 5)
    random.Random(2).shuffle(rows)
    begin = perf_counter()
    scene.pm.log_many(rows)
    return {"backlog": (perf_counter() - begin) / len(rows)}


def behind(scene: Scene, sizes: dict[str, int]) -> dict[str, Any]:
    """Live readings of a meter whose others are all dated later; in turn, of one without others."""
    scene.pm.log_many(scene.rows(START + 10 * _HOUR, sizes["later"], 1))
    alone = scene.new_meter()
    times: dict[str, list[float]] = {"behind": [], "not behind": []}
    for number in range(sizes["single"]):
        scene.now += 5
        times["behind"].append(scene.live(scene.meter, number))
        times["not behind"].append(scene.live(alone, number))
    return {name: median(taken) for name, taken in times.items()}


def set_back(scene: Scene, sizes: dict[str, int]) -> dict[str, Any]:
    """Live readings by a clock set back half an hour, into readings at 5 s and at 1 Hz."""
    found = {}
    for name, step in (("set back, 5 s", 5), ("set back, 1 Hz", 1)):
        scene.meter = scene.new_meter()
        count = round(2 * _HOUR / step)
        scene.pm.log_many(scene.rows(START, count, step))
        scene.now = START + 1.5 * _HOUR + 0.5
        times = []
        for number in range(sizes["single"] // 4):
            scene.now += step
            times.append(scene.live(scene.meter, number))
        found[name] = median(times)
    return found


def frozen(scene: Scene, sizes: dict[str, int]) -> dict[str, Any]:
    """Live readings of one instant: call by call and in one call, without and with newer ones."""
    found: dict[str, Any] = {}
    for newer, later in _NEWER.items():
        for one_call in (False, True):
            taken = []
            for count in (sizes["frozen"], 2 * sizes["frozen"]):
                scene.meter = scene.new_meter()
                if later is not None:
                    scene.pm.log_many(scene.rows(START + later, 1000, 5))
                rows = [(scene.meter, *scene.values[i]) for i in range(count)]
                begin = perf_counter()
                if one_call:
                    scene.pm.log_many(rows)
                else:
                    for row in rows:
                        scene.pm.log_power(*row)
                taken.append((perf_counter() - begin) / count)
            how = "one call" if one_call else "call by call"
            found[f"frozen, {how}{newer}"] = taken
    return found


def _first_release(path: Path, count: int, order: str, seed: int) -> None:
    """Write a file as the first release of this tool did, its rows in that order."""
    values = day_of_values(seed)
    numbers = list(range(count))
    if order == "descending":
        numbers.reverse()
    elif order == "random":
        random.Random(3).shuffle(numbers)

    def rows() -> Iterator[tuple[Any, ...]]:
        for number in numbers:
            volts, amperes, charge = values[number % len(values)]
            at = START if order == "one instant" else START + number * 5
            text = datetime.fromtimestamp(at, timezone.utc).replace(tzinfo=None).isoformat()
            yield f"r{number}", "old-1", volts, amperes, volts * amperes, charge, text

    conn = proof.first_release.create(path)
    conn.executemany("INSERT INTO power_readings VALUES (?, ?, ?, ?, ?, ?, ?)", rows())
    conn.commit()
    conn.close()


def upgrades(library: Any, folder: Path, sizes: dict[str, int], seed: int) -> dict[str, Any]:
    """Open files of the first release whose rows are in any order."""
    found: dict[str, Any] = {}
    for order in _ORDERS:
        taken = []
        for count in (sizes["upgraded"], 2 * sizes["upgraded"]):
            path = folder / f"{order}-{count}.db"
            _first_release(path, count, order, seed)
            begin = perf_counter()
            pm = library.PowerManager(path)
            taken.append((perf_counter() - begin) / count)
            kept = sum(1 for _ in pm.iter_history("old-1"))
            pm.close()
            if kept != count:
                raise SystemExit(f"{kept} of {count} readings are left by the upgrade, {order}")
        found[f"upgrade, {order}"] = taken
    return found


SCENES: dict[str, Callable[[Scene, dict[str, int]], dict[str, Any]]] = {
    "appended": appended,
    "late": late,
    "backlog": backlog,
    "behind": behind,
    "set_back": set_back,
    "frozen": frozen,
}


def main() -> None:
    """Play scenes: the arguments are the library's file, a directory, the seed, sizes, names.

    The sizes are JSON; without names all scenes are played.
    """
    library_path, place, seed_text, sizes_text, *names = sys.argv[1:]
    library = load(library_path)
    seed = int(seed_text)
    sizes = json.loads(sizes_text)
    wanted = names or [*SCENES, "upgrades"]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=place) as folder:
        for name in wanted:
            if name == "upgrades":
                found |= upgrades(library, Path(folder), sizes, seed)
                continue
            scene = Scene(library, Path(folder, f"{name}.db"), seed)
            found |= SCENES[name](scene, sizes)
            scene.finish()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
