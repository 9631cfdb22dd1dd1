"""A plan's hooks, ready to be called: templates fetched, variables read, and everything checked before the first runs.

Whoever runs a plan says where templates come from: files beside the plan, or a cluster that is asked.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.contract.env_vars import EnvVar
from agent.contract.errors import BadInput, ClusterError, ClusterUnavailable, InvalidHook, PodhookError, Problem
from agent.contract.messages import DEFAULT_TIMEOUT_SECONDS
from agent.contract.plans import HookInfo, HookPlan, Phase, PolicyName
from agent.contract.templates import MAX_FILE_BYTES, Hook, load_hooks
from agent.coordinator.calls import HookCall
from agent.coordinator.usage import asks_labels

if TYPE_CHECKING:
    from agent.contract.functions import Function

#: Asks the cluster for a HookTemplate by (name, namespace). Raises ClusterError, InvalidHook.
ReadTemplate = Callable[[str, str], Awaitable[Hook]]
#: Asks the cluster for the values of variables, in a namespace. Raises ClusterError.
ReadVariables = Callable[[Sequence[EnvVar], str], Awaitable[dict[str, str]]]

#: Asks the cluster for the labels of these namespaces. Raises ClusterError.
ReadLabels = Callable[[Iterable[str]], Awaitable[dict[str, dict[str, str]]]]

#: Asks the cluster for a Function by its name. Raises ClusterError, InvalidHook.
ReadFunction = Callable[[str], Awaitable["Function"]]

#: `Status.Error` has no more than this, whatever failed: a command with it must not outgrow what an agent takes.
MAX_ERROR_CHARACTERS = 500


def plain(text: str) -> str:
    """What may stand as `Status.Error`: nothing that a shell takes for its own, quoted or not, and not too long."""
    return re.sub(r"[^\w .,:/@%+=-]", "?", text)[:MAX_ERROR_CHARACTERS]


@dataclass(frozen=True, slots=True)
class Status:
    """How an operation ended, as templates read it: `Succeeded` or `Failed`, a duration as Go writes it, and why."""

    phase: str
    duration: str = "0s"
    error: str = ""

    def data(self) -> dict[str, str]:
        """It as templates read it."""
        return {"Phase": self.phase, "Duration": self.duration, "Error": self.error}


@dataclass(frozen=True, slots=True, eq=False)
class PlannedHook:
    """One hook of a plan. `call` lacks only what is known when its turn has come: see `called`."""

    phase: Phase
    index: int
    title: str
    policy: PolicyName
    call: HookCall

    def called(self, status: Status | None = None) -> HookCall:
        """The call; `status` is the operation's result, where it has one."""
        if status is None:
            return self.call
        return replace(self.call, data={**self.call.data, "Status": status.data()})

    @property
    def in_pods(self) -> bool:
        """Whether agents run it. The call has passed its checks."""
        return self.call.executor().type == "Pod"

    def __str__(self) -> str:
        return f"{self.phase}[{self.index}] {self.title}"


#: Templates are rendered with these before anything runs: what a result can say, at its longest.
_STAND_INS = (Status("Succeeded", "1h2m3.456s"), Status("Failed", "1h2m3.456s", "x" * MAX_ERROR_CHARACTERS))


@dataclass(frozen=True, slots=True)
class Sources:
    """Where templates and values come from. `directory`: what a plan's paths are relative to.

    `functions` are Functions that are files, by name. The rest ask a cluster; None: there is none to ask.
    """

    directory: Path
    read_template: ReadTemplate | None = None
    read_variables: ReadVariables | None = None
    read_labels: ReadLabels | None = None
    read_function: ReadFunction | None = None
    functions: Mapping[str, Function] = field(default_factory=dict)


@dataclass(slots=True)
class _Found:
    """What stands in the way of a plan, and what was fetched already."""

    sources: Sources
    problems: list[Problem] = field(default_factory=list)
    unavailable: ClusterUnavailable | None = None
    files: dict[Path, list[Hook] | list[Problem]] = field(default_factory=dict)

    def add(self, path: str, error: PodhookError) -> None:
        """Note an error; a cluster that cannot be asked now is no fault of the plan's."""
        if isinstance(error, ClusterUnavailable):
            self.unavailable = error
        elif isinstance(error, InvalidHook):
            self.problems += [
                Problem(f"{path}: {each.path}" if each.path else path, each.message) for each in error.problems
            ]
        else:
            self.problems.append(Problem(path, str(error)))


async def prepare(
    plan: HookPlan,
    phases: Iterable[Phase],
    sources: Sources,
    *,
    namespaces: frozenset[str] | None,
    home: str,
    options: Mapping[str, Any] | None = None,
    check: Callable[[HookCall], None] = HookCall.check,
) -> list[PlannedHook]:
    """Resolve and check every hook of these lists, in order; nothing is run.

    Args:
        plan: the plan.
        phases: the lists that are wanted.
        sources: where templates and values come from.
        namespaces: where hooks run in pods; None is everywhere.
        home: the plan's own namespace: where templates and Secrets without one are.
        options: further fields of every HookCall. `timeout_seconds` is for hooks that name none.
        check: what a call has to pass, such as `Coordinator.check`.

    Raises:
        InvalidHook: with every problem of every hook, each with its path in the plan.
        ClusterUnavailable: the cluster cannot be asked now, and nothing else is wrong.
    """
    found = _Found(sources)
    planned = []
    for phase in phases:
        for index, info in enumerate(plan.of(phase)):
            path = f"{phase}[{index}]"
            hook = await _template(info, path, home, found)
            variables = await _variables(info, path, home, found)
            if hook is None:
                continue
            call = HookCall(
                hook,
                **{
                    "timeout_seconds": DEFAULT_TIMEOUT_SECONDS,
                    **(options or {}),
                    **({} if info.timeout is None else {"timeout_seconds": info.timeout}),
                    "namespaces": namespaces,
                    "params": info.params,
                    "max_retry": info.max_retry,
                    "variables": variables,
                    "secret_variables": frozenset(each.name for each in info.variables if each.is_secret),
                    "data": _data(plan, home),
                    "function": info.function(),
                    "job_function": await _function(hook, path, found),
                    "namespace_labels": await _labels(hook, path, namespaces, found),
                },
            )
            one = PlannedHook(phase, index, info.title, info.execution_policy, call)
            _check(one, path, check, found)
            planned.append(one)
    if found.problems:
        raise InvalidHook(found.problems)
    if found.unavailable is not None:
        raise found.unavailable
    return planned


