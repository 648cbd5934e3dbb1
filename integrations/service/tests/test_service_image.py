"""The image: what its Dockerfile names is there and reaches the build; the installed page."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest
from power_service import cli
from service_harness import SERVICE

ROOT = SERVICE.parents[1]
DOCKERFILE = (SERVICE / "Dockerfile").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def named() -> Iterator[str]:
    """The files and folders of the checkout that its instructions name."""
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    for line in lines:
        words = line.split()
        if words[:1] == ["COPY"] and not words[1].startswith("--from"):
            yield from words[1:-1]
        for option, name in itertools.pairwise(words):
            if words[0] == "RUN" and option in ("-f", "-c") and "/" in name:
                yield name


def packaged() -> set[str]:
    """What the wheel is made of."""
    blocks = re.findall(
        r"^\[tool\.hatch\.build\.targets\.wheel\.(?:force-include|sources)\]\n(.*?)(?:\n\n|\Z)",
        PYPROJECT,
        re.MULTILINE | re.DOTALL,
    )
    return {name for block in blocks for name in re.findall(r'^"([^"]+)" = ', block, re.MULTILINE)}


def is_ignored(path: str) -> bool:
    """Whether Dockerfile.dockerignore keeps a path out: its last matching line decides."""
    ignored = False
    places = [str(place) for place in (PurePosixPath(path), *PurePosixPath(path).parents)][:-1]
    for line in (
        (ROOT / "integrations/service/Dockerfile.dockerignore")
        .read_text(encoding="utf-8")
        .splitlines()
    ):
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            anywhere = pattern.removeprefix("**/")
            for place in places:
                name = PurePosixPath(place).name
                if fnmatch(place, pattern) or (anywhere != pattern and fnmatch(name, anywhere)):
                    ignored = not line.startswith("!")
    return ignored


def test_what_the_dockerfile_names_is_there_and_reaches_the_build() -> None:
    """Also what the wheel is made of; the built page comes with the repository."""
    names = {*named(), *packaged(), "pyproject.toml", "README.md", "LICENSE"}
    assert {".", ".ci/constraints.txt", "integrations/dashboard/dist/index.html"} <= names
    for name in names:
        assert (ROOT / name).exists() or name.startswith("integrations/dashboard/dist"), name
        assert not is_ignored(name), name


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".git/config", True),
        ("integrations/client/src/client.ts", True),
        ("integrations/dashboard/node_modules/x/y.js", True),
        ("integrations/dashboard/src/App.tsx", True),
        ("integrations/dashboard/dist/assets/index.js", False),
        ("integrations/service/power_service/app.py", False),
        ("integrations/service/tests/conftest.py", True),
        ("power_manager.db-wal", True),
    ],
)
def test_what_no_image_needs_stays_out(path: str, expected: bool) -> None:
    """As Docker reads Dockerfile.dockerignore."""
    assert is_ignored(path) == expected


def test_what_it_installs_and_how_it_is_run_exist() -> None:
    """Its extras, and the commands in its comments."""
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", DOCKERFILE)
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = \[", PYPROJECT, re.MULTILINE), extra
    (command,) = re.findall(r"^#.* power-service (token .*)$", DOCKERFILE, re.MULTILINE)
    options = cli._options(command.split())
    assert options.db == "/data/power_manager.db"


def test_an_installed_package_has_the_page() -> None:
    """The wheel that the gate builds and installs; a checkout that is not installed has its own."""
    if not (ROOT / "integrations/dashboard/dist/index.html").exists():
        pytest.skip("the page is not built")
    try:
        files = metadata.files("blackroad-power-manager") or []
    except metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    names = {Path(str(file)).as_posix() for file in files}
    if "power_service/app.py" not in names:
        pytest.skip("the checkout itself is installed")
    assert "power_service/dashboard/index.html" in names
    assert any(name.startswith("power_service/dashboard/assets/") for name in names)
