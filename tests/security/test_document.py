"""SECURITY.md names the test behind each of its words: those tests are there."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAID = re.findall(r"`([^`\n]+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
PLACES = sorted({each.partition("::")[0] for each in SAID if each.startswith("tests/")})
NAMES = sorted({each for each in SAID if each.startswith("test_")})


@pytest.mark.parametrize("place", PLACES)
def test_the_place_is_there(place: str) -> None:
    assert (ROOT / place).exists(), f"SECURITY.md names {place}, which is not there"


@pytest.mark.parametrize("name", NAMES)
def test_the_test_is_there(name: str) -> None:
    files = (ROOT / "tests").rglob("test_*.py")
    tests = [each for path in files for each in re.findall(r"def (test_\w+)\(", path.read_text(encoding="utf-8"))]
    assert fnmatch.filter(tests, name), f"SECURITY.md names {name}, which is not there"


def test_it_names_tests() -> None:
    assert len(PLACES) >= 5
    assert len(NAMES) >= 5
