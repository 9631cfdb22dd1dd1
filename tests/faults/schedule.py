"""What will happen when, and to whom: all of it follows from the seed, and all of it is made here. Pure.

A run is cut into periods of about 40 s. In each of them every kind of fault is dealt at least once, at random times
and to random victims, so that a short run has every ingredient and a long one has many mixtures. What must not
disturb each other keeps to lanes: an agent's process, its place (disk and clock) and its link are three of them, the
broker is one. Some faults are little plays of several acts that prove one promise; those have all lanes of
their agent to themselves, and the broker stands still meanwhile, because otherwise they would prove nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

AGENTS = tuple(f"db-{at}" for at in range(5))
COORDINATORS = ("coordinator-0", "coordinator-1")
BROKER = "broker"
PERIOD_SECONDS = 40
#: Nothing happens before everybody worked for a moment, and nothing begins just before the end.
FIRST_SECONDS, LAST_SECONDS = 2.0, 1.0
#: Rates of triggers: one straight to an agent, and one run of a coordinator on one agent or on all.
RAW_EVERY_SECONDS, RUN_EVERY_SECONDS = 0.75, 2.6
TRIES = 400


class Kind(StrEnum):
    """A kind of fault; the names are those of the methods that do them."""

    KILL_BROKER = "kill_broker"
    STOP_BROKER = "stop_broker"
    FREEZE_BROKER = "freeze_broker"
    KILL_COORDINATOR = "kill_coordinator"
    FREEZE_COORDINATOR = "freeze_coordinator"
    REPLACE_POD = "replace_pod"
    JOURNAL_LOCKED = "journal_locked"
    LATE = "late"
    KILL_AGENT = "kill_agent"
    FREEZE_AGENT = "freeze_agent"
    DISK_FULL = "disk_full"
    CLOCK_STEP = "clock_step"
    CUT = "cut"
    DEAF = "deaf"
    DELAY = "delay"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    REPLAY = "replay"
    CANCEL_FIRST = "cancel_first"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: it begins `at` seconds after the start and is undone `seconds` later. `pick` in [0, 1) decides the
    rest: a direction, a size, which of the old messages."""

    at: float
    kind: Kind
    victim: str
    seconds: float
    pick: float


