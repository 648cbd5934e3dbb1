"""`power-fleet close`: hours close in a process of their own, which waits out failures."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from fleet_harness import NOW, Clock, carry, emptied, queried, random_device
from pipeline import quick, until
from power_fleet import cli, schema
from power_fleet.engine import Engine
from power_fleet.hours import close_hours, keep_closing
from servers import Servers

NOW_US = int(NOW * 1e6)


def kept(engine: Engine) -> int:
    """How many hours of meters have statistics."""
    ((count,),) = queried(engine, "SELECT toInt64(count()) FROM power_hourly FINAL")
    return int(count)


def test_once_closes_all_that_there_are(urls: list[str], tmp_path: Path) -> None:
    """Also those of long ago; afterwards there is nothing left to do."""
    engine = Engine(urls)
    with random_device(tmp_path / "a.db", 1, "edge-1", Clock()) as pm:
        carry(pm, engine)
    assert cli.main(["close", "--once", *(f"--clickhouse={url}" for url in urls)]) == 0
    assert close_hours(engine, NOW_US) == 0


def test_it_goes_on_where_readings_go_on(new_urls: list[str], tmp_path: Path) -> None:
    """The hours that come while it runs are closed at a later look."""
    engine = Engine(emptied(new_urls))

    async def run() -> None:
        task = asyncio.ensure_future(keep_closing(engine, 0.01, quick(), Clock()))
        with random_device(tmp_path / "a.db", 1, "edge-1", Clock()) as pm:
            pm.log_power(pm.list_meters()[0].id, 1.0, 1.0, timestamp=NOW - 7200.0)
            await asyncio.to_thread(carry, pm, engine)
        await until(lambda: kept(engine) > 0)
        task.cancel()

    asyncio.run(run())


def test_an_engine_that_is_away_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, and the work goes on when the engine is back."""

    async def run(servers: Servers) -> None:
        engine = Engine(servers.clickhouse_urls)
        (one,) = servers.shards[0]
        one.kill()
        task = asyncio.ensure_future(keep_closing(engine, 0.05, quick(), Clock()))
        await until(lambda: "hours not closed" in caplog.text)
        one.start()
        await until(lambda: "it works again" in caplog.text)
        task.cancel()

    with caplog.at_level(logging.WARNING, "power_fleet"), Servers(tmp_path) as servers:
        servers.start_clickhouse()
        schema.create(Engine(servers.clickhouse_urls))
        asyncio.run(run(servers))


def test_once_without_an_engine_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is waited for: a timer or a person sees the exit code."""
    assert cli.main(["close", "--once", "--clickhouse", "http://127.0.0.1:9"]) == 1
    assert "power-fleet: http://127.0.0.1:9 gives no sign of life" in capsys.readouterr().err
