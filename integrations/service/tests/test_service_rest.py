"""The routes, over a real uvicorn, held against the library on the same file."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import itertools
import json
import random
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx2
import pytest
from power_service.compress import Compress
from prometheus_client.utils import floatToGoString
from service_harness import Service, eventually

from power_manager import PowerManager, to_microseconds

_numbers = itertools.count()
NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def pm(service: Service) -> Iterator[PowerManager]:
    """The library on the service's file, as another process would have it open."""
    with PowerManager(service.db) as manager:
        yield manager


@pytest.fixture
def device(api: httpx2.Client) -> str:
    """The id of a new device."""
    device_id = f"edge-{next(_numbers)}"
    assert api.put(f"/v1/devices/{device_id}", json={"name": "Edge Node"}).status_code == 200
    return device_id


@pytest.fixture
def battery(api: httpx2.Client, device: str) -> dict[str, Any]:
    """A new 50 Wh battery meter."""
    answer = api.post(
        f"/v1/devices/{device}/meters",
        json={"type": "battery", "capacity_wh": 50.0, "name": "Pack"},
    )
    assert answer.status_code == 201
    meter: dict[str, Any] = answer.json()
    return meter


def reading(battery: dict[str, Any], minute: int = 0, **values: Any) -> dict[str, Any]:
    """A reading to send, recorded some minutes past noon."""
    when = (NOON + timedelta(minutes=minute)).isoformat()
    return {
        "meter_id": battery["id"],
        "voltage": 3.7,
        "current_draw": 0.5,
        "timestamp": when,
        **values,
    }


def as_json(record: Any) -> dict[str, Any]:
    """A record as JSON has it."""
    fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(record)))
    return fields


