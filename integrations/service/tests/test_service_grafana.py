"""The Grafana dashboard asks for all metrics of a real service, by labels that they have."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families
from service_harness import SERVICE, Service, eventually

from power_manager import PowerManager

DASHBOARD: dict[str, Any] = json.loads((SERVICE / "grafana/power.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
BY_PROMETHEUS = {"instance"}  # labels that a scrape adds
IDS = [f"{panel['title']}-{target['refId']}" for panel in PANELS for target in panel["targets"]]


def parsed(query: str) -> Any:
    """A query as Prometheus reads it, with values for Grafana's variables. Raises ValueError."""
    for name, value in (("$__rate_interval", "1m"), ("$silent", "7200")):
        query = query.replace(name, value)
    return promql_parser.parse(query)


def metrics_in(query: str) -> set[str]:
    """The names of the metrics that a query is about."""
    return set(re.findall(r"\bpower_\w+", query))


def labels_in(query: str) -> set[str]:
    """The labels that a query selects or groups by."""
    selected = re.findall(r"(\w+)(?:=~|!~|!=|=)\"", query)
    grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", query)
    return {*selected, *(name.strip() for names in grouped for name in names.split(","))}


@pytest.fixture(scope="module")
def samples(service: Service) -> dict[str, set[str]]:
    """The labels of each sample, by its name, of a real service with one meter of each kind."""
    with PowerManager(service.db) as pm:
        pm.register_device("a", "A")
        for kind in ("main", "battery", "ups", "solar"):
            pm.log_power(pm.add_meter("a", kind, 50.0).id, 12.0, 1.0, 50.0)
    found: dict[str, set[str]] = {}
    with service.client(service.token("admin")) as client:

        def has_all() -> bool:
            text = client.get("/metrics").text
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    found.setdefault(sample.name, set()).update(sample.labels)
            # What comes last: of the meters, and of the requests, as the first one is not counted
            # in its own answer.
            wanted = {
                "power_meter_charge_percent",
                "power_meter_energy_in_wh_total",
                "power_service_request_seconds_bucket",
            }
            return wanted <= found.keys()

        eventually(has_all)
    return found


def test_every_metric_is_one_that_the_service_has(samples: dict[str, set[str]]) -> None:
    """By the names of its samples, in the panels and in the variables."""
    asked = metrics_in(" ".join([*QUERIES, json.dumps(DASHBOARD["templating"])]))
    assert asked - set(samples) == set()


def test_every_metric_that_the_service_has_is_asked_for(samples: dict[str, set[str]]) -> None:
    """What is measured is seen; when a counter began is no measurement."""
    measured = {name for name in samples if not name.endswith("_created")}
    assert measured - metrics_in(" ".join(QUERIES)) == set()


@pytest.mark.parametrize("query", QUERIES, ids=IDS)
def test_every_query_is_one_that_prometheus_reads(query: str, samples: dict[str, set[str]]) -> None:
    """And goes by labels that one of its metrics has."""
    parsed(query)
    there = set.union(*(samples[name] for name in metrics_in(query)))
    assert labels_in(query) <= there | BY_PROMETHEUS
    assert 'instance="$service"' in query, "another service may be scraped too"
    assert set(re.findall(r"\$(\w+)", query)) <= {*VARIABLES, "__rate_interval"}


def test_it_is_what_grafana_knows() -> None:
    """Read by Grafana's own types and written again, nothing is lost or changed."""
    pytest.importorskip("grafana_foundation_sdk", reason="it is for Python 3.11 and later")
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    written = json.loads(json.dumps(Dashboard.from_json(DASHBOARD), cls=JSONEncoder))
    assert list(differences(DASHBOARD, written)) == []


def differences(given: Any, written: Any, path: str = "") -> Any:
    """The paths of values that were written otherwise; what is written beside them is a default."""
    if isinstance(given, dict) and isinstance(written, dict):
        for key, value in given.items():
            yield from differences(value, written.get(key), f"{path}/{key}")
    elif isinstance(given, list) and isinstance(written, list) and len(given) == len(written):
        for number, (one, other) in enumerate(zip(given, written)):
            yield from differences(one, other, f"{path}/{number}")
    elif given != written:
        yield path


def test_its_panels_stand_apart_and_say_what_they_show() -> None:
    """Ids differ, none overlap; each has a title, and a unit unless it is a count."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in itertools.combinations((panel["gridPos"] for panel in panels), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
    for panel in panels:
        assert panel["title"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_it_can_be_imported_anywhere() -> None:
    """It names no Prometheus of somebody's own, but the one that is chosen."""
    sources = re.findall(r'"uid": "([^"]+)"', json.dumps(DASHBOARD))
    assert set(sources) == {"${datasource}", DASHBOARD["uid"]}
    assert "id" not in DASHBOARD, "Grafana gives it one"
