"""`podhook run`: run the hooks of a file, one verdict each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli import options
from agent.cli.check import name_of, read_file
from agent.cli.exits import Exit, errors_as_exits, logs_for_people, tell

if TYPE_CHECKING:
    from agent.coordinator import Coordinator, HookCall, RunResult


#: What ends a run: Ctrl-C, a polite end, a terminal that is gone.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Strategy(StrEnum):
    """Which of the selected pods run the hook."""

    ONE = "ExecuteOnOne"
    ALL = "ExecuteOnAll"


def command(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="YAML of one or more HookTemplates; - for standard input.")
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
) -> None:
    """Run the hooks of a file in order, through the agents of the selected pods, and gather one verdict a hook.

    With --catalogue NAME a hook that the agents' policies know runs instead, with the parameters given.

    A hook that does not succeed ends the run; --keep-going runs the rest too. Results go to standard output, what
    happens meanwhile to standard error. JSON is one object a line and hook. Ctrl-C cancels what was started and says
    what state each pod is in; a second one waits no longer for that.

    Each run has an id, said when it begins. If this command dies, the agents go on: --run-id ID gathers what came of
    it, and Ctrl-C then cancels it; `podhook query ID` only asks. Whoever began it may live and retry, so after a
    failure it waits half a minute more. Then 1 also means that not all targets told, and 3 that no agent knows it.

    Exit codes: 0 succeeded, 1 a hook failed, 2 usage or invalid file, 3 no targets or missing agents (nothing was
    triggered), 4 broker unreachable or refused us, 130 interrupted.
    """
    with errors_as_exits():
        address = options.broker_from(
            broker, broker_user_file, broker_password_file, broker_ca_file, broker_cert_file, broker_key_file
        )

        def connect() -> Coordinator:
            from agent.coordinator import Coordinator

            return Coordinator(address, topic_root=topic_root, key=key, agent_keys=agent_keys)

        if run_id is not None:
            from agent.contract.messages import check_run_id

            if file is not None:
                tell(f"--run-id gathers a run that was begun before: {file} is not read, and nothing is triggered")
            _refuse_other_options(context)
            check_run_id(run_id)
            namespaces = None if all_namespaces else options.namespaces_from(namespace, every=not namespace)
            logs_for_people()
            gathered = asyncio.run(resume(connect, run_id, namespaces, output=output, key=key))
            raise typer.Exit(exit_code(gathered))
        if (file is None) == (catalogue is None):
            raise typer.BadParameter(
                "give a FILE of hooks, or --run-id to gather a run that was begun before, or --catalogue NAME"
                if file is None
                else "--catalogue names a hook that the agents have, and FILE brings its own; give one of them"
            )
        from agent.contract.durations import parse_duration
        from agent.contract.errors import BadInput, InvalidHook, Problem
        from agent.contract.templates import HookSpec
        from agent.coordinator import Hook, HookCall, load_hooks

        def seconds(flag: str, text: str) -> float:
            try:
                return parse_duration(text)
            except BadInput as error:
                raise BadInput(f"{flag} {error}") from error

        hooks = load_hooks(read_file(file), name=name_of(file)) if file is not None else []
        if catalogue is not None:
            hooks = [Hook(catalogue, HookSpec())]
        calls = [
            HookCall(
                hook,
                namespaces=options.namespaces_from(namespace, all_namespaces),
                params=params_of(param or []),
                timeout_seconds=seconds("--timeout", timeout),
                start_window_seconds=seconds("--start-within", start_within),
                max_retry=max_retry,
                retry_unknown=retry_unknown,
                max_parallel=max_parallel,
                max_errors=max_errors,
                expect=expect,
                allow_empty=allow_empty,
                allow_missing=allow_missing,
                selector=selector,
                strategy=str(strategy) if strategy else None,
                catalogue=catalogue is not None,
            )
            for hook in hooks
        ]
        problems: list[Problem] = []
        for call in calls:  # all of them before the first: a typo in the last must not be found half way
            try:
                call.check()
            except InvalidHook as error:
                problems += [Problem(f"{call.hook.name}: {found.path}", found.message) for found in error.problems]
        if problems:
            raise InvalidHook(problems)
        logs_for_people()
        executed = asyncio.run(execute(connect, calls, output=output, keep_going=keep_going))
        raise typer.Exit(exit_code(executed))


@dataclass(frozen=True, slots=True)
class Executed:
    """What came of the hooks that were run, and whether somebody stopped us in the middle."""

    runs: tuple[RunResult, ...]
    interrupted: bool


async def execute(
    connect: Callable[[], Coordinator],
    calls: Sequence[HookCall],
    *,
    output: options.Format,
    keep_going: bool,
    quiet: bool = False,
    before: Callable[[HookCall], None] | None = None,
) -> Executed:
    """Run calls one after the other, show them, and return their results. Ctrl-C and SIGTERM cancel the present one.

    The second Ctrl-C waits no longer to hear how it ended. `quiet` shows no events, only results. `before` is called
    before each call. Raises LinkDown, BrokerRefused, InvalidKey.
    """
    from agent.coordinator import Verdict

    runs: list[RunResult] = []
    async with connect() as coordinator:
        with _stopped_by_signals(coordinator) as stops:
            for call in calls:
                if before is not None:
                    before(call)
                run = await _one(coordinator, call, output, quiet=quiet)
                runs.append(run)
                if stops or (run.verdict is not Verdict.SUCCEEDED and not keep_going):
                    break
    left = len(calls) - len(runs)
    if left and not quiet:
        hint = "" if stops else "; --keep-going runs them all the same"
        tell(f"{left} more hook{'s' * (left > 1)} not run{hint}")
    return Executed(tuple(runs), bool(stops))


#: What says something to a run that is only gathered.
_WITH_RUN_ID = {"file", "run_id", "namespace", "all_namespaces", "output", "broker", "topic_root", "key", "agent_keys"}


def _refuse_other_options(context: typer.Context) -> None:
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
        with _stopped_by_signals(coordinator) as stops:
            with RunView("resumed") as view:
                run = await coordinator.resume(run_id, namespaces=namespaces, on_event=view)
            _show(run, output)
            if run.verdict is not Verdict.SUCCEEDED:
                await options.hint_to_key(coordinator, key, namespaces)
    return Executed((run,), bool(stops))


@contextlib.contextmanager
def _stopped_by_signals(coordinator: Coordinator) -> Iterator[list[int]]:
    """Signals cancel what runs; the second waits no longer. Yields the signals that came so far."""
    loop = asyncio.get_running_loop()
    came: list[int] = []

    def interrupt(number: int) -> None:
        came.append(number)
        if len(came) == 1:
            coordinator.cancel()
            tell("stopping what was started; each pod has 10 s to say how it ended (again: do not wait)")
        else:
            coordinator.cancel(within_seconds=0)
            tell("waiting no longer")

    stopping = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]  # nohup stays nohup
    for number in stopping:
        loop.add_signal_handler(number, interrupt, number)
    try:
        yield came
    finally:
        for number in stopping:
            loop.remove_signal_handler(number)


def exit_code(executed: Executed) -> Exit:
    """The worst of all verdicts, as the shell hears it; whoever interrupts hears that."""
    from agent.coordinator import Verdict

    verdicts = [run.verdict for run in executed.runs]
    if executed.interrupted:
        return Exit.INTERRUPTED
    if Verdict.FAILED in verdicts:
        return Exit.FAILED
    if not verdicts or all(verdict is Verdict.SUCCEEDED for verdict in verdicts):
        return Exit.SUCCEEDED
    nothing_ran = {Verdict.SUCCEEDED, Verdict.NOT_STARTED, Verdict.NOT_FOUND}
    return Exit.NO_TARGETS if nothing_ran.issuperset(verdicts) else Exit.FAILED


async def _one(coordinator: Coordinator, call: HookCall, output: options.Format, *, quiet: bool) -> RunResult:
    from agent.cli.view import RunView

    if quiet:
        run = await coordinator.run(call)
    else:
        with RunView(call.hook.name) as view:
            run = await coordinator.run(call, on_event=view)
    _show(run, output)
    return run


def _show(run: RunResult, output: options.Format) -> None:
    from agent.cli.view import print_result, show

    def write() -> None:
        if output is options.Format.JSON:
            print(json.dumps(run.to_json()), flush=True)
        else:
            print_result(run)

    show(write)


def params_of(given: list[str]) -> dict[str, str]:
    """Parameters as `--param NAME=VALUE` gives them. Raises BadInput."""
    from agent.contract.errors import BadInput

    params = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise BadInput(f"--param {each!r}: write NAME=VALUE")
        params[name] = value
    return params
