"""The states of an attempt and of a guard: one table each, and nothing moves but along it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from agent.contract.errors import IllegalMove


class Outcome(StrEnum):
    """How an attempt ended. Each target of a run ends in exactly one (DESIGN: Outcomes)."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    UNREACHABLE = "unreachable"
    LOST = "lost"


#: What only a coordinator says: it speaks about an agent's silence.
SAID_BY_COORDINATOR = frozenset({Outcome.UNREACHABLE, Outcome.LOST})
SAID_BY_AGENT = frozenset(Outcome) - SAID_BY_COORDINATOR


class AttemptState(StrEnum):
    """Where an attempt is, as the agent's journal has it.

    A trigger is checked before it is recorded, so its first state is READY (it waits for `go`), STARTED or
    REJECTED.
    """

    READY = "ready"
    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"

    @property
    def ended(self) -> bool:
        """Whether nothing can follow this state."""
        return not ATTEMPT_MOVES[self]


class GuardState(StrEnum):
    """Where an undo is: armed until it is released, fired when nobody renewed it."""

    ARMED = "armed"
    FIRING = "firing"
    RELEASED = "released"
    UNDONE = "undone"
    UNDO_FAILED = "undo_failed"


_A = AttemptState
ATTEMPT_MOVES: Mapping[AttemptState, frozenset[AttemptState]] = {
    _A.READY: frozenset({_A.STARTED, _A.REJECTED, _A.CANCELLED, _A.INTERRUPTED}),
    # started is written before anything runs, so a deadline that passes meanwhile still ends in rejected, and so does
    # a connection whose every address was refused when it should have been made
    _A.STARTED: frozenset({_A.SUCCEEDED, _A.FAILED, _A.TIMED_OUT, _A.REJECTED, _A.CANCELLED, _A.INTERRUPTED}),
    _A.SUCCEEDED: frozenset(),
    _A.FAILED: frozenset(),
    _A.TIMED_OUT: frozenset(),
    _A.REJECTED: frozenset(),
    _A.CANCELLED: frozenset(),
    _A.INTERRUPTED: frozenset(),
}

#: How an attempt may enter the journal.
FIRST_STATES = frozenset({_A.READY, _A.STARTED, _A.REJECTED, _A.CANCELLED})

_G = GuardState
GUARD_MOVES: Mapping[GuardState, frozenset[GuardState]] = {
    _G.ARMED: frozenset({_G.ARMED, _G.FIRING, _G.RELEASED}),  # armed -> armed is a renewal
    _G.FIRING: frozenset({_G.FIRING, _G.UNDONE, _G.UNDO_FAILED}),  # firing -> firing: the agent restarted
    _G.RELEASED: frozenset(),
    _G.UNDONE: frozenset(),
    _G.UNDO_FAILED: frozenset({_G.FIRING}),  # an undo is tried again
}

S = TypeVar("S", AttemptState, GuardState)


def move(present: S, following: S) -> S:
    """Return `following` if the table lets it follow `present`.

    Raises:
        IllegalMove: it does not; nothing was changed.
    """
    table: Mapping[S, frozenset[S]] = ATTEMPT_MOVES if isinstance(present, AttemptState) else GUARD_MOVES  # type: ignore[assignment]
    if following not in table[present]:
        allowed = ", ".join(sorted(table[present])) or "nothing: it has ended"
        raise IllegalMove(f"{following} cannot follow {present} (may follow: {allowed})")
    return following
