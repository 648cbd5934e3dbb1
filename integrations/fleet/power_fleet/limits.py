"""How much may wait in the stream and be stored in a minute, unless an option says otherwise."""

from __future__ import annotations

STREAM_BYTES = 10 * 2**30  # that may wait in the stream
HUB_STREAM_BYTES = 2**30  # the same, of a hub
DEVICE_MESSAGES = 100  # of one device that may wait in the stream; its file keeps the rest
MESSAGES_A_MINUTE = 1000  # of one device that are stored: 500,000 readings of a backfill
BYTES_A_MINUTE = 64 * 2**20  # of one device that are stored, packed
ONCE_SECONDS = 30.0  # that `--once` goes on for while nothing that it sends is acknowledged
