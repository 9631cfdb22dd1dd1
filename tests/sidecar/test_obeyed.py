"""Since when whom the agent obeys: told to it as it happens, and kept over restarts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sidecar.obeyed import UNSIGNED, Obeyed

BEGIN = datetime(2026, 3, 1, 2, 30, 0, 123457, tzinfo=UTC)


class Life:
    """One life of an agent: started at a time, told what is obeyed; minutes go by."""

    def __init__(self, begins: float, kept: str | None = None, *kids: str) -> None:
        self.minutes = begins
        self.obeyed = Obeyed(lambda: at(self.minutes))
        self.obeyed.are(kids)
        self.obeyed.recall(kept)

    def are(self, minutes: float, *kids: str) -> None:
        self.minutes = minutes
        self.obeyed.are(kids)

    @property
    def since(self) -> dict[str, float]:
        return {kid: (since - BEGIN) / timedelta(minutes=1) for kid, since in self.obeyed.since.items()}


def at(minutes: float) -> datetime:
    return BEGIN + timedelta(minutes=minutes)


def test_the_first_are_obeyed_since_the_start_and_the_next_since_they_came():
    life = Life(0, None, "a")
    life.are(5, "a", "b")
    life.are(7, "b", "a")
    assert life.since == {"a": 0, "b": 5}
    life.are(8, "b")
    life.are(9, "a", "b")
    assert life.since == {"a": 9, "b": 5}, "who went and came again is new"


def test_what_is_looked_at_late_counts_since_the_start_the_first_time():
    life = Obeyed(iter([at(0), at(3)]).__next__)
    life.are(["a"])
    assert life.since == {"a": at(0)}


def test_a_restart_makes_nobody_younger_or_older():
    first = Life(0, None, "a")
    first.are(5, "a", "b")
    assert Life(10, first.obeyed.text, "a", "b").since == {"a": 0, "b": 5}


def test_who_came_while_the_agent_was_away_is_obeyed_since_it_is_back():
    assert Life(10, Life(0, None, "a").obeyed.text, "a", "new").since == {"a": 0, "new": 10}


def test_who_went_and_came_again_is_new():
    second = Life(10, Life(0, None, "a", "b").obeyed.text, "a")
    assert Life(20, second.obeyed.text, "a", "b").since == {"a": 0, "b": 20}


def test_from_signed_to_unsigned_nothing_old_runs_unsigned():
    assert Life(10, Life(0, None, "a").obeyed.text, UNSIGNED).since == {UNSIGNED: 10}
    assert Life(10, Life(0, None).obeyed.text, UNSIGNED).since == {UNSIGNED: 10}, "closed before"


def test_from_unsigned_to_signed_there_is_no_gap():
    """Nothing was refused for its key, and what ran unsigned is known to every key (the journal's `remember`)."""
    assert Life(10, Life(0, None, UNSIGNED).obeyed.text, "a", "b").since == {"a": 0, "b": 0}


@pytest.mark.parametrize(
    "kept", [None, "", "nonsense", "[]", "3", '{"a": "x"}', '{"a": 1e400}', '{"a": null}', "[" * 10_000]
)
def test_a_memory_that_cannot_be_read_makes_everybody_new(kept):
    assert Life(10, kept, "a").since == {"a": 10}


def test_a_memory_that_comes_late_changes_nothing_that_happened_since():
    """The journal could not be opened at the start."""
    life = Life(10, None, "a", "b")
    life.are(12, "a")
    life.are(13, "a", "b", "c")
    life.obeyed.recall(Life(0, None, "a", "b", "c").obeyed.text)
    assert life.since == {"a": 0, "b": 13, "c": 13}


@given(lives=st.lists(st.lists(st.frozensets(st.sampled_from("abc")), min_size=1, max_size=4), min_size=1, max_size=4))
def test_nobody_is_ever_obeyed_since_before_a_moment_at_which_he_was_not(lives):
    """Whatever came and went, with restarts in between: what was refused for its key stays refused."""
    minutes, kept, refused_until = 0.0, None, dict.fromkeys("abc", -1.0)
    for looks in lives:
        life = Life(minutes, kept, *looks[0])
        for kids in looks:
            life.are(minutes, *kids)
            refused_until |= {kid: minutes for kid in "abc" if kid not in kids}
            for kid, since in life.since.items():
                assert since > refused_until[kid] or since == minutes == refused_until[kid]
            minutes += 1
        kept = life.obeyed.text
