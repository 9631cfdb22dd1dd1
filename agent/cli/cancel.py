"""`podhook cancel`: end a run, whoever began it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import typer

from agent.cli import options
from agent.cli.exits import Exit, errors_as_exits, logs_for_people

if TYPE_CHECKING:
    from agent.coordinator import RunResult


def command(
    run_id: options.RunId,
    namespace: options.OnlyNamespaces = None,
    output: options.OutputFormat = options.Format.TABLE,
    broker: options.BrokerUrl = options.DEFAULT_BROKER,
    topic_root: options.TopicRoot = "podhook",
    broker_user_file: options.UserFile = None,
    broker_password_file: options.PasswordFile = None,
    broker_ca_file: options.CaFile = None,
    broker_cert_file: options.CertFile = None,
    broker_key_file: options.KeyFile = None,
    key: options.SigningKeyFile = None,
    agent_keys: options.AgentKeys = None,
) -> None:
    """Cancel a run, whoever began it: what runs is stopped, and nothing more of it starts on any agent that answers.

    Each pod has ten seconds to say how it ended. What had ended before keeps its outcome. Who did not confirm is named.

    Exit codes: 0 nothing of it runs or can start any more, 1 some agents did not confirm that or fell silent, 2 usage,
    3 no agent that answered knows the run (if it comes later, they refuse it), 4 broker unreachable or refused us,
    130 interrupted.
    """
    with errors_as_exits():
        from agent.cli.view import RunView, print_result, show
        from agent.contract.messages import check_run_id
        from agent.coordinator import Coordinator

        address = options.broker_from(
            broker, broker_user_file, broker_password_file, broker_ca_file, broker_cert_file, broker_key_file
        )
        namespaces = options.namespaces_from(namespace, every=not namespace)
        check_run_id(run_id)
        logs_for_people()

        async def cancel() -> RunResult:
            async with Coordinator(address, topic_root=topic_root, key=key, agent_keys=agent_keys) as coordinator:
                with RunView("cancel") as view:
                    run = await coordinator.resume(run_id, cancel=True, namespaces=namespaces, on_event=view)
                if exit_code(run) is not Exit.SUCCEEDED:
                    await options.hint_to_key(coordinator, key, namespaces)
                return run

        run = asyncio.run(cancel())
        as_json = output is options.Format.JSON
        show(lambda: print(json.dumps(run.to_json()), flush=True) if as_json else print_result(run))
        raise typer.Exit(exit_code(run))


def exit_code(run: RunResult) -> Exit:
    """Whether it is certain that nothing runs and nothing can start."""
    from agent.coordinator import Outcome, Verdict

    if run.verdict is Verdict.NOT_FOUND:
        return Exit.NO_TARGETS
    unknown = any(each.result.outcome is Outcome.LOST for each in run.targets)
    return Exit.FAILED if unknown or run.error is not None else Exit.SUCCEEDED
