"""`podhook policy check` and `podhook policy test`: what a policy says, without an agent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.check import name_of, read_file
from agent.cli.exits import Exit, errors_as_exits

if TYPE_CHECKING:
    from agent.contract.actions import Action
    from agent.sidecar.policy import Policy

group = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, name="policy"
)

PolicyArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The policy: YAML; - for standard input.")]


@group.callback()
def _policy() -> None:
    """Check what an agent's policy says, or whether it allows a hook. Neither needs an agent or a broker.

    Exit codes: 0 valid, or allowed; 1 denied; 2 usage, or a file that cannot be used.
    """


@group.command("check")
def check_policy(file: PolicyArgument) -> None:
    """Validate a policy and say what it amounts to; names every problem at once.

    Exit codes: 0 the policy is valid, 2 usage or invalid file.
    """
    with errors_as_exits():
        from agent.sidecar.policy import load_policy
        from agent.sidecar.policy.summary import notes, summary

        policy = load_policy(read_file(file))
        print(f"{name_of(file)}: valid")
        for line in summary(policy):
            print(f"  {line}")
        for note in notes(policy):
            print(f"  note: {note}")


@group.command("test")
def judge_hooks(
    file: PolicyArgument,
    hook: Annotated[
        Path | None, typer.Argument(metavar="HOOK", help="YAML of one or more HookTemplates; - for standard input.")
    ] = None,
    catalogue: Annotated[
        str | None, typer.Option("--catalogue", metavar="NAME", help="A hook of the policy's catalogue, instead.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="NAME=VALUE", help="A parameter of the hook; may be given again."),
    ] = None,
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="The timeout that it is run with.")] = "5m",
    container: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The pod's first container, for hooks that name none."),
    ] = None,
    port: Annotated[
        list[str] | None,
        typer.Option("--port", metavar="NAME=NUMBER", help="What a named port stands for; may be given again."),
    ] = None,
    pod_address: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The pod's own address, as in PODHOOK_POD_IP.")
    ] = "127.0.0.1",
) -> None:
    """Say for each hook of a file whether a policy allows it, and which rule says so.

    What only the socket knows - to which address a name leads - is not looked up.

    Exit codes: 0 all are allowed, 1 one is denied, 2 usage or invalid file.
    """
    with errors_as_exits():
        from agent.cli.running import params_of
        from agent.contract.durations import parse_duration
        from agent.contract.errors import Refusal
        from agent.sidecar.policy import load_policy
        from agent.sidecar.policy.judge import hook_action

        if (hook is None) == (catalogue is None):
            raise typer.BadParameter("give a HOOK file, or --catalogue NAME; one of them")
        policy = load_policy(read_file(file))
        world = _World(policy, parse_duration(timeout), container, _ports(port or []), pod_address)
        values = params_of(param or [])
        denied = False
        if catalogue is not None:
            try:
                action = hook_action(policy, catalogue, values)
            except Refusal as refusal:
                print(f"{catalogue}: denied: {refusal.message} ({refusal.code})")
                raise typer.Exit(Exit.FAILED) from refusal
            denied = not world.told(catalogue, action, of_catalogue=True)
        elif hook is not None:
            for name, found in _actions(hook, values):
                if isinstance(found, str):
                    print(f"{name}: not judged: {found}")
                else:
                    denied = not world.told(name, found) or denied
        raise typer.Exit(Exit.FAILED if denied else Exit.SUCCEEDED)


class _World:
    """What the pod is like, as far as a policy asks."""

    def __init__(
        self, policy: Policy, timeout_seconds: float, container: str | None, ports: dict[str, int], pod_address: str
    ) -> None:
        self._policy, self._timeout_seconds, self._ports = policy, timeout_seconds, ports
        self._container, self._pod_address = container, pod_address

    def told(self, name: str, action: Action, *, of_catalogue: bool = False) -> bool:
        """Judge one action, say what came of it; whether it is allowed."""
        from agent.sidecar.policy import Asked, judge

        asked = Asked(
            action,
            container=self._container_of(name, action) if action.exec_ is not None else "",
            port=self._port_of(name, action),
            hook=name if of_catalogue else "",
            timeout_seconds=self._timeout_seconds,
            pod_address=self._pod_address,
        )
        decision = judge(self._policy, asked)
        if decision.refusal is None:
            print(f"{name}: allowed by {decision.rule}")
        else:
            print(f"{name}: denied: {decision.refusal.message} ({decision.refusal.code})")
        return decision.allowed

    def _container_of(self, name: str, action: Action) -> str:
        from agent.contract.errors import BadInput

        if action.container_name or self._container:
            return action.container_name or str(self._container)
        known = list(self._policy.commands)
        if len(known) == 1:
            return known[0]
        raise BadInput(
            f"hook {name!r} names no container, so it runs in the pod's first; say with --container which one that is "
            f"(the policy has rules for: {', '.join(known) or 'none'})"
        )

    def _port_of(self, name: str, action: Action) -> int:
        from agent.contract.errors import BadInput

        target = action.http_get or action.http_post or action.tcp_socket
        if target is None or isinstance(target.port, int):
            return target.port if target is not None and isinstance(target.port, int) else 0
        if target.port not in self._ports:
            raise BadInput(f"hook {name!r} has the named port {target.port!r}; say --port {target.port}=NUMBER")
        return self._ports[target.port]


def _actions(file: Path, values: dict[str, str]) -> list[tuple[str, Action | str]]:
    """Each hook's action with its parameters, or why an agent never gets it."""
    from agent.contract.templates import load_hooks
    from agent.coordinator import HookCall

    found: list[tuple[str, Action | str]] = []
    for each in load_hooks(read_file(file), name=name_of(file)):
        executor = each.spec.executor
        if executor is not None and executor.type != "Pod":
            found.append((each.name, f"the {executor.type} executor runs it elsewhere than in an agent"))
        else:
            found.append((each.name, HookCall(each, params=values).action()))
    return found


def _ports(given: list[str]) -> dict[str, int]:
    from agent.contract.errors import BadInput

    ports = {}
    for each in given:
        name, _, number = each.partition("=")
        if not name or not (number.isascii() and number.isdigit() and len(number) <= 5 and 1 <= int(number) <= 65535):
            raise BadInput(f"--port {each!r}: write NAME=NUMBER, from 1 to 65535")
        ports[name] = int(number)
    return ports
