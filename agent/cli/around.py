"""`podhook around`: pre hooks, a command, post hooks."""

from __future__ import annotations

import asyncio
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from agent.cli import options
from agent.cli.check import functions_from, name_of, read_file
from agent.cli.cluster import Asked, cluster_from
from agent.cli.exits import logs_for_people, tell
from agent.cli.planned import directory_of, namespaces_of

if TYPE_CHECKING:
    from agent.cli.reporting import Reporter
    from agent.contract.functions import Function
    from agent.contract.plans import HookPlan
    from agent.coordinator import Coordinator
    from agent.coordinator.operation import Options
    from agent.coordinator.plan import PlannedHook

#: `agent.coordinator.around.AroundExit`, by value: help must not load it.
INVALID, UNREACHABLE, INTERRUPTED = 121, 124, 125


class OperationName(StrEnum):
    """What the command does; it chooses the lists."""

    BACKUP = "backup"
    RESTORE = "restore"


class HookFailure(StrEnum):
    """What a post hook that fails does to an exit code of 0."""

    WARN = "warn"
    FAIL = "fail"


#: Typer brings its own copy of click, or uses the one that is installed, by its version.
_UsageError: Any = typer.BadParameter.__mro__[1]


class Command(TyperCommand):
    """A wrong option ends with 121: 2 might be the command's own."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        """Read the command line."""
        try:
            return super().make_context(*args, **more)
        except _UsageError as error:
            error.exit_code = INVALID
            raise


def command(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="YAML of a HookPlan; - for standard input.")],
    argv: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND", help="What runs between the hooks, with its arguments.")
    ],
    phase: Annotated[
        OperationName, typer.Option(help="backup: preBackup and postBackup; restore: preRestore and postRestore.")
    ] = OperationName.BACKUP,
    namespace: Annotated[
        list[str] | None,
        typer.Option("--namespace", "-n", metavar="NAME", help="Namespace of the pods. [default: the plan's]"),
    ] = None,
    all_namespaces: options.AllNamespaces = False,
    timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="Per attempt, of hooks that name none: 30s, 5m, 1h30m.")
    ] = "5m",
    retry_unknown: Annotated[
        bool, typer.Option("--retry-unknown", help="Repeat also interrupted and lost attempts, which may have run.")
    ] = False,
    max_parallel: Annotated[int | None, typer.Option(metavar="N", min=1, help="Pods at once. [default: all]")] = None,
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="Accept that a hook selects no pod.")] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Accept that selected pods have no live agent.")
    ] = False,
    start_within: Annotated[
        str, typer.Option(metavar="DURATION", help="A trigger not started within this is void (at most 15m).")
    ] = "30s",
    hook_failure: Annotated[
        HookFailure,
        typer.Option(help="What a post hook that fails does when the command succeeded: 123, or only tell."),
    ] = HookFailure.FAIL,
    grace: Annotated[
        str, typer.Option(metavar="DURATION", help="After SIGTERM or SIGHUP the command has this long, then SIGKILL.")
    ] = "10s",
    reconnect_within: Annotated[
        str,
        typer.Option(metavar="DURATION", help="Post hooks wait this long for a broker or agents that are gone."),
    ] = "1m",
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what happened as JSON, also when it failed.")
    ] = None,
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
    """Run a plan's pre hooks, then COMMAND, then its post hooks - whatever happened before - and end as COMMAND did.

    COMMAND gets standard input, output and error untouched; podhook itself writes to standard error only. A pre hook
    that fails ends it before COMMAND runs. Post hooks run by their executionPolicy, after a failure, Ctrl-C or SIGTERM,
    too, and know the result as .Status.Phase, .Duration and .Error. Whatever can be checked is checked before the first
    hook runs. Only SIGKILL keeps post hooks from running: see docs/around.md.

    Exit codes: COMMAND's own (128 and the signal's number if one ended it, 126 not executable, 127 not found), and
    where hooks decide: 121 usage or invalid plan, nothing ran; 122 failed before COMMAND, which did not run; 123
    COMMAND succeeded and a post hook did not; 124 broker or cluster unreachable, nothing ran; 125 interrupted before
    COMMAND ran, or post hooks were cut short, or a fault of podhook's own.
    """
    from agent.cli.reporting import Reporter
    from agent.contract.errors import BusError, ClusterUnavailable, InvalidHook, PodhookError

    reporter = Reporter(report, name_of(plan), str(phase))
    try:
        reporter.check()
        address = options.broker_from(
            broker, broker_user_file, broker_password_file, broker_ca_file, broker_cert_file, broker_key_file
        )
        operator = options.operator_from(http_ca_file, no_http_verify, secrets_dir)
        functions = functions_from(function or [])

        def connect(asked: Asked, *, agents: bool) -> Coordinator:
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

        from agent.contract.plans import load_plan
        from agent.coordinator.operation import Options

        work = _Work(
            load_plan(read_file(plan), name=name_of(plan)),
            directory_of(plan),
            phase,
            options.namespaces_from(namespace, all_namespaces) if namespace or all_namespaces else ...,
            {
                "timeout_seconds": options.seconds_from("--timeout", timeout),
                "start_window_seconds": options.seconds_from("--start-within", start_within),
                "retry_unknown": retry_unknown,
                "max_parallel": max_parallel,
                "allow_empty": allow_empty,
                "allow_missing": allow_missing,
            },
            argv,
            Options(
                options.seconds_from("--grace", grace),
                options.seconds_from("--reconnect-within", reconnect_within),
                hook_failure is HookFailure.WARN,
            ),
            connect,
            functions,
            reporter,
        )
        logs_for_people()
        code = asyncio.run(work.run(lambda: cluster_from(kubeconfig, kube_context, source)))
    except InvalidHook as error:
        lines = "\n".join(f"  {problem}" for problem in error.problems)
        code = reporter.nothing_ran(INVALID, "invalid_plan", f"the plan cannot be used, nothing ran:\n{lines}")
    except (BusError, ClusterUnavailable) as error:
        code = reporter.nothing_ran(UNREACHABLE, "unreachable", f"{error}; nothing ran")
    except PodhookError as error:
        code = reporter.nothing_ran(INVALID, "invalid", f"{error}; nothing ran")
    except (KeyboardInterrupt, _StoppedEarly):
        code = reporter.nothing_ran(INTERRUPTED, "interrupted", "interrupted before anything ran")
    except Exception:  # noqa: BLE001 (1, as Python would end, might be the command's own)
        traceback.print_exc()
        code = INTERRUPTED if reporter.decided is None else reporter.decided
    raise typer.Exit(code)


class _StoppedEarly(Exception):  # noqa: N818
    """A signal came before the first hook."""


@dataclass(frozen=True, slots=True)
class _Work:
    """All that an operation needs. `given` namespaces are `...` where the command line names none."""

    plan: HookPlan
    directory: Path
    operation: OperationName
    given: Any
    common: dict[str, Any]
    argv: Sequence[str]
    options: Options
    connect: Callable[..., Coordinator]
    functions: Mapping[str, Function]
    reporter: Reporter

    async def run(self, cluster: Callable[[], Any]) -> int:
        """Do it; returns the exit code."""
        from agent.coordinator.interrupts import ENDING, PASSED_ON

        loop = asyncio.get_running_loop()
        watched = [each for each in (*ENDING, *PASSED_ON) if signal.getsignal(each) is not signal.SIG_IGN]
        hear_with: list[Callable[[signal.Signals], None]] = []
        hear = _Ears(asyncio.create_task(self._whole(cluster, hear_with), name="around"), hear_with)
        for number in watched:
            loop.add_signal_handler(number, hear, number)
        try:
            return await hear.task
        except asyncio.CancelledError:
            raise _StoppedEarly from None
        finally:
            for number in watched:
                loop.remove_signal_handler(number)

    async def _whole(self, cluster: Callable[[], Any], hear_with: list[Callable[[signal.Signals], None]]) -> int:
        from agent.cli.reporting import AroundView, summary
        from agent.coordinator.around import Kind
        from agent.coordinator.operation import Operation

        async with cluster() as asked:
            kind = Kind(str(self.operation))
            planned, home = await self._prepared(asked, kind)
            coordinator = self.connect(asked, agents=any(each.in_pods for each in planned))
            for each in planned:
                coordinator.check(each.call)
            self.reporter.plan, self.reporter.namespace = self.plan.name, home
            async with coordinator:
                operation = Operation(coordinator, kind, planned, self.argv, AroundView(self.reporter), self.options)
                hear_with.append(operation.signalled)  # from here on a signal has its own meaning at each stage
                record = await operation.run()
        summary(record)
        assert record.exit_code is not None
        return record.exit_code

    async def _prepared(self, asked: Asked, kind: Any) -> tuple[list[PlannedHook], str]:
        from agent.contract.errors import InvalidHook, Problem
        from agent.coordinator.plan import prepare

        if not any(self.plan.of(phase) for phase in kind.phases):
            before, after = kind.phases
            text = f"has neither {before} nor {after} hooks (it has {', '.join(self.plan.phases)}): see --phase"
            raise InvalidHook([Problem("the plan", text)])
        where, home = namespaces_of(self.plan, self.given)
        sources = asked.sources(self.directory, self.functions)
        planned = await prepare(self.plan, kind.phases, sources, namespaces=where, home=home, options=self.common)
        return planned, home


@dataclass(slots=True)
class _Ears:
    """Hears signals: until there is an operation, they end the preparations."""

    task: asyncio.Task[int]
    hear_with: list[Callable[[signal.Signals], None]]

    def __call__(self, number: signal.Signals) -> None:
        """A signal came."""
        if self.hear_with:
            self.hear_with[0](signal.Signals(number))
        elif number not in (signal.SIGUSR1, signal.SIGUSR2):
            tell(f"{signal.Signals(number).name}: nothing was begun")
            self.task.cancel()


click_class = Command
