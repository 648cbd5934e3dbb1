"""Run every stress program within a time, and write what came of it to RESULTS.md."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from common import CHECKOUT, HERE, machine

import power_manager

# Each program's share of the time, and the seconds that it takes however short its share is.
_SHARES = {
    "interrupts": (6, 3.0),
    "powercut": (5, 2.0),
    "kill": (3, 5.0),
    "resources": (3, 3.0),
    "clocks": (2, 1.0),
    "bitflips": (4, 1.0),
    "crowd": (3, 2.0),
    "fuzz": (4, 5.0),
}
_QUICK_SECONDS = 75.0
_CLOSING_LINES = 24


class Result(NamedTuple):
    """How a program ended."""

    name: str
    command: str
    status: int
    seconds: float
    closing: str


def _run(name: str, seconds: float, seed: int) -> Result:
    command = [
        sys.executable,
        str(HERE / f"{name}.py"),
        "--seconds",
        f"{seconds:g}",
        "--seed",
        str(seed),
    ]
    shown = shlex.join(["python", f"proof/stress/{name}.py", *command[2:]])
    print(f"--- {shown}", flush=True)
    begin = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, end="", flush=True)
    closing = "\n".join(done.stdout.splitlines()[-_CLOSING_LINES:])
    return Result(name, shown, done.returncode, time.monotonic() - begin, closing)


def _hypothesis_version() -> str:
    try:
        return f"hypothesis {metadata.version('hypothesis')}"
    except metadata.PackageNotFoundError:
        return "no hypothesis"


def _results(results: list[Result], options: list[str]) -> str:
    """The page that is committed."""
    commit = subprocess.run(
        ["git", "-C", CHECKOUT, "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    library = f"power_manager {power_manager.__version__}"
    if commit:
        library += f", commit {commit}"
    head = [
        "# Results of the stress programs",
        "",
        f"Command: `python proof/stress/run.py {shlex.join(options)}`  ",
        f"Date: {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC  ",
        f"Library: {library}  ",
        f"Machine: {machine()}, {_hypothesis_version()}",
        "",
        "What each program does and what it leaves out is in [README.md](README.md).",
        "",
        "| Program | Ended | Seconds |",
        "| --- | --- | ---: |",
    ]
    rows = [
        f"| {r.name} | {'ok' if r.status == 0 else f'FAILED ({r.status})'} | {r.seconds:.0f} |"
        for r in results
    ]
    parts = [f"\n## {r.name}\n\n`{r.command}`\n\n```\n{r.closing}\n```" for r in results]
    return "\n".join([*head, *rows, *parts]) + "\n"


def main() -> int:
    """Run the programs, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    time_given = parser.add_mutually_exclusive_group()
    time_given.add_argument(
        "--quick", action="store_true", help="a little more than a minute in all (the default)"
    )
    time_given.add_argument("--seconds", type=float, help="so many seconds in all")
    time_given.add_argument("--hours", type=float, help="so many hours in all")
    parser.add_argument("--seed", type=int, default=1, help="of every random choice (default: 1)")
    parser.add_argument(
        "--only", nargs="+", choices=list(_SHARES), default=list(_SHARES), metavar="PROGRAM"
    )
    parser.add_argument(
        "--output", type=Path, default=HERE / "RESULTS.md", help="(default: RESULTS.md beside this)"
    )
    args = parser.parse_args()
    budget = args.hours * 3600 if args.hours else args.seconds or _QUICK_SECONDS
    shares = {name: _SHARES[name] for name in args.only}
    free = max(0.0, budget - sum(fixed for _, fixed in shares.values()))
    unit = free / sum(share for share, _ in shares.values())
    results = [
        _run(name, round(max(1.0, share * unit), 1), args.seed)
        for name, (share, _) in shares.items()
    ]
    args.output.write_text(_results(results, sys.argv[1:] or ["--quick"]), encoding="utf-8")
    failed = [result.name for result in results if result.status]
    print(f"stress: {'FAILED: ' + ', '.join(failed) if failed else 'all ok'}; see {args.output}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
