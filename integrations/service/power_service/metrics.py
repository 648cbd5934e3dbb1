"""Prometheus, in a registry of the service's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from power_manager import PowerEventType, PowerMeter

MAX_METERS = 500  # series of each gauge
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class _Meters(Collector):
    """Present volts, watts and charge of the first MAX_METERS active meters, as the poller last saw them.

    What is not known has no sample: a 0 would be a measurement.
    """

    def __init__(self, meters: Callable[[], list[PowerMeter]]) -> None:
        self._meters = meters

    def collect(self) -> Iterator[Metric]:
        meters = [meter for meter in self._meters() if meter.active]
        labels = ["device_id", "meter_id", "type"]
        voltage = GaugeMetricFamily("power_meter_voltage_volts", "Present voltage", labels=labels)
        wattage = GaugeMetricFamily(
            "power_meter_wattage_watts", "Present watts out of the source", labels=labels
        )
        charge = GaugeMetricFamily("power_meter_charge_percent", "Present charge", labels=labels)
        for meter in meters[:MAX_METERS]:
            values = [meter.device_id, meter.id, meter.type.value]
            if meter.power_known or meter.voltage:
                voltage.add_metric(values, meter.voltage)
            if meter.wattage is not None:
                wattage.add_metric(values, meter.wattage)
            charge.add_metric(values, meter.charge_pct)
        left_out = GaugeMetricFamily(
            "power_meters_left_out", f"Meters beyond the first {MAX_METERS}, without gauges"
        )
        left_out.add_metric([], max(len(meters) - MAX_METERS, 0))
        yield from (voltage, wattage, charge, left_out)


class Metrics:
    """Every series of the service; labels take values from closed sets only, but for the gauges of meters."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "power_service_request_seconds", "Time to answer", ["route", "method", "status"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.readings = Counter(
            "power_service_readings_stored",
            "Readings stored through this service",
            registry=self._registry,
        )
        self._events = Counter(
            "power_events", "Events seen in the file, by type", ["type"], registry=self._registry
        )
        for kind in PowerEventType:
            self._events.labels(kind.value)
        self.clients = Gauge(
            "power_service_stream_clients", "Clients of the stream", registry=self._registry
        )
        self.slow = Counter(
            "power_service_slow_clients",
            "Clients closed for being too slow",
            registry=self._registry,
        )

    def request(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """Count a request by its route's template."""
        labels = (route or "other", method if method in _METHODS else "other", str(status))
        self._requests.labels(*labels).observe(seconds)

    def event(self, kind: PowerEventType) -> None:
        """Count an event."""
        self._events.labels(kind.value).inc()

    def watch_meters(self, meters: Callable[[], list[PowerMeter]]) -> None:
        """Show these meters' present values with every scrape."""
        self._registry.register(_Meters(meters))

    def text(self) -> bytes:
        """What Prometheus scrapes."""
        return generate_latest(self._registry)
