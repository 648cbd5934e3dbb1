"""Fuzz the library: its methods against a plain model, its command line with garbage.

Methods: a state machine calls everything that writes, in any order, alone, in transactions and in
ones that roll back, with good and bad values, and compares everything that reads with model.py.
Command line: random arguments, and files of random text, broken CSV and NDJSON; there must be no
traceback and no exit code but 0, 1 and 2, and 130 where it goes on until Ctrl-C; an import that
fails must have stored nothing. Needs hypothesis (requirements.txt).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import model
from common import CHECKOUT, Deadline, Findings, parse, scratch

import power_manager

try:
    import hypothesis
    from hypothesis import HealthCheck, settings
    from hypothesis import strategies as st
    from hypothesis.stateful import (
        RuleBasedStateMachine,
        invariant,
        precondition,
        rule,
        run_state_machine_as_test,
    )
except ImportError:
    print("fuzz: skipped: needs hypothesis, see requirements.txt")
    sys.exit(0)

_HOUR_SECONDS = 3600.0
_START = 1.7e9 // _HOUR_SECONDS * _HOUR_SECONDS
_BAD_NUMBERS: tuple[Any, ...] = (
    float("nan"),
    float("inf"),
    -float("inf"),
    "1",
    b"1",
    None,
    True,
    [],
    1e300,
    "x",
)
_NO_NUMBERS = tuple(value for value in _BAD_NUMBERS if value is not None)  # None: not known
# A row of log_many as it is drawn: meter, V, A, %, seconds from now.
Drawn = tuple[int, "float | None", "float | None", "float | None", "float | None"]
_KINDS = ("main", "battery", "solar", "ups")
_EVENTS = ("charge_start", "discharge", "low_battery", "shutdown", "restore")

numbers = st.one_of(st.integers(-20, 20), st.floats(-50, 50), st.decimals(-50, 50, places=3))
volts = st.one_of(*[numbers.map(float)] * 8, st.none())
charges = st.one_of(
    st.none(),
    st.sampled_from([0.0, 4.99, 5.0, 6.99, 7.0, 20.0, 21.99, 22.0, 95.0, 100.0]),
    st.floats(-10, 110),
)
steps = st.sampled_from(
    [0.0, 1e-6, 0.25, 1.0, 59.0, 600.0, 3599.5, 3600.0, 3601.0, 90_000.0, -1.0, -1800.0, -90_000.0]
)
offsets = st.one_of(st.sampled_from([0.0, -1.0, 1.0, -3600.0, 3600.0]), st.floats(-200_000, 10_000))
spans = st.sampled_from([1.0, 600.0, 3600.0, 7200.0, 1e6])
days = st.sampled_from([0.0, 0.01, 0.04, 1.0, 1.5, 7.0, 400.0])
budgets = st.none() | st.floats(0, 100)
texts = st.text(max_size=12) | st.sampled_from(
    ["", " ", "a\0b", "\ud800", "x" * 201, "Ünï ☀", "a/b"]
)


class RolledBack(Exception):
    """Leaves a transaction on purpose."""


class Methods(RuleBasedStateMachine):
    """A PowerManager and its model, side by side."""

    totals: Findings

    def __init__(self) -> None:
        super().__init__()
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self._place = tempfile.TemporaryDirectory(dir=memory)
        self.path = Path(self._place.name) / "p.db"
        self.now = _START
        self.model = model.Model()
        self.backed_up: model.Model | None = None  # as it was when copy.db was written
        self.file_id = ""
        self.pm = self._open()

    def _open(self) -> power_manager.PowerManager:
        return power_manager.PowerManager(self.path, clock=lambda: self.now)

    @property
    def copy(self) -> Path:
        """Where backups go."""
        return self.path.with_name("copy.db")

    def us(self) -> int:
        """The clock in microseconds."""
        return round(self.now * model.SECOND)

    def some_meter(self, index: int) -> model.Meter:
        """One of the meters."""
        return list(self.model.meters.values())[index % len(self.model.meters)]

    def some_device(self, index: int) -> str:
        """One of the devices' ids."""
        return list(self.model.devices)[index % len(self.model.devices)]

    def teardown(self) -> None:
        """End with check()."""
        self.totals.counts["sequences of calls"] += 1
        problems = self.pm.check()
        self.pm.close()
        self._place.cleanup()
        assert problems == []

    @rule(by=steps)
    def move_clock(self, by: float) -> None:
        """Move the clock."""
        self.now = max(1.0, self.now + by)

    @rule()
    def reopen(self) -> None:
        """Close and open again."""
        self.pm.close()
        self.pm = self._open()

    @rule(device=st.sampled_from("abc"), name=texts, budget=budgets, low=st.none() | st.just(30.0))
    def register(self, device: str, name: str, budget: float | None, low: float | None) -> None:
        """Register or update a device, or be refused for its name."""
        fine = bool(name.strip()) and len(name) <= 200 and "\0" not in name
        fine = fine and not any("\ud800" <= char <= "\udfff" for char in name)
        if not fine:
            _refused(lambda: self.pm.register_device(device, name))
            return
        got = self.pm.register_device(device, name, 2.5, budget, low_battery_threshold=low)
        assert (got.id, got.name, got.target_wh) == (device, name, budget)
        known = self.model.devices.setdefault(device, model.Device(device, name))
        known.name = name
        known.shutdown_threshold = 2.5
        known.target_wh = budget
        known.low = low

    @precondition(lambda self: self.model.devices)
    @rule(index=st.integers(0, 5), what=st.sampled_from(["name", "target_wh", "low"]), pct=charges)
    def update_device(self, index: int, what: str, pct: float | None) -> None:
        """Change one thing of a device; all others stay."""
        known = self.model.devices[self.some_device(index)]
        if what == "name":
            self.pm.update_device(known.id, name="Renamed")
            known.name = "Renamed"
        elif what == "target_wh":
            self.pm.update_device(known.id, target_wh=7.0)
            known.target_wh = 7.0
        else:
            low = None if pct is None else min(max(pct, 10.0), 90.0)
            self.pm.update_device(known.id, low_battery_threshold=low)
            known.low = low
        got = self.pm.get_device(known.id)
        shown = (got.name, got.shutdown_threshold, got.target_wh, got.low_battery_threshold)
        assert shown == (known.name, known.shutdown_threshold, known.target_wh, known.low)

    @precondition(lambda self: self.model.devices and len(self.model.meters) < 6)
    @rule(
        device=st.integers(0, 5),
        kind=st.sampled_from(_KINDS),
        capacity=st.sampled_from([0.0, 50.0]),
        charge=st.sampled_from([100.0, 100.0, 40.0, None]),
    )
    def add_meter(self, device: int, kind: str, capacity: float, charge: float | None) -> None:
        """Add a meter."""
        id_ = self.some_device(device)
        name = f"{kind} meter"
        got = self.pm.add_meter(id_, kind, capacity, name, charge_pct=charge)
        present = model.NEW._replace(charge=charge)
        known = model.Meter(got.id, id_, kind, capacity, name, present=present, first_charge=charge)
        self.model.meters[got.id] = known
        assert (got.type, got.state) == (kind, self.model.state(known))

    @precondition(lambda self: self.model.meters)
    @rule(index=st.integers(0, 5))
    def forget_charge(self, index: int) -> None:
        """A meter's charge is unknown from now on; a number is refused."""
        meter = self.some_meter(index)
        got = self.pm.update_meter(meter.id, charge_pct=None)
        self.model.forget_charge(meter)
        assert got.charge_pct is None
        _refused(lambda: self.pm.update_meter(meter.id, charge_pct=50.0))  # type: ignore[arg-type]

    @precondition(lambda self: self.model.meters)
    @rule(
        index=st.integers(0, 5), capacity=st.sampled_from([None, 0.0, 20.0]), active=st.booleans()
    )
    def update_meter(self, index: int, capacity: float | None, active: bool) -> None:
        """Change a meter; what is not given stays."""
        meter = self.some_meter(index)
        if capacity is None:
            got = self.pm.update_meter(meter.id, active=active)
        else:
            got = self.pm.update_meter(meter.id, active=active, capacity_wh=capacity)
            meter.capacity_wh = capacity
        meter.active = active
        assert (got.active, got.capacity_wh, got.name) == (active, meter.capacity_wh, meter.name)

    @precondition(lambda self: self.model.meters)
    @rule(index=st.integers(0, 5), volt=volts, ampere=volts, charge=charges)
    def log_live(
        self, index: int, volt: float | None, ampere: float | None, charge: float | None
    ) -> None:
        """Log a live reading; one without any value is refused."""
        meter = self.some_meter(index)
        if volt is None and ampere is None and charge is None:
            _refused(lambda: self.pm.log_power(meter.id, None, None))
            return
        got = self.pm.log_power(meter.id, volt, ampere, charge)
        row = self.model.live(meter, self.us(), volt, ampere, charge)
        assert _as_row(got) == row

    @precondition(lambda self: self.model.meters)
    @rule(
        index=st.integers(0, 5),
        volt=volts,
        ampere=volts,
        charge=charges,
        offset=offsets,
        live=st.sampled_from([False, False, True]),
    )
    def log_at_a_time(
        self,
        index: int,
        volt: float | None,
        ampere: float | None,
        charge: float | None,
        offset: float,
        live: bool,
    ) -> None:
        """Log a recorded reading, or a live one that was taken at a given time."""
        meter = self.some_meter(index)
        if volt is None and ampere is None and charge is None:
            charge = 1.0
        at = max(0.0, self.now + offset)
        got = self.pm.log_power(meter.id, volt, ampere, charge, timestamp=at, live=live)
        us = round(at * model.SECOND)
        if live:
            row = self.model.live(meter, us, volt, ampere, charge)
        else:
            row, _ = self.model.recorded(meter, us, volt, ampere, charge)
        assert _as_row(got) == row

    @precondition(lambda self: self.model.meters)
    @rule(
        rows=st.lists(
            st.tuples(st.integers(0, 5), volts, volts, charges, st.none() | offsets), max_size=30
        ),
        bad=st.none() | st.sampled_from(_NO_NUMBERS),
        nested=st.booleans(),
        live=st.sampled_from([False, False, True]),
    )
    def log_many(self, rows: list[Drawn], bad: Any, nested: bool, live: bool) -> None:
        """Log a batch; one with a bad row stores nothing and names that row."""
        batch: list[tuple[Any, ...]] = []
        given: list[model.Given] = []
        for index, volt, ampere, charge, offset in rows:
            at = None if offset is None else max(0.0, self.now + offset)
            id_ = self.some_meter(index).id
            if volt is None and ampere is None and charge is None:
                charge = 1.0
            batch.append((id_, volt, ampere, charge, at))
            us = self.us() if at is None else round(at * model.SECOND)
            given.append(model.Given(id_, volt, ampere, charge, us, live or at is None))
        if bad is not None:
            message = _refused(
                lambda: self.pm.log_many([*batch, (self.some_meter(0).id, bad, 1.0)], live=live)
            )
            assert f"row {len(batch) + 1}" in message
            return
        with self.pm.transaction() if nested else contextlib.nullcontext():
            got = self.pm.log_many(iter(batch), live=live)
        assert got == self.model.many(given)

    @precondition(lambda self: self.model.meters)
    @rule(
        index=st.integers(0, 5),
        volt=volts,
        count=st.integers(0, 5),
        inner=st.booleans(),
        more=st.sampled_from(["prune", "delete", "update"]),
    )
    def roll_back(self, index: int, volt: float | None, count: int, inner: bool, more: str) -> None:
        """Do a lot in a transaction that fails: nothing of it may be left."""
        meter = self.some_meter(index)
        with contextlib.suppress(RolledBack), self.pm.transaction():
            with self.pm.transaction() if inner else contextlib.nullcontext():
                for n in range(count):
                    self.pm.log_power(meter.id, volt, 1.0, 1.0 + n)
                self.pm.trigger_event(meter.device_id, "shutdown")
                self.pm.add_meter(meter.device_id, "main")
                self.pm.acknowledge(self.pm.pending_readings(3))
                if more == "prune":
                    self.pm.prune(0)
                elif more == "delete":
                    self.pm.delete_device(meter.device_id)
                else:
                    self.pm.update_meter(meter.id, active=False, name="another")
            raise RolledBack

    @precondition(lambda self: self.model.devices)
    @rule(index=st.integers(0, 5), kind=st.sampled_from(_EVENTS), value=st.floats(-1e9, 1e9))
    def trigger(self, index: int, kind: str, value: float) -> None:
        """Record an event."""
        device = self.some_device(index)
        self.pm.trigger_event(device, kind, value, "note")
        self.model.events.append(model.Event(device, kind, value, self.us(), "note"))

    @rule(keep=days)
    def prune(self, keep: float) -> None:
        """Close old hours."""
        assert self.pm.prune(keep) == self.model.prune(self.us() - round(keep * model.DAY))

    @precondition(lambda self: self.model.meters)
    @rule(index=st.integers(0, 5), since=st.none() | offsets, length=st.none() | spans)
    def delete_readings(self, index: int, since: float | None, length: float | None) -> None:
        """Delete the readings of a span, or be refused where it cuts a closed hour."""
        meter = self.some_meter(index)
        start = None if since is None else max(0.0, self.now + since)
        end = None if length is None else (start or 0.0) + length
        start_us = 0 if start is None else round(start * model.SECOND)
        end_us = 2**62 if end is None else round(end * model.SECOND)
        try:
            expected = self.model.delete_readings(meter, start_us, end_us)
        except model.Refused:
            _refused(lambda: self.pm.delete_readings(meter.id, since=start, until=end))
        else:
            assert self.pm.delete_readings(meter.id, since=start, until=end) == expected

    @precondition(lambda self: len(self.model.meters) > 3)
    @rule(index=st.integers(0, 5))
    def delete_meter(self, index: int) -> None:
        """Delete a meter."""
        meter = self.some_meter(index)
        self.pm.delete_meter(meter.id)
        self.model.delete_meter(meter)
        _refused(lambda: self.pm.get_meter(meter.id))

    @precondition(lambda self: len(self.model.devices) > 2)
    @rule(index=st.integers(0, 5))
    def delete_device(self, index: int) -> None:
        """Delete a device."""
        device_id = self.some_device(index)
        self.pm.delete_device(device_id)
        self.model.delete_device(device_id)
        _refused(lambda: self.pm.get_device(device_id))

    @precondition(lambda self: self.model.meters)
    @rule(limit=st.sampled_from([1, 3, 10, 500]), meanwhile=st.booleans(), offset=offsets)
    def send(self, limit: int, meanwhile: bool, offset: float) -> None:
        """Acknowledge what was taken before another reading came: the new one still waits."""
        batch = self.pm.pending_readings(limit)
        waiting = {(id_, us) for id_, m in self.model.meters.items() for us in m.waiting}
        assert len(batch) == min(limit, len(waiting))
        sent = {(reading.meter_id, _us(reading.timestamp)) for reading in batch}
        assert sent <= waiting
        if meanwhile:
            self.log_at_a_time(0, 1.0, 1.0, 50.0, offset, False)
        self.pm.acknowledge(batch)
        for id_, us in sent:
            self.model.meters[id_].waiting.discard(us)

    @precondition(lambda self: self.model.deletions)
    @rule(limit=st.sampled_from([1, 500]))
    def send_deletions(self, limit: int) -> None:
        """Take the deletions that wait, and acknowledge them."""
        batch = self.pm.pending_deletions(limit)
        found = [(deletion.device_id, deletion.meter_id, deletion.kind) for deletion in batch]
        assert found == self.model.deletions[:limit]
        self.pm.acknowledge(batch)
        del self.model.deletions[:limit]

    @precondition(lambda self: self.model.meters)
    @rule(index=st.integers(0, 5), bad=st.sampled_from(_NO_NUMBERS), where=st.integers(0, 8))
    def misuse(self, index: int, bad: Any, where: int) -> None:
        """Give a bad value somewhere; it is refused and nothing is stored."""
        meter = self.some_meter(index)
        pm = self.pm
        negative = bad if bad != 1e300 else -1
        calls: list[Callable[[], object]] = [
            lambda: pm.log_power(meter.id, bad, 1.0),
            lambda: pm.log_power(meter.id, 1.0, bad),
            lambda: pm.prune(negative),
            lambda: pm.add_meter(meter.device_id, "battery", negative),
            lambda: pm.log_power("no such meter", 1.0, 1.0),
            lambda: pm.get_history(meter.id, bad),
            lambda: pm.update_meter(meter.id, capacity_wh=negative),
            lambda: pm.export_report(meter.device_id, 0),
            lambda: pm.delete_readings("no such meter"),
        ]
        _refused(calls[where])

    @rule()
    def back_up(self) -> None:
        """Back up; the copy has the same readings."""
        self.pm.backup(self.copy)
        self.backed_up = deepcopy(self.model)
        with power_manager.PowerManager(self.copy) as copied:
            counts = [sum(1 for _ in copied.iter_history(meter)) for meter in self.model.meters]
            assert counts == [len(meter.kept) for meter in self.model.meters.values()]
            assert copied.check() == []

    @precondition(lambda self: self.backed_up)
    @rule()
    def restore(self) -> None:
        """Go back to the backup; from there on it is another line of history."""
        before = self.pm.file_id
        version = self.pm.data_version()
        self.pm.restore(self.copy)
        assert self.pm.file_id != before
        assert self.pm.data_version() != version
        assert self.backed_up is not None
        self.model = deepcopy(self.backed_up)

    @precondition(lambda self: self.model.meters)
    @rule(
        index=st.integers(0, 5),
        hours=st.sampled_from([0.0, 0.5, 1.0, 24.0, 1e4]),
        since=offsets,
        until=offsets,
    )
    def read_history(self, index: int, hours: float, since: float, until: float) -> None:
        """Compare both histories."""
        meter = self.some_meter(index)
        after = self.us() - round(hours * model.HOUR)
        kept = [row for _, row in sorted(meter.kept.items())]
        got = [_as_row(reading) for reading in self.pm.get_history(meter.id, hours)]
        assert got == [row for row in kept if row.us > after]
        start = max(0.0, self.now + since)
        end = max(0.0, self.now + until)
        got = [_as_row(r) for r in self.pm.iter_history(meter.id, since=start, until=end)]
        first = round(start * model.SECOND)
        assert got == [row for row in kept if first <= row.us < round(end * model.SECOND)]

    @precondition(lambda self: self.model.meters)
    @rule(index=st.integers(0, 5), span=days, size=st.sampled_from(["hour", "day"]))
    def read_statistics(self, index: int, span: float, size: str) -> None:
        """Compare statistics and energy totals."""
        meter = self.some_meter(index)
        after = self.us() - round(span * model.DAY)
        length = {"hour": model.HOUR, "day": model.DAY}[size]
        expected = self.model.buckets(meter, length, after)
        rows = self.pm.get_statistics(meter.id, days=span, bucket=size)
        got = {_us(row.start): row for row in rows}
        assert list(got) == list(expected)
        for start, row in expected.items():
            assert model.differences(row, got[start]) == []
        totals = self.pm.energy_totals(meter.id)
        energy = self.model.energy_totals(meter)
        if energy.energy_known:
            _close(totals.energy_out_wh, energy.energy_out_wh)
            _close(totals.energy_in_wh, energy.energy_in_wh)

    @precondition(lambda self: self.model.devices)
    @rule(index=st.integers(0, 5), span=days.filter(bool))
    def read_report(self, index: int, span: float) -> None:
        """Compare a report."""
        device = self.some_device(index)
        after = max(self.us() - round(span * model.DAY), -1)
        report = json.loads(self.pm.export_report(device, span))
        events = self.model.events_of(device, after)
        assert report["event_count"] == len(events)
        assert [(e["type"], _us(e["timestamp"]), e["meter_id"]) for e in report["events"]] == [
            (e.kind, e.us, e.meter_id) for e in events[:20]
        ]
        meters = self.model.of_device(device)
        assert [part["meter_id"] for part in report["meters"]] == [meter.id for meter in meters]
        windows = {meter.id: self.model.window(meter, after) for meter in meters}
        for part, meter in zip(report["meters"], meters):
            expected = windows[meter.id]
            if expected is None:
                assert part["reading_count"] == 0
            else:
                assert model.differences(expected, part) == []
                assert part["current_state"] == self.model.state(meter)
        self._compare_totals(report["totals"], windows)

    def _compare_totals(
        self, totals: dict[str, Any], windows: dict[str, model.Statistics | None]
    ) -> None:
        """Compare a report's totals with sums over its meters."""
        known = {id_: part for id_, part in windows.items() if part is not None}
        if not all(part.energy_known for part in known.values()):
            return
        meters = [self.model.meters[id_] for id_ in windows]
        parts = [(meter, known[meter.id]) for meter in meters if meter.id in known]
        counted = self.model.counted(meters)
        sums = {
            f"{kind}_wh": sum(p.energy_out_wh - p.energy_in_wh for m, p in parts if m.kind == kind)
            for kind in ("main", "solar", "ups")
        }
        sums["battery_out_wh"] = sum(p.energy_out_wh for m, p in parts if m.kind == "battery")
        sums["battery_in_wh"] = sum(p.energy_in_wh for m, p in parts if m.kind == "battery")
        for name, value in sums.items():
            _close(totals[name], value)
        net = sum(p.energy_out_wh - p.energy_in_wh for m, p in parts if m in counted)
        _close(totals["consumption_wh"], max(net, 0.0))

    @precondition(lambda self: self.model.devices)
    @rule()
    def read_budget(self) -> None:
        """Compare the budget of all devices and one unknown, and the runtime."""
        budget = self.pm.power_budget_check([*self.model.devices, "unknown"])
        assert list(budget.pop("unknown")) == ["error"]
        for id_, entry in budget.items():
            self._compare_budget(id_, entry)

    def _compare_budget(self, id_: str, entry: dict[str, Any]) -> None:
        meters = self.model.of_device(id_)
        present = [meter for meter in meters if meter.active]
        known = [(meter, meter.watts) for meter in present if meter.watts is not None]
        unknown = sum(meter.watts is None for meter in present)
        assert entry["unknown_power_count"] == unknown
        _close(entry["total_wattage"], sum(watts or 0.0 for _, watts in known))
        assert entry["states"] == [self.model.state(meter) for meter in present]
        threshold = self.model.devices[id_].shutdown_threshold
        if unknown:
            assert entry["below_shutdown_threshold"] is False
        elif abs(entry["total_wattage"] - threshold) > 1e-3:
            assert entry["below_shutdown_threshold"] == (entry["total_wattage"] < threshold)
        runtime = self.model.runtime([meter for meter in meters if meter.kind == "battery"])
        for got in (entry["estimated_runtime_hours"], self.pm.estimate_runtime(id_)):
            assert (got is None) == (runtime is None)
            if got is not None and runtime is not None:
                assert abs(got - runtime) <= 0.005 + 1e-9 * abs(runtime)
        windows = {m.id: self.model.window(m, self.us() - model.DAY) for m in meters}
        parts = {id_: part for id_, part in windows.items() if part is not None}
        if all(part.energy_known for part in parts.values()):
            counted = [parts[m.id] for m in self.model.counted(meters) if m.id in parts]
            net = sum(part.energy_out_wh - part.energy_in_wh for part in counted)
            _close(entry["consumption_24h_wh"], max(net, 0.0))

    @invariant()
    def present_and_events(self) -> None:
        """The present state of each meter and the events of each device are always right."""
        for id_, meter in self.model.meters.items():
            got = self.pm.get_meter(id_)
            present = meter.present
            shown = (got.voltage, got.current_draw, got.charge_pct, got.power_known, got.active)
            known = present.watts is not None
            volts_shown = (present.volts or 0.0, present.amperes or 0.0)
            assert shown == (*volts_shown, present.charge, known, meter.active)
            assert got.state == self.model.state(meter)
        numbered = self.pm.events_since(0, limit=10**6)
        assert [
            (e.device_id, e.type, e.value, _us(e.timestamp), e.meter_id) for _, e in numbered
        ] == [(e.device_id, e.kind, e.value, e.us, e.meter_id) for e in self.model.events]
        if numbered:
            newest, _ = numbered[-1]
            assert self.pm.last_sequence() >= newest
        assert [device.id for device in self.pm.list_devices()] == list(self.model.devices)


