"""The ledger as metrics for Prometheus: a file for the node exporter, or a part of a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from power_billing.findings import FindingKind
from power_billing.outbox import State
from power_billing.tables import Place
from power_billing.usage import Status, status
from power_manager import PowerManager, replace_file

_OPEN = (State.QUEUED, State.REFUSED, State.CONFLICT)


class _OfLedger(Collector):
    """The metrics of a status; 0 is the time of a run that never was."""

    def __init__(self, now: Status) -> None:
        self._now = now

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Every gauge, in the order of the README."""
        now = self._now
        yield _gauge("last_run_timestamp_seconds", "When the last run ended.", now.last_run or 0.0)
        yield _gauge(
            "last_good_run_timestamp_seconds",
            "When the last run ended that left nothing to send or to decide.",
            now.last_good_run or 0.0,
        )
        events = _gauges("open_events", "Events to be sent, or to be decided.", "state")
        for state in _OPEN:
            events.add_metric([state.value], now.count(state))
        yield events
        found = _gauges(
            "findings", "What is not billed, or stays billed, not accepted yet.", "kind"
        )
        for kind in FindingKind:
            undecided = [one for one in now.findings if one.kind is kind and not one.is_accepted]
            found.add_metric([kind.value], len(undecided))
        yield found
        yield _gauge("too_old_events", "Events that were not sent in time.", len(now.too_old))
        yield _gauge("lost_watt_hours", "Energy that came to light too late.", now.lost_wh)
        billed = _gauges("billed_watt_hours", "Energy taken into account so far.", "customer")
        for one in now.customers:
            billed.add_metric([one.customer], one.billed_wh)
        yield billed


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"power_billing_{name}", text, value=value)


def _gauges(name: str, text: str, label: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"power_billing_{name}", text, labels=[label])


def metrics_text(now: Status) -> bytes:
    """The metrics of a status in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_OfLedger(now))
    return generate_latest(registry)


def scraped(pm: PowerManager, ledger: Place | None = None) -> bytes:
    """The metrics of a ledger as they are now; ledger: the library's file by default."""
    return metrics_text(status(pm, ledger))


def write_metrics(path: Path, now: Status) -> None:
    """Write them to a file that others may read, whole or not at all. Raises StorageError."""
    text = metrics_text(now)
    with replace_file(path, 0o644) as file:
        file.write(text)