def _check(hook: PlannedHook, path: str, check: Callable[[HookCall], None], found: _Found) -> None:
    """Post hooks are rendered with what a result can say: a thaw that cannot be rendered must be found before."""
    for status in _STAND_INS if hook.phase.is_post else (None,):
        try:
            check(hook.called(status))
        except BadInput as error:
            found.add(path, error)
            return


def _data(plan: HookPlan, home: str) -> dict[str, object]:
    data: dict[str, object] = {"Name": plan.name, "Namespace": home}
    if plan.invoker is not None:
        data["Invoker"] = plan.invoker.data()
    if plan.target is not None:
        data["Target"] = plan.target.data()
    return data


async def _labels(
    hook: Hook, path: str, namespaces: frozenset[str] | None, found: _Found
) -> dict[str, dict[str, str]] | None:
    """Those of the namespaces in question, where the template asks for them."""
    if not asks_labels(hook) or namespaces is None or found.sources.read_labels is None:
        return None
    try:
        return await found.sources.read_labels(namespaces)
    except ClusterError as error:
        found.add(path, error)
        return None


async def _function(hook: Hook, path: str, found: _Found) -> Function | None:
    """The Function of a hook, whose absence must not be noticed after the command."""
    executor = hook.spec.executor
    if executor is None or executor.function is None:
        return None
    name, sources = executor.function.name, found.sources
    if name in sources.functions or sources.read_function is None:
        return sources.functions.get(name)  # without a cluster there is no Job either, and the call's check says so
    try:
        return await sources.read_function(name)
    except (ClusterError, BadInput) as error:
        found.add(f"{path}: executor.function", error)
        return None


async def _template(info: HookInfo, path: str, home: str, found: _Found) -> Hook | None:
    if info.file is not None:
        return _from_file(info, path, found)
    reference = info.hook_template
    assert reference is not None  # the model sees to that
    if found.sources.read_template is None:
        text = (
            f"{reference.name!r} is looked up in a cluster, and none is asked; add file: with the path of its YAML, or "
            "run with --kubeconfig, --context or inside the cluster"
        )
        found.problems.append(Problem(f"{path}.hookTemplate", text))
        return None
    try:
        return await found.sources.read_template(reference.name, reference.namespace or home)
    except (ClusterError, BadInput) as error:
        found.add(f"{path}.hookTemplate", error)
        return None


def _from_file(info: HookInfo, path: str, found: _Found) -> Hook | None:
    assert info.file is not None
    file = found.sources.directory / info.file
    if file not in found.files:
        try:
            found.files[file] = load_hooks(_read(file), name=file.stem)
        except InvalidHook as error:
            found.files[file] = error.problems
            found.add(f"{path}.file {info.file}", error)
        except OSError as error:
            found.files[file] = []
            found.problems.append(Problem(f"{path}.file", f"cannot read {file}: {error.strerror}"))
    hooks = [each for each in found.files[file] if isinstance(each, Hook)]
    wanted = info.hook_template
    if wanted is None and len(hooks) <= 1:
        return hooks[0] if hooks else None
    names = ", ".join(each.name for each in hooks[:20])
    if wanted is None:
        text = f"{info.file} has {len(hooks)} hooks ({names}); say which one with hookTemplate: {{name: ...}}"
        found.problems.append(Problem(f"{path}.file", text))
        return None
    fits = [
        each
        for each in hooks
        if each.name == wanted.name and (each.namespace is None or wanted.namespace in (None, each.namespace))
    ]
    if hooks and len(fits) != 1:
        where = f" of namespace {wanted.namespace!r}" if wanted.namespace else ""
        text = f"{wanted.name!r}{where} is in {info.file} {len(fits) or 'not at all'}{' times' if fits else ''}"
        found.problems.append(Problem(f"{path}.hookTemplate", f"{text} (it has: {names}); name one that is there once"))
        return None
    return fits[0] if fits else None


def _read(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(MAX_FILE_BYTES + 1)


async def _variables(info: HookInfo, path: str, home: str, found: _Found) -> dict[str, str]:
    literal = {each.name: each.value or "" for each in info.variables if each.value_from is None}
    elsewhere = [each for each in info.variables if each.value_from is not None]
    if not elsewhere:
        return literal
    unread = {each.name: "" for each in elsewhere}  # a value that could not be had is no missing parameter as well
    if found.sources.read_variables is None:
        names = ", ".join(each.name for each in elsewhere)
        text = f"{names}: valueFrom is read from a cluster, and none is asked; run with --kubeconfig, or give a value"
        found.problems.append(Problem(f"{path}.variables", text))
        return {**literal, **unread}
    try:
        return {**literal, **await found.sources.read_variables(elsewhere, home)}
    except (ClusterError, BadInput) as error:
        found.add(f"{path}.variables", error)
        return {**literal, **unread}
