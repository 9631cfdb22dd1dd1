"""`podhook run --from-annotations pre|post`: the hooks that stand on the pods themselves, in Velero's annotations."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from agent.cli import options
from agent.cli.cluster import cluster_from
from agent.cli.exits import Exit, tell
from agent.cli.running import show_run, stopped_by_signals

if TYPE_CHECKING:
    from agent.coordinator import Coordinator
    from agent.coordinator.annotated import AnnotatedPod


class When(StrEnum):
    """Of Velero's annotations: those for before the backup, or after it."""

    PRE = "pre"
    POST = "post"


#: What says something to hooks that bring their command, container, timeout and pods along.
_WITH_ANNOTATIONS = {
    "from_annotations", "selector", "namespace", "all_namespaces", "expect", "allow_empty", "allow_missing",
    "max_retry", "retry_unknown", "start_within", "output", "topic_root", "key", "agent_keys",
    "kubeconfig", "kube_context", "source",
}  # fmt: skip


def refuse_other_options(context: typer.Context) -> None:
    """Raises typer.BadParameter for an option whose value stands on the pods."""
    for name in context.params:
        given = context.get_parameter_source(name)
        if name in _WITH_ANNOTATIONS or "broker" in name or given is None or given.name != "COMMANDLINE":
            continue
        flag = "FILE" if name == "file" else f"--{name.replace('_', '-')}"
        raise typer.BadParameter(f"{flag} has no meaning with --from-annotations: what the pods say is run")
    if context.params["source"] == options.SourceName.PRESENCE:
        raise typer.BadParameter("--source presence knows no annotations: --from-annotations asks the cluster for pods")


async def pods_of(
    kubeconfig: Path | None, context: str | None, selector: str, namespaces: frozenset[str] | None
) -> list[AnnotatedPod]:
    """The pods that a selector means (an empty one: all of them), as the cluster has them.

    Raises:
        InvalidSettings: no such kubeconfig or context, or kubernetes-asyncio is not installed.
        ClusterError: no cluster, or the pods cannot be listed.
    """
    from agent.coordinator.kubernetes import list_annotated_pods

    async with cluster_from(kubeconfig, context, options.SourceName.KUBERNETES) as asked:
        assert asked.cluster is not None  # KUBERNETES: it is asked, or that it cannot be is raised
        return await list_annotated_pods(asked.cluster, selector, namespaces)


async def run(
    pods: Coroutine[None, None, list[AnnotatedPod]],
    connect: Callable[[], Coordinator],
    when: When,
    *,
    terms: dict[str, Any],
    output: options.Format,
) -> Exit:
    """Run what the pods' annotations say in all of them at once, and show it; `terms` are those of `annotated.Terms`.

    Raises:
        InvalidHook: annotations that cannot be used, all of them; nothing was triggered.
        ClusterError, InvalidSettings: as `pods_of`.
        LinkDown, BrokerRefused: there is no broker to reach agents by.
    """
    from agent.cli.view import RunView
    from agent.coordinator import Verdict
    from agent.coordinator.annotated import Terms, check, run_annotated

    phase: Literal["pre", "post"] = "pre" if when is When.PRE else "post"
    how = Terms(**terms)
    found = await pods
    check(found, phase, how)  # what is wrong there is wrong without a broker, too
    async with connect() as coordinator:
        with stopped_by_signals(coordinator) as stops, RunView(f"velero-{phase}") as view:
            done = await run_annotated(coordinator, found, phase, terms=how, on_event=view)
    for one in done.runs:
        show_run(one, output)
    if len(done.runs) > 1:
        tell(f"velero-{phase}: {done.verdict} - {len(done.runs)} runs, one for each hook that the pods have")
    if stops:
        return Exit.INTERRUPTED
    return {Verdict.SUCCEEDED: Exit.SUCCEEDED, Verdict.NOT_STARTED: Exit.NO_TARGETS}.get(done.verdict, Exit.FAILED)
