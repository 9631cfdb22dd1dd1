"""What is installed was written down: versions, and the hash of every file that may be installed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.sbom import canonical, locked, problems

ROOT = Path(__file__).resolve().parent.parent
ALL = "constraints.txt"
PARTS = ["requirements/image.txt", "requirements/demo.txt", "requirements/build.txt"]
LOCKS = [ALL, *PARTS, "requirements/tools.txt"]
BLOCK = re.compile(r"^(?P<pin>[a-z0-9.-]+==\S+)(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    declared: dict[str, Any] = tomllib.loads(text_of("pyproject.toml"))["project"]
    return declared


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_of_a_lock_is_a_version_with_its_hashes(name: str) -> None:
    header, _, rest = text_of(name).partition("\n")
    assert header.endswith("Made by make constraints.")
    blocks = list(BLOCK.finditer(rest))
    assert BLOCK.sub("", rest).strip() == "", "something else stands there: a URL, an option, or no hash"
    assert len({found["pin"] for found in blocks}) == len(blocks) > 2


@pytest.mark.parametrize("name", PARTS)
def test_the_parts_are_of_the_whole(name: str) -> None:
    assert set(BLOCK.findall(text_of(name))) <= set(BLOCK.findall(text_of(ALL))), "make constraints"


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        (ALL, ("demo", "dev", "kubernetes")),
        ("requirements/image.txt", ("kubernetes",)),
        ("requirements/demo.txt", ("demo",)),
    ],
)
def test_what_the_project_asks_for_is_locked(name: str, extras: tuple[str, ...]) -> None:
    pins, declared = locked(text_of(name)), project()
    asked = [
        *declared["dependencies"],
        *(each for extra in extras for each in declared["optional-dependencies"][extra]),
    ]
    for requirement in map(Requirement, asked):
        version = pins.get(canonical(requirement.name))
        assert version is not None, f"{requirement.name} is not in {name}: make constraints"
        assert requirement.specifier.contains(version), f"{requirement} and {version} in {name}: make constraints"


@pytest.mark.parametrize("package", ["pydantic-core", "uuid-utils", "aiohttp", "cryptography", "pyyaml"])
def test_there_are_hashes_for_more_than_this_machine(package: str) -> None:
    (hashes,) = (found["hashes"] for found in BLOCK.finditer(text_of(ALL)) if found["pin"].startswith(f"{package}=="))
    assert hashes.count("--hash=") >= 12, "three versions of Python on two kinds of machine, musl and the source"


def bom(**changes: Any) -> dict[str, Any]:
    component = {"name": "a.b", "version": "1", "purl": "pkg:pypi/a-b@1"}
    return {
        "bomFormat": "CycloneDX",
        "metadata": {"component": {"name": "podhook"}},
        "components": [component],
        **changes,
    }


def test_a_bill_of_materials_says_exactly_what_is_locked() -> None:
    assert problems(bom(), {"a-b": "1"}) == []
    assert problems(bom(bomFormat="SPDX"), {"a-b": "1"})
    assert problems(bom(metadata={}), {"a-b": "1"})
    assert problems(bom(), {"a-b": "2"}) == ["a-b: 1 in the document, 2 in the lock file"]
    assert problems(bom(), {}) == ["a-b: 1 in the document, none in the lock file"]
    assert problems(bom(components=[]), {"a-b": "1"}) == ["a-b: missing in the document, 1 in the lock file"]
    assert problems(bom(components=[{"name": "a.b", "version": "1"}]), {"a-b": "1"}) == ["a-b: its purl is None"]
