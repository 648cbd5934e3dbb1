"""The extra's ranges: both of their ends are what the gate tests."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from service_harness import SERVICE

ROOT = SERVICE.parents[1]
PYTHONS = ("3.10", "3.11", "3.14")


def extra() -> dict[str, Requirement]:
    """What the extra `service` asks for, by name."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.findall(r"^service = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)[0]
    found = map(Requirement, re.findall(r'"([^"]+)",', block))
    return {requirement.name: requirement for requirement in found}


def pinned(name: str, python: str) -> Iterator[tuple[str, Version]]:
    """What a file of constraints pins for a Python, by name."""
    for line in (ROOT / ".ci" / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or marker.evaluate({"python_version": python}):
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            yield requirement.name, Version(specifier.version)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_newest_are_allowed(python: str) -> None:
    """Each once for every Python, and nothing of the extra is left out."""
    found = list(pinned("constraints-service.txt", python))
    assert [name for name, _ in found] == list(extra())
    for name, version in found:
        assert version in extra()[name].specifier


def test_the_lowest_are_the_lower_ends() -> None:
    """To the digit: what is promised is what was tried."""
    found = dict(pinned("constraints-service-lowest.txt", "3.10"))
    assert list(found) == list(extra())
    for name, version in found.items():
        (lower,) = (part for part in extra()[name].specifier if part.operator == ">=")
        assert version == Version(lower.version)


def test_the_gate_runs_both() -> None:
    """Each file is named where the tests are run."""
    gate = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "constraints=.ci/constraints-service.txt" in gate
    assert "constraints=.ci/constraints-service-lowest.txt" in gate
