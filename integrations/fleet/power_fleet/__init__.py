"""Sends many devices' files to one engine, and answers there for all devices.

On a device:

    codec       a batch as bytes
    outbox      what a file has not sent yet; progress: what is kept in the file for it
    stream      NATS: connections, the stream, its consumer; subjects: what things are called there
    forwarder   from the outbox into the stream; aside: devices that the stream refuses

Beside the stream and the engine:

    decoding    bytes as a batch
    engine      ClickHouse; tables, schema: its tables; sql, read_sql: the questions
    sink        from the stream into the engine; intake, wire: how it takes messages
    quota       how many messages a device may send
    deletions   what devices have deleted
    hours       statistics of closed hours; keep: how long they are kept
    watch       what is wrong with devices; dead: messages that can never be stored

Answers:

    fleet       what PowerManager says about one file, about a fleet; history, usage, records
    read        the same for power-service; cached, read_hub
    life        what an operator does with devices; enroll, keys: who may send

One machine: hub, nats_server, front, hub_pages, demo, demo_removal, discovery. The command line:
cli, options and a module for each group of commands. errors: FleetError, the base of all errors.
"""

from __future__ import annotations

from power_manager import __version__

__all__ = ["__version__"]
