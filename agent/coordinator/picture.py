"""What the journals of many agents say of one run, put together. Pure: reports in, a picture out."""

from __future__ import annotations

import itertools
import math
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from agent.contract.errors import ErrorCode
from agent.contract.messages import AttemptReport, Result, Targets
from agent.contract.outcomes import failure
from agent.contract.states import Outcome
from agent.coordinator.results import TargetResult, target_json, time_json
from agent.coordinator.targets import Target
from agent.coordinator.verdict import Ended, Verdict, that_counts, verdict_of

#: Who is missing of a run is found by its hash, if no more targets than this must be hashed for it (half a second).
MAX_GUESSED = 300_000
#: What a UUIDv7 can tell and is a time: 48 bits of milliseconds reach further than anything we can write.
_LAST_YEAR = 9000


@dataclass(frozen=True, slots=True)
class Known:
    """A target of the run, and every attempt that its journal has, lowest first."""

    target: Target
    attempts: tuple[AttemptReport, ...]

    @property
    def alive(self) -> tuple[AttemptReport, ...]:
        """The attempts that run, or wait to: a later one may have been refused because of that."""
        return tuple(each for each in self.attempts if not each.state.ended)

    @property
    def counts(self) -> AttemptReport:
        """The attempt that stands for the target: one that is alive, else the last that may have had an effect."""
        if self.alive:
            return self.alive[-1]
        return self.attempts[that_counts([_ended(each) for each in self.attempts])]

    @property
    def result(self) -> TargetResult | None:
        """What came of it; None while something is alive."""
        if self.alive:
            return None
        one, last = self.counts, self.attempts[-1]
        said = one.outcome
        result = Result.of(said) if said else failure(Outcome(one.state), ErrorCode.SILENT, "the details did not fit")
        if last is not one:
            note = f"attempt {last.attempt} was {last.state}"
            result = result.model_copy(update={"notes": [*result.notes, note]})
        return TargetResult(self.target, one.attempt, result)


