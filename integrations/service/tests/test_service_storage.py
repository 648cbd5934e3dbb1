"""What becomes of requests when the file, the disk or the threads do not do their part."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import httpx2
import pytest
from conftest import Start
from fastapi import FastAPI
from power_service.charts import thin_out
from power_service.metrics import Metrics
from power_service.problems import Problem, of_library_error
from power_service.settings import Settings
from power_service.storage import Lane, Storage
from service_harness import SOON, Service

from power_manager import (
    InvalidValue,
    NotFound,
    PowerManager,
    PowerManagerError,
    PowerReading,
    StorageError,
)

IMPATIENT = "import power_manager; power_manager.BUSY_TIMEOUT = 0.2; "
# SQLite itself says that the disk is full once a connection's file has so many pages.
SMALL_DISK = """
import sqlite3
connect = sqlite3.connect
def limited(*arguments, **options):
    connection = connect(*arguments, **options)
    connection.execute("PRAGMA max_page_count = 60")
    return connection
sqlite3.connect = limited
"""
RUN = "import sys; from power_service.cli import main; sys.exit(main())"


class TestStorageErrors:
    """Library errors, mapped in one place."""

    @pytest.mark.parametrize(
        ("error", "status", "code", "retry_after"),
        [
            (InvalidValue("x"), 422, "invalid_value", None),
            (NotFound("x"), 404, "not_found", None),
            (PowerManagerError("x"), 409, "conflict", None),
            (StorageError("/secret", "x", "SQLITE_FULL"), 503, "storage_full", "30"),
            (StorageError("/secret", "x", "SQLITE_BUSY_SNAPSHOT"), 503, "storage_locked", "1"),
            (StorageError("/secret", "x", "SQLITE_LOCKED"), 503, "storage_locked", "1"),
            (StorageError("/secret", "x", "SQLITE_CORRUPT"), 503, "storage_unavailable", "5"),
            (StorageError("/secret", "x"), 503, "storage_unavailable", "5"),
        ],
    )
    def test_each_error_is_one_problem(
        self, error: PowerManagerError, status: int, code: str, retry_after: str | None
    ) -> None:
        """By its class and SQLite's name, never by its text; and no path goes out."""
        found = of_library_error(error)
        assert (found.status, found.code.value, found.headers.get("Retry-After")) == (
            status,
            code,
            retry_after,
        )
        assert "secret" not in found.detail

    def test_a_locked_file_is_503_and_reading_goes_on(self, make_service: Start) -> None:
        """Whoever holds the file holds up writers only."""
        service = make_service("--no-auth", program=("-c", IMPATIENT + RUN)).start()
        with service.client() as client, PowerManager(service.db) as other, other.transaction():
            other.register_device("a", "A")
            answer = client.put("/v1/devices/b", json={"name": "B"})
            assert client.get("/v1/devices").json() == []
            assert client.get("/readyz").status_code == 200
        check_503(service, answer, {"storage_locked", "storage_unavailable"})
        with service.client() as client:
            assert client.put("/v1/devices/b", json={"name": "B"}).status_code == 200

    def test_a_full_disk_is_503_and_nothing_is_stored(self, make_service: Start) -> None:
        """The batch that did not fit is not there, and what was there is."""
        service = make_service("--no-auth", program=("-c", SMALL_DISK + RUN)).start()
        with service.client() as client:
            client.put("/v1/devices/a", json={"name": "A"})
            meter_id = client.post("/v1/devices/a/meters", json={"type": "main"}).json()["id"]
            rows = [
                {"meter_id": meter_id, "voltage": n, "current_draw": 1, "timestamp": n}
                for n in range(10_000)
            ]
            assert client.post("/v1/readings", json=rows[:10]).status_code == 200
            answer = client.post("/v1/readings", json=rows)
            kept = client.get(f"/v1/meters/{meter_id}/readings", params={"limit": 10_000}).json()[
                "readings"
            ]
        check_503(service, answer, {"storage_full", "storage_unavailable"})
        assert len(kept) == 10