def _us(text: str) -> int:
    return power_manager.to_microseconds(text)


def _as_row(reading: power_manager.PowerReading) -> model.Row:
    us = _us(reading.timestamp)
    return model.Row(us, reading.voltage, reading.current_draw, reading.charge_pct)


def _close(got: float, expected: float) -> None:
    assert abs(got - expected) <= 1e-4 + 1e-9 * abs(expected), (got, expected)


def _refused(call: Callable[[], object]) -> str:
    """The message with which the call is refused, as a mistake of the caller."""
    try:
        call()
    except (power_manager.InvalidValue, power_manager.NotFound) as exc:
        return str(exc)
    raise AssertionError("not refused")


# --- Command line

_COMMANDS = (
    *("register", "add-meter", "devices", "meters", "log", "import", "export", "stats"),
    *("events", "event", "budget", "report", "prune", "backup", "check", "status"),
    *("update-device", "update-meter", "delete-readings", "delete-meter", "delete-device"),
    *("help", "completion"),
)
_WORDS = st.one_of(
    st.sampled_from(
        ["d", "d/m", "battery", "--json", "--days", "1", "-1", "nan", "1e400", "--limit", "--since"]
    ),
    st.sampled_from(["--meter", "solar:x:5", "--max-gap", "1h", "-24h", "today", "bash", "stats"]),
    st.sampled_from(["--text", "--wide", "--utc", "--watch", "--follow"]),
    st.sampled_from(
        [
            "2024-01-01T00:00:00Z",
            "now",
            "--bucket",
            "day",
            "--format",
            "ndjson",
            "--name",
            "--",
            "-",
        ]
    ),
    texts.filter(lambda text: "\0" not in text and "\ud800" not in text),
)
_CELLS = st.one_of(
    st.sampled_from(["", "1.5", "-2", "1e999", "nan", "x", '"', "99"]),
    st.sampled_from(["2024-01-01T00:00:00Z", "2024-01-01", "1700000000"]),
    st.text(max_size=8),
)
_LINES = st.lists(st.lists(_CELLS, max_size=6).map(",".join), max_size=12)
_CSV = _LINES.map(lambda lines: "\n".join(["timestamp,voltage,current,charge_pct", *lines]))
_OBJECTS = st.dictionaries(
    st.sampled_from(["timestamp", "voltage", "current", "charge_pct", "x"]),
    st.one_of(
        _CELLS,
        st.floats(),
        st.integers(),
        st.none(),
        st.booleans(),
        st.lists(st.none(), max_size=2),
    ),
)
_NDJSON = st.lists(_OBJECTS.map(json.dumps) | st.text(max_size=20), min_size=1, max_size=10).map(
    "\n".join
)
_FILES = st.one_of(
    _CSV.map(lambda text: text.encode("utf-8", "surrogatepass")),
    _NDJSON.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
    _CSV.map(lambda text: text.encode("utf-16")),
)


