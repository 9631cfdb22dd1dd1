"""`podhook check`: is this file of hooks usable?"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli import options
from agent.cli.exits import Exit, errors_as_exits

if TYPE_CHECKING:
    from agent.bus.broker import Broker
    from agent.contract.functions import Function
    from agent.contract.plans import HookInfo, HookPlan


def read_file(path: Path) -> bytes:
    """The bytes of a file of hooks; `-` is standard input. Raises BadInput."""
    from agent.contract.errors import BadInput
    from agent.contract.templates import MAX_FILE_BYTES

    try:
        if str(path) == "-":
            return sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error


def name_of(file: Path) -> str:
    """What hooks without a name of their own are called."""
    return "stdin" if str(file) == "-" else file.stem


def command(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="YAML of one or more HookTemplates, or a HookPlan; - for standard input."),
    ] = None,
    broker: Annotated[
        str | None,
        typer.Option("--broker", metavar="URL", help="Connect to this broker as an agent does, and say what it lacks."),
    ] = None,
    broker_user_file: options.UserFile = None,
    broker_password_file: options.PasswordFile = None,
    broker_ca_file: options.CaFile = None,
    broker_cert_file: options.CertFile = None,
    broker_key_file: options.KeyFile = None,
) -> None:
    """Validate a file of hooks and explain every problem at once; with --broker, see whether a broker is up to it.

    A file needs no broker. Of a broker it says which protocol it speaks, and each limit that breaks a promise: no
    QoS 1, no retained messages, sessions kept too short, small packets, few messages at once, a client id of its own.
    That is what the broker says when it lets a client in; access rules for topics are not tried.

    Exit codes: 0 the file is valid and the broker keeps every promise, 1 the broker does not, 2 usage or invalid file,
    4 broker unreachable or refused us.
    """
    with errors_as_exits():
        if file is None and broker is None:
            raise typer.BadParameter("give a FILE of hooks, or --broker URL, or both")
        if file is not None:
            _check_file(file)
        if broker is not None:
            address = options.broker_from(
                broker, broker_user_file, broker_password_file, broker_ca_file, broker_cert_file, broker_key_file
            )
            raise typer.Exit(asyncio.run(_check_broker(address)))


def functions_from(files: list[Path]) -> dict[str, Function]:
    """Functions of these files, by name. Raises InvalidHook, also for a name that stands in two of them."""
    from agent.contract.errors import InvalidHook, Problem
    from agent.contract.functions import load_functions

    found: dict[str, Function] = {}
    for file in files:
        for each in load_functions(read_file(file)):
            if each.name in found:
                raise InvalidHook([Problem(str(file), f"Function {each.name!r} was given before; keep one of them")])
            found[each.name] = each
    return found


def _check_file(file: Path) -> None:
    from agent.contract.plans import is_plan, load_plan
    from agent.contract.templates import load_hooks

    text = read_file(file)
    if is_plan(text):
        _check_plan(load_plan(text, name=name_of(file)), file)
        return
    for hook in load_hooks(text, name=name_of(file)):
        executor = hook.spec.executor
        kind = hook.spec.action.kind if hook.spec.action else "no action"
        if executor is None:
            who = "no executor"
        elif executor.pod is not None:
            who = f"{executor.pod.strategy} of pods with {executor.pod.selector}"
        else:
            who = f"{executor.type} executor"
        print(f"{hook.name}: {kind}, {who}: valid")
        for param in hook.spec.params:
            need = "required" if param.required else f"default {param.default!r}"
            print(f"  param {param.name}: {need}{f' - {param.usage}' if param.usage else ''}")
        if (missing := hook.missing()) is not None:
            print(f"  to run it, one thing is missing: {missing}")


def _check_plan(plan: HookPlan, file: Path) -> None:
    """What of a plan can be checked without a cluster: what it takes from one is left out, and said."""
    from dataclasses import replace

    from agent.cli.cluster import Asked
    from agent.cli.planned import directory_of, namespaces_of
    from agent.contract.plans import Phase
    from agent.coordinator.plan import prepare

    def local(info: HookInfo) -> bool:
        return info.file is not None and all(each.value_from is None for each in info.variables)

    where, home = namespaces_of(plan, ...)
    hooks = {phase: tuple(filter(local, plan.of(phase))) for phase in Phase}
    sources = Asked().sources(directory_of(file), {})
    asyncio.run(prepare(replace(plan, hooks=hooks), Phase, sources, namespaces=where, home=home))
    for phase in plan.phases:
        for index, info in enumerate(plan.of(phase)):
            left = (
                "valid"
                if local(info)
                else "the entry is valid; what it names is in a cluster, and is checked when it runs"
            )
            print(f"{phase}[{index}] {info.title}: {info.execution_policy}: {left}")


async def _check_broker(broker: Broker) -> Exit:
    """Connect twice: as an agent, with a session that outlives the connection, and again to take that session back."""
    from agent.bus.inspection import inspect

    limits = await inspect(broker)
    print(f"{broker.url}: MQTT {limits.protocol}")
    for note in limits.notes:
        print(f"  note: {note}")
    for warning in limits.warnings:
        print(f"  warning: {warning}")
    if not limits.warnings:
        print("  keeps every promise that it can tell of")
    return Exit.FAILED if limits.warnings else Exit.SUCCEEDED
