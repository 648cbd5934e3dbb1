"""From many devices' files to one engine: NATS JetStream carries, ClickHouse keeps, this package forwards and asks.

codec: a batch as bytes. outbox: what a file has not sent yet; progress: what is kept in the file for it. stream:
NATS. forwarder: from the outbox into the stream; aside: devices that it refuses. decoding: bytes as a batch. engine:
ClickHouse. schema: its tables. sink: from the stream into the engine. deletions: what devices have deleted. hours:
statistics of closed hours. life: what an operator does with devices; watch: what is wrong with them. sql: the
questions. records: their rows as the library's records. fleet: the answers. cli: the command line. A device needs no
more than the first six, so this module imports nothing.
"""

from __future__ import annotations

__version__ = "1.0.0"
