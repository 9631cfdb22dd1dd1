"""Hooks that stand on the pods themselves, as Velero's users write them: all pods at once.

A run has one action, so pods whose annotations say the same make one run, and all these runs go on side by side. They
begin together or not at all: whatever is wrong with any annotation, and whichever pod has no live agent, is said of all
pods before anything is triggered. The annotations' own rules are in `agent.contract.velero`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import uuid_utils

from agent.contract.errors import InvalidHook, Problem
from agent.contract.messages import ErrorDetail
from agent.contract.templates import Hook, HookSpec
from agent.contract.velero import PodCommand, When, command_annotation, read_annotations
from agent.coordinator.calls import DEFAULT_START_WINDOW_SECONDS, HookCall
from agent.coordinator.client import Coordinator, utc_now
from agent.coordinator.results import OnEvent, RunResult, ignore
from agent.coordinator.targets import PodSeen, Selection, Target, why_not
from agent.coordinator.verdict import Verdict

__all__ = ["AnnotatedPod", "AnnotatedRuns", "Group", "Terms", "check", "groups_of", "run_annotated"]

#: So many pods are named in a sentence.
_MAX_NAMED = 20

_CANCELLED = ErrorDetail(code="cancelled", message="cancelled before anything was triggered; nothing ran")


@dataclass(frozen=True, slots=True)
class AnnotatedPod:
    """A pod as the cluster has it, with its annotations and the names of its containers (none: not known)."""

    seen: PodSeen
    annotations: Mapping[str, str] = field(default_factory=dict)
    containers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Terms:
    """How the runs are done; see `HookCall`. `expect` counts the pods that have a hook. Times are seconds."""

    max_retry: int = 0
    retry_unknown: bool = False
    start_window_seconds: float = DEFAULT_START_WINDOW_SECONDS
    expect: int | None = None
    allow_empty: bool = False
    allow_missing: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Pods in which the same is run, in the order of their names."""

    command: PodCommand
    pods: tuple[PodSeen, ...]


@dataclass(frozen=True, slots=True)
class AnnotatedRuns:
    """What came of all pods' hooks: a run for each group of them, and what they amount to.

    Where nothing was triggered, there is one run that says why. `tolerated` are the ids of the runs whose failure does
    not count (`on-error: Continue`). What is to be said of all pods together is among the first run's notes.
    """

    verdict: Verdict
    runs: tuple[RunResult, ...]
    tolerated: frozenset[str] = frozenset()


def groups_of(pods: Iterable[AnnotatedPod], when: When) -> tuple[list[Group], tuple[str, ...]]:
    """Which pods run what, and sentences about those that run nothing.

    Only pods that are running and not being deleted count (SEMANTICS: Which pods); of the others nothing is read.

    Raises:
        InvalidHook: with every problem of every pod; its path is the pod and the annotation.
    """
    groups: dict[PodCommand, list[PodSeen]] = {}
    problems: list[Problem] = []
    without, passed = 0, []
    for pod in sorted(pods, key=lambda each: each.seen.target):
        seen = pod.seen
        if seen.deleting or seen.phase != "Running":
            if any("hook.backup.velero.io/" in name for name in pod.annotations):
                passed.append(f"{seen.target} ({'being deleted' if seen.deleting else seen.phase})")
            continue
        command, found = read_annotations(pod.annotations, when, containers=pod.containers)
        problems += [Problem(f"{seen.target}: {each.path}", each.message) for each in found]
        if command is not None:
            groups.setdefault(command, []).append(seen)
        else:
            without += 1
    if problems:
        raise InvalidHook(problems)
    notes = []
    if without:
        plural = "s have" if without != 1 else " has"
        notes.append(f"{without} pod{plural} no {command_annotation(when)}, and run{'s' * (without == 1)} nothing")
    if passed:
        notes.append("not counted, for they are not running: " + _listed(passed))
    return [Group(command, tuple(members)) for command, members in groups.items()], tuple(notes)


def check(pods: Iterable[AnnotatedPod], when: When, terms: Terms) -> tuple[list[Group], tuple[str, ...]]:
    """`groups_of`, and all that a run of them would refuse without asking anybody.

    Raises:
        InvalidHook: with every problem; its path is the pod and the annotation.
    """
    groups, notes = groups_of(pods, when)
    problems = []
    for group, call in zip(groups, _calls(groups, when, terms), strict=True):
        try:
            call.check()
        except InvalidHook as error:
            place = f"{group.pods[0].target}: {command_annotation(when)}"
            problems += [Problem(place, str(problem)) for problem in error.problems]
    if problems:
        raise InvalidHook(problems)
    return groups, notes


