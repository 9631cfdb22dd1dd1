"""`podhook run --run-id`: gather a run that was begun before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from agent.cli import options
from agent.cli.running import Executed, show_run, stopped_by_signals

if TYPE_CHECKING:
    from agent.coordinator import Coordinator


#: What says something to a run that is only gathered.
_WITH_RUN_ID = {"file", "run_id", "namespace", "all_namespaces", "output", "broker", "topic_root", "key", "agent_keys"}


def refuse_other_options(context: typer.Context) -> None:
    for name in context.params:
        given = context.get_parameter_source(name)
        if name not in _WITH_RUN_ID and "broker" not in name and given is not None and given.name == "COMMANDLINE":
            flag = f"--{name.replace('_', '-')}"
            raise typer.BadParameter(f"{flag} has no meaning with --run-id: nothing is triggered, only gathered")


async def resume(
    connect: Callable[[], Coordinator],
    run_id: str,
    namespaces: frozenset[str] | None,
    *,
    output: options.Format,
    key: Path | None = None,
) -> Executed:
    """Gather a run that was begun before, and show what came of it. Raises LinkDown, BrokerRefused, BadInput."""
    from agent.cli.view import RunView
    from agent.coordinator import Verdict

    async with connect() as coordinator:
        with stopped_by_signals(coordinator) as stops:
            with RunView("resumed") as view:
                run = await coordinator.resume(run_id, namespaces=namespaces, on_event=view)
            show_run(run, output)
            if run.verdict is not Verdict.SUCCEEDED:
                await options.hint_to_key(coordinator, key, namespaces)
    return Executed((run,), bool(stops))