@dataclass(frozen=True, slots=True)
class Picture:
    """One run as the agents know it; `verified` if each proved with its namespace's key that it is they who say so.

    Run ids are each key's own. `kid` is the asker's key: if it began a run of this id, that is the one that is shown.

    `known`: targets whose journal has it. `strangers`: agents that answered and never saw it. `blind`: agents that
    cannot tell, and why. `silent`: agents that are online and did not answer. `offline`: those that were not asked.
    """

    run_id: str
    known: tuple[Known, ...]
    strangers: tuple[Target, ...] = ()
    blind: tuple[tuple[Target, str], ...] = ()
    silent: tuple[Target, ...] = ()
    offline: tuple[Target, ...] = ()
    verified: bool = False
    kid: str = ""

    @property
    def hook(self) -> str:
        """The hook's name, as its triggers had it."""
        return next((each.name for known in self.known for each in known.attempts if each.name), "")

    @property
    def keys(self) -> frozenset[str]:
        """The keys that began what is known, as far as agents note them. Several are several runs with one id."""
        return frozenset(each.key_id for known in self.known for each in known.attempts if each.key_id is not None)

    @property
    def aims(self) -> Targets | None:
        """How many targets the run has, and who they are, hashed; None if nobody says, or they disagree."""
        if len(self.keys) > 1:
            return None
        said = {each.targets for known in self.known for each in known.attempts if each.targets is not None}
        return said.pop() if len(said) == 1 else None

    @property
    def missing(self) -> int:
        """How many targets nobody has told of."""
        return max(0, self.aims.count - len(self.known)) if self.aims else 0

    @property
    def unheard(self) -> tuple[Target, ...]:
        """Agents that may know more than was told."""
        return tuple(sorted({*(target for target, _ in self.blind), *self.silent, *self.offline}))

    @property
    def issued_at(self) -> datetime | None:
        """When its first trigger was issued, as far as is known."""
        return min((each.issued_at for known in self.known for each in known.attempts if each.issued_at), default=None)

    @property
    def changed_at(self) -> datetime | None:
        """When something last became of it, by the agents' clocks."""
        return max(
            (each.changed_at for known in self.known for each in known.attempts if each.changed_at), default=None
        )

    @property
    def duration_seconds(self) -> float:
        """From its first trigger until something last became of it; clocks that differ do not make it negative."""
        if self.issued_at is None or self.changed_at is None:
            return 0
        return max(0, (self.changed_at - self.issued_at).total_seconds())

    @property
    def whole(self) -> bool:
        """Whether every target of the run has told, and nobody else."""
        return self.aims is not None and self.matches(each.target for each in self.known)

    @property
    def verdict(self) -> Verdict:
        """What it amounts to, as far as is known."""
        if not self.known:
            return Verdict.INCOMPLETE if self.unheard else Verdict.NOT_FOUND
        results = [each.result for each in self.known]
        if any(each is None for each in results):
            return Verdict.RUNNING
        return self.verdict_on([each.result.outcome for each in results if each is not None])

    def verdict_on(self, outcomes: Sequence[Outcome]) -> Verdict:
        """What these outcomes of its known targets amount to: a part of a run never succeeds on all pods."""
        aims = self.aims
        if aims is None:
            return Verdict.INCOMPLETE
        cancelled = Outcome.CANCELLED in outcomes
        if aims.strategy == "ExecuteOnAll" and not self.whole:
            return Verdict.CANCELLED if cancelled else Verdict.INCOMPLETE
        verdict = verdict_of(aims.strategy, outcomes, aims.count, cancelled=cancelled)
        unsure = aims.strategy == "ExecuteOnOne" and verdict is Verdict.FAILED and self.missing and self.unheard
        # Another key's run: it may have copied whose targets these are, so they must prove to be among them.
        proven = self.whole or bool(self.name_missing())
        if self.keys - {self.kid} and not proven:
            return Verdict.INCOMPLETE
        return Verdict.INCOMPLETE if unsure else verdict

    @property
    def states(self) -> dict[str, int]:
        """How many targets are in which state."""
        return dict(Counter(str(each.counts.state) for each in self.known))

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object of a run that is asked about. A target that has not ended has no outcome yet."""
        targets = []
        for each in self.known:
            ended = each.result
            said = target_json(each.target, each.counts.attempt, ended.result if ended else None)
            targets.append(said | {"state": str(each.counts.state)})
        return {
            "run_id": self.run_id,
            "hook": self.hook,
            "verdict": str(self.verdict),
            "started_at": time_json(self.issued_at),
            "duration_ms": round(self.duration_seconds * 1000, 3),
            "strategy": self.aims.strategy if self.aims else None,
            "verified": self.verified,
            "expected_targets": self.aims.count if self.aims else None,
            "targets": targets,
            "cannot_tell": [{"agent": str(target), "why": why} for target, why in self.blind],
            "silent": [str(target) for target in self.silent],
            "offline": [str(target) for target in self.offline],
        }

    def updated(self, later: Picture) -> Picture:
        """This picture with what a later look showed; who was not heard by it keeps what is known of it."""
        known = {each.target: each for each in (*self.known, *later.known)}
        return replace(later, known=tuple(known[target] for target in sorted(known)))

    def matches(self, targets: Iterable[Target]) -> bool:
        """Whether these are all targets of the run, and no other."""
        return self.aims is not None and Targets.of(map(_id, targets)).hash == self.aims.hash

    def name_missing(self) -> tuple[Target, ...] | None:
        """Who the missing targets are, if they are among the agents that are there; None if that cannot be found."""
        found = [each.target for each in self.known]
        others = [*self.strangers, *self.unheard]
        if self.aims is None or self.missing == 0:
            return ()
        if math.comb(len(others), self.missing) * self.aims.count > MAX_GUESSED:
            return None
        return next(
            (guess for guess in itertools.combinations(others, self.missing) if self.matches([*found, *guess])), None
        )


def picture_of(
    run_id: str,
    attempts: Mapping[Target, Sequence[AttemptReport]],
    *,
    blind: Mapping[Target, str] | None = None,
    silent: Iterable[Target] = (),
    offline: Iterable[Target] = (),
    verified: bool = False,
    kid: str = "",
) -> Picture:
    """Put together what agents said: the attempts of each that answered, in any order, and why some cannot tell."""
    blind = blind or {}
    if kid and any(each.key_id == kid for some in attempts.values() for each in some):
        ours = (kid, None)  # agents that obey everybody note nobody's key
        attempts = {target: [each for each in some if each.key_id in ours] for target, some in attempts.items()}
    known = (
        Known(target, tuple(sorted(some, key=lambda each: each.attempt)))
        for target, some in sorted(attempts.items())
        if some
    )
    return Picture(
        run_id,
        tuple(known),
        strangers=tuple(sorted(target for target, some in attempts.items() if not some and target not in blind)),
        blind=tuple(sorted(blind.items())),
        silent=tuple(sorted(silent)),
        offline=tuple(sorted(offline)),
        verified=verified,
        kid=kid,
    )


def first_possible_issue(run_id: str) -> datetime | None:
    """No trigger of a run was issued before its id was made, which a UUIDv7 tells (RFC 9562, section 5.7).

    By the clock of whoever triggered it, like issued_at itself. None for an id of another kind, or of no sane time.
    """
    made = uuid.UUID(run_id)
    if made.version != 7:
        return None
    try:
        time = datetime.fromtimestamp((made.int >> 80) / 1000, UTC)
    except (ValueError, OverflowError):
        return None
    return time if time.year < _LAST_YEAR else None


def _ended(attempt: AttemptReport) -> Ended:
    return Ended.of(attempt.outcome) if attempt.outcome is not None else Ended(Outcome(attempt.state))


def _id(target: Target) -> tuple[str, str, str]:
    return target.namespace, target.pod, target.pod_uid