class TestDevicesAndMeters:
    """Devices and meters: the library's records, name by name."""

    def test_a_device_is_put_and_got_back_whole(self, api: httpx2.Client, pm: PowerManager) -> None:
        """What is put is what is got, and what the library has."""
        sent = {
            "name": "Buoy",
            "shutdown_threshold": 1.5,
            "target_wh": 40.0,
            "low_battery_threshold": 30.0,
            "critical_battery_threshold": 10.0,
        }
        expected = {"id": "buoy", **sent}
        assert api.put("/v1/devices/buoy", json=sent).json() == expected
        assert api.get("/v1/devices/buoy").json() == expected == as_json(pm.get_device("buoy"))
        assert expected in api.get("/v1/devices").json()
        assert api.put("/v1/devices/buoy", json=expected).status_code == 200, (
            "a record goes back as it came"
        )

    def test_what_is_left_out_goes_back_to_its_default(
        self, api: httpx2.Client, device: str
    ) -> None:
        """A put says how the device is to be, not what to change."""
        api.put(f"/v1/devices/{device}", json={"name": "A", "target_wh": 9.0})
        assert api.put(f"/v1/devices/{device}", json={"name": "A"}).json()["target_wh"] is None

    def test_another_id_in_the_body_is_a_conflict(self, api: httpx2.Client, device: str) -> None:
        """The id in the path and in the body must be one."""
        problem(
            api.put(f"/v1/devices/{device}", json={"name": "A", "id": "other"}), 409, "conflict"
        )

    @pytest.mark.parametrize("device_id", ["a/b", "ü%2F?#", "a b", "%00x"])
    def test_any_id_goes_into_a_path(
        self, api: httpx2.Client, pm: PowerManager, device_id: str
    ) -> None:
        """An id with slashes or percent signs is one path segment, encoded."""
        from urllib.parse import quote

        answer = api.put(f"/v1/devices/{quote(device_id, safe='')}", json={"name": "A"})
        assert answer.json()["id"] == device_id == pm.get_device(device_id).id

    def test_nul_in_a_path_is_refused(self, api: httpx2.Client) -> None:
        """No id can hold a NUL."""
        problem(api.get("/v1/devices/a%00b"), 422, "invalid_value")

    def test_a_path_that_is_no_text_is_refused(self, api: httpx2.Client, service: Service) -> None:
        """With another character in its place, two ids would be one device."""
        for path in ("%ff", "a%C3", "%ed%a0%80"):
            problem(api.put(f"/v1/devices/{path}", json={"name": "A"}), 422, "invalid_value")
        assert "\ufffd" not in api.get("/v1/devices").text

    def test_meters_come_with_state_and_wattage(
        self, api: httpx2.Client, pm: PowerManager, device: str, battery: dict[str, Any]
    ) -> None:
        """A meter is the library's record and its two properties."""
        pm.log_power(battery["id"], 3.7, 0.5, 12.0)
        meter = pm.get_meter(battery["id"])
        expected = {**as_json(meter), "wattage": 1.85, "state": "low"}
        assert api.get(f"/v1/meters/{battery['id']}").json() == expected
        assert api.get("/v1/meters", params={"device_id": device}).json() == [expected]
        assert expected in api.get("/v1/meters").json()

    def test_a_patch_changes_what_it_names(
        self, api: httpx2.Client, pm: PowerManager, battery: dict[str, Any]
    ) -> None:
        """And nothing else; an empty one changes nothing; null is a value."""
        device = battery["device_id"]
        before = {"name": "A", "target_wh": 9.0, "low_battery_threshold": 30.0}
        api.put(f"/v1/devices/{device}", json=before)
        whole = api.get(f"/v1/devices/{device}").json()
        assert api.patch(f"/v1/devices/{device}", json={}).json() == whole
        changed = api.patch(f"/v1/devices/{device}", json={"name": "B", "target_wh": None})
        assert changed.json() == {**whole, "name": "B", "target_wh": None}
        assert changed.json() == as_json(pm.get_device(device))
        url = f"/v1/meters/{battery['id']}"
        whole = api.get(url).json()
        meter = api.patch(url, json={"capacity_wh": 48, "active": False}).json()
        assert meter == {**whole, "capacity_wh": 48.0, "active": False}
        assert meter == api.get(url).json()
        assert api.patch(url, json={"name": None}).json()["name"] is None

    @pytest.mark.parametrize(
        ("of", "change"),
        [
            ("devices", {"name": None}),
            ("devices", {"id": "other"}),
            ("devices", {"shutdown_threshold": "1"}),
            ("devices", {"critical_battery_threshold": 50}),
            ("devices", []),
            ("meters", {"active": 1}),
            ("meters", {"capacity_wh": -1}),
            ("meters", {"type": "main"}),
            ("meters", {"device_id": "other"}),
        ],
    )
    def test_a_patch_that_will_not_do_changes_nothing(
        self, api: httpx2.Client, battery: dict[str, Any], of: str, change: Any
    ) -> None:
        """It is refused whole."""
        id_ = battery["device_id"] if of == "devices" else battery["id"]
        before = api.get(f"/v1/{of}/{id_}").json()
        problem(api.patch(f"/v1/{of}/{id_}", json=change), 422, "invalid_value")
        assert api.get(f"/v1/{of}/{id_}").json() == before

    def test_what_is_deleted_is_gone(
        self, api: httpx2.Client, pm: PowerManager, battery: dict[str, Any]
    ) -> None:
        """Readings of a window, then a meter, then its device; each says if there is none."""
        device, url = battery["device_id"], f"/v1/meters/{battery['id']}"
        pm.log_many((battery["id"], 3.7, 1.0, 50.0, NOON + timedelta(minutes=n)) for n in range(10))
        window = {
            "since": (NOON + timedelta(minutes=2)).isoformat(),
            "until": (NOON + timedelta(minutes=5)).isoformat(),
        }
        assert api.delete(f"{url}/readings", params=window).json() == {"deleted": 3}
        assert api.delete(f"{url}/readings", params=window).json() == {"deleted": 0}
        assert len(list(pm.iter_history(battery["id"]))) == 7
        kept = api.delete(url)
        assert (kept.status_code, kept.content) == (204, b"")
        problem(api.delete(url), 404, "not_found")
        problem(api.get(url), 404, "not_found")
        assert api.delete(f"/v1/devices/{device}").status_code == 204
        problem(api.delete(f"/v1/devices/{device}"), 404, "not_found")
        assert device not in [one.id for one in pm.list_devices()]

    def test_no_readings_are_deleted_by_an_oversight(
        self, api: httpx2.Client, pm: PowerManager, battery: dict[str, Any]
    ) -> None:
        """A window that was forgotten, or that has no length, is refused; all has to be said."""
        url = f"/v1/meters/{battery['id']}/readings"
        pm.log_power(battery["id"], 3.7, 1.0, 50.0, timestamp=NOON)
        noon = NOON.isoformat()
        problem(api.delete(url), 422, "invalid_value")
        problem(api.delete(url, params={"until": noon}), 422, "invalid_value")
        problem(api.delete(url, params={"since": noon, "until": noon}), 422, "invalid_value")
        problem(api.delete(url, params={"since": "yesterday"}), 422, "invalid_value")
        assert len(list(pm.iter_history(battery["id"]))) == 1
        wanted = {"since": noon, "untill": (NOON + timedelta(seconds=1)).isoformat()}
        detail = problem(api.delete(url, params=wanted), 422, "invalid_value")
        assert detail == "'untill': unknown parameter: expected one of since, until"
        twice = {"since": [noon, "1970-01-01T00:00:00Z"]}
        detail = problem(api.delete(url, params=twice), 422, "invalid_value")
        assert detail == "since: expected it once, got it 2 times"
        assert len(list(pm.iter_history(battery["id"]))) == 1
        everything = api.delete(url, params={"since": "1970-01-01T00:00:00Z"})
        assert everything.json() == {"deleted": 1}

    def test_unknown_ids_are_not_found(self, api: httpx2.Client) -> None:
        """A missing device or meter is 404, but has no meters, as in the library."""
        problem(api.get("/v1/devices/nobody"), 404, "not_found")
        problem(api.get("/v1/meters/none"), 404, "not_found")
        problem(api.post("/v1/devices/nobody/meters", json={"type": "main"}), 404, "not_found")
        problem(api.patch("/v1/devices/nobody", json={"name": "A"}), 404, "not_found")
        problem(api.patch("/v1/meters/none", json={"name": "A"}), 404, "not_found")
        detail = problem(api.delete("/v1/meters/none"), 404, "not_found")
        assert detail == "meter_id: no meter has the id 'none': GET /v1/meters lists them"
        assert api.get("/v1/budget", params={"device_id": "nobody"}).json() == {
            "nobody": {"error": "no device has the id 'nobody': GET /v1/devices lists them"}
        }
        assert api.get("/v1/meters", params={"device_id": "nobody"}).json() == []