def check_503(service: Service, answer: object, codes: set[str]) -> None:
    """A problem to be tried again; its path is in the log, and not in the answer."""
    assert isinstance(answer, httpx2.Response)
    assert answer.status_code == 503
    assert answer.json()["code"] in codes, "Python 3.10 does not know SQLite's names"
    assert int(answer.headers["Retry-After"]) >= 1
    assert str(service.db) not in answer.text
    assert str(service.db) in service.log.read_text()
    assert "Traceback" not in service.log.read_text()


class TestStartsAtOnce:
    """Services of one new file, started in the same moment."""

    def test_each_serves_the_file_that_one_of_them_has_made(
        self, make_service: Start, tmp_path: Path
    ) -> None:
        """At ports of their own, and none has a word to say about it."""
        services = []
        for number in range(3):
            (tmp_path / str(number)).mkdir()
            service = make_service("--db", str(tmp_path / "one.db"), "--no-auth")
            service.log = tmp_path / str(number) / "log"
            services.append(service)
        with ThreadPoolExecutor(3) as starters:
            assert list(starters.map(Service.start, services)) == services
        with services[0].client() as client:
            assert client.put("/v1/devices/a", json={"name": "A"}).status_code == 200
        for service in services:
            with service.client() as client:
                assert [device["id"] for device in client.get("/v1/devices").json()] == ["a"]
            assert "WARNING" not in service.log.read_text()


class TestLanes:
    """The one function by which blocking calls leave the event loop."""

    def test_a_waiting_writer_holds_up_no_reader(self, tmp_path: Path) -> None:
        """Each lane has threads of its own."""

        async def scenario() -> None:
            storage, hold = Storage(Settings(db=tmp_path / "p.db")), threading.Event()
            writer = asyncio.ensure_future(storage.call(Lane.WRITE, hold.wait, SOON))
            assert await storage.call(Lane.READ, storage.pm.list_devices) == []
            assert await storage.call(Lane.POLL, int, "7") == 7
            hold.set()
            assert await writer is True
            storage.close()

        asyncio.run(scenario())

    def test_what_cannot_begin_is_refused_and_has_not_happened(self, tmp_path: Path) -> None:
        """By number at once, and by time after a while; what has begun is waited for."""

        async def scenario() -> None:
            storage = Storage(Settings(db=tmp_path / "p.db"), max_waiting=2, max_seconds=0.2)
            hold = threading.Event()
            happened: list[int] = []
            begun = asyncio.ensure_future(storage.call(Lane.WRITE, hold.wait, SOON))
            waiting = asyncio.ensure_future(storage.call(Lane.WRITE, happened.append, 1))
            await asyncio.sleep(0)
            with pytest.raises(Problem, match="waiting"):
                await storage.call(Lane.WRITE, happened.append, 2)
            with pytest.raises(Problem, match="busy"):
                await waiting
            hold.set()
            assert await begun is True
            assert happened == []
            storage.close()

        asyncio.run(scenario())


