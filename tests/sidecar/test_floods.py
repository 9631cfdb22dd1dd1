"""How many log lines a flood of refusals may write: counted with a clock of our own."""

from __future__ import annotations

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from agent.sidecar.floods import BY_STRANGERS, Flood, Floods


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_the_first_lines_of_a_minute_pass_and_the_rest_is_counted():
    clock = Clock()
    flood = Flood(3, clock)
    assert [flood.admit() for _ in range(5)] == [0, 0, 0, None, None]
    clock.seconds += 20  # a third of a minute is one line
    assert [flood.admit() for _ in range(3)] == [2, None, None]
    clock.seconds += 3600  # never more than a minute's worth
    assert [flood.admit() for _ in range(5)] == [2, 0, 0, None, None]


def test_what_was_left_out_is_told_when_the_flood_is_over():
    clock = Clock()
    flood = Flood(1, clock)
    assert [flood.admit() for _ in range(10_000)].count(None) == 9_999
    assert flood.leftover() == 0, "not before a line may be written"
    clock.seconds += 60
    assert flood.leftover() == 9_999
    clock.seconds += 60
    assert flood.leftover() == 0


@given(lines=st.integers(1, 100), waits=st.lists(st.floats(0, 120), max_size=200))
def test_every_line_is_written_or_counted_and_no_minute_has_more_than_twice_its_lines(lines, waits):
    clock = Clock()
    flood = Flood(lines, clock)
    written, counted, times = 0, 0, []
    for wait in waits:
        clock.seconds += wait
        if (suppressed := flood.admit()) is not None:
            written += 1
            counted += suppressed
            times.append(clock.seconds)
    clock.seconds += 120
    counted += flood.leftover()
    # A leftover is told with a line of its own.
    assert written + counted == len(waits)
    for begin in times:
        assert sum(begin <= at < begin + 60 for at in times) <= 2 * lines


def test_only_what_strangers_can_cause_is_left_out():
    floods = Floods(lambda: Flood(1, lambda: 0.0))
    assert floods(None, "info", {"event": "command.refused"}) == {"event": "command.refused"}
    with pytest.raises(structlog.DropEvent):
        floods(None, "info", {"event": "command.refused"})
    assert floods(None, "info", {"event": "trigger.refused"}) == {"event": "trigger.refused"}, "each has its own count"
    for _ in range(3):
        assert floods(None, "info", {"event": "attempt.finished"}) == {"event": "attempt.finished"}
    assert "attempt.finished" not in BY_STRANGERS
    assert list(floods.leftovers()) == []


def test_a_line_after_a_flood_says_how_many_were_left_out():
    clock = Clock()
    floods = Floods(lambda: Flood(1, clock))
    for _ in range(4):
        try:
            floods(None, "warning", {"event": "command.refused"})
        except structlog.DropEvent:
            continue
    clock.seconds += 60
    assert floods(None, "warning", {"event": "command.refused"}) == {"event": "command.refused", "suppressed": 3}
    clock.seconds += 60
    assert floods(None, "warning", {"event": "command.refused"}) == {"event": "command.refused"}
