"""The extras' ranges: both of their ends are what the gate tests."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from service_harness import SERVICE

ROOT = SERVICE.parents[1]
PYTHONS = ("3.10", "3.11", "3.14")


NEWEST_ALONE = {"fleet", "hub", "fast"}  # extras that the gate runs with their newest versions only


def extras() -> dict[str, dict[str, Requirement]]:
    """What each extra asks for, by the extra's name and the requirement's."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    section = re.sub(r" *#.*", "", section)
    found = {}
    for name, block in re.findall(r"^(\w+) = \[(.*?)\]$", section, re.MULTILINE | re.DOTALL):
        asked = map(Requirement, re.findall(r'"([^"]+)"', block))
        found[name] = {
            requirement.name: requirement
            for requirement in asked
            if requirement.name != "blackroad-power-manager"
        }
    return found


def everything(without: Collection[str] = ()) -> dict[str, Requirement]:
    """What all extras together ask for, without some of the extras."""
    found: dict[str, Requirement] = {}
    for name, extra in extras().items():
        if name not in without:
            found |= extra
    return found


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
    """Each once for every Python, and nothing of the extras is left out."""
    found = list(pinned("constraints.txt", python))
    assert sorted(name for name, _ in found) == sorted(everything())
    for name, version in found:
        assert version in everything()[name].specifier


def test_the_lowest_are_the_lower_ends() -> None:
    """To the digit: what is promised is what was tried."""
    found = dict(pinned("constraints-lowest.txt", "3.10"))
    assert sorted(found) == sorted(everything(without=NEWEST_ALONE))
    for name, version in found.items():
        (lower,) = (part for part in everything()[name].specifier if part.operator == ">=")
        assert version == Version(lower.version)


def test_every_extra_is_a_range() -> None:
    """A user's other packages may want another version: none is named to the digit."""
    assert set(extras()) == {"service", "notify", "billing", "mqtt", "fleet", "hub", "fast"}
    for requirement in everything().values():
        operators = {part.operator for part in requirement.specifier}
        assert ">=" in operators, requirement
        assert operators <= {">=", "<"}, requirement


def test_the_gate_runs_both() -> None:
    """Each file is named where the tests are run."""
    gate = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "constraints=.ci/constraints.txt" in gate
    assert "constraints=.ci/constraints-lowest.txt" in gate
