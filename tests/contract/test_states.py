"""States: the tables are closed, and a move that is not in them changes nothing."""

from __future__ import annotations

import itertools

import pytest

from agent.contract.errors import IllegalMove
from agent.contract.states import (
    ATTEMPT_MOVES,
    FIRST_STATES,
    GUARD_MOVES,
    SAID_BY_AGENT,
    SAID_BY_COORDINATOR,
    AttemptState,
    GuardState,
    Outcome,
    move,
)

TABLES = [(AttemptState, ATTEMPT_MOVES), (GuardState, GUARD_MOVES)]


@pytest.mark.parametrize(("states", "table"), TABLES, ids=["attempt", "guard"])
def test_every_state_is_in_its_table(states, table):
    assert set(table) == set(states)
    assert set().union(*table.values()) <= set(states)


@pytest.mark.parametrize(
    ("present", "following", "allowed"),
    [
        (present, following, following in table[present])
        for states, table in TABLES
        for present, following in itertools.product(states, repeat=2)
    ],
)
def test_a_move_is_made_if_and_only_if_the_table_has_it(present, following, allowed):
    if allowed:
        assert move(present, following) is following
    else:
        with pytest.raises(IllegalMove, match=f"{following} cannot follow {present}"):
            move(present, following)


def test_the_message_says_what_may_follow():
    with pytest.raises(IllegalMove, match=r"may follow: cancelled, interrupted, rejected, started\)"):
        move(AttemptState.READY, AttemptState.SUCCEEDED)
    with pytest.raises(IllegalMove, match="nothing: it has ended"):
        move(AttemptState.FAILED, AttemptState.STARTED)


def test_nothing_that_ended_starts_again():
    for state in AttemptState:
        assert state.ended == (state not in (AttemptState.READY, AttemptState.STARTED))
    assert [s for s in AttemptState if AttemptState.STARTED in ATTEMPT_MOVES[s]] == [AttemptState.READY]


def test_an_attempt_ends_as_one_of_the_outcomes_an_agent_can_say():
    ends = {Outcome(state.value) for state in AttemptState if state.ended}
    assert ends == SAID_BY_AGENT


def test_every_state_can_be_reached_from_a_first_one():
    reached, fresh = set(), set(FIRST_STATES)
    while fresh:
        reached |= fresh
        fresh = set().union(*(ATTEMPT_MOVES[state] for state in fresh)) - reached
    assert reached == set(AttemptState)


def test_only_the_coordinator_speaks_of_silence():
    assert frozenset({Outcome.UNREACHABLE, Outcome.LOST}) == SAID_BY_COORDINATOR
    assert set(Outcome) == SAID_BY_AGENT | SAID_BY_COORDINATOR
    assert not SAID_BY_AGENT & SAID_BY_COORDINATOR


def test_a_fired_guard_can_no_longer_be_released():
    assert GuardState.RELEASED not in GUARD_MOVES[GuardState.FIRING] | GUARD_MOVES[GuardState.UNDO_FAILED]
    assert GUARD_MOVES[GuardState.RELEASED] == GUARD_MOVES[GuardState.UNDONE] == frozenset()


def test_an_undo_that_failed_may_be_tried_again():
    assert move(GuardState.UNDO_FAILED, GuardState.FIRING) is GuardState.FIRING
