"""Runs a program that ends with the process that started it, even where that one is killed.

No server is left behind.

    python -I -S child.py PARENT PROGRAM [ARGUMENT ...]

A file of its own that becomes the program, because what sets this has to run in the child alone,
and a fork of a process with threads is no place for Python. Only Linux knows it; elsewhere a killed
parent leaves the program running.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the program."""
    parent, program = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        # What it has acknowledged is on the disk, so the hardest signal does no harm.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(f"{program}: process {parent} has ended meanwhile")
    os.execv(program, sys.argv[2:])


if __name__ == "__main__":
    main()