class CommandLine:
    """A database that random commands are tried on."""

    def __init__(self, place: Path, out: Findings) -> None:
        self.path = place / "p.db"
        self.out = out
        with power_manager.PowerManager(self.path) as pm:
            pm.register_device("d", "D")
            self.meter = pm.add_meter("d", "battery", name="m").id
            pm.log_power(self.meter, 3.7, 0.5, 50.0)

    def run(self, *words: str) -> int:
        """Run the command line in this process; its exit code."""
        self.out.counts["commands"] += 1
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                return power_manager.main(["--db", str(self.path), *words], wait=self._press_ctrl_c)
            except SystemExit as exc:
                return exc.code if isinstance(exc.code, int) else -1

    @staticmethod
    def _press_ctrl_c(_seconds: float) -> None:
        raise KeyboardInterrupt

    def count(self) -> int:
        """How many readings there are."""
        with power_manager.PowerManager(self.path) as pm:
            return sum(1 for _ in pm.iter_history(self.meter))

    def arguments(self, command: str, words: list[str]) -> None:
        """Random words after a command."""
        if command in ("backup", "import", "export"):  # they name files; random words must not
            words = [word for word in words if word.startswith("-") or word in ("d/m", "1")]
        code = self.run(command, *words)
        goes_on = any(word.startswith(("--f", "--w")) for word in words)  # until Ctrl-C
        assert code in (0, 1, 2, *[130] * goes_on), (command, words, code)

    def importing(self, data: bytes, skip_bad: bool) -> None:
        """A file of anything."""
        file = self.path.with_name("file")
        before = self.count()
        file.write_bytes(data)
        code = self.run("import", self.meter, str(file), *(["--skip-bad"] if skip_bad else []))
        assert code in (0, 1), code
        assert code == 0 or self.count() == before, "stored although it failed"

    def from_pipe(self, data: bytes) -> None:
        """The same through a real process and its standard input."""
        before = self.count()
        command: list[str | Path] = [
            sys.executable,
            CHECKOUT / "power_manager.py",
            "--db",
            self.path,
            "import",
            self.meter,
        ]
        done = subprocess.run(command, input=data, capture_output=True)
        self.out.counts["commands"] += 1
        assert done.returncode in (0, 1), done.returncode
        assert b"Traceback" not in done.stderr, done.stderr[-400:]
        assert done.returncode == 0 or self.count() == before, "stored although it failed"


