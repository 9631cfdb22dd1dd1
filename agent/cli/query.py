"""`podhook query`: what became of a run, by the agents' journals."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import typer

from agent.cli import options
from agent.cli.exits import Exit, errors_as_exits, logs_for_people

if TYPE_CHECKING:
    from agent.coordinator import Picture, Verdict


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
    """Ask the agents' journals what became of a run, whoever began it, and also after whoever began it has died.

    Nothing is started or stopped. An agent keeps outcomes for 24 hours. JSON is one object: run_id, hook, verdict,
    started_at, duration_ms, strategy, expected_targets, targets (each with its outcome, null while it runs, and its
    state), and the agents that could not be heard: cannot_tell, silent, offline.

    Exit codes: 0 succeeded, 1 it failed or is incomplete, 2 usage, 3 no agent that answered knows it, 4 broker
    unreachable or refused us, 5 still running, 130 interrupted.
    """
    with errors_as_exits():
        from agent.cli.view import print_picture, show
        from agent.contract.messages import check_run_id
        from agent.coordinator import Coordinator

        address = options.broker_from(
            broker, broker_user_file, broker_password_file, broker_ca_file, broker_cert_file, broker_key_file
        )
        namespaces = options.namespaces_from(namespace, every=not namespace)
        check_run_id(run_id)
        logs_for_people()

        async def ask() -> Picture:
            async with Coordinator(address, topic_root=topic_root, key=key, agent_keys=agent_keys) as coordinator:
                picture = await coordinator.query(run_id, namespaces=namespaces)
                if picture.silent:
                    await options.hint_to_key(coordinator, key, namespaces)
                return picture

        picture = asyncio.run(ask())
        as_json = output is options.Format.JSON
        show(lambda: print(json.dumps(picture.to_json()), flush=True) if as_json else print_picture(picture))
        raise typer.Exit(exit_code(picture.verdict))


def exit_code(verdict: Verdict) -> Exit:
    """What a verdict says to the shell."""
    from agent.coordinator import Verdict

    return {
        Verdict.SUCCEEDED: Exit.SUCCEEDED,
        Verdict.NOT_FOUND: Exit.NO_TARGETS,
        Verdict.NOT_STARTED: Exit.NO_TARGETS,
        Verdict.RUNNING: Exit.RUNNING,
    }.get(verdict, Exit.FAILED)
