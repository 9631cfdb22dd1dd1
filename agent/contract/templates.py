"""KubeStash's HookTemplate: what people write, read with every problem named at once.

A document is a full HookTemplate, or just the spec's `action:` and `executor:` (as in KubeStash's guides).
The fields are those of `core.kubestash.com/v1alpha1`; the rules are in SEMANTICS.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from agent.contract.actions import Action, Finding, Strict
from agent.contract.documents import MAX_FILE_BYTES, paste_hint, read_documents, shown
from agent.contract.env_vars import EnvVar
from agent.contract.errors import BadInput, InvalidHook, Problem
from agent.contract.explain import explain, type_name
from agent.contract.pod_parts import Volume, VolumeMount, twice
from agent.contract.rendering import RenderError, check, placeholders
from agent.contract.selectors import parse_selector

__all__ = [
    "API_VERSIONS",
    "MAX_FILE_BYTES",
    "MAX_HOOKS",
    "AllowedNamespaces",
    "Executor",
    "FunctionExecutor",
    "Hook",
    "HookSpec",
    "HookTemplate",
    "LabelSelector",
    "LabelSelectorRequirement",
    "Metadata",
    "OwnerFilter",
    "Param",
    "PodExecutor",
    "UsagePolicy",
    "load_hooks",
    "read_hook",
    "rendered_fields",
    "used_placeholders",
]

#: KubeStash's, and the same kind for who has no KubeStash (manifests/crds).
API_VERSIONS = ("core.kubestash.com/v1alpha1", "podhook.dev/v1alpha1")
MAX_HOOKS = 200

_NEEDS_ACTION = "is required: give one of exec, httpGet, httpPost, tcpSocket"


def _selector(text: str) -> str:
    try:
        parsed = parse_selector(text)
    except BadInput as error:
        raise ValueError(str(error)) from error
    if not parsed.requirements:
        raise ValueError("is empty and would select every pod; write a label selector such as app=web")
    return text


class LabelSelectorRequirement(Strict):
    """Kubernetes' LabelSelectorRequirement."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] = Field(default_factory=list)

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """In and NotIn need values, the others have none (meta/v1)."""
        operator, values = written.get("operator"), written.get("values")
        if operator in ("In", "NotIn") and not values:
            yield ("values",), f"operator {operator} needs at least one value; add it"
        if operator in ("Exists", "DoesNotExist") and values:
            yield ("values",), f"operator {operator} takes no values; remove them"

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether these labels satisfy it; NotIn also matches where the key is absent."""
        match self.operator:
            case "In":
                return self.key in labels and labels[self.key] in self.values
            case "NotIn":
                return self.key not in labels or labels[self.key] not in self.values
            case "Exists":
                return self.key in labels
            case _:
                return self.key not in labels


class LabelSelector(Strict):
    """Kubernetes' LabelSelector."""

    match_labels: dict[str, str] = Field(default_factory=dict)
    match_expressions: list[LabelSelectorRequirement] = Field(default_factory=list)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether these labels satisfy every part of it. As in Kubernetes, an empty one matches all."""
        return all(labels.get(key) == value for key, value in self.match_labels.items()) and all(
            each.matches(labels) for each in self.match_expressions
        )


class AllowedNamespaces(Strict):
    """From which namespaces a template may be used."""

    from_: Literal["Same", "All", "Selector"] = Field(default="Same", alias="from")
    selector: LabelSelector | None = None

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """A selector where one is asked for."""
        if written.get("from") == "Selector" and written.get("selector") is None:
            yield (), "from: Selector needs a selector beside it; add one or write from: Same"


class UsagePolicy(Strict):
    """Who may use a template."""

    allowed_namespaces: AllowedNamespaces = AllowedNamespaces()


class Param(Strict):
    """A parameter that the hook's caller gives."""

    name: Annotated[str, Field(min_length=1)]
    usage: str = ""
    required: bool = False
    default: str | None = None


class OwnerFilter(Strict):
    """Which controller the pods belong to; fields given must match."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class PodExecutor(Strict):
    """Agents in the selected pods run the action."""

    selector: Annotated[str, AfterValidator(_selector)]
    owner: OwnerFilter | None = None
    strategy: Literal["ExecuteOnOne", "ExecuteOnAll"] = "ExecuteOnOne"


class FunctionExecutor(Strict):
    """A Kubernetes Job, made from a Function, runs the hook."""

    name: Annotated[str, Field(min_length=1)]
    env: list[EnvVar] = Field(default_factory=list)
    volume_mounts: list[VolumeMount] = Field(default_factory=list)
    volumes: list[Volume] = Field(default_factory=list)

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """Every variable, volume and place once."""
        for field, key in (("env", "name"), ("volumeMounts", "mountPath"), ("volumes", "name")):
            yield from twice(written, field, key)


class Executor(Strict):
    """Who runs the action."""

    type: Literal["Pod", "Operator", "Function"]
    pod: PodExecutor | None = None
    function: FunctionExecutor | None = None

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """The part that belongs to the type, and no other."""
        kind = written.get("type")
        if kind == "Pod" and written.get("pod") is None:
            yield (), "type: Pod needs pod.selector, which says in which pods the hook runs"
        if kind == "Function" and written.get("function") is None:
            yield (), "type: Function needs function.name"
        for name, owner in (("pod", "Pod"), ("function", "Function")):
            if kind in ("Pod", "Operator", "Function") and kind != owner and written.get(name) is not None:
                yield (), f"type: {kind} does not use {name}; remove it or change the type"


class HookSpec(Strict):
    """The spec of a HookTemplate."""

    usage_policy: UsagePolicy = UsagePolicy()
    params: list[Param] = Field(default_factory=list)
    action: Action | None = None
    executor: Executor | None = None

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """Parameters declared once; templates that can be rendered."""
        seen: set[str] = set()
        for index, param in enumerate(_written(written, "params", list)):
            name = param.get("name") if isinstance(param, dict) else None
            if isinstance(name, str):
                if name in seen:
                    yield ("params", index, "name"), f"{shown(name)} is declared twice; keep one"
                seen.add(name)
        action = _written(written, "action", dict)
        texts: list[tuple[tuple[int | str, ...], object]] = [
            (("action", "exec", "command", index), part)
            for index, part in enumerate(_written(_written(action, "exec", dict), "command", list))
        ]
        texts.append((("action", "httpPost", "body"), _written(action, "httpPost", dict).get("body")))
        for loc, text in texts:
            if isinstance(text, str):
                try:
                    check(text)
                except RenderError as error:
                    yield loc, str(error)


class Metadata(BaseModel):
    """The part of ObjectMeta that matters here; the rest is Kubernetes' own and kept."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    name: Annotated[str, Field(min_length=1, max_length=253)]
    namespace: str | None = None