class TestReadings:
    """Readings in and out."""

    @pytest.mark.parametrize("style", ["one", "array", "ndjson"])
    def test_readings_are_stored_once_however_often_they_are_sent(
        self, api: httpx2.Client, pm: PowerManager, battery: dict[str, Any], style: str
    ) -> None:
        """Ingest of recorded readings is idempotent in every form."""
        sent = [reading(battery, minute) for minute in range(1 if style == "one" else 5)]
        headers, content = {"Content-Type": "application/json"}, json.dumps(sent)
        if style == "one":
            content = json.dumps(sent[0])
        elif style == "ndjson":
            headers = {"Content-Type": "application/x-ndjson; charset=utf-8"}
            content = "\r\n".join(map(json.dumps, sent)) + "\n\n"
        results = [
            api.post("/v1/readings", content=content, headers=headers).json() for _ in range(3)
        ]
        count = len(sent)
        assert results == [ingested(count, stored) for stored in (count, 0, 0)]
        assert [r.timestamp for r in pm.iter_history(battery["id"])] == [
            (NOON + timedelta(minutes=minute)).isoformat(timespec="microseconds")
            for minute in range(count)
        ]

    def test_a_live_reading_is_now_and_raises_its_alert(
        self, api: httpx2.Client, battery: dict[str, Any]
    ) -> None:
        """Without a timestamp a reading becomes the present state, and a low battery an event."""
        live = {"meter_id": battery["id"], "voltage": 3.5, "current_draw": 1, "charge_pct": 4}
        assert api.post("/v1/readings", json=live).json() == ingested(1, 1)
        assert api.get(f"/v1/meters/{battery['id']}").json()["state"] == "critical"
        events = api.get(f"/v1/devices/{battery['device_id']}/events").json()
        assert [event["type"] for event in events] == ["low_battery"]

    def test_a_ups_raises_alerts_too(self, api: httpx2.Client, device: str) -> None:
        """With its meter in the event, and its level in the meter."""
        meter = api.post(f"/v1/devices/{device}/meters", json={"type": "ups"}).json()
        live = {"meter_id": meter["id"], "voltage": 230, "current_draw": None, "charge_pct": 15}
        api.post("/v1/readings", json=live)
        assert api.get(f"/v1/meters/{meter['id']}").json()["alert_level"] == "low"
        (event,) = api.get(f"/v1/devices/{device}/events").json()
        assert (event["type"], event["meter_id"]) == ("discharge", meter["id"])

    def test_a_batch_is_stored_whole_or_not_at_all(
        self, api: httpx2.Client, battery: dict[str, Any]
    ) -> None:
        """One bad row refuses all, and is named."""
        rows = [reading(battery, minute) for minute in range(3)]
        rows[2]["voltage"] = 1e7
        assert "row 3: voltage" in problem(
            api.post("/v1/readings", json=rows), 422, "invalid_value"
        )
        rows[2] = {**rows[0], "meter_id": "none"}
        problem(api.post("/v1/readings", json=rows), 404, "not_found")
        assert api.get(f"/v1/meters/{battery['id']}/readings").json()["readings"] == []

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ({"current_draw": 1e7}, "current_draw: "),
            ({"voltage": "12"}, "voltage: "),
            (
                {"voltage": None, "current_draw": None},
                "voltage: expected a number (V), since current_draw and charge_pct are missing too",
            ),
            (
                {"meter_id": "current"},
                "meter_id: no meter has the id 'current': GET /v1/meters lists them",
            ),
            ({"meter_id": "none"}, ""),
        ],
    )
    def test_errors_speak_of_what_was_sent(
        self, api: httpx2.Client, battery: dict[str, Any], fault: dict[str, Any], message: str
    ) -> None:
        """The keys by their names here; and only a batch has rows."""
        sent = {**reading(battery), **fault}
        alone, batch = (
            api.post("/v1/readings", json=body).json()["detail"] for body in (sent, [sent])
        )
        line = api.post(
            "/v1/readings",
            content=json.dumps(sent),
            headers={"Content-Type": "application/x-ndjson"},
        )
        assert alone.startswith(message)
        assert batch == line.json()["detail"] == f"row 1: {alone}"

    def test_ten_thousand_readings_go_at_once_and_no_more(
        self, api: httpx2.Client, battery: dict[str, Any]
    ) -> None:
        """The limit of a batch."""
        rows = [reading(battery, minute) for minute in range(10_001)]
        assert "10000" in problem(api.post("/v1/readings", json=rows), 422, "invalid_value")
        assert api.post("/v1/readings", json=rows[1:]).json() == ingested(10_000, 10_000)

    @pytest.mark.parametrize(
        "bad", ["NaN", "Infinity", "-Infinity", "1e999", "true", '"12.5"', "null", "[]", "1" * 999]
    )
    @pytest.mark.parametrize("key", ["voltage", "current_draw", "charge_pct", "timestamp"])
    def test_what_is_no_number_is_422_and_not_stored(
        self, api: httpx2.Client, battery: dict[str, Any], key: str, bad: str
    ) -> None:
        """Strict numbers, alone and in a batch; null is valid everywhere: not known."""
        good = json.dumps(reading(battery, 1))
        text = json.dumps(reading(battery, 2) | {key: "HERE"}).replace('"HERE"', bad)
        fine = bad == "null"
        for content in (text, f"[{good}, {text}]"):
            answer = api.post(
                "/v1/readings", content=content, headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == (200 if fine else 422), answer.text
        stored = api.get(f"/v1/meters/{battery['id']}/readings").json()["readings"]
        assert bool(stored) == fine

    def test_power_that_is_not_known_is_null_everywhere_and_never_zero(
        self, api: httpx2.Client, pm: PowerManager, battery: dict[str, Any]
    ) -> None:
        """A gauge that knows only its charge has no watts in any answer."""
        url = f"/v1/meters/{battery['id']}"
        sent = {
            "meter_id": battery["id"],
            "voltage": 12.0,
            "current_draw": None,
            "charge_pct": 60.0,
        }
        assert api.post("/v1/readings", json=sent).json() == ingested(1, 1)
        meter = api.get(url).json()
        known = (meter["voltage"], meter["current_draw"], meter["wattage"], meter["power_known"])
        assert known == (12.0, 0.0, None, False)
        assert meter["charge_pct"] == 60.0
        for window in ({}, {"max_points": 8}):
            (stored,) = api.get(f"{url}/readings", params=window).json()["readings"]
            assert (stored["voltage"], stored["current_draw"], stored["wattage"]) == (
                12.0,
                None,
                None,
            )
        (hour,) = api.get(f"{url}/statistics", params={"days": 1}).json()
        assert (hour["reading_count"], hour["energy_out_wh"]) == (1, 0.0)
        device = battery["device_id"]
        report = api.get(f"/v1/devices/{device}/report").json()["meters"][0]
        for row in (hour, report):
            wattages = [row["avg_wattage"], row["min_wattage"], row["max_wattage"]]
            assert wattages == [None, None, None]
        budget = api.get("/v1/budget", params={"device_id": device}).json()[device]
        assert budget["unknown_power_count"] == 1
        assert budget["below_shutdown_threshold"] is False
        assert as_json(pm.get_meter(battery["id"])).items() <= meter.items()

    def test_a_charge_that_nobody_knows_is_null_everywhere(
        self, api: httpx2.Client, device: str
    ) -> None:
        """A pack without a gauge, until a reading has a charge, and again when that is dropped."""
        url = f"/v1/devices/{device}/meters"
        added = api.post(
            url, json={"type": "battery", "capacity_wh": 50, "charge_pct": None}
        ).json()
        assert (added["charge_pct"], added["state"]) == (None, "unknown")
        sent = {"meter_id": added["id"], "voltage": 12.0, "current_draw": 1.0}
        assert api.post("/v1/readings", json=sent).status_code == 200
        pack = f"/v1/meters/{added['id']}"
        (stored,) = api.get(f"{pack}/readings").json()["readings"]
        (hour,) = api.get(f"{pack}/statistics", params={"days": 1}).json()
        (part,) = api.get(f"/v1/devices/{device}/report").json()["meters"]
        budget = api.get("/v1/budget", params={"device_id": device}).json()[device]
        assert (stored["charge_pct"], part["current_state"]) == (None, "unknown")
        assert api.get(f"{pack}/series").json()["charge_pct"] == [None]
        for row in (hour, part):
            assert (row["min_charge_pct"], row["max_charge_pct"]) == (None, None)
        assert (budget["avg_charge_pct"], budget["estimated_runtime_hours"]) == (None, None)
        eventually(lambda: added["id"] in api.get("/metrics").text)
        assert "power_meter_charge_percent{" not in "".join(
            line for line in api.get("/metrics").text.splitlines() if added["id"] in line
        )
        api.post("/v1/readings", json={**sent, "charge_pct": 40})
        assert api.get(pack).json()["charge_pct"] == 40.0
        forgotten = api.patch(pack, json={"charge_pct": None}).json()
        assert (forgotten["charge_pct"], forgotten["voltage"]) == (None, 12.0)

    @pytest.mark.parametrize("charge", [101, -1, "40"])
    def test_no_meter_is_added_with_a_charge_that_is_none(
        self, api: httpx2.Client, device: str, charge: Any
    ) -> None:
        """The answer names the limits."""
        answer = api.post(
            f"/v1/devices/{device}/meters", json={"type": "battery", "charge_pct": charge}
        )
        assert (answer.status_code, "from 0 to 100" in answer.text) == (422, True)

    @pytest.mark.parametrize("charge", [-1, -0.001, 110.5, 255, -1e300, 65535])
    def test_a_charge_that_no_gauge_means_is_not_known_and_told(
        self, api: httpx2.Client, battery: dict[str, Any], charge: float
    ) -> None:
        """A gauge's -1 is no empty battery: no alert, and the meter keeps the charge it had."""
        sent = [reading(battery, 0, charge_pct=60), reading(battery, 1, charge_pct=charge)]
        assert api.post("/v1/readings", json=sent).json() == ingested(2, 2, 1)
        assert api.get(f"/v1/meters/{battery['id']}").json()["charge_pct"] == 60.0
        live = {**reading(battery, charge_pct=charge), "timestamp": None}
        assert api.post("/v1/readings", json=live).json() == ingested(1, 1, 1)
        assert api.get(f"/v1/devices/{battery['device_id']}/events").json() == []
        nothing_else = {**live, "voltage": None, "current_draw": None}
        problem(api.post("/v1/readings", json=nothing_else), 422, "invalid_value")

    @pytest.mark.parametrize(("charge", "kept"), [(0, 0.0), (100.4, 100.0), (110, 100.0)])
    def test_a_gauge_that_overshoots_is_full(
        self, api: httpx2.Client, battery: dict[str, Any], charge: float, kept: float
    ) -> None:
        """A little over 100 is 100."""
        sent = reading(battery, charge_pct=charge)
        assert api.post("/v1/readings", json=sent).json() == ingested(1, 1)
        assert api.get(f"/v1/meters/{battery['id']}").json()["charge_pct"] == kept

    def test_a_charge_comes_by_a_reading(self, api: httpx2.Client, battery: dict[str, Any]) -> None:
        """A PATCH takes null alone."""
        answer = api.patch(f"/v1/meters/{battery['id']}", json={"charge_pct": 40})
        assert (answer.status_code, "only readings bring a charge" in answer.text) == (422, True)

    def test_a_reading_must_say_that_it_does_not_know(
        self, api: httpx2.Client, battery: dict[str, Any]
    ) -> None:
        """A key that is left out may be a slip of the pen; null is an answer."""
        sent = {"meter_id": battery["id"], "voltage": 12.0, "charge_pct": 60.0}
        detail = problem(api.post("/v1/readings", json=sent), 422, "invalid_value")
        assert detail.startswith("current_draw: ")

    def test_times_that_are_none_are_refused(
        self, api: httpx2.Client, battery: dict[str, Any]
    ) -> None:
        """A naive time, a time before 1970 and plain text are 422."""
        for when in ("2026-01-01T00:00:00", "1969-12-31T23:59:59Z", "yesterday", -1):
            problem(
                api.post("/v1/readings", json=reading(battery, timestamp=when)),
                422,
                "invalid_value",
            )

    def test_pages_follow_each_other_without_gap_or_overlap(
        self, api: httpx2.Client, pm: PowerManager, battery: dict[str, Any]
    ) -> None:
        """Page by page comes the same as at once, within since and until."""
        pm.log_many(
            (battery["id"], 3.7, minute / 10, 50.0, NOON + timedelta(minutes=minute))
            for minute in range(25)
        )
        window = {
            "since": (NOON + timedelta(minutes=2)).isoformat(),
            "until": (NOON + timedelta(minutes=22)).isoformat(),
        }
        url, cursor, pages = f"/v1/meters/{battery['id']}/readings", None, 0
        found: list[dict[str, Any]] = []
        while pages == 0 or cursor:
            page = api.get(
                url, params={**window, "limit": 7, **({"cursor": cursor} if cursor else {})}
            ).json()
            found, cursor, pages = found + page["readings"], page["next_cursor"], pages + 1
        assert pages == 3
        assert found == [as_json(r) for r in pm.iter_history(battery["id"], **window)]

    def test_a_cursor_beyond_all_times_is_the_end(
        self, api: httpx2.Client, pm: PowerManager, battery: dict[str, Any]
    ) -> None:
        """The contract allows it, so it is no error; the very last moment is still a place."""
        last = "2200-12-31T23:59:59.999999+00:00"
        pm.log_power(battery["id"], 3.7, 0.5, timestamp=last)
        url = f"/v1/meters/{battery['id']}/readings"
        page = api.get(url, params={"cursor": f"{to_microseconds(last):014x}"}).json()
        assert [reading["timestamp"] for reading in page["readings"]] == [last]
        answer = api.get(url, params={"cursor": "19ffffffffffff"})
        assert answer.status_code == 200
        assert len(answer.json()["readings"]) <= 1

    def test_a_plus_that_was_not_encoded_is_understood(
        self, api: httpx2.Client, battery: dict[str, Any]
    ) -> None:
        """In a query + means a space; in a time it can only have been a +."""
        url = f"/v1/meters/{battery['id']}/readings?since=2026-01-01T00:00:00+00:00"
        assert api.get(url).status_code == 200

    def test_statistics_are_the_librarys(
        self, api: httpx2.Client, pm: PowerManager, battery: dict[str, Any]
    ) -> None:
        """By hour and by day."""
        for minute in range(3):
            pm.log_power(battery["id"], 3.7, 0.5 + minute, 50.0)
        for bucket in ("hour", "day"):
            got = api.get(
                f"/v1/meters/{battery['id']}/statistics", params={"days": 1, "bucket": bucket}
            ).json()
            assert (
                got
                == [as_json(row) for row in pm.get_statistics(battery["id"], days=1, bucket=bucket)]
                != []
            )

    def test_max_points_keeps_every_extreme(
        self, api: httpx2.Client, pm: PowerManager, battery: dict[str, Any]
    ) -> None:
        """A week by the minute thinned out to 200 points still has its one spike of each value."""
        spikes = {
            1234: (9.9, 0.5, 50.0),
            4321: (3.7, -7.0, 50.0),
            7777: (3.7, 0.5, 1.0),
            9876: (3.7, 99.0, 50.0),
        }
        rows = (
            (battery["id"], *spikes.get(m, (3.7, 0.5, 50.0)), NOON + timedelta(minutes=m))
            for m in range(10_080)
        )
        pm.log_many(rows)
        answer = api.get(f"/v1/meters/{battery['id']}/readings", params={"max_points": 200}).json()
        points = [(p["voltage"], p["current_draw"], p["charge_pct"]) for p in answer["readings"]]
        assert len(points) <= 200
        assert set(spikes.values()) <= set(points)
        assert answer["next_cursor"] is None
        times = [p["timestamp"] for p in answer["readings"]]
        assert times == sorted(times)

    def test_a_series_is_the_readings_by_field(
        self, api: httpx2.Client, pm: PowerManager, battery: dict[str, Any]
    ) -> None:
        """Times in milliseconds; what is not known is null; within since and until."""
        pm.log_many(
            [
                (battery["id"], 3.7, 0.5, 50.0, NOON),
                (
                    battery["id"],
                    None,
                    None,
                    49.5,
                    NOON + timedelta(seconds=1, microseconds=999_999),
                ),
                (battery["id"], 3.6, -0.5, 49.0, NOON + timedelta(minutes=1)),
            ]
        )
        url, noon_ms = f"/v1/meters/{battery['id']}/series", int(NOON.timestamp() * 1000)
        expected = {
            "meter_id": battery["id"],
            "reading_count": 3,
            "timestamps_ms": [noon_ms, noon_ms + 1999, noon_ms + 60_000],
            "voltage": [3.7, None, 3.6],
            "current_draw": [0.5, None, -0.5],
            "wattage": [1.85, None, -1.8],
            "charge_pct": [50.0, 49.5, 49.0],
        }
        assert api.get(url).json() == expected
        window = {
            "since": (NOON + timedelta(seconds=1)).isoformat(),
            "until": (NOON + timedelta(minutes=1)).isoformat(),
        }
        part = api.get(url, params=window).json()
        assert (part["reading_count"], part["charge_pct"]) == (1, [49.5])
        empty = api.get(url, params={"since": "2190-01-01T00:00:00Z"}).json()
        assert (empty["reading_count"], empty["timestamps_ms"]) == (0, [])
        problem(api.get("/v1/meters/none/series"), 404, "not_found")

    def test_a_series_has_the_points_of_the_chart_in_a_fraction_of_the_bytes(
        self, api: httpx2.Client, pm: PowerManager, battery: dict[str, Any]
    ) -> None:
        """A day, a reading a minute; and it says how many readings were thinned out."""
        chance = random.Random(1)
        pm.log_many(
            (
                battery["id"],
                round(chance.gauss(12.5, 0.2), 3),
                round(chance.gauss(0, 1), 3),
                round(50 + minute / 100, 1),
                NOON + timedelta(minutes=minute),
            )
            for minute in range(1440)
        )
        url = f"/v1/meters/{battery['id']}"
        for max_points in (2000, 200):
            chart = api.get(f"{url}/readings", params={"max_points": max_points})
            series = api.get(f"{url}/series", params={"max_points": max_points})
            readings = chart.json()["readings"]
            assert series.json()["reading_count"] == 1440
            assert len(readings) == (1440 if max_points == 2000 else len(readings)) <= max_points
            for field in ("voltage", "current_draw", "wattage", "charge_pct"):
                assert series.json()[field] == [reading[field] for reading in readings]
            assert sent(series) * 10 < len(chart.content)


class TestCompression:
    """gzip, where the client takes it."""

    @pytest.mark.parametrize(
        ("header", "taken"),
        [
            ("gzip", True),
            ("GZIP", True),
            ("br, gzip;q=0.5", True),
            ("*", True),
            ("gzip; q=1.0, *;q=0", True),
            ("", False),
            ("identity", False),
            ("gzip;q=0", False),
            ("gzip;q=0.000, *", False),
            ("*;q=0", False),
            ("br", False),
            ("x-gzip2", False),
            ("gzip;q=x", False),
        ],
    )
    def test_an_answer_is_compressed_where_the_client_takes_it(
        self, api: httpx2.Client, header: str, taken: bool
    ) -> None:
        """Else it is as it was; and caches are told that there are two."""
        api.put("/v1/devices/long", json={"name": "x" * 200})
        for n in range(10):
            api.post(
                "/v1/devices/long/events", json={"type": "restore", "note": "y" * 200 + str(n)}
            )
        answer = api.get("/v1/devices/long/events", headers={"Accept-Encoding": header})
        assert answer.headers.get("Content-Encoding") == ("gzip" if taken else None)
        assert (sent(answer) < len(answer.content)) == taken
        assert answer.headers["Vary"] == "Accept-Encoding"
        assert len(answer.json()) >= 10
        assert answer.headers["Cache-Control"] == "no-store"

    def test_what_is_small_stays_as_it_is(self, api: httpx2.Client) -> None:
        """A few bytes would become more."""
        answer = api.get("/healthz", headers={"Accept-Encoding": "gzip"})
        assert "Content-Encoding" not in answer.headers

    def test_fixed_files_have_an_etag_for_each_encoding(self, api: httpx2.Client) -> None:
        """A cache must not take one for the other."""
        etags = {}
        for encoding in ("gzip", "identity"):
            headers = {"Accept-Encoding": encoding}
            answer = api.get("/openapi.json", headers=headers)
            assert answer.headers.get("Content-Encoding", "identity") == encoding
            assert answer.headers["Vary"] == "Accept-Encoding"
            etags[encoding] = answer.headers["ETag"]
            known = {**headers, "If-None-Match": f'"x", W/{etags[encoding]}'}
            again = api.get("/openapi.json", headers=known)
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["ETag"] == etags[encoding]
            assert "Content-Encoding" not in again.headers
        assert etags["gzip"] != etags["identity"]

    def test_what_is_streamed_goes_on_as_it_comes(self) -> None:
        """No part waits for the next one, and none is changed."""
        head = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/plain")],
        }
        parts = [
            {"type": "http.response.body", "body": b"a" * 2000, "more_body": True},
            {"type": "http.response.body", "body": b"b" * 2000, "more_body": False},
        ]
        got: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(head)
            for number, part in enumerate(parts):
                await send(part)
                assert got == [head, *parts[: number + 1]]

        async def receive() -> Any:
            raise AssertionError

        async def send(message: Any) -> None:
            got.append(message)

        scope = {"type": "http", "headers": [(b"accept-encoding", b"gzip")]}
        asyncio.run(Compress(app)(scope, receive, send))
        assert len(got) == 3


