"""What forwarders, sinks, the stream and the engine say about themselves, for Prometheus.

A long-running command writes what it does to a file for the node exporter (--metrics-file);
`power-fleet metrics` and the service show the stream and the engine, which are the same wherever
one asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from power_fleet.forwarder import MOST_WAITING
from power_fleet.stream import NATS_FAILURES, Nats, stored_until
from power_fleet.subjects import DEAD_STREAM, STREAM
from power_manager import SECOND_US, StorageError, replace_file

if TYPE_CHECKING:
    from power_fleet.engine import Engine
    from power_fleet.forwarder import Sent
    from power_fleet.hours import Closed
    from power_fleet.sink import Work

WRITE_SECONDS = 15.0  # between two writings of a file: Prometheus's usual interval
_PREFIX = "power_fleet_"
_DEVICES = "SELECT toInt64(count()) AS devices FROM power_devices FINAL WHERE deleted = 0"
_log = logging.getLogger("power_fleet")


class _Source(Collector):
    """Metrics that a function makes at each look."""

    def __init__(self, make: Callable[[], Iterable[Metric]]) -> None:
        self._make = make

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
        return self._make()

    def describe(self) -> Iterable[Metric]:
        """None: nothing is asked before the first look."""
        return []


def registry_of(make: Callable[[], Iterable[Metric]]) -> CollectorRegistry:
    """A registry of these metrics alone."""
    registry = CollectorRegistry()
    registry.register(_Source(make))
    return registry


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{_PREFIX}{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"{_PREFIX}{name}", text, value=value)


# --- What a program says about itself


def sink_metrics(work: Work) -> Iterator[Metric]:
    """What a sink has done since it began."""
    yield _counter("sink_messages", "Messages stored.", work.messages)
    yield _counter("sink_readings", "Readings stored, copies counted again.", work.readings)
    yield _counter("sink_inserts", "Inserts into the engine.", work.inserts)
    yield _counter("sink_dead_letters", "Messages that became dead letters.", work.dead)
    yield _counter(
        "sink_postponed_messages",
        "Messages beyond their device's quota, counted each time that they came.",
        work.postponed,
    )
    yield _counter("sink_dropped_messages", "Messages that no device sent.", work.dropped)
    yield _counter("sink_failures", "Attempts that failed.", work.failures)
    yield _gauge(
        "sink_last_stored_timestamp_seconds",
        "When something was stored last; 0: never.",
        work.stored_at,
    )
    yield _gauge(
        "sink_lag_seconds", "How long the oldest message had waited, at the last look.", work.lag
    )


def forward_metrics(sent: Sent) -> Iterator[Metric]:
    """What a forwarder has done since it began, and what waits in the file."""
    yield _counter("forward_messages", "Messages that the stream has acknowledged.", sent.messages)
    yield _counter("forward_readings", "Readings in those.", sent.readings)
    yield _counter("forward_failures", "Attempts that failed.", sent.failures)
    yield _gauge(
        "forward_last_sent_timestamp_seconds",
        "When something was sent last; 0: never.",
        sent.sent_at,
    )
    yield _gauge("forward_line", "The line of what was sent last.", sent.line)
    yield _gauge(
        "forward_waiting_readings",
        f"Readings in the file that are not sent; {MOST_WAITING} means that or more.",
        sent.count(),
    )


def close_metrics(closed: Closed) -> Iterator[Metric]:
    """What the closing of hours has done since it began."""
    yield _counter("close_hours", "Hours of devices computed.", closed.hours)
    yield _counter("close_failures", "Looks that failed.", closed.failures)
    yield _gauge(
        "close_last_look_timestamp_seconds", "When the last look ended; 0: never.", closed.looked_at
    )


async def with_metrics(
    work: Coroutine[Any, Any, None], path: Path | None, registry: CollectorRegistry
) -> None:
    """Do the work; with a path, write the metrics there every WRITE_SECONDS and when it ends.

    Raises StorageError where they cannot be written at first; later that is logged, and the work
    goes on.
    """
    if path is None:
        await work
        return
    try:
        write_metrics(path, registry)
    except StorageError:
        work.close()
        raise
    writing = asyncio.ensure_future(_keep_writing(path, registry))
    try:
        await work
    finally:
        writing.cancel()
        with contextlib.suppress(StorageError):
            write_metrics(path, registry)


async def _keep_writing(path: Path, registry: CollectorRegistry) -> None:
    said = ""
    while True:
        await asyncio.sleep(WRITE_SECONDS)
        try:
            await asyncio.to_thread(write_metrics, path, registry)
            said = ""
        except StorageError as error:
            _log.log(logging.DEBUG if str(error) == said else logging.ERROR, "%s", error)
            said = str(error)


def write_metrics(path: Path, registry: CollectorRegistry) -> None:
    """Write a file that others may read, whole or not at all. Raises StorageError."""
    with replace_file(path, 0o644) as file:
        file.write(generate_latest(registry))


# --- The stream and the engine


async def fleet_metrics(engine: Engine | None, source: Nats | None = None) -> bytes:
    """The metrics of an engine, of a stream, or of both, as text for Prometheus.

    What does not answer has `_up` 0 and nothing else: unknown is not zero.
    """
    metrics: list[Metric] = []
    if source is not None:
        metrics += await _stream_metrics(source)
    if engine is not None:
        metrics += await asyncio.to_thread(_engine_metrics, engine)
    return generate_latest(registry_of(lambda: metrics))


def is_up(text: str) -> bool:
    """Whether all that was asked for fleet_metrics() has answered."""
    return "_up 0.0\n" not in text


async def _stream_metrics(source: Nats) -> list[Metric]:
    try:
        connection = await source.connect("power-fleet metrics")
        try:
            state = await _state(connection, STREAM)
            letters = await _state(connection, DEAD_STREAM)
            fresh, now = await stored_until(connection)
        finally:
            await connection.close()
    except NATS_FAILURES as error:
        _log.warning("the stream: %s", error or type(error).__name__)
        return [_gauge("stream_up", "Whether the stream answers.", 0)]
    return [
        _gauge("stream_up", "Whether the stream answers.", 1),
        _gauge("stream_messages", "Messages that wait to be stored.", state["messages"]),
        _gauge("stream_bytes", "Bytes of those.", state["bytes"]),
        _gauge(
            "stream_lag_seconds", "How long the oldest of those has waited.", max(now - fresh, 0.0)
        ),
        _gauge("stream_dead_letters", "Messages that can never be stored.", letters["messages"]),
    ]


async def _state(connection: Any, stream: str) -> dict[str, Any]:
    answer = json.loads((await connection.request(f"$JS.API.STREAM.INFO.{stream}", timeout=5)).data)
    if "error" in answer:
        raise ConnectionError(f"the stream {stream}: {answer['error'].get('description')}")
    state: dict[str, Any] = answer["state"]
    return state


def _engine_metrics(engine: Engine) -> list[Metric]:
    from power_fleet.watch import KINDS, count_alarms, fresh_until

    up = ("engine_up", "Whether the engine answers.")
    try:
        fresh = fresh_until(engine)
        counts = count_alarms(engine)
        devices = sum(row["devices"] for row in engine.select(_DEVICES))
    except OSError as error:
        _log.warning("the engine: %s", error)
        return [_gauge(*up, 0)]
    alarms = GaugeMetricFamily(
        f"{_PREFIX}alarms", "Devices of which something is noticed.", labels=["kind"]
    )
    for kind in KINDS:
        alarms.add_metric([kind], counts.get(kind, 0))
    return [
        _gauge(*up, 1),
        _gauge(
            "fresh_timestamp_seconds",
            "Up to when everything that the stream took in is stored; 0: no sink has run yet.",
            fresh / SECOND_US,
        ),
        _gauge("devices", "Devices that are there.", devices),
        alarms,
    ]