async def run_annotated(
    coordinator: Coordinator,
    pods: Iterable[AnnotatedPod],
    when: When,
    *,
    terms: Terms | None = None,
    on_event: OnEvent = ignore,
) -> AnnotatedRuns:
    """Run what the annotations of these pods say, in all of them at once, through their agents.

    Cancelling the task that awaits this, or `Coordinator.cancel`, cancels every run.

    Args:
        coordinator: reaches the agents.
        pods: those that are meant, as the cluster has them now; those without annotations do not matter.
        when: before the backup, or after it.
        terms: how; the usual ones if None.
        on_event: hears of every run, by its run id.

    Raises:
        InvalidHook: annotations that cannot be used, all of them; nothing was triggered.
        BadInput: the coordinator has no broker; nothing was triggered.
    """
    terms, cancels = terms or Terms(), coordinator.cancels
    groups, notes = check(pods, when, terms)
    count = sum(len(group.pods) for group in groups)
    if (error := _why_not(count, when, terms, notes)) is not None:
        return _nothing(when, Verdict.NOT_STARTED, notes, error)
    if not groups:
        return _nothing(when, Verdict.SUCCEEDED, (*notes, "no pod has a hook, and that was allowed"))
    selection, error = await _live(coordinator, groups, terms)
    notes += selection.notes
    if coordinator.cancels != cancels:
        return _nothing(when, Verdict.CANCELLED, notes, _CANCELLED)
    if error is not None:
        return _nothing(when, Verdict.NOT_STARTED, notes, error)
    if selection.missing:
        gone = _listed([str(each) for each in selection.missing])
        notes += (f"went on without {len(selection.missing)} pods that have no live agent: {gone}",)
    if not selection.targets:
        return _nothing(when, Verdict.SUCCEEDED, notes)
    live = frozenset(selection.targets)
    groups = [each for each in (_within(group, live) for group in groups) if each.pods]

    async def one(call: HookCall) -> RunResult:
        if coordinator.cancels != cancels:
            return _untriggered(call.hook.name, Verdict.CANCELLED, (), _CANCELLED)
        return await coordinator.run(call, on_event=on_event)

    async with asyncio.TaskGroup() as together:
        running = [together.create_task(one(call), name=call.hook.name) for call in _calls(groups, when, terms)]
    runs = [_told(task.result(), group) for task, group in zip(running, groups, strict=True)]
    tolerated = frozenset(
        run.run_id for run, group in zip(runs, groups, strict=True) if group.command.on_error == "Continue"
    )
    runs[0] = replace(runs[0], notes=(*notes, *runs[0].notes))
    return AnnotatedRuns(_verdict(runs, tolerated), tuple(runs), tolerated)


def _nothing(when: When, verdict: Verdict, notes: tuple[str, ...], error: ErrorDetail | None = None) -> AnnotatedRuns:
    return AnnotatedRuns(verdict, (_untriggered(f"velero-{when}", verdict, notes, error),))


def _untriggered(name: str, verdict: Verdict, notes: tuple[str, ...], error: ErrorDetail | None) -> RunResult:
    return RunResult(str(uuid_utils.uuid7()), name, verdict, utc_now(), 0.0, error=error, notes=notes)


async def _live(
    coordinator: Coordinator, groups: Sequence[Group], terms: Terms
) -> tuple[Selection, ErrorDetail | None]:
    """Which pods of all groups have a live agent, and why nothing may begin with them."""
    everybody = [pod for group in groups for pod in group.pods]
    whole = _call("velero", groups[0].command, everybody, terms)
    selection = await coordinator.select(whole)
    return selection, why_not(whole, whole.pods(), selection)


def _why_not(count: int, when: When, terms: Terms, notes: Sequence[str]) -> ErrorDetail | None:
    noted = "".join(f"; {each}" for each in notes)
    if terms.expect is not None and count != terms.expect:
        text = f"{count} running pods have a hook ({command_annotation(when)}), expected {terms.expect}"
        return ErrorDetail(code="unexpected_count", message=f"{text}; nothing was triggered{noted}")
    if not count and not terms.allow_empty and terms.expect != 0:
        text = f"no running pod that was selected has the annotation {command_annotation(when)}; nothing was triggered"
        return ErrorDetail(code="no_targets", message=f"{text}{noted}. Accept it with --allow-empty")
    return None


def _calls(groups: Sequence[Group], when: When, terms: Terms) -> list[HookCall]:
    names = [f"velero-{when}"] if len(groups) == 1 else [f"velero-{when}-{n}" for n in range(1, len(groups) + 1)]
    return [_call(name, group.command, group.pods, terms) for name, group in zip(names, groups, strict=True)]


def _call(name: str, command: PodCommand, pods: Sequence[PodSeen], terms: Terms) -> HookCall:
    return HookCall(
        Hook(name, HookSpec(action=command.action)),
        namespaces=None,
        only=tuple(pods),
        strategy="ExecuteOnAll",
        literal=True,
        timeout_seconds=command.timeout_seconds,
        start_window_seconds=terms.start_window_seconds,
        max_retry=terms.max_retry,
        retry_unknown=terms.retry_unknown,
        allow_missing=terms.allow_missing,
        allow_empty=terms.allow_empty,
    )


def _within(group: Group, live: frozenset[Target]) -> Group:
    return replace(group, pods=tuple(pod for pod in group.pods if pod.target in live))


def _told(run: RunResult, group: Group) -> RunResult:
    """The run, with a word on what it was and whether its failure counts."""
    where = f"in container {group.command.container}" if group.command.container else "in each pod's first container"
    notes = [*run.notes, f"ran {group.command.command[0]!r} {where}"]
    if group.command.on_error == "Continue" and run.verdict is Verdict.FAILED:
        notes.append("its failure does not count: the pods say on-error: Continue")
    return replace(run, notes=tuple(notes))


def _verdict(runs: Sequence[RunResult], tolerated: frozenset[str]) -> Verdict:
    """What all runs amount to. Only a failure is tolerated: a run that was stopped did not fail by itself."""
    counted = {run.verdict for run in runs if run.run_id not in tolerated or run.verdict is Verdict.CANCELLED}
    if Verdict.CANCELLED in counted:
        return Verdict.CANCELLED
    if counted <= {Verdict.SUCCEEDED}:
        return Verdict.SUCCEEDED
    nothing_ran = all(run.verdict is Verdict.NOT_STARTED for run in runs)  # agents that went in the last moment
    return Verdict.NOT_STARTED if nothing_ran else Verdict.FAILED


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
