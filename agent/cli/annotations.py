"""`podhook run --from-annotations pre|post`: the hooks that stand on the pods themselves, in Velero's annotations."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from agent.cli import options
from agent.cli.exits import Exit, tell

if TYPE_CHECKING:
    from agent.cluster import Cluster
    from agent.contract.velero import When
    from agent.coordinator import Coordinator
    from agent.coordinator.annotated import AnnotatedPod, AnnotatedRuns, Terms


async def from_annotations(
    cluster: Cluster,
    coordinator: Coordinator,
    when: When,
    *,
    selector: str,
    namespaces: frozenset[str] | None,
    terms: Terms,
    output: options.Format,
) -> AnnotatedRuns:
    """List the pods, run what their annotations say in all of them at once, and show it; both are entered already.

    An empty `selector` means every pod of the namespaces.

    Raises:
        InvalidHook: annotations that cannot be used, all of them; nothing was triggered.
        ClusterError: the pods cannot be listed.
    """
    from agent.cli.view import RunView
    from agent.coordinator.annotated import run_annotated

    pods = await pods_of(cluster, selector, namespaces)
    with RunView(f"velero-{when}") as view:
        done = await run_annotated(coordinator, pods, when, terms=terms, on_event=view)
    show_annotated(done, when, output)
    return done


async def pods_of(cluster: Cluster, selector: str, namespaces: Iterable[str] | None) -> list[AnnotatedPod]:
    """The pods that a selector matches, with their annotations. Raises ClusterError."""
    from agent.cluster.resources import PODS
    from agent.coordinator.annotated import annotated_pod

    found: list[AnnotatedPod] = []
    for namespace in sorted(namespaces) if namespaces is not None else (None,):
        found += await cluster.collect(PODS, namespace, annotated_pod, selector=selector)
    return found


def show_annotated(done: AnnotatedRuns, when: When, output: options.Format) -> None:
    """Each run as any other; of several also what they amount to, for people, on standard error."""
    from agent.cli.view import print_result, show

    def write() -> None:
        for run in done.runs:
            if output is options.Format.JSON:
                print(json.dumps(run.to_json()), flush=True)
            else:
                print_result(run)

    show(write)
    if len(done.runs) > 1:
        tell(f"velero-{when}: {done.verdict} - {len(done.runs)} runs, one for each hook that the pods have")


def exit_code(done: AnnotatedRuns, *, interrupted: bool = False) -> Exit:
    """As the shell hears it: whoever interrupts hears that."""
    from agent.coordinator import Verdict

    if interrupted:
        return Exit.INTERRUPTED
    return {Verdict.SUCCEEDED: Exit.SUCCEEDED, Verdict.NOT_STARTED: Exit.NO_TARGETS}.get(done.verdict, Exit.FAILED)
