"""The diary, put in order: what is known about each attempt on each pod, and about each pod and the broker. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.faults.diary import Event

#: Who published or heard it, when it was not a real coordinator.
RAW = "raw"
FOREVER = float("inf")


class Key(NamedTuple):
    """One attempt on one pod: all targets of a run share the trigger id."""

    uid: str
    trigger: str


class Word(NamedTuple):
    """How somebody says that an attempt ended. `by` is `journal`, `query`, `raw`, or a coordinator's name."""

    at: float
    by: str
    outcome: str
    code: str


class Row(NamedTuple):
    """A journal's row. `gone`: the journal was thrown away with its pod, right after it was read."""

    state: str
    delivered: bool
    gone: bool


class Span(NamedTuple):
    """From when to when something lasted."""

    begin: float
    end: float

    def meets(self, begin: float, end: float) -> bool:
        return self.begin <= end and begin <= self.end


@dataclass(slots=True)
class Attempt:
    """Everything about one attempt on one pod."""

    published: list[float] = field(default_factory=list)
    by: str = ""
    deadline: float = FOREVER
    acknowledged: float | None = None
    copies: list[float] = field(default_factory=list)
    cancels: list[float] = field(default_factory=list)
    deliveries: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    row: Row | None = None
    answered: bool = False
    agent: list[Word] = field(default_factory=list)
    coordinator: list[Word] = field(default_factory=list)

    @property
    def first(self) -> float:
        """When it may first have reached its agent."""
        return min(self.published, default=FOREVER)


@dataclass(slots=True)
class Pod:
    """What was done to one pod's agent."""

    kills: list[float] = field(default_factory=list)
    frozen: list[Span] = field(default_factory=list)
    full: list[Span] = field(default_factory=list)
    clock: list[tuple[float, float]] = field(default_factory=list)
    online: list[float] = field(default_factory=list)
    replaced: float = FOREVER

    def offset(self, at: float) -> float:
        """How far its clock was ahead."""
        return next((offset for since, offset in reversed(self.clock) if since <= at), 0)


@dataclass(slots=True)
class Run:
    """A run of a real coordinator."""

    by: str
    begun: float
    on_one: bool = False
    targets: list[str] = field(default_factory=list)
    verdict: str = ""
    abandoned: bool = False


@dataclass(slots=True)
class Facts:
    """All of it."""

    attempts: dict[Key, Attempt] = field(default_factory=lambda: defaultdict(Attempt))
    pods: dict[str, Pod] = field(default_factory=lambda: defaultdict(Pod))
    runs: dict[str, Run] = field(default_factory=dict)
    broker_kills: list[float] = field(default_factory=list)
    died: list[Event] = field(default_factory=list)

    @classmethod
    def of(cls, events: Iterable[Event]) -> Facts:
        """Read a diary, in whatever order its lines are."""
        facts = cls()
        for event in sorted(events, key=lambda each: each["at"]):
            reader = getattr(facts, f"_{event['what']}", None)
            if reader is not None:
                reader(event)
        return facts

    def _attempt(self, event: Event) -> Attempt:
        return self.attempts[Key(event["uid"], event["trigger"])]

    def _published(self, event: Event) -> None:
        attempt = self._attempt(event)
        attempt.published.append(event["at"])
        attempt.by, attempt.deadline = event["by"], event["deadline"]
        attempt.copies.append(event["at"])

    def _acknowledged(self, event: Event) -> None:
        self._attempt(event).acknowledged = event["at"]

    def _replayed(self, event: Event) -> None:
        self._attempt(event).copies.append(event["at"])

    def _delivered(self, event: Event) -> None:
        self._attempt(event).deliveries.append(event["at"])

    def _cancel_delivered(self, event: Event) -> None:
        self._attempt(event).cancels.append(event["at"])

    def _start(self, event: Event) -> None:
        self._attempt(event).starts.append(event["at"])

    def _end(self, event: Event) -> None:
        self._attempt(event).ends.append(event["at"])

    def _row(self, event: Event) -> None:
        attempt = self._attempt(event)
        attempt.row = Row(event["state"], event["delivered"], event["gone"])
        if event["outcome"]:
            attempt.agent.append(_word(event, "journal"))

    def _answered(self, event: Event) -> None:
        attempt = self._attempt(event)
        if event["outcome"]:
            attempt.answered = True
            attempt.agent.append(_word(event, "query"))

    def _heard(self, event: Event) -> None:
        self._attempt(event).agent.append(_word(event, RAW))

    def _concluded(self, event: Event) -> None:
        self._attempt(event).coordinator.append(_word(event, event["by"]))

    def _run(self, event: Event) -> None:
        self.runs[event["run"]] = Run(event["by"], event["at"], event["on_one"])

    def _selected(self, event: Event) -> None:
        if event["run"] in self.runs:
            self.runs[event["run"]].targets = event["uids"]

    def _verdict(self, event: Event) -> None:
        if event["run"] in self.runs:
            self.runs[event["run"]].verdict = event["verdict"]

    def _coordinator_killed(self, event: Event) -> None:
        for run in self.runs.values():
            run.abandoned |= run.by == event["victim"] and not run.verdict

    def _killed(self, event: Event) -> None:
        self.pods[event["uid"]].kills.append(event["at"])

    def _frozen(self, event: Event) -> None:
        self.pods[event["uid"]].frozen.append(Span(event["at"], FOREVER))

    def _thawed(self, event: Event) -> None:
        _close(self.pods[event["uid"]].frozen, event["at"])

    def _full(self, event: Event) -> None:
        self.pods[event["uid"]].full.append(Span(event["at"], FOREVER))

    def _freed(self, event: Event) -> None:
        _close(self.pods[event["uid"]].full, event["at"])

    def _clock(self, event: Event) -> None:
        self.pods[event["uid"]].clock.append((event["at"], event["offset"]))

    def _online(self, event: Event) -> None:
        self.pods[event["uid"]].online.append(event["at"])

    def _replaced(self, event: Event) -> None:
        self.pods[event["uid"]].replaced = event["at"]

    def _broker_killed(self, event: Event) -> None:
        self.broker_kills.append(event["at"])

    def _died(self, event: Event) -> None:
        self.died.append(event)


def _word(event: Event, by: str) -> Word:
    return Word(event["at"], by, event["outcome"], event["code"] or "")


def _close(spans: list[Span], at: float) -> None:
    if spans and spans[-1].end == FOREVER:
        spans[-1] = Span(spans[-1].begin, at)