class HookTemplate(Strict):
    """A full document."""

    api_version: Literal["core.kubestash.com/v1alpha1", "podhook.dev/v1alpha1"]
    kind: Literal["HookTemplate"]
    metadata: Metadata
    spec: HookSpec

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """A full document says what runs and who runs it; only a Function needs no action."""
        spec = written.get("spec")
        if not isinstance(spec, dict):
            return
        if spec.get("action") is None and _written(spec, "executor", dict).get("type") != "Function":
            yield ("spec", "action"), _NEEDS_ACTION
        if spec.get("executor") is None:
            yield (
                ("spec", "executor"),
                "is required: say who runs the action with type: Pod, Operator or Function",
            )


_P = TypeVar("_P", dict[Any, Any], list[Any])


def _written(parent: Mapping[Any, Any], field: str, kind: type[_P]) -> _P:
    """A part of what was written, or an empty one where it is missing or of another kind."""
    value = parent.get(field)
    return value if isinstance(value, kind) else kind()


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook of a file. `action` or `executor` may be missing in a bare document: see `complete`."""

    name: str
    spec: HookSpec
    namespace: str | None = None

    def missing(self) -> Problem | None:
        """What a run would still need, or None. A Function executor needs no action."""
        if self.spec.action is None and (self.spec.executor is None or self.spec.executor.type != "Function"):
            return Problem("action", _NEEDS_ACTION)
        if self.spec.executor is None:
            return Problem("executor", "is missing: add one, or say in which pods the hook runs with --selector")
        return None


def load_hooks(text: str | bytes, *, name: str = "hook") -> list[Hook]:
    """Read every document of a file, in order. `name` names the hooks that have no name of their own.

    Raises:
        InvalidHook: with every problem of every document, each with its path, the value and the next step.
    """
    documents, problems = read_documents(text)
    many = len(documents) > 1
    hooks: list[Hook] = []
    for number, document in enumerate(documents, start=1):
        hook, found = _read(document, f"{name}#{number}" if many else name)
        prefix = f"document {number}: " if many else ""
        problems += [Problem(prefix + problem.path, problem.message) for problem in found]
        if hook is not None:
            hooks.append(hook)
    if not hooks and not problems:
        problems.append(Problem("", "the file has no hook in it; write a HookTemplate, or action: and executor:"))
    if len(documents) > MAX_HOOKS:
        problems.append(Problem("", f"the file has {len(documents)} hooks; the limit is {MAX_HOOKS}; split it"))
    if problems:
        raise InvalidHook(problems)
    return hooks


def read_hook(document: Any) -> Hook:
    """Read one full HookTemplate that was read already, as an API server gives it (without its `status`).

    Raises:
        InvalidHook: with every problem, each with its path, the value and the next step.
    """
    hook, problems = _read(document, "hook")
    if hook is None:
        raise InvalidHook(problems)
    return hook


def _read(document: Any, name: str) -> tuple[Hook | None, list[Problem]]:
    if not isinstance(document, dict):
        return None, [Problem("", f"is a {type_name(document)}, not a HookTemplate; write `action:` and `executor:`")]
    full = "apiVersion" in document or "kind" in document or "spec" in document
    if full and document.get("kind", "HookTemplate") != "HookTemplate":
        kind = document["kind"]
        return None, [Problem("kind", f"is {shown(kind)}; only HookTemplate can be run{paste_hint(kind)}")]
    try:
        if full:
            template = HookTemplate.model_validate(document)
            return Hook(template.metadata.name, template.spec, template.metadata.namespace), []
        hook = Hook(name, HookSpec.model_validate(document))
    except ValidationError as error:
        return None, explain(HookTemplate if full else HookSpec, error)
    if hook.spec.action is None and hook.spec.executor is None:
        return None, [
            Problem("", "has neither an action nor an executor; write at least one of `action:` and `executor:`")
        ]
    return hook, []


def rendered_fields(spec: HookSpec) -> Iterator[tuple[str, str]]:
    """(path, text) of everything that is rendered: the elements of exec.command and httpPost.body."""
    if spec.action is None:
        return
    if spec.action.exec_ is not None:
        for index, part in enumerate(spec.action.exec_.command):
            yield f"action.exec.command[{index}]", part
    if spec.action.http_post is not None:
        yield "action.httpPost.body", spec.action.http_post.body


def used_placeholders(spec: HookSpec) -> frozenset[str]:
    """Every NAME that stands as `${NAME}` in a rendered field."""
    return frozenset[str]().union(*(placeholders(text) for _, text in rendered_fields(spec)))