class TestEventsAndReports:
    """Events, runtime, budget and report."""

    def test_events_are_triggered_listed_and_followed(
        self, api: httpx2.Client, pm: PowerManager, device: str
    ) -> None:
        """An event appears in the device's list, and in the sequence of all."""
        before = api.get("/v1/events", params={"limit": 10_000}).json()["next_after"]
        made = api.post(
            f"/v1/devices/{device}/events", json={"type": "restore", "value": 2, "note": "back"}
        )
        assert made.status_code == 201
        assert api.get(f"/v1/devices/{device}/events").json() == [made.json()]
        page = api.get("/v1/events", params={"after": before}).json()
        ((sequence, event),) = pm.events_since(before)
        assert page == {
            "events": [{"sequence": sequence, "event": as_json(event)}],
            "next_after": sequence,
            "recovered": True,
            "file_id": pm.file_id,
        }

    def test_an_event_may_be_about_a_meter(
        self, api: httpx2.Client, battery: dict[str, Any]
    ) -> None:
        """Of the same device."""
        url = f"/v1/devices/{battery['device_id']}/events"
        made = api.post(url, json={"type": "charge_start", "meter_id": battery["id"]})
        assert made.json()["meter_id"] == battery["id"]
        assert api.post(url, json={"type": "restore", "meter_id": None}).json()["meter_id"] is None
        api.put("/v1/devices/another", json={"name": "A"})
        sent = {"type": "restore", "meter_id": battery["id"]}
        problem(api.post("/v1/devices/another/events", json=sent), 422, "invalid_value")
        problem(api.post(url, json={**sent, "meter_id": "none"}), 404, "not_found")
        problem(api.post(url, json={**sent, "meter_id": 7}), 422, "invalid_value")

    @pytest.mark.parametrize("value", ["NaN", "1e999", "true", '"1"', "null"])
    def test_an_events_value_is_a_number(self, api: httpx2.Client, device: str, value: str) -> None:
        """Strict numbers here too."""
        content = f'{{"type": "restore", "value": {value}}}'
        headers = {"Content-Type": "application/json"}
        problem(
            api.post(f"/v1/devices/{device}/events", content=content, headers=headers),
            422,
            "invalid_value",
        )
        assert api.get(f"/v1/devices/{device}/events").json() == []

    @pytest.mark.parametrize("of", ["events", "meters"])
    @pytest.mark.parametrize("kind", ["RESTORE", None, 1, ["restore"], {}])
    def test_a_type_that_is_none_is_named_as_it_was_sent(
        self, api: httpx2.Client, device: str, of: str, kind: Any
    ) -> None:
        """By its key, and not by the library's parameter."""
        answer = api.post(f"/v1/devices/{device}/{of}", json={"type": kind})
        assert problem(answer, 422, "invalid_value").startswith("type: expected one of ")
        assert api.get(f"/v1/devices/{device}/events").json() == []

    def test_runtime_is_the_librarys(
        self, api: httpx2.Client, pm: PowerManager, battery: dict[str, Any]
    ) -> None:
        """Null while nothing drains, then hours."""
        device_id = battery["device_id"]
        url = f"/v1/devices/{device_id}/runtime"
        assert api.get(url).json() == {"device_id": device_id, "estimated_runtime_hours": None}
        pm.log_power(battery["id"], 5.0, 1.0, 80.0)
        assert api.get(url).json()["estimated_runtime_hours"] == 8.0
        assert api.get(url, params={"window_minutes": 2}).json()["estimated_runtime_hours"] == 8.0

    def test_the_budget_is_the_librarys_mapping(
        self, api: httpx2.Client, pm: PowerManager, battery: dict[str, Any]
    ) -> None:
        """For the devices that are named, or for all."""
        ids = [battery["device_id"], "nobody"]
        expected = json.loads(json.dumps(pm.power_budget_check(ids)))
        expected["nobody"] = {"error": "no device has the id 'nobody': GET /v1/devices lists them"}
        assert api.get("/v1/budget", params={"device_id": ids}).json() == expected
        assert list(api.get("/v1/budget").json()) == [device.id for device in pm.list_devices()]

    def test_the_report_is_the_librarys_text(
        self, api: httpx2.Client, pm: PowerManager, battery: dict[str, Any]
    ) -> None:
        """As it is, but for the time at which it was made."""
        pm.log_power(battery["id"], 5.0, 1.0, 80.0)
        answer = api.get(f"/v1/devices/{battery['device_id']}/report", params={"days": 3}).text
        made_at = json.loads(answer)["generated_at"]
        expected = pm.export_report(battery["device_id"], 3)
        assert answer == expected.replace(json.loads(expected)["generated_at"], made_at)


