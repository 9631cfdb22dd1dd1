"""A flood becomes some lines and a number, by an injected clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.sidecar.floods import Flood


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_a_burst_passes_and_what_follows_is_counted() -> None:
    clock = Clock()
    flood = Flood(clock, burst=3, per_second=0.5)
    assert [flood.admit() for _ in range(5)] == [0, 0, 0, None, None]
    clock.seconds += 2
    assert flood.admit() == 2, "the two that were held back are told of once"
    assert flood.admit() is None
    clock.seconds += 2
    assert (flood.admit(), flood.admit()) == (1, None)


def test_who_waits_long_gets_no_more_than_the_burst() -> None:
    clock = Clock()
    flood = Flood(clock, burst=2, per_second=1)
    clock.seconds += 1_000_000
    assert [flood.admit() for _ in range(3)] == [0, 0, None]


def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    clock = Clock()
    flood = Flood(clock, burst=1, per_second=1)
    assert flood.admit() == 0
    clock.seconds -= 100
    assert flood.admit() is None
    clock.seconds += 1
    assert flood.admit() == 1


def test_settling_tells_once() -> None:
    flood = Flood(Clock(), burst=1)
    flood.admit()
    flood.admit()
    assert (flood.settle(), flood.settle()) == (1, 0)


@given(st.lists(st.one_of(st.floats(0, 5), st.none()), max_size=200))
def test_every_line_is_either_written_or_counted_and_never_more_than_allowed(steps: list[float | None]) -> None:
    clock = Clock()
    flood = Flood(clock, burst=5, per_second=2)
    asked = passed = told = 0
    for step in steps:
        if step is not None:
            clock.seconds += step
            continue
        asked += 1
        if (held_back := flood.admit()) is not None:
            passed, told = passed + 1, told + held_back
        assert passed <= 5 + 2 * (clock.seconds - 1000) + 1e-6
    assert passed + told + flood.settle() == asked
