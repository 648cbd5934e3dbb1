"""Hold a port for a service that comes and goes: run as a program, until standard input ends."""

from __future__ import annotations

import socket
import sys


def held_port() -> socket.socket:
    """A socket that has a free port of this machine, and does not listen there.

    As long as it is open, no other program is given that port, and one that is told to listen there
    can, time and again.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


if __name__ == "__main__":
    with held_port() as held:
        print(held.getsockname()[1], flush=True)
        sys.stdin.read()