class TestTheServiceItself:
    """Health, metrics, errors, limits."""

    @pytest.mark.parametrize("path", ["/healthz", "/readyz"])
    def test_who_watches_it_may_ask_by_head(self, service: Service, path: str) -> None:
        """The status of GET without its body, and no token."""
        with service.client() as nobody:
            answer = nobody.head(path)
        assert (answer.status_code, answer.content) == (200, b"")

    def test_health_and_readiness_need_no_token(self, service: Service) -> None:
        """They say nothing but that they are."""
        with service.client() as nobody:
            assert nobody.get("/healthz").json() == {"status": "ok"}
            assert nobody.get("/readyz").json() == {"status": "ready"}

    def test_metrics_tell_what_happened(
        self, api: httpx2.Client, pm: PowerManager, battery: dict[str, Any]
    ) -> None:
        """Requests, readings, events by type, clients, each meter's values and energies."""
        pm.log_many(
            [
                (battery["id"], 4.0, 2.0, 50.0, NOON),
                (battery["id"], 4.0, 2.0, 49.0, NOON + timedelta(hours=1)),
                (battery["id"], 4.0, -1.0, 50.0, NOON + timedelta(hours=2)),
                (battery["id"], 4.0, -1.0, 51.0, NOON + timedelta(hours=3)),
            ]
        )
        api.post(
            "/v1/readings",
            json={"meter_id": battery["id"], "voltage": 3.5, "current_draw": 2, "charge_pct": 7},
        )
        meter = pm.get_meter(battery["id"])
        assert meter.updated_at is not None
        seconds = datetime.fromisoformat(meter.updated_at).timestamp()
        shown = floatToGoString(seconds)  # type: ignore[no-untyped-call]
        of = labels_of(battery, "Edge Node", "Pack")
        wanted = [
            f"power_meter_voltage_volts{of} 3.5",
            f"power_meter_wattage_watts{of} 7.0",
            f"power_meter_charge_percent{of} 7.0",
            f"power_meter_last_reading_timestamp_seconds{of} {shown}",
            f"power_meter_energy_out_wh_total{of} {pm.energy_totals(battery['id']).energy_out_wh}",
            f"power_meter_energy_in_wh_total{of} {pm.energy_totals(battery['id']).energy_in_wh}",
            "power_service_stream_clients 0.0",
            'power_service_request_seconds_count{method="POST",route="/v1/readings",status="200"}',
            "power_service_readings_stored_total ",
            'power_events_total{type="discharge"}',
        ]
        eventually(lambda: all(line in api.get("/metrics").text for line in wanted))
        assert pm.energy_totals(battery["id"]).energy_out_wh > 8.0

    def test_metrics_go_by_present_names(
        self, api: httpx2.Client, pm: PowerManager, battery: dict[str, Any]
    ) -> None:
        """Whatever is in them."""
        pm.log_power(battery["id"], 3.5, 2.0, 50.0)
        api.patch(f"/v1/devices/{battery['device_id']}", json={"name": 'Hut "A"'})
        api.patch(f"/v1/meters/{battery['id']}", json={"name": "b\\c\nd"})
        of = labels_of(battery, 'Hut \\"A\\"', "b\\\\c\\nd")
        eventually(lambda: f"power_meter_voltage_volts{of} 3.5" in api.get("/metrics").text)

    def test_metrics_have_no_sample_of_what_is_not_known_or_not_in_use(
        self, api: httpx2.Client, pm: PowerManager, device: str
    ) -> None:
        """Unknown is not 0 W, a panel has no charge, a retired or new meter measures nothing."""
        gauge, retired = pm.add_meter(device, "ups"), pm.add_meter(device, "battery")
        panel, new = pm.add_meter(device, "solar"), pm.add_meter(device, "battery")
        for meter in (gauge, retired, panel):
            pm.log_power(meter.id, 5.0, 1.0, 80.0)
        eventually(lambda: retired.id in api.get("/metrics").text)
        pm.log_power(gauge.id, None, None, 70.0)
        pm.update_meter(retired.id, active=False)
        eventually(lambda: retired.id not in api.get("/metrics").text)

        def names(meter_id: str) -> set[str]:
            lines = api.get("/metrics").text.splitlines()
            return {line.partition("{")[0] for line in lines if meter_id in line}

        always = {
            "power_meter_last_reading_timestamp_seconds",
            "power_meter_energy_out_wh_total",
            "power_meter_energy_in_wh_total",
        }
        electrical = {"power_meter_voltage_volts", "power_meter_wattage_watts"}
        eventually(lambda: names(gauge.id) == always | {"power_meter_charge_percent"})
        eventually(lambda: names(panel.id) == always | electrical)
        assert names(new.id) == set()

    @pytest.mark.parametrize(
        ("method", "path", "status", "code"),
        [
            ("GET", "/nowhere", 404, "route_not_found"),
            ("GET", "/v1/devices/", 404, "route_not_found"),
            ("GET", "/../../etc/passwd", 404, "route_not_found"),
            ("DELETE", "/v1/devices", 405, "method_not_allowed"),
            ("GET", "/v1/stream", 426, "upgrade_required"),
            ("GET", "/v1/budget?device_id=", 422, "invalid_value"),
            ("GET", "/v1/devices/x/report?days=0", 422, "invalid_value"),
            ("GET", "/v1/devices/x/report?days=NaN", 422, "invalid_value"),
            ("GET", "/v1/devices/x/report?days=1e999", 422, "invalid_value"),
            ("GET", "/v1/events?after=-1", 422, "invalid_value"),
            ("GET", "/v1/events?after=99999999999999999999", 422, "invalid_value"),
            ("GET", "/v1/meters/x/readings?cursor=zz", 422, "invalid_value"),
            ("GET", "/v1/meters/x/readings?since=yesterday", 422, "invalid_value"),
            ("GET", "/v1/meters/x/statistics?day=30", 422, "invalid_value"),
            ("GET", "/v1/meters/x/statistics?days=30&days=1", 422, "invalid_value"),
            ("GET", "/v1/devices?token=x", 422, "invalid_value"),
        ],
    )
    def test_errors_are_problems_with_a_code(
        self, api: httpx2.Client, method: str, path: str, status: int, code: str
    ) -> None:
        """RFC 9457, whoever found the error."""
        problem(api.request(method, path), status, code)

    def test_a_405_names_every_method_of_the_path(self, api: httpx2.Client) -> None:
        """Also those of another route at it."""
        assert api.post("/v1/devices/x").headers["Allow"] == "DELETE, GET, PATCH, PUT"

    @pytest.mark.parametrize(
        ("content", "media_type", "status", "code"),
        [
            (b"{", "application/json", 400, "malformed_json"),
            (b"\xff\xfe", "application/json", 400, "malformed_json"),
            (b"[" * 100_000, "application/json", 400, "malformed_json"),
            (b"1" * 5000, "application/json", 400, "malformed_json"),
            (b"", "application/json", 400, "malformed_json"),
            (b"{}", "text/plain", 415, "unsupported_media_type"),
            (b"{}", "application/json", 422, "invalid_value"),
            (
                b'{"meter_id": "\\ud800", "voltage": 1, "current_draw": 1}',
                "application/json",
                422,
                "invalid_value",
            ),
            (
                b'{"meter_id": [], "voltage": 1, "current_draw": 1}',
                "application/json",
                422,
                "invalid_value",
            ),
            (
                b'{"meter_id": "a", "voltage": 1, "current": 1}',
                "application/json",
                422,
                "invalid_value",
            ),
            (
                b'{"meter_id": "a", "voltage": 1, "voltage": 2, "current_draw": 1}',
                "application/json",
                422,
                "invalid_value",
            ),
            (b"x" * (4 * 1024 * 1024 + 1), "application/json", 413, "body_too_large"),
        ],
        ids=[
            "cut",
            "not-utf8",
            "deep",
            "huge-number",
            "empty",
            "text",
            "no-keys",
            "surrogate",
            "list",
            "key",
            "key-twice",
            "large",
        ],
    )
    def test_bodies_that_are_no_reading(
        self, api: httpx2.Client, content: bytes, media_type: str, status: int, code: str
    ) -> None:
        """Each is refused for what it is."""
        problem(
            api.post("/v1/readings", content=content, headers={"Content-Type": media_type}),
            status,
            code,
        )

    def test_a_compressed_body_is_refused_as_such(
        self, api: httpx2.Client, battery: dict[str, Any]
    ) -> None:
        """It is not taken for damaged JSON; `identity` says that there is nothing to undo."""
        url, plain = "/v1/readings", json.dumps(reading(battery)).encode()
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        for content in (gzip.compress(plain), plain):
            answer = api.post(url, content=content, headers=headers)
            problem(answer, 415, "unsupported_media_type")
            assert answer.headers["Accept-Encoding"] == "identity"
        headers["Content-Encoding"] = "Identity"
        assert api.post(url, content=plain, headers=headers).json() == ingested(1, 1)

    def test_a_chunked_body_is_limited_too(self, api: httpx2.Client) -> None:
        """Without a Content-Length the bytes are counted as they come."""
        chunks = (b" " * 65_536 for _ in range(100))
        answer = api.post(
            "/v1/readings", content=chunks, headers={"Content-Type": "application/json"}
        )
        problem(answer, 413, "body_too_large")

    def test_headers_are_limited(self, api: httpx2.Client) -> None:
        """In bytes and in number."""
        problem(api.get("/healthz", headers={"X-Big": "x" * 17_000}), 431, "headers_too_large")
        problem(
            api.get("/healthz", headers={f"X-{n}": "x" for n in range(101)}),
            431,
            "headers_too_large",
        )

    def test_answers_carry_the_headers_browsers_go_by(self, api: httpx2.Client) -> None:
        """Nothing is stored or sniffed, and nobody says which server this is."""
        headers = api.get("/v1/devices").headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "server" not in headers


def labels_of(meter: dict[str, Any], device_name: str, name: str) -> str:
    """The labels of a meter's samples."""
    return (
        f'{{device_id="{meter["device_id"]}",device_name="{device_name}",'
        f'meter_id="{meter["id"]}",meter_name="{name}",type="{meter["type"]}"}}'
    )


def sent(answer: httpx2.Response) -> int:
    """How many bytes of body went over the wire."""
    return int(answer.headers["Content-Length"])


def ingested(received: int, stored: int, implausible_charges: int = 0) -> dict[str, int]:
    """The answer to readings."""
    return {"received": received, "stored": stored, "implausible_charges": implausible_charges}


def problem(answer: httpx2.Response, status: int, code: str) -> str:
    """Its detail; fails unless it is that problem."""
    assert (answer.status_code, answer.headers["Content-Type"]) == (
        status,
        "application/problem+json",
    ), answer.text
    body = answer.json()
    assert (body["status"], body["code"]) == (status, code), body
    assert set(body) == {"type", "title", "status", "code", "detail"}
    assert "Traceback" not in answer.text
    detail: str = body["detail"]
    return detail
