"""The contract: it is what is served, its examples are true, schemathesis finds nothing."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from power_service import models, openapi, shapes
from power_service.examples import STREAM
from power_service.problems import STATUS, Code
from service_harness import ENVIRONMENT, SERVICE, SOON, Service

import power_manager
from power_manager import PowerManager

CONTRACT: dict[str, Any] = json.loads((SERVICE / "openapi.json").read_text(encoding="utf-8"))
SCHEMAS: dict[str, Any] = CONTRACT["components"]["schemas"]
OPERATIONS = {op["operationId"]: op for path in CONTRACT["paths"].values() for op in path.values()}


def validate(schema: dict[str, Any], value: Any) -> None:
    """Fail unless the value is of that schema of the contract."""
    whole = {**schema, "components": CONTRACT["components"]}
    jsonschema_rs.validator_for(whole, validate_formats=True).validate(value)


def essence(document: dict[str, Any]) -> dict[str, Any]:
    """What programs go by in a contract."""
    found: dict[str, Any] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parameters = {
                (one["in"], one["name"], one.get("required", False))
                for one in operation.get("parameters", [])
            }
            bodies = sorted(operation.get("requestBody", {}).get("content", {}))
            found[f"{method} {path}"] = (parameters, bodies, sorted(operation["responses"]))
    for name, schema in document["components"]["schemas"].items():
        required = sorted(schema.get("required", []))
        found[name] = (sorted(schema.get("properties", {})), required, schema.get("enum"))
    return found


# The versions that write the committed contract; others may write other texts into it.
NEWEST = dict(
    line.split("==")
    for line in (SERVICE.parents[1] / ".ci/constraints.txt").read_text().splitlines()
    if re.fullmatch(r"[\w-]+==[\w.]+", line)
)
only_with_the_newest = pytest.mark.skipif(
    metadata.version("pydantic") != NEWEST["pydantic"], reason="another pydantic is installed"
)


@only_with_the_newest
def test_the_committed_contract_is_the_present_one() -> None:
    """`python -m power_service.openapi openapi.json` brings it up to date."""
    assert openapi.main(["--check", str(SERVICE / "openapi.json")]) == 0


def test_no_description_has_an_example_in_python() -> None:
    """Those of the library's docstrings are for Python."""
    assert ">>>" not in json.dumps(CONTRACT)


@only_with_the_newest
def test_the_program_writes_and_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it writes it finds present, and anything else out of date."""
    path = tmp_path / "openapi.json"
    assert openapi.main([str(path)]) == 0
    assert path.read_bytes() == (SERVICE / "openapi.json").read_bytes()
    path.write_text("{}")
    assert openapi.main(["--check", str(path)]) == 1
    assert "out of date" in capsys.readouterr().err


def test_the_service_serves_the_contract(service: Service, tmp_path: Path) -> None:
    """To everybody: it holds no data."""
    openapi.main([str(tmp_path / "openapi.json")])
    with service.client() as nobody:
        served = nobody.get("/openapi.json").text
    assert served == (tmp_path / "openapi.json").read_text(encoding="utf-8")


def test_every_version_of_its_libraries_serves_what_is_committed(service: Service) -> None:
    """Each operation takes and answers the same; records have the same keys; texts may differ."""
    with service.client() as nobody:
        assert essence(nobody.get("/openapi.json").json()) == essence(CONTRACT)


@pytest.mark.parametrize(
    "name", ["DeviceRecord", "PowerMeter", "PowerReading", "PowerEvent", "PowerStatistics"]
)
def test_records_are_the_librarys_name_by_name(name: str) -> None:
    """Every field and no other, all of them always sent; a meter's two properties beside."""
    fields = [field.name for field in dataclasses.fields(getattr(power_manager, name))]
    properties = ["wattage", "state"] if name == "PowerMeter" else []
    assert list(SCHEMAS[name]["properties"]) == fields + properties
    assert sorted(SCHEMAS[name]["required"]) == sorted(fields + properties)


@pytest.mark.parametrize("name", ["MeterType", "PowerState", "PowerEventType", "AlertLevel"])
def test_enums_are_the_librarys(name: str) -> None:
    """Value by value."""
    assert SCHEMAS[name]["enum"] == [member.value for member in getattr(power_manager, name)]


@pytest.mark.parametrize(
    ("shape", "record"),
    [
        (shapes.NEW_READING, power_manager.PowerReading),
        (shapes.NEW_METER, power_manager.PowerMeter),
        (shapes.NEW_EVENT, power_manager.PowerEvent),
        (shapes.DEVICE_SETTINGS, power_manager.DeviceRecord),
        (shapes.DEVICE_CHANGES, power_manager.DeviceRecord),
        (shapes.METER_CHANGES, power_manager.PowerMeter),
    ],
)
def test_what_is_received_goes_by_the_records_names(shape: shapes.Shape, record: Any) -> None:
    """No key means another thing on its way in than on its way out."""
    assert {*shape.required, *shape.optional} <= {
        field.name for field in dataclasses.fields(record)
    }


@pytest.mark.parametrize(
    ("shape", "method", "key"),
    [
        (shapes.DEVICE_CHANGES, PowerManager.update_device, "device_id"),
        (shapes.METER_CHANGES, PowerManager.update_meter, "meter_id"),
    ],
)
def test_whatever_the_library_can_change_can_be_changed(
    shape: shapes.Shape, method: Any, key: str
) -> None:
    """Neither less nor more, and nothing has a default: what is left out stays."""
    parameters = [name for name in inspect.signature(method).parameters if name != "self"]
    assert {key, *shape.optional} == set(parameters)
    assert not shape.required
    assert not [name for name, schema in shape.optional.items() if "default" in schema]