@dataclass(frozen=True, slots=True)
class Work:
    """A trigger straight to an agent (`by` is empty), or a run of a coordinator on `pods`.

    The action sleeps and exits with a code. `window_seconds` is how long it may take to start.
    """

    at: float
    by: str
    pods: tuple[str, ...]
    sleep_seconds: float
    exit_code: int
    timeout_seconds: float
    window_seconds: float
    on_one: bool = False
    max_retry: int = 0
    cancel_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything, in order of time. `left_out` are faults for which no place was found."""

    seed: int
    seconds: float
    faults: tuple[Fault, ...]
    works: tuple[Work, ...]
    left_out: tuple[Kind, ...] = ()


@dataclass(frozen=True, slots=True)
class _Rule:
    """How often a kind is dealt in a period, how long it lasts, and how long its victim needs to be itself again.

    `lanes` it needs alone; `beside` it shares with others that do the same.
    """

    times: int
    shortest: float
    longest: float
    settle: float
    lanes: tuple[str, ...]
    victims: tuple[str, ...] = AGENTS
    beside: tuple[str, ...] = ()


_LINKS = (*AGENTS, *AGENTS, *COORDINATORS)
_PLAY = ("process", "place", "link")
#: In the order in which places are found: what needs most room first.
_RULES: dict[Kind, _Rule] = {
    Kind.KILL_BROKER: _Rule(1, 0.5, 3, 2, (BROKER,), (BROKER,)),
    Kind.STOP_BROKER: _Rule(1, 0.3, 2, 2, (BROKER,), (BROKER,)),
    Kind.FREEZE_BROKER: _Rule(1, 1, 6, 1, (BROKER,), (BROKER,)),
    Kind.REPLACE_POD: _Rule(2, 0.3, 1.5, 4, _PLAY, beside=(BROKER,)),
    Kind.LATE: _Rule(2, 3.5, 4.5, 2.5, _PLAY, beside=(BROKER,)),
    Kind.JOURNAL_LOCKED: _Rule(2, 1, 2, 4, _PLAY, beside=(BROKER,)),
    Kind.DISK_FULL: _Rule(2, 3, 6, 7.5, ("place",)),
    Kind.CLOCK_STEP: _Rule(2, 3, 8, 0.5, ("place",)),
    Kind.KILL_AGENT: _Rule(4, 0.2, 3, 1.5, ("process",)),
    Kind.FREEZE_AGENT: _Rule(3, 1, 6, 0.5, ("process",)),
    Kind.KILL_COORDINATOR: _Rule(2, 0.2, 2, 1.5, ("process",), COORDINATORS),
    Kind.FREEZE_COORDINATOR: _Rule(1, 1, 6, 0.5, ("process",), COORDINATORS),
    Kind.CUT: _Rule(3, 0, 0, 1, ("link",), _LINKS),
    Kind.DEAF: _Rule(3, 1, 5, 1, ("link",), _LINKS),
    Kind.DELAY: _Rule(2, 2, 5, 1, ("link",), _LINKS),
    Kind.DUPLICATE: _Rule(3, 3, 6, 0.5, ("link",), _LINKS),
    Kind.REORDER: _Rule(3, 3, 6, 1, ("link",), _LINKS),
    Kind.REPLAY: _Rule(6, 0, 0, 0.5, ()),
    Kind.CANCEL_FIRST: _Rule(4, 0.05, 0.5, 0, ()),
}


@dataclass(slots=True)
class _Lanes:
    """Who is busy when. A span is (begin, end, shared)."""

    spans: dict[str, list[tuple[float, float, bool]]] = field(default_factory=dict)

    def free(self, name: str, begin: float, end: float, *, shared: bool) -> bool:
        return all(
            end <= other or begin >= until or (shared and also) for other, until, also in self.spans.get(name, ())
        )

    def take(self, name: str, begin: float, end: float, *, shared: bool) -> None:
        self.spans.setdefault(name, []).append((begin, end, shared))


def make(seed: int, seconds: float) -> Plan:
    """The plan of a seed: nothing but the two numbers goes in."""
    chance = random.Random(seed)
    periods = max(1, int(seconds // PERIOD_SECONDS))
    length = (seconds - FIRST_SECONDS - LAST_SECONDS) / periods
    lanes, faults, left_out = _Lanes(), list[Fault](), list[Kind]()
    for period in range(periods):
        begin = FIRST_SECONDS + period * length
        for kind, rule in _RULES.items():
            for _ in range(rule.times):
                fault = _place(chance, lanes, kind, rule, begin, begin + length)
                if fault is None:
                    left_out.append(kind)
                else:
                    faults.append(fault)
    works = [*_raw(chance, seconds), *_runs(chance, seconds)]
    return Plan(
        seed,
        seconds,
        tuple(sorted(faults, key=lambda each: (each.at, each.kind))),
        tuple(sorted(works, key=lambda each: (each.at, each.by))),
        tuple(left_out),
    )


def _place(chance: random.Random, lanes: _Lanes, kind: Kind, rule: _Rule, begin: float, end: float) -> Fault | None:
    for _ in range(TRIES):
        seconds = round(chance.uniform(rule.shortest, rule.longest), 2)
        victim = chance.choice(rule.victims)
        at = round(chance.uniform(begin, max(begin, end - seconds - rule.settle)), 2)
        wanted = [(_lane(victim, lane), False) for lane in rule.lanes] + [(lane, True) for lane in rule.beside]
        span = at, at + seconds + rule.settle
        if all(lanes.free(lane, *span, shared=shared) for lane, shared in wanted):
            for lane, shared in wanted:
                lanes.take(lane, *span, shared=shared)
            return Fault(at, kind, victim, seconds, chance.random())
    return None


def _lane(victim: str, lane: str) -> str:
    return lane if victim == BROKER else f"{victim}.{lane}"


def _times(chance: random.Random, seconds: float, every_seconds: float) -> Iterable[float]:
    at = 0.2
    while at < seconds - LAST_SECONDS:
        yield round(at, 2)
        at += chance.uniform(0.3, 1.7) * every_seconds


def _action(chance: random.Random, left_seconds: float) -> tuple[float, int, float]:
    """How long the action sleeps, its exit code, its timeout: most are quick and good, and the last ones are short."""
    sleep, timeout = 0.0, 30.0
    match chance.choices(("quick", "some", "long", "very long", "times out"), (50, 32, 8, 4, 6))[0]:
        case "quick":
            sleep = chance.uniform(0, 0.3)
        case "some":
            sleep = chance.uniform(0.3, 3)
        case "long":
            sleep = chance.uniform(3, 6)
        case "very long":
            sleep = chance.uniform(10, 12)
        case "times out":
            sleep, timeout = 6, chance.uniform(0.5, 1.5)
    sleep = min(sleep, max(left_seconds, 3))
    return round(sleep, 2), chance.choice((0, 0, 0, 0, 0, 0, 1, 3, 7)), round(timeout, 2)


def _raw(chance: random.Random, seconds: float) -> Iterable[Work]:
    for at in _times(chance, seconds, RAW_EVERY_SECONDS):
        window = round(chance.choice((4, 10, 20, 60)) * chance.uniform(0.7, 1), 2)
        yield Work(at, "", (chance.choice(AGENTS),), *_action(chance, seconds - at), window)


def _runs(chance: random.Random, seconds: float) -> Iterable[Work]:
    for at in _times(chance, seconds, RUN_EVERY_SECONDS):
        pods = AGENTS if chance.random() < 0.6 else (chance.choice(AGENTS),)
        yield Work(
            at,
            chance.choice(COORDINATORS),
            pods,
            *_action(chance, seconds - at),
            round(chance.uniform(5, 12), 2),
            on_one=len(pods) > 1 and chance.random() < 0.25,
            max_retry=chance.choice((0, 0, 1)),
            cancel_after_seconds=round(chance.uniform(0.2, 3), 2) if chance.random() < 0.12 else None,
        )
