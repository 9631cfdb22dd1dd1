"""One list of a HookPlan for `podhook run`, and what the commands that take plans share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from agent.cli.check import name_of
from agent.cli.exits import tell

if TYPE_CHECKING:
    from agent.contract.plans import HookPlan, Phase
    from agent.coordinator import HookCall
    from agent.coordinator.plan import Sources, Status

#: Said by the plan's entries themselves.
_OF_THE_PLAN = {"max_retry", "param", "selector", "strategy", "expect", "catalogue"}


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which list runs; `status` is the operation's result, of a post list only."""

    phase: Phase
    status: Status | None


def choose(text: bytes, phase: str | None, status_phase: str | None, status_error: str) -> Chosen | None:
    """Which list of a plan is meant; None where the file holds hooks.

    Raises:
        typer.BadParameter: the options and the file do not fit, or each other.
    """
    from agent.contract.documents import paste_hint
    from agent.contract.plans import Phase, is_plan, kind_of
    from agent.coordinator.plan import Status, plain

    plan = is_plan(text)
    if not plan and phase is None and status_phase is None and not status_error:
        return None
    if not plan:
        flag = "--phase" if phase is not None else "--status-phase" if status_phase is not None else "--status-error"
        if (kind := kind_of(text)) not in ("", "HookTemplate"):
            raise typer.BadParameter(f"{flag} is for a HookPlan, and this file is a {kind}{paste_hint(kind)}")
        raise typer.BadParameter(f"{flag} is for a HookPlan, and this file holds hooks: leave it out")
    if phase is None:
        raise typer.BadParameter(f"the file is a HookPlan: say which list with --phase ({', '.join(Phase)})")
    if phase not in set(Phase):
        raise typer.BadParameter(f"--phase {phase!r} is not one of {', '.join(Phase)}")
    chosen = Phase(phase)
    if not chosen.is_post:
        if status_phase is not None or status_error:
            raise typer.BadParameter(f"{chosen} runs before there is a result: leave --status-phase and -error out")
        return Chosen(chosen, None)
    if status_phase is None:
        raise typer.BadParameter(f"{chosen} depends on the result: give --status-phase Succeeded or Failed")
    return Chosen(chosen, Status(str(status_phase), error=plain(status_error)))


def refuse_what_a_plan_says(context: typer.Context) -> None:
    """Raises typer.BadParameter for an option whose value stands in the plan."""
    for name in sorted(_OF_THE_PLAN & set(context.params)):
        given = context.get_parameter_source(name)
        if given is not None and given.name == "COMMANDLINE":
            flag = f"--{name.replace('_', '-')}"
            raise typer.BadParameter(f"{flag} has no meaning with a HookPlan, whose hooks say it: write it there")


def directory_of(file: Path) -> Path:
    """What paths in a plan are relative to."""
    return Path() if str(file) == "-" else file.parent


def namespaces_of(plan: HookPlan, given: Any) -> tuple[frozenset[str] | None, str]:
    """Where hooks run, and the plan's own namespace: as given on the command line (`...`: not at all), else its own.

    Raises:
        BadInput: the plan's namespace is no name.
    """
    from agent.contract.topics import check_name

    home = check_name("namespace of the plan", plan.namespace or "default")
    if given is ...:
        return frozenset({home}), home
    return given, next(iter(given)) if given is not None and len(given) == 1 else home


async def calls_of(
    chosen: Chosen, file: Path, text: bytes, sources: Sources, given: Any, common: dict[str, Any]
) -> list[HookCall]:
    """The calls of one list that are due, checked; what is skipped is told.

    Raises:
        InvalidHook: with every problem of the list.
        ClusterError: the cluster was asked for something, and did not give it.
    """
    from agent.contract.plans import load_plan
    from agent.coordinator.plan import prepare

    plan = load_plan(text, name=name_of(file))
    if not plan.of(chosen.phase):
        raise typer.BadParameter(f"the plan has no {chosen.phase} (it has {', '.join(plan.phases)})")
    where, home = namespaces_of(plan, given)
    hooks = await prepare(plan, [chosen.phase], sources, namespaces=where, home=home, options=common)
    calls = []
    for hook in hooks:
        if chosen.status is not None and not _is_due(hook.policy, chosen.status):
            tell(f"{hook} is skipped: {hook.policy}, and the operation is {chosen.status.phase}")
        else:
            calls.append(hook.called(chosen.status))
    return calls


def _is_due(policy: str, status: Status) -> bool:
    return policy == "Always" or (policy == "OnSuccess") == (status.phase == "Succeeded")