def test_budget_and_report_have_the_librarys_keys(tmp_path: Path) -> None:
    """The mappings have no record: their schemas are held against what the library returns."""
    with PowerManager(tmp_path / "p.db") as pm:
        pm.register_device("a", "A")
        meter = pm.add_meter("a", "battery", 50.0)
        pm.add_meter("a", "solar")
        pm.log_power(meter.id, 3.7, 0.5, 4.0)
        budget, report = pm.power_budget_check(["a", "b"]), json.loads(pm.export_report("a", 7))
    assert set(budget["a"]) == set(SCHEMAS["DeviceBudget"]["required"])
    assert set(budget["b"]) == set(SCHEMAS["UnknownDevice"]["required"])
    assert set(report) == set(SCHEMAS["Report"]["properties"])
    assert set(report["totals"]) == set(SCHEMAS["ReportTotals"]["required"])
    assert set(report["meters"][0]) == set(SCHEMAS["MeterReport"]["properties"])
    assert set(report["meters"][1]) == set(SCHEMAS["MeterReport"]["required"])
    validate({"$ref": "#/components/schemas/Report"}, report)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_true_examples_and_documented_errors(name: str) -> None:
    """Each body's and each success's example fits its schema; so does each error's."""
    operation = OPERATIONS[name]
    assert operation["summary"]
    assert operation["tags"]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        assert content["examples"]
        for example in content["examples"].values():
            validate(content["schema"], example["value"])
    for status, response in operation["responses"].items():
        if "$ref" in response:
            response = CONTRACT["components"]["responses"][response["$ref"].rpartition("/")[2]]
        assert ("content" in response) == (status != "204")
        for content in response.get("content", {}).values():
            validate(content["schema"], content["example"])
        assert status[0] == "2" or response["content"]["application/problem+json"]["example"][
            "status"
        ] == int(status)
    assert {"421", "431", "500", "503"} <= set(operation["responses"])


def test_every_code_is_documented() -> None:
    """The enum lists them all, and each status its own."""
    assert (
        SCHEMAS["Code"]["enum"] == [code.value for code in Code] == [code.value for code in STATUS]
    )


@pytest.fixture(scope="module")
def text(service: Service) -> str:
    """The page, as anybody gets it."""
    with service.client() as nobody:
        answer = nobody.get("/docs")
    assert (answer.status_code, answer.headers["Content-Type"]) == (
        200,
        "text/html; charset=utf-8",
    )
    policy = answer.headers["Content-Security-Policy"]
    style = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    return answer.text


class TestDocs:
    """/docs: the contract as a page to read."""

    def test_it_has_every_route_record_and_message(self, text: str) -> None:
        """Each where the table of contents or another part links to."""
        ids = re.findall(r' id="([^"]+)"', text)
        assert len(ids) == len(set(ids))
        wanted = {*OPERATIONS, *(f"schema-{name}" for name in SCHEMAS), "streamMessage"}
        assert wanted <= set(ids)
        assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
        for message in STREAM:
            assert f"<code>{message['type']}</code>" in text

    def test_it_needs_nothing_from_elsewhere(self, text: str) -> None:
        """No script, no style attribute, no picture, and links within the service alone."""
        assert not re.findall(r"<(?:script|img|link|iframe|object)|\s(?:src|style|on\w+)=", text)
        assert set(re.findall(r'href="([^#"][^"]*)"', text)) == {"/openapi.json"}

    def test_its_tags_are_closed(self, text: str) -> None:
        """Whatever stands in a description."""
        open_tags: list[str] = []

        class Checker(HTMLParser):
            def handle_starttag(self, tag: str, attrs: Any) -> None:
                if tag not in ("meta", "br"):
                    open_tags.append(tag)

            def handle_endtag(self, tag: str) -> None:
                assert open_tags.pop() == tag, self.getpos()

        Checker().feed(text)
        assert open_tags == []


def test_stream_messages_are_declared_as_a_webhook() -> None:
    """A union by `type`, each with an example that fits."""
    content = CONTRACT["webhooks"]["stream"]["post"]["requestBody"]["content"]["application/json"]
    assert SCHEMAS["StreamMessage"]["discriminator"]["propertyName"] == "type"
    assert [example["value"] for example in content["examples"].values()] == list(STREAM)
    for message in STREAM:
        validate(content["schema"], message)
        assert (
            models.MESSAGE.dump_python(models.MESSAGE.validate_python(message), mode="json")
            == message
        )


@pytest.mark.slow
def test_schemathesis_finds_nothing(service: Service) -> None:
    """All its checks over every operation, on data that fits the schemas and data that does not."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", str(SERVICE / "openapi.json")),
        *("--url", service.url, "--header", f"Authorization: Bearer {service.token('admin')}"),
        *("--checks", "all", "--max-examples", "20", "--seed", "1", "--continue-on-failure"),
        # On a busy machine data is made and answered slowly, which is no fault of either.
        *("--suppress-health-check", "all", "--request-timeout", str(SOON)),
    ]
    environment = {**ENVIRONMENT, "SCHEMATHESIS_HOOKS": "schemathesis_hooks"}
    environment["PYTHONPATH"] += os.pathsep + str(SERVICE / "tests")
    cwd = service.directory  # it may leave files behind
    run = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=cwd, check=False
    )
    assert run.returncode == 0, run.stdout[-8000:]
    assert f"Tested: {len(OPERATIONS)}" in run.stdout
    assert "Traceback" not in service.log.read_text()
