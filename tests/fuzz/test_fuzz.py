"""Every harness for a moment, with other inputs each time; and that a harness finds what is there to be found."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from tests.fuzz import running
from tests.fuzz.harnesses import BY_NAME, GOOD, HARNESSES, KEYED, Harness, opens
from tests.fuzz.running import chunk, run

INPUTS = 100


@pytest.mark.parametrize("harness", HARNESSES, ids=lambda each: each.name)
def test_a_hundred_inputs_are_answered_as_they_should_be(harness: Harness) -> None:
    assert chunk(harness, None, INPUTS) > INPUTS / 2


def _planted(text: bytes) -> None:
    assert b"\xff" not in text, "the planted fault"


def test_a_fault_is_found_and_its_seed_finds_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BY_NAME, "planted", Harness("planted", BY_NAME["envelope"].inputs, _planted))
    found = run("planted", 1, 60)
    assert "the planted fault" in found.failure
    assert "drawn=b'\\xff'" in found.failure, "the smallest input that does it is said"
    again = run("planted", found.seed, 0)
    assert (again.seed, "the planted fault" in again.failure) == (found.seed, True)


def test_chunks_follow_each_other_until_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int | None] = []

    def noted(_: Harness, seed: int | None) -> int:
        seeds.append(seed)
        return 10

    clock = iter(range(100))
    monkeypatch.setattr(running, "chunk", noted)
    monkeypatch.setattr(running.time, "monotonic", lambda: next(clock))
    monkeypatch.setitem(BY_NAME, "planted", Harness("planted", st.none(), bool))
    assert (run("planted", 7, 3).inputs, seeds) == (30, [7, 8, 9])


def test_the_good_tokens_are_good():
    """Otherwise what is damaged would be refused for what was wrong before."""
    assert [opens(KEYED, each) is not None for each in GOOD] == [True] * len(GOOD)
