"""From many devices' files to one engine: NATS JetStream carries, ClickHouse keeps, this package forwards and asks.

codec: a batch as bytes and back. outbox: what a file has not sent yet. stream: NATS. forwarder: from the outbox into
the stream. engine: ClickHouse. schema: its tables. sink: from the stream into the engine. deletions: what devices have
deleted. hours: statistics of closed hours. sql: the questions. fleet: the answers. cli: the command line. A device
needs no more than codec, outbox, stream and forwarder, so this module imports nothing.
"""

from __future__ import annotations

__version__ = "1.0.0"
