"""Sends many devices' files to one engine, and answers there for all devices.

On a device:

    codec       a batch as bytes
    outbox      what a file has not sent yet; progress: what is kept in the file for it
    stream      NATS: connections, the stream, its consumer; subjects: what things are called there;
                backoff: how long to wait after a failure
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
    read        the same for power-service; read_places, read_hub, cached
    life        what an operator does with devices; enroll, keys: who may send

One machine: hub, nats_server, front, hub_pages, demo, demo_removal, discovery. The command line:
cli, options and a module for each group of commands. errors: FleetError, the base of all errors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from power_manager import __version__

if TYPE_CHECKING:
    from power_fleet.discovery import Addresses, find_hub
    from power_fleet.engine import EngineError
    from power_fleet.errors import FleetError
    from power_fleet.fleet import Answer, Fleet
    from power_fleet.usage import HourEnergy, MeterEnergy

__all__ = [
    "Addresses",
    "Answer",
    "EngineError",
    "Fleet",
    "FleetError",
    "HourEnergy",
    "MeterEnergy",
    "__version__",
    "find_hub",
]

# Where each of them is. They are imported when they are asked for: a device that only forwards has
# no client of ClickHouse.
_MODULES = {
    "Addresses": "discovery",
    "Answer": "fleet",
    "EngineError": "engine",
    "Fleet": "fleet",
    "FleetError": "errors",
    "HourEnergy": "usage",
    "MeterEnergy": "usage",
    "find_hub": "discovery",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
