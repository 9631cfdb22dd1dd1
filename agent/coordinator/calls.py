"""A hook and how it is called: parameters filled in, limits given. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from agent.contract.actions import Action
from agent.contract.errors import InvalidHook, Problem
from agent.contract.functions import FunctionCall
from agent.contract.messages import (
    DEFAULT_TIMEOUT_SECONDS,
    MAX_ATTEMPTS,
    MAX_COMMAND_BYTES,
    MAX_START_WINDOW_SECONDS,
    MAX_TIMEOUT_SECONDS,
    CatalogueHook,
)
from agent.contract.rendering import RenderError, expand
from agent.contract.templates import Executor, Hook, HookSpec, PodExecutor, rendered_fields, used_placeholders
from agent.coordinator.operator import check_here
from agent.coordinator.targets import PodSeen
from agent.coordinator.usage import check_usage

if TYPE_CHECKING:
    from agent.contract.functions import Function, FunctionCall

#: A command is an action and this much at most: its envelope, names and times. A signature makes four bytes of three.
ENVELOPE_BYTES = 8 * 1024
MAX_ACTION_BYTES = (MAX_COMMAND_BYTES - 1024) * 3 // 4 - ENVELOPE_BYTES
#: How long a trigger may take to be started, on its way and in the agent.
DEFAULT_START_WINDOW_SECONDS = 30
#: Stands for the selector of a call that names its pods: an executor has to have one, and nobody is selected by it.
_ANY = "!podhook.dev/none"


@dataclass(frozen=True, slots=True)
class HookCall:
    """One call of a hook. Times are seconds.

    `namespaces` None means all. `max_parallel` and `max_errors` None mean no bound. `expect` is how many pods must be
    selected. `params` fill the hook's parameters. A hook of the agents' own `catalogue` travels as its name and these
    parameters, and each agent fills in what its policy has there: see `of_catalogue`.

    `variables` fill `${NAME}` as parameters do (KubeStash's HookInfo.variables, their values already read): a parameter
    that is given wins over a variable, a variable over a parameter's default. Those named in `secret_variables` came
    from Secrets: their values are taken out of what is told of the run. `data` is what `{{ }}` may read beside
    `Params`: `Name`, `Namespace`, `Invoker`, `Target` and `Status` with `Phase`, `Duration`, `Error`.
    `function` is what the call adds to the Job of a Function, and `job_function` that Function, if it was read already.
    `namespace_labels`, by namespace, decide about templates that may be used from selected namespaces only.

    `only` are the pods that are meant, from somebody who has asked the cluster: instead of those of a selector, an
    owner and `namespaces`. `literal`: the action is run as it stands; in it `{{ }}` and `${NAME}` mean nothing to us.
    """

    hook: Hook
    namespaces: frozenset[str] | None = frozenset({"default"})
    params: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    start_window_seconds: float = DEFAULT_START_WINDOW_SECONDS
    max_retry: int = 0
    retry_unknown: bool = False
    max_parallel: int | None = None
    max_errors: int | None = None
    expect: int | None = None
    allow_empty: bool = False
    allow_missing: bool = False
    selector: str | None = None
    strategy: str | None = None
    catalogue: bool = False
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret_variables: frozenset[str] = frozenset()
    data: Mapping[str, object] = field(default_factory=dict)
    namespace_labels: Mapping[str, Mapping[str, str]] | None = None
    function: FunctionCall | None = None
    job_function: Function | None = None
    only: tuple[PodSeen, ...] | None = None
    literal: bool = False

    @classmethod
    def of_catalogue(cls, name: str, *, selector: str, **more: Any) -> Self:
        """Call the hook of this name in the agents' own catalogues (docs/policy.md); `more` are the other fields."""
        return cls(Hook(name, HookSpec()), selector=selector, catalogue=True, **more)

    def sent(self) -> Action | CatalogueHook:
        """What the trigger says to run.

        Raises:
            InvalidHook: a parameter is missing or unknown, or the name cannot be one of a catalogue's.
        """
        if not self.catalogue:
            return self.action()
        document = {"name": self.hook.name, "params": dict(self.params)}
        hook: CatalogueHook = _validated(CatalogueHook, document)
        return hook

    def executor(self) -> Executor:
        """Who runs it: the hook's executor, or agents by the call's own selector and strategy where given.

        Raises:
            InvalidHook: none is there, or the call's selector or strategy does not fit it.
        """
        present = self.hook.spec.executor
        if present is not None and present.type != "Pod":
            given = {
                "--selector": self.selector is not None,
                "--strategy": self.strategy,
                "only": self.only is not None,
            }
            if wrong := next((name for name, is_given in given.items() if is_given), ""):
                text = f"is {present.type!r}, which selects no pods; leave {wrong} out, or write type: Pod"
                raise InvalidHook([Problem("executor.type", text)])
            return present
        pod = present.pod.model_dump(by_alias=True) if present is not None and present.pod is not None else {}
        if self.selector is not None:
            pod["selector"] = self.selector
        if self.strategy is not None:
            pod["strategy"] = self.strategy
        if self.only is not None:
            pod = {"selector": _ANY, "strategy": pod.get("strategy", "ExecuteOnOne")}
        if "selector" not in pod:
            raise InvalidHook([Problem("executor", "is missing: add one, or say in which pods with --selector")])
        executor: Executor = _validated(Executor, {"type": "Pod", "pod": pod})
        return executor

    def pods(self) -> PodExecutor:
        """The part of a Pod executor. Raises InvalidHook as `executor`, and for one of another type."""
        executor = self.executor()
        if executor.pod is None:
            raise InvalidHook([Problem("executor.type", f"is {executor.type!r}, and only Pod selects pods")])
        return executor.pod

    def job_namespace(self) -> str:
        """Where the Job of a Function runs. Raises InvalidHook where that is not one namespace."""
        if self.namespaces is None or len(self.namespaces) != 1:
            asked = "all namespaces" if self.namespaces is None else ", ".join(sorted(self.namespaces)) or "none"
            text = f"a Function's Job runs in one namespace, not in {asked}; name one with --namespace"
            raise InvalidHook([Problem("namespace", text)])
        return next(iter(self.namespaces))

    def action(self) -> Action:
        """The action with its parameters filled in.

        Raises:
            InvalidHook: a parameter is missing or unknown, or the rendered action is no longer valid.
        """
        spec = self.hook.spec
        if spec.action is None:
            raise InvalidHook([Problem("action", "is required: give one of exec, httpGet, httpPost, tcpSocket")])
        values = self._values(spec)
        if self.literal:
            return spec.action
        document = spec.action.model_dump(by_alias=True, exclude_none=True)
        problems = []
        data = {**self.data, "Params": dict(values)}
        for path, text in rendered_fields(spec):
            try:
                _set(document, path.removeprefix("action."), expand(text, data, values))
            except RenderError as error:
                problems.append(Problem(path, str(error)))
        if problems:
            raise InvalidHook(problems)
        rendered: Action = _validated(Action, document)
        return rendered

    def secrets_told(self) -> list[str]:
        """Variables of Secrets whose values stand in the action: whoever sees it sees them."""
        used = used_placeholders(self.hook.spec)
        return sorted(name for name in self.secret_variables if name in used and name not in self.params)

    def check(self) -> None:
        """Everything that can be checked without a broker.

        Raises:
            InvalidHook: with what does not fit.
        """
        problems = []
        if not 0 < self.timeout_seconds <= MAX_TIMEOUT_SECONDS:
            problems.append(Problem("timeout", f"must be more than 0s and at most {MAX_TIMEOUT_SECONDS}s (7 days)"))
        if not 0 < self.start_window_seconds <= MAX_START_WINDOW_SECONDS:
            problems.append(Problem("start window", f"must be more than 0s and at most {MAX_START_WINDOW_SECONDS}s"))
        for name, value, least, most in (
            ("max retry", self.max_retry, 0, MAX_ATTEMPTS - 1),
            ("max parallel", self.max_parallel, 1, None),
            ("max errors", self.max_errors, 0, None),
            ("expect", self.expect, 0, None),
        ):
            if value is not None and (value < least or (most is not None and value > most)):
                limits = f"at least {least}" + (f" and at most {most}" if most is not None else "")
                problems.append(Problem(name, f"is {value}; it must be {limits}"))
        for part in (self._check_usage_policy, self._check_executor, self._check_action):
            try:
                part()
            except InvalidHook as error:
                problems += [each for each in error.problems if each not in problems]  # two parts may render it
        if problems:
            raise InvalidHook(problems)

    def _check_usage_policy(self) -> None:
        used_in = self.namespaces if self.only is None else frozenset(each.namespace for each in self.only)
        check_usage(self.hook, used_in, self.namespace_labels)

    def _check_executor(self) -> None:
        executor = self.executor()
        if executor.type == "Operator" and self.hook.spec.action is not None:
            check_here(self.action())
        if executor.type == "Function":
            self.job_namespace()

    def _check_action(self) -> None:
        spec = self.hook.spec
        if spec.action is None and spec.executor is not None and spec.executor.type == "Function":
            self._values(spec)  # a Function needs no action, and its parameters are still checked
            return
        size = len(self.sent().model_dump_json(by_alias=True, exclude_none=True).encode())
        if size > MAX_ACTION_BYTES:
            text = (
                f"has {size} bytes with its parameters; the limit is {MAX_ACTION_BYTES}, agents take no larger command"
            )
            raise InvalidHook([Problem("action", f"{text}; put long text in a file")])

    def _values(self, spec: HookSpec) -> dict[str, str]:
        declared = {param.name: param for param in spec.params}
        used = used_placeholders(spec)
        text = " ".join(part for _, part in rendered_fields(spec))
        problems = [
            Problem(
                f"param {name}",
                f"is neither declared nor used by this hook (declared: {', '.join(declared) or 'none'})",
            )
            for name in self.params
            if name not in declared and name not in used and f".Params.{name}" not in text
        ]
        values = {param.name: param.default for param in spec.params if param.default is not None}
        values.update(self.variables)
        values.update(self.params)
        problems += [
            Problem(
                f"param {param.name}",
                f"is required ({param.usage or 'no usage given'}); "
                f"give --param {param.name}=VALUE, or params in a plan",
            )
            for param in spec.params
            if param.required and param.name not in values
        ]
        if problems:
            raise InvalidHook(problems)
        return values


def _validated(model: Any, document: dict[str, Any]) -> Any:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise InvalidHook(
            [
                Problem(
                    ".".join(str(step) for step in detail["loc"]) or model.__name__.lower(),
                    detail["msg"].removeprefix("Value error, "),
                )
                for detail in error.errors(include_url=False)
            ]
        ) from error


def _set(document: dict[str, Any], path: str, value: str) -> None:
    """Put a rendered text back where it came from: `exec.command[2]` or `httpPost.body`."""
    kind, _, name = path.partition(".")
    field_name, bracket, index = name.partition("[")
    if bracket:
        document[kind][field_name][int(index.rstrip("]"))] = value
    else:
        document[kind][field_name] = value
