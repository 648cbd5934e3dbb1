"""`power-fleet` as a next version would be, for upgrades.

It writes messages of version 3, and reads those of 2 too.

    python3 integrations/fleet/chaos/next_version.py ARGUMENTS

Nothing but the number differs.
"""

from __future__ import annotations

import sys
import threading

import clickhouse18  # noqa: F401 - the engine's URLs are of its kind
from power_fleet import cli, codec, decoding, sink
from power_fleet.codec import Batch, Poison

PRESENT = codec.VERSION
NEXT = PRESENT + 1
_decode = decoding.decode
_turn = threading.Lock()  # there is one VERSION


def decode(data: bytes, sequence: int) -> Batch:
    """The batch that these bytes are, in either version. Raises Poison."""
    with _turn:
        try:
            return _decode(data, sequence)
        except Poison as reason:
            if not str(reason).endswith(f"got {PRESENT}"):
                raise
        codec.VERSION = PRESENT
        try:
            return _decode(data, sequence)
        finally:
            codec.VERSION = NEXT


codec.VERSION = NEXT
sink.decode = decode  # type: ignore[attr-defined] # it is imported there

if __name__ == "__main__":
    sys.exit(cli.main())
