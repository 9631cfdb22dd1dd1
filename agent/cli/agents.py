"""`podhook agents`: who is there."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli import options
from agent.cli.exits import errors_as_exits, logs_for_people

if TYPE_CHECKING:
    from rich.table import Table

    from agent.contract.messages import Presence
    from agent.coordinator import Coordinator


def command(
    namespace: Annotated[
        list[str] | None,
        typer.Option("--namespace", "-n", metavar="NAME", help="Only this one; may be given again. [default: all]"),
    ] = None,
    selector: Annotated[
        str | None, typer.Option("--selector", "-l", metavar="SELECTOR", help="Only agents with these labels.")
    ] = None,
    output: options.OutputFormat = options.Format.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay, and show every change.")] = False,
    broker: options.BrokerUrl = options.DEFAULT_BROKER,
    topic_root: options.TopicRoot = "podhook",
    broker_user_file: options.UserFile = None,
    broker_password_file: options.PasswordFile = None,
    broker_ca_file: options.CaFile = None,
    broker_cert_file: options.CertFile = None,
    broker_key_file: options.KeyFile = None,
) -> None:
    """Show which agents are there, in all namespaces unless --namespace says otherwise.

    JSON is one object a line and agent: namespace, pod, pod_uid, state, version, started_at, clock, labels, containers,
    unsigned, problems. With --watch, each change is another line (or the table again), until Ctrl-C.

    Exit codes: 0 told, 2 usage, 4 broker unreachable or refused us, 130 interrupted.
    """
    with errors_as_exits():
        from agent.contract.selectors import parse_selector
        from agent.coordinator import Coordinator

        address = options.broker_from(
            broker, broker_user_file, broker_password_file, broker_ca_file, broker_cert_file, broker_key_file
        )
        namespaces = options.namespaces_from(namespace, every=not namespace)
        wanted = parse_selector(selector or "")

        logs_for_people()

        async def show() -> None:
            async with Coordinator(address, topic_root=topic_root) as coordinator:
                await _show(coordinator, lambda p: _is_meant(p, namespaces, wanted), output, watch)

        asyncio.run(show())


def _is_meant(presence: Presence, namespaces: frozenset[str] | None, wanted: Any) -> bool:
    return (namespaces is None or presence.namespace in namespaces) and bool(wanted.matches(presence.labels))


async def _show(coordinator: Coordinator, meant: Any, output: options.Format, watch: bool) -> None:
    shown: dict[tuple[str, str], Presence] = {}
    while True:
        present = {(p.namespace, p.pod): p for p in await coordinator.agents() if meant(p)}
        if present != shown or not watch:
            if output is options.Format.JSON:
                for key, presence in present.items():
                    if shown.get(key) != presence:
                        print(json.dumps(_json(presence)), flush=True)
                for key in shown.keys() - present.keys():
                    print(json.dumps({"namespace": key[0], "pod": key[1], "state": "gone"}), flush=True)
            else:
                _print_table(list(present.values()))
        shown = present
        if not watch:
            return
        await coordinator.presence_changed()


def _json(presence: Presence) -> dict[str, Any]:
    return presence.model_dump(mode="json", exclude={"owners"}) | {
        "owners": [owner.model_dump(mode="json", exclude_none=True) for owner in presence.owners]
    }


def _print_table(presences: list[Presence]) -> None:
    from agent.cli.view import console_for_results

    console = console_for_results()
    if not presences:
        text = "no agents: nobody's presence is on this broker, or nobody's is meant (start one with `podhook agent`)"
        console.print(text, highlight=False, soft_wrap=True)
        return
    console.print(table_of(presences))
    for presence in presences:
        for problem in presence.problems:
            sentence = f"{presence.namespace}/{presence.pod}: {problem}"
            console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def table_of(presences: list[Presence]) -> Table:
    """Agents as a table for people."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("NAMESPACE", "POD", "STATE", "CONTAINERS", "LABELS", "VERSION", "PROBLEMS"):
        table.add_column(column, overflow="fold")
    for presence in presences:
        labels = ",".join(f"{key}={value}" for key, value in sorted(presence.labels.items()))
        table.add_row(
            Text(presence.namespace),
            Text(presence.pod),
            Text(presence.state, style="green" if presence.state == "online" else "red"),
            Text(",".join(presence.containers)),
            Text(labels),
            Text(presence.version),
            Text(str(len(presence.problems)) if presence.problems else ""),
        )
    return table
