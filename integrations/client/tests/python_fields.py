"""Print, as TypeScript, what the library's records, enums, budgets and reports are made of."""

import dataclasses
import enum
import json
import tempfile
import types
import typing
from pathlib import Path

import power_manager
from power_manager import PowerManager

RECORDS = ("DeviceRecord", "PowerMeter", "PowerReading", "PowerEvent", "PowerStatistics")
ENUMS = ("MeterType", "PowerState", "PowerEventType", "AlertLevel")
PLAIN = {str: "string", float: "number", int: "number", bool: "boolean", type(None): "null"}


def of_type(hint: typing.Any) -> str:
    """A type hint in TypeScript."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(of_type(part) for part in typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " | ".join(json.dumps(member.value) for member in hint)
    return PLAIN[hint]


def of_record(record: type) -> str:
    """A record's fields and properties in TypeScript."""
    hints = {
        field.name: typing.get_type_hints(record)[field.name]
        for field in dataclasses.fields(record)
    }
    for name, value in vars(record).items():
        if isinstance(value, property) and not name.startswith("_"):
            hints[name] = typing.get_type_hints(value.fget)["return"]
    return "{ " + " ".join(f"{name}: {of_type(hint)};" for name, hint in hints.items()) + " }"


def examples() -> typing.Iterator[tuple[str, str]]:
    """Budgets and reports as the library makes them: it has no record for these."""
    with (
        tempfile.TemporaryDirectory() as directory,
        PowerManager(Path(directory) / "power.db") as pm,
    ):
        pm.register_device("a", "A", target_wh=150.0)
        yield "Report", pm.export_report("a")
        yield "Budget", json.dumps(pm.power_budget_check(["a", "nobody"]))
        for kind in ("battery", "solar", "main", "ups"):
            meter = pm.add_meter("a", kind, 50.0, kind)
            pm.add_meter("a", kind)
            gauge = pm.add_meter("a", kind)
            pm.log_power(meter.id, 4.0, 0.5, 10.0)
            pm.log_power(gauge.id, None, None, 50.0)
        yield "Report", pm.export_report("a", 1)
        yield "Budget", json.dumps(pm.power_budget_check(["a"]))


print(
    json.dumps(
        {
            "records": {name: of_record(getattr(power_manager, name)) for name in RECORDS},
            "enums": {name: of_type(getattr(power_manager, name)) for name in ENUMS},
            "examples": list(examples()),
        }
    )
)