class TestInsideAnApplication:
    """What the README says of the library in a FastAPI application."""

    def test_a_transaction_belongs_to_the_task_that_opened_it(self, tmp_path: Path) -> None:
        """Another route's write is refused, a read sees what is committed, a thread waits."""
        app = FastAPI()
        pm = PowerManager(tmp_path / "p.db")
        opened = asyncio.Event()
        read = asyncio.Event()

        @app.post("/awaits")
        async def awaits() -> None:
            with pm.transaction():
                pm.register_device("awaits", "Awaits")
                opened.set()
                await read.wait()

        @app.post("/task")
        async def in_a_task() -> str:
            with pytest.raises(PowerManagerError) as refusal:
                pm.register_device("task", "Task")
            return str(refusal.value)

        @app.get("/devices")
        async def devices() -> list[str]:
            return [device.id for device in pm.list_devices()]

        @app.post("/thread")
        def in_a_thread() -> str:
            return pm.register_device("thread", "Thread").id

        async def scenario() -> None:
            transport = httpx2.ASGITransport(app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
                waiting = asyncio.ensure_future(client.post("/awaits"))
                await opened.wait()
                thread = asyncio.ensure_future(client.post("/thread"))
                refusal = (await client.post("/task")).json()
                assert "task" in refusal
                assert (await client.get("/devices")).json() == []
                assert not thread.done()
                read.set()
                assert (await waiting).status_code == 200
                assert (await thread).json() == "thread"
                assert (await client.get("/devices")).json() == ["awaits", "thread"]

        with pm:
            asyncio.run(scenario())


class TestCharts:
    """Thinning out."""

    @pytest.mark.parametrize("seed", range(5))
    def test_every_extreme_of_every_value_stays(self, seed: int) -> None:
        """Whatever the times, in at most max_points readings, in order, each once."""
        chance = random.Random(seed)
        begin = datetime(2026, 1, 1, tzinfo=timezone.utc)
        seconds = itertools.accumulate(
            chance.choice([0.001, 1, 1, 60, 86_400]) for _ in range(5000)
        )
        readings = [
            PowerReading(
                "",
                "m",
                chance.choice([None, chance.gauss(0, 1)]),
                chance.choice([None, chance.gauss(9, 1)]),
                chance.choice([None, chance.gauss(-9, 1)]),
                chance.uniform(0, 100),
                (begin + timedelta(seconds=second)).isoformat(timespec="microseconds"),
            )
            for second in seconds
        ]
        for max_points in (8, 100, 1000, 5000):
            points = thin_out(iter(readings), max_points)
            assert len(points) <= max_points
            assert [point.timestamp for point in points] == sorted(
                {point.timestamp for point in points}
            )
            for name in ("voltage", "current_draw", "wattage", "charge_pct"):
                for extreme in (min, max):
                    assert extreme(known(points, name)) == extreme(known(readings, name))

    def test_a_span_of_which_nothing_is_known_stays_a_gap(self) -> None:
        """A chart must not draw a line over it."""
        begin = datetime(2026, 1, 1, tzinfo=timezone.utc)
        watts = [1.0] * 40 + [None] * 40 + [2.0] * 40
        readings = [
            PowerReading(
                "",
                "m",
                w,
                w,
                w,
                50.0,
                (begin + timedelta(minutes=n)).isoformat(timespec="microseconds"),
            )
            for n, w in enumerate(watts)
        ]
        shown = [point.wattage for point in thin_out(readings, 80)]
        assert [watts for watts, _ in itertools.groupby(shown)] == [1.0, None, 2.0]

    def test_few_readings_stay_as_they_are(self) -> None:
        """None is thinned out where there is room for all."""
        readings = [
            PowerReading("", "m", 1.0, 1.0, 1.0, 1.0, f"2026-01-01T00:00:0{n}+00:00")
            for n in range(8)
        ]
        assert thin_out(readings, 8) == readings
        assert len(thin_out(readings, 8)) == 8
        assert thin_out([], 8) == []


def known(readings: list[PowerReading], name: str) -> list[float]:
    """The values of that name that are known."""
    values = [getattr(reading, name) for reading in readings]
    return [value for value in values if value is not None]


class TestMetrics:
    """Energies are read in turn."""

    def test_each_meters_energy_comes_in_its_turn(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A scrape may have time for one only: none is left out for good."""
        now = itertools.count()  # each look at the clock is a second later
        read: list[str] = []
        energy_totals = PowerManager.energy_totals

        def counted(pm: PowerManager, meter_id: str) -> object:
            read.append(meter_id)
            return energy_totals(pm, meter_id)

        monkeypatch.setattr(PowerManager, "energy_totals", counted)
        with PowerManager(tmp_path / "p.db") as pm:
            pm.register_device("a", "A")
            meters = [pm.add_meter("a", "main") for _ in range(3)]
            for meter in meters:
                pm.log_power(meter.id, 5.0, 1.0)
            metrics = Metrics(clock=lambda: float(next(now)))
            metrics.watch_meters(pm.list_meters)
            ids = [meter.id for meter in meters]
            for count in (1, 2, 3):
                while len(read) < count:
                    text = metrics.text(pm).decode()
                assert text.count("power_meter_energy_out_wh_total{") == count
            while len(read) < 6:
                metrics.text(pm)
            assert read == ids * 2
            scrapes = 0
            while len(read) < 7:
                metrics.text(pm)
                scrapes += 1
            assert scrapes > 10
            pm.delete_meter(ids[0])
            assert ids[0] not in metrics.text(pm).decode()
