"""Metrics for Prometheus, in a registry of the service's own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from power_manager import (
    SECOND_US,
    EnergyTotals,
    MeterType,
    NotFound,
    PowerEventType,
    PowerMeter,
    to_microseconds,
)
from power_service.source import Source

MAX_METERS = 500  # series of each gauge and counter
_WITH_CHARGE = (MeterType.BATTERY, MeterType.UPS)
_SECONDS_PER_READ = 0.5  # at most, for reading energies in one scrape
_PAUSE_PER_READ = 19  # the pause after it is this many times as long as the reading
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class _Meters(Collector):
    """Present values and energies of the first MAX_METERS active meters.

    Values are those that the poller saw last; names are read with every scrape. An energy is the
    sum over all hours of its meter, so energies are read in turn, the oldest first, for at most
    _SECONDS_PER_READ a scrape and a twentieth of the time. A value that is not known has no sample:
    0 would be a measurement.
    """

    _LABELS = ("device_id", "meter_id", "type", "device_name", "meter_name")

    def __init__(self, meters: Callable[[], list[PowerMeter]], clock: Callable[[], float]) -> None:
        self._meters = meters
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0.0  # when to read energies again
        self._device_names: dict[str, str] = {}
        self._totals: dict[str, EnergyTotals] = {}  # by meter id, the one read longest ago first

    def _shown(self) -> tuple[list[PowerMeter], int]:
        """The meters that have samples, and how many are beyond MAX_METERS."""
        active = [meter for meter in self._meters() if meter.active]
        return active[:MAX_METERS], max(len(active) - MAX_METERS, 0)

    def read(self, source: Source) -> None:
        """Read names, and energies if it is time for them."""
        with self._lock:
            self._device_names = {device.id: device.name for device in source.list_devices()}
            begin = self._clock()
            if begin < self._next:
                return
            self._read_totals(source, begin + _SECONDS_PER_READ)
            end = self._clock()
            self._next = end + (end - begin) * _PAUSE_PER_READ

    def _read_totals(self, source: Source, deadline: float) -> None:
        """Read energies until the deadline, the missing ones first; drop those of other meters."""
        wanted = [meter.id for meter in self._shown()[0]]
        present = set(wanted)
        known = {id_: total for id_, total in self._totals.items() if id_ in present}
        in_turn = [id_ for id_ in wanted if id_ not in known] + list(known)
        for meter_id in in_turn:
            known.pop(meter_id, None)
            with contextlib.suppress(NotFound):  # deleted since the poller saw it
                known[meter_id] = source.energy_totals(meter_id)
            if self._clock() >= deadline:
                break
        self._totals = known

    def collect(self) -> Iterator[Metric]:
        meters, left_out = self._shown()
        voltage = self._gauge("voltage_volts", "Present voltage")
        wattage = self._gauge("wattage_watts", "Present watts out of the source")
        charge = self._gauge("charge_percent", "Present charge, of batteries and UPSs")
        latest = self._gauge("last_reading_timestamp_seconds", "When the present values were read")
        energy_out = self._counter("energy_out_wh", "Watt-hours out of the source, ever")
        energy_in = self._counter("energy_in_wh", "Watt-hours into the source, ever")
        for meter in meters:
            if meter.updated_at is None:
                continue  # it has never measured anything
            labels = self._labels_of(meter)
            latest.add_metric(labels, to_microseconds(meter.updated_at) / SECOND_US)
            if meter.power_known or meter.voltage:
                voltage.add_metric(labels, meter.voltage)
            if meter.wattage is not None:
                wattage.add_metric(labels, meter.wattage)
            if meter.type in _WITH_CHARGE and meter.charge_pct is not None:
                charge.add_metric(labels, meter.charge_pct)
            total = self._totals.get(meter.id)
            if total is not None:
                energy_out.add_metric(labels, total.energy_out_wh)
                energy_in.add_metric(labels, total.energy_in_wh)
        beyond = GaugeMetricFamily(
            "power_meters_left_out", f"Meters beyond the first {MAX_METERS}, without samples"
        )
        beyond.add_metric([], left_out)
        yield from (voltage, wattage, charge, latest, energy_out, energy_in, beyond)

    def _gauge(self, name: str, help: str) -> GaugeMetricFamily:  # noqa: A002
        return GaugeMetricFamily(f"power_meter_{name}", help, labels=self._LABELS)

    def _counter(self, name: str, help: str) -> CounterMetricFamily:  # noqa: A002
        return CounterMetricFamily(f"power_meter_{name}", help, labels=self._LABELS)

    def _labels_of(self, meter: PowerMeter) -> list[str]:
        device_name = self._device_names.get(meter.device_id, "")
        return [meter.device_id, meter.id, meter.type.value, device_name, meter.name or ""]


class Metrics:
    """All series of the service; except for those of meters, labels have fixed sets of values."""

    content_type = CONTENT_TYPE_LATEST
    _meters: _Meters  # set when the file is followed

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "power_service_request_seconds",
            "Time to answer",
            ["route", "method", "status"],
            buckets=_SECONDS,
            registry=self._registry,
        )
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
        """Show these meters with every scrape."""
        self._meters = _Meters(meters, self._clock)
        self._registry.register(self._meters)

    def text(self, source: Source) -> bytes:
        """All series in Prometheus's format."""
        self._meters.read(source)
        return generate_latest(self._registry)