def _settings(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )


def _attempt(name: str, test: Callable[[], object], out: Findings) -> None:
    """Run one Hypothesis test; it prints its smallest failing example by itself."""
    try:
        test()
    except Exception as exc:  # noqa: BLE001  # whatever was not expected is the finding
        # Several failures at once come as an ExceptionGroup, which Python 3.10 does not know.
        for found in getattr(exc, "exceptions", [exc]):
            notes = "\n    ".join(getattr(found, "__notes__", []))
            out.fail(f"{name}: {type(found).__name__}", f"{str(found)[:600]}\n    {notes}")


def _round(number: str, place: Path, out: Findings, examples: int) -> None:
    """Each test once, with its own seed."""
    seed = hypothesis.seed(number)
    Methods.totals = out
    machine = seed(type("Methods", (Methods,), {}))
    _attempt(
        "methods", lambda: run_state_machine_as_test(machine, settings=_settings(examples)), out
    )
    line = CommandLine(place, out)
    words = hypothesis.given(st.sampled_from(_COMMANDS), st.lists(_WORDS, max_size=5))(
        line.arguments
    )
    _attempt("arguments", seed(_settings(examples * 2)(words)), out)
    files = hypothesis.given(_FILES, st.booleans())(line.importing)
    _attempt("import", seed(_settings(examples * 4)(files)), out)
    pipes = hypothesis.given(_FILES)(line.from_pipe)
    _attempt("import from a pipe", seed(_settings(max(2, examples // 8))(pipes)), out)
    out.whole(line.path, "the command line")


def main() -> int:
    """Fuzz until the time is over."""
    args = parse(__doc__, seconds=10.0)
    out = Findings(__file__)
    deadline = Deadline(args.seconds)
    rounds = 0
    here = Path.cwd()
    while (rounds == 0 or not deadline.over()) and not out.failures:
        with scratch() as place:
            # Random words name files: `export --output -1` made one in the caller's directory.
            os.chdir(place)
            try:
                _round(f"{args.seed}/{rounds}", place, out, 20)
            finally:
                os.chdir(here)
        rounds += 1
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
