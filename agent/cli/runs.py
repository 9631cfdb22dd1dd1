"""`podhook runs`: the latest runs that the agents know."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli import options
from agent.cli.exits import errors_as_exits, logs_for_people, tell

if TYPE_CHECKING:
    from agent.coordinator import Picture


def command(
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="How many runs to show.")] = 20,
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
    """Show the latest runs that the agents know, newest first, whoever began them.

    An agent keeps outcomes for 24 hours and tells its latest attempts, --limit or 250 of them. JSON is one object a
    line and run: run_id, hook, verdict, started_at, strategy, expected_targets, known_targets, and states: how many
    targets are in each.

    Exit codes: 0 told, 2 usage, 4 broker unreachable or refused us, 130 interrupted.
    """
    with errors_as_exits():
        from agent.cli.view import console_for_results, runs_table, show
        from agent.coordinator import Coordinator

        address = options.broker_from(
            broker, broker_user_file, broker_password_file, broker_ca_file, broker_cert_file, broker_key_file
        )
        namespaces = options.namespaces_from(namespace, every=not namespace)
        logs_for_people()

        async def ask() -> list[Picture]:
            async with Coordinator(address, topic_root=topic_root, key=key, agent_keys=agent_keys) as coordinator:
                pictures = await coordinator.runs(limit=limit, namespaces=namespaces)
                if not pictures or pictures[0].silent:
                    await options.hint_to_key(coordinator, key, namespaces)
                return pictures

        pictures = asyncio.run(ask())[:limit]

        def write() -> None:
            if output is options.Format.JSON:
                for picture in pictures:
                    print(json.dumps(_json(picture)), flush=True)
            elif pictures:
                console_for_results().print(runs_table(pictures))
            else:
                print("no runs: no agent that answered has run anything in the last 24 hours")

        show(write)
        if pictures and pictures[0].unheard:
            tell(f"{len(pictures[0].unheard)} agents could not be heard; runs that only they know are not here")


def _json(picture: Picture) -> dict[str, object]:
    whole = picture.to_json()
    kept = ("run_id", "hook", "verdict", "started_at", "strategy", "expected_targets")
    return {key: whole[key] for key in kept} | {"known_targets": len(picture.known), "states": picture.states}
