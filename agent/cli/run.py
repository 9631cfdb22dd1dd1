"""`podhook run`: run the hooks of a file, or one list of a plan, one verdict each."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli import annotated, options, planned
from agent.cli.check import functions_from, name_of, read_file
from agent.cli.cluster import Asked, cluster_from
from agent.cli.exits import errors_as_exits, logs_for_people, tell
from agent.cli.resuming import refuse_other_options, resume
from agent.cli.running import Executed, execute, exit_code, params_of

if TYPE_CHECKING:
    from agent.coordinator import Coordinator, HookCall


class Strategy(StrEnum):
    """Which of the selected pods run the hook."""

    ONE = "ExecuteOnOne"
    ALL = "ExecuteOnAll"


class Result(StrEnum):
    """How an operation ended, as KubeStash says it."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


def command(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="YAML of one or more HookTemplates, or a HookPlan; - for standard input."),
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option(
            "--run-id",
            metavar="ID",
            help="Gather a run that was begun before, by whomever, to its end. Nothing is triggered; FILE is not read.",
        ),
    ] = None,
    catalogue: Annotated[
        str | None,
        typer.Option(
            "--catalogue",
            metavar="NAME",
            help="Run the hook of this name in the agents' own catalogues, instead of a FILE; needs --selector.",
        ),
    ] = None,
    from_annotations: Annotated[
        annotated.When | None,
        typer.Option(
            help="Run what Velero's backup hook annotations on the pods say, in all of them at once, instead of a FILE."
        ),
    ] = None,
    phase: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Of a HookPlan: preBackup, postBackup, preRestore or postRestore."),
    ] = None,
    status_phase: Annotated[
        Result | None,
        typer.Option(help="With a post list: the operation's result, which decides by each hook's executionPolicy."),
    ] = None,
    status_error: Annotated[
        str, typer.Option(metavar="TEXT", help="With a post list: what templates read as .Status.Error.")
    ] = "",
    namespace: options.Namespaces = None,
    all_namespaces: options.AllNamespaces = False,
    timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="Per attempt, as Kubernetes writes it: 30s, 5m, 1h30m.")
    ] = "5m",
    max_retry: Annotated[
        int, typer.Option(metavar="N", min=0, max=100, help="How often a failed attempt is repeated.")
    ] = 0,
    retry_unknown: Annotated[
        bool,
        typer.Option("--retry-unknown", help="Repeat also interrupted and lost attempts, which may have run."),
    ] = False,
    max_parallel: Annotated[int | None, typer.Option(metavar="N", min=1, help="Pods at once. [default: all]")] = None,
    max_errors: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Start no more pods once more than this many failed. [default: no bound]"
        ),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="NAME=VALUE", help="A parameter of the hook; may be given again."),
    ] = None,
    selector: Annotated[
        str | None,
        typer.Option(
            "--selector", "-l", metavar="SELECTOR", help="Run in these pods instead of the hook's own selector."
        ),
    ] = None,
    strategy: Annotated[Strategy | None, typer.Option(help="Instead of the hook's own strategy.")] = None,
    expect: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Fail unless exactly this many pods are selected.")
    ] = None,
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="Accept that no pod is selected.")] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Go on without selected pods whose agent is offline.")
    ] = False,
    start_within: Annotated[
        str, typer.Option(metavar="DURATION", help="A trigger not started within this is void (at most 15m).")
    ] = "30s",
    keep_going: Annotated[
        bool, typer.Option("--keep-going", "-k", help="Run the next hook although one did not succeed.")
    ] = False,
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
    kubeconfig: options.Kubeconfig = None,
    kube_context: options.Context = None,
    source: options.PodSource = options.SourceName.AUTO,
    http_ca_file: options.HttpCaFile = None,
    no_http_verify: options.NoHttpVerify = False,
    secrets_dir: options.SecretsDir = None,
    function: options.FunctionFiles = None,
) -> None:
    """Run the hooks of a file in order, through the agents of the selected pods, and gather one verdict a hook.

    With --catalogue NAME a hook that the agents' policies know runs instead, with the parameters given. Of a HookPlan
    one list runs, named by --phase; after the operation --status-phase says what it came to, and a hook that fails does
    not keep the next one from running. `podhook around` runs both lists with a command between them.

    With --from-annotations the pods are asked of the cluster (--selector; without it, all of the namespace), and each
    runs what its own annotations say, as Velero would: docs/velero.md.

    A hook that does not succeed ends the run; --keep-going runs the rest too. Results go to standard output, what
    happens meanwhile to standard error. JSON is one object a line and hook. Ctrl-C cancels what was started and says
    what state each pod is in; a second one waits no longer for that.

    Each run has an id, said when it begins. If this command dies, the agents go on: --run-id ID gathers what came of
    it, and Ctrl-C then cancels it; `podhook query ID` only asks. Whoever began it may live and retry, so after a
    failure it waits half a minute more. Then 1 also means that not all targets told, and 3 that no agent knows it.

    Exit codes: 0 succeeded, 1 a hook failed, 2 usage or invalid file, 3 no targets or missing agents (nothing was
    triggered), 4 broker or cluster unreachable or refused us, 130 interrupted.
    """
    with errors_as_exits():
        address = options.broker_from(
            broker, broker_user_file, broker_password_file, broker_ca_file, broker_cert_file, broker_key_file
        )

        operator = options.operator_from(http_ca_file, no_http_verify, secrets_dir)
        functions = functions_from(function or [])

        def connect(asked: Asked = Asked(), *, agents: bool = True) -> Coordinator:
            from agent.coordinator import Coordinator

            return Coordinator(
                address if agents else None,
                topic_root=topic_root,
                key=key,
                agent_keys=agent_keys,
                cluster=asked.cluster,
                source=asked.source,
                functions=functions,
                operator=operator,
            )

        if run_id is not None:
            from agent.contract.messages import check_run_id

            if file is not None:
                tell(f"--run-id gathers a run that was begun before: {file} is not read, and nothing is triggered")
            refuse_other_options(context)
            check_run_id(run_id)
            namespaces = None if all_namespaces else options.namespaces_from(namespace, every=not namespace)
            logs_for_people()
            gathered = asyncio.run(resume(connect, run_id, namespaces, output=output, key=key))
            raise typer.Exit(exit_code(gathered))
        if from_annotations is not None:
            annotated.refuse_other_options(context)
            terms = {
                "max_retry": max_retry,
                "retry_unknown": retry_unknown,
                "start_window_seconds": options.seconds_from("--start-within", start_within),
                "expect": expect,
                "allow_empty": allow_empty,
                "allow_missing": allow_missing,
            }
            everywhere = options.namespaces_from(namespace, all_namespaces)
            pods = annotated.pods_of(kubeconfig, kube_context, selector or "", everywhere)
            logs_for_people()
            code = asyncio.run(annotated.run(pods, connect, from_annotations, terms=terms, output=output))
            raise typer.Exit(code)
        if (file is None) == (catalogue is None):
            raise typer.BadParameter(
                "give a FILE of hooks, or --run-id to gather a run that was begun before, or --catalogue NAME, or "
                "--from-annotations pre|post"
                if file is None
                else "--catalogue names a hook that the agents have, and FILE brings its own; give one of them"
            )
        common = {
            "timeout_seconds": options.seconds_from("--timeout", timeout),
            "start_window_seconds": options.seconds_from("--start-within", start_within),
            "retry_unknown": retry_unknown,
            "max_parallel": max_parallel,
            "max_errors": max_errors,
            "allow_empty": allow_empty,
            "allow_missing": allow_missing,
        }
        text = read_file(file) if file is not None else b""
        chosen = planned.choose(text, phase, status_phase, status_error)
        if chosen is not None:
            planned.refuse_what_a_plan_says(context)

        async def run() -> Executed:
            async with cluster_from(kubeconfig, kube_context, source) as asked:
                if chosen is not None and file is not None:
                    where = options.namespaces_from(namespace, all_namespaces) if namespace or all_namespaces else ...
                    calls = await planned.calls_of(
                        chosen, file, text, asked.sources(planned.directory_of(file), functions), where, common
                    )
                else:
                    more: dict[str, Any] = {
                        **common,
                        "namespaces": options.namespaces_from(namespace, all_namespaces),
                        "params": params_of(param or []),
                        "max_retry": max_retry,
                        "expect": expect,
                        "selector": selector,
                        "strategy": str(strategy) if strategy else None,
                    }
                    calls = _calls(text, name_of(file) if file is not None else "", catalogue, more)
                    calls = [await asked.with_labels(await asked.with_function(call, functions)) for call in calls]
                coordinator = connect(asked, agents=any(call.executor().type == "Pod" for call in calls))
                _check(coordinator, calls)
                logs_for_people()
                going_on = keep_going or (chosen is not None and chosen.phase.is_post)
                return await execute(lambda: coordinator, calls, output=output, keep_going=going_on)

        raise typer.Exit(exit_code(asyncio.run(run())))


def _calls(text: bytes, name: str, catalogue: str | None, more: dict[str, Any]) -> list[HookCall]:
    from agent.contract.templates import HookSpec
    from agent.coordinator import Hook, HookCall, load_hooks

    hooks = load_hooks(text, name=name) if catalogue is None else [Hook(catalogue, HookSpec())]
    return [HookCall(hook, catalogue=catalogue is not None, **more) for hook in hooks]


def _check(coordinator: Coordinator, calls: list[HookCall]) -> None:
    """All of them before the first: a typo in the last must not be found half way. Raises InvalidHook."""
    from agent.contract.errors import InvalidHook, Problem

    problems: list[Problem] = []
    for call in calls:
        try:
            coordinator.check(call)
        except InvalidHook as error:
            problems += [Problem(f"{call.hook.name}: {found.path}", found.message) for found in error.problems]
    if problems:
        raise InvalidHook(problems)
