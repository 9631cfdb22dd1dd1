"""`podhook agents`: who is there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli import options
from agent.cli.exits import errors_as_exits, logs_for_people, tell

if TYPE_CHECKING:
    from rich.table import Table

    from agent.contract.messages import Presence
    from agent.coordinator import Coordinator
    from agent.coordinator.wire import Distrusted

UNSIGNED_SENTENCE = (
    "{count} of these obey whoever reaches the broker (PODHOOK_ALLOW_UNSIGNED); give them PODHOOK_TRUSTED_KEYS instead"
)
CLOCK_SENTENCE = "its clock is {skew:+.0f} s from this machine's: beyond 30 s triggers are refused; set both clocks"


def command(
    namespace: Annotated[
        list[str] | None,
        typer.Option("--namespace", "-n", metavar="NAME", help="Only this one; may be given again. [default: all]"),
    ] = None,
    selector: Annotated[
        str | None, typer.Option("--selector", "-l", metavar="SELECTOR", help="Only agents with these labels.")
    ] = None,
    output: options.OutputFormat = options.Format.TABLE,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Clear the presence of agents that are offline and will not come back, and what does not verify.",
        ),
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay, and show every change.")] = False,
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
    """Show which agents are there, in all namespaces unless --namespace says otherwise.

    Each agent that is online is asked for its clock; SKEW is how far it is ahead of this machine's, and empty if it
    did not answer. Beyond 30 s triggers are refused.

    JSON is one object a line and agent: namespace, pod, pod_uid, state, version, started_at, clock, skew_seconds,
    labels, containers, unsigned, problems, verified. With --watch, each change is another line (or another table),
    until Ctrl-C.

    An agent that vanished without a goodbye stays here as offline, and runs that select it do not start. --prune clears
    those (that --namespace and --selector leave), says which, and an agent that lives after all says so again. With
    --agent-keys, what stands for a presence and does not verify stops runs as well, is told, and is cleared, too.

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
            async with Coordinator(address, topic_root=topic_root, key=key, agent_keys=agent_keys) as coordinator:

                def meant(presence: Presence) -> bool:
                    return _is_meant(presence, namespaces, wanted)

                if prune:
                    async for target in coordinator.prune(filter(meant, await coordinator.agents())):
                        tell(f"cleared the presence of {target}, which was offline")
                    doubted = [
                        each for each in coordinator.distrusted if _may_prune(each, namespaces, wanted, selector)
                    ]
                    async for each in coordinator.prune_distrusted(doubted):
                        tell(f"cleared the presence of {each.namespace}/{each.pod}, which did not verify: {each.why}")
                await _show(coordinator, meant, namespaces, output, watch)

        asyncio.run(show())


def _is_meant(presence: Presence, namespaces: frozenset[str] | None, wanted: Any) -> bool:
    return (namespaces is None or presence.namespace in namespaces) and bool(wanted.matches(presence.labels))


def _may_prune(claim: Distrusted, namespaces: frozenset[str] | None, wanted: Any, selector: str | None) -> bool:
    """Whether --namespace and --selector leave it; what cannot be read has no labels that a selector could mean."""
    if claim.claim is None:
        return selector is None and (namespaces is None or claim.namespace in namespaces)
    return _is_meant(claim.claim, namespaces, wanted)


async def _show(
    coordinator: Coordinator,
    meant: Callable[[Presence], bool],
    namespaces: frozenset[str] | None,
    output: options.Format,
    watch: bool,
) -> None:
    shown: dict[tuple[str, str], Presence] = {}
    clocks: dict[tuple[str, str], float] = {}
    while True:
        present = {(p.namespace, p.pod): p for p in await coordinator.agents() if meant(p)}
        verified = coordinator.verifies
        if present != shown or not watch:
            changed = [presence for key, presence in present.items() if shown.get(key) != presence]
            clocks |= await coordinator.clocks(changed)
            if output is options.Format.JSON:
                for key, presence in present.items():
                    if shown.get(key) != presence:
                        print(json.dumps(_json(presence, clocks.get(key), verified)), flush=True)
                for key in shown.keys() - present.keys():
                    print(json.dumps({"namespace": key[0], "pod": key[1], "state": "gone"}), flush=True)
            else:
                _print_table(list(present.values()), clocks, verified)
            for claim in coordinator.distrusted:
                if namespaces is None or claim.namespace in namespaces:  # its labels are whoever's who wrote it
                    tell(f"not believed: presence of {claim.namespace}/{claim.pod}: {claim.why}")
        shown = present
        if not watch:
            return
        await coordinator.presence_changed()


def _json(presence: Presence, skew: float | None, verified: bool) -> dict[str, Any]:
    return presence.model_dump(mode="json", exclude={"owners"}) | {
        "skew_seconds": None if skew is None or presence.state == "offline" else round(skew, 3),
        "verified": verified,
        "owners": [owner.model_dump(mode="json", exclude_none=True) for owner in presence.owners],
    }


def _print_table(presences: list[Presence], clocks: Mapping[tuple[str, str], float], verified: bool) -> None:
    from agent.cli.view import console_for_results
    from agent.contract.messages import CLOCK_TOLERANCE_SECONDS

    console = console_for_results()
    if not presences:
        text = "no agents: nobody's presence is on this broker, or nobody's is meant (start one with `podhook agent`)"
        console.print(text, highlight=False, soft_wrap=True)
        return
    console.print(table_of(presences, clocks, verified=verified))
    for presence in presences:
        skew = clocks.get((presence.namespace, presence.pod), 0)
        far = [CLOCK_SENTENCE.format(skew=skew)] if abs(skew) > CLOCK_TOLERANCE_SECONDS else []
        for problem in (*presence.problems, *far):
            sentence = f"{presence.namespace}/{presence.pod}: {problem}"
            console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    if count := sum(presence.unsigned and presence.state == "online" for presence in presences):
        console.print(UNSIGNED_SENTENCE.format(count=count), highlight=False, soft_wrap=True)


def table_of(presences: list[Presence], clocks: Mapping[tuple[str, str], float], *, verified: bool) -> Table:
    """Agents as a table for people; `clocks` is how many seconds each is ahead of us, where that is known."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from agent.cli.view import drawn, verified_text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("NAMESPACE", "POD", "STATE", "CONTAINERS", "LABELS", "VERSION", "VERIFIED", "SKEW", "PROBLEMS"):
        table.add_column(column, overflow="fold")
    for presence in presences:
        skew = clocks.get((presence.namespace, presence.pod))
        labels = ",".join(f"{key}={value}" for key, value in sorted(presence.labels.items()))
        table.add_row(
            drawn(presence.namespace),
            drawn(presence.pod),
            Text(presence.state, style="green" if presence.state == "online" else "red"),
            drawn(",".join(presence.containers)),
            drawn(labels),
            drawn(presence.version),
            verified_text(verified),
            Text(f"{skew:+.1f}s" if skew is not None and presence.state == "online" else ""),
            Text(str(len(presence.problems)) if presence.problems else ""),
        )
    return table
