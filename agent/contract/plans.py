"""A plan of hooks: what runs before and after a backup or a restore.

The four lists hold KubeStash's HookInfo entries, field by field, so that they can be pasted from a BackupConfiguration
(`spec.sessions[].hooks`) or a RestoreSession (`spec.hooks`). `file` is podhook's own addition: where the template is
found when no cluster is asked. The rules of a call are in SEMANTICS (Documents).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from agent.contract.actions import Finding, Strict
from agent.contract.documents import paste_hint, read_documents, shown
from agent.contract.durations import parse_duration
from agent.contract.env_vars import EnvVar
from agent.contract.errors import BadInput, InvalidHook, Problem
from agent.contract.explain import explain, type_name
from agent.contract.functions import FunctionCall, RuntimeSettings
from agent.contract.messages import MAX_ATTEMPTS
from agent.contract.pod_parts import Volume, VolumeMount, twice
from agent.contract.templates import Metadata

__all__ = [
    "API_VERSION",
    "MAX_PLANNED_HOOKS",
    "HookInfo",
    "HookPlan",
    "Phase",
    "PolicyName",
    "Reference",
    "TemplateReference",
    "is_plan",
    "kind_of",
    "load_plan",
]

API_VERSION = "podhook.dev/v1alpha1"
KIND = "HookPlan"
MAX_PLANNED_HOOKS = 200

#: When a post hook runs (KubeStash's HookExecutionPolicy).
PolicyName = Literal["Always", "OnSuccess", "OnFailure"]


class Phase(StrEnum):
    """The lists of a plan, by the names that KubeStash has for them."""

    PRE_BACKUP = "preBackup"
    POST_BACKUP = "postBackup"
    PRE_RESTORE = "preRestore"
    POST_RESTORE = "postRestore"

    @property
    def is_post(self) -> bool:
        """Whether its hooks run after the operation, and know its result."""
        return self in (Phase.POST_BACKUP, Phase.POST_RESTORE)


def _texts(params: object) -> object:
    """Values of any JSON type as text: what a template fills in is text. Null is found by `between_fields`."""
    if not isinstance(params, dict):
        return params
    return {name: "" if value is None else _text(value) for name, value in params.items()}


def _text(value: object) -> object:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError):
        return value  # .nan and .inf: no JSON, so no text either, and pydantic says so


def _seconds(value: object) -> object:
    if isinstance(value, bool | dict | list) or value is None:
        raise ValueError("is not a duration; write numbers with units, such as 30s, 5m or 1h30m")
    try:
        return parse_duration(str(value))
    except BadInput as error:
        raise ValueError(str(error)) from error


#: A Go duration (metav1.Duration); seconds once it is read.
Seconds = Annotated[float, BeforeValidator(_seconds)]
Name = Annotated[str, Field(min_length=1, max_length=253)]


class TemplateReference(Strict):
    """A HookTemplate in the cluster (kmodules' ObjectReference). Without a namespace it is the plan's own."""

    name: Name
    namespace: str | None = None


class Reference(Strict):
    """What a template reads as `.Invoker` and `.Target`: an object of the cluster, by its name."""

    api_group: str = ""
    api_version: str = ""
    kind: str = ""
    name: str = ""
    namespace: str = ""

    def data(self) -> dict[str, str]:
        """It as templates read it: Go's names of the fields."""
        values = {
            "APIGroup": self.api_group,
            "APIVersion": self.api_version,
            "Kind": self.kind,
            "Name": self.name,
            "Namespace": self.namespace,
        }
        return {name: value for name, value in values.items() if value}


class HookInfo(Strict):
    """One call of a hook, as KubeStash writes it, or with `file` instead of a template in the cluster.

    `timeout` is in seconds once it is read, None where it is not given; `params` are text. With `file` and
    `hookTemplate` it is the hook of that name in the file.
    """

    name: str = ""
    hook_template: TemplateReference | None = None
    file: Annotated[str, Field(min_length=1)] | None = None
    params: Annotated[dict[str, str], BeforeValidator(_texts)] = Field(default_factory=dict)
    max_retry: Annotated[int, Field(ge=0, lt=MAX_ATTEMPTS)] = 0
    timeout: Seconds | None = None
    execution_policy: PolicyName = "Always"
    variables: list[EnvVar] = Field(default_factory=list)
    volumes: list[Volume] = Field(default_factory=list)
    volume_mounts: list[VolumeMount] = Field(default_factory=list)
    runtime_settings: RuntimeSettings | None = None

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """A template from somewhere; every parameter a value; each name once."""
        if written.get("hookTemplate") is None and written.get("file") is None:
            yield (), "names no template; give hookTemplate with its name, or file with the path of one"
        params = written.get("params")
        for name, value in params.items() if isinstance(params, dict) else ():
            if value is None:
                yield ("params", str(name)), 'is null; write "" for an empty text, or leave it out'
        for part, key in (("variables", "name"), ("volumes", "name"), ("volumeMounts", "mountPath")):
            yield from twice(written, part, key)

    @property
    def title(self) -> str:
        """What it is called where people read: its name, else its template's, else its file."""
        return self.name or (self.hook_template.name if self.hook_template else "") or self.file or ""

    def function(self) -> FunctionCall | None:
        """What it adds to the Job of a Function; None where it adds nothing."""
        if not self.volumes and not self.volume_mounts and self.runtime_settings is None:
            return None
        return FunctionCall(self.volumes, self.volume_mounts, self.runtime_settings)


class _Lists(Strict):
    """The four lists, and what templates may read of the operation."""

    invoker: Reference | None = None
    target: Reference | None = None
    pre_backup: list[HookInfo] = Field(default_factory=list)
    post_backup: list[HookInfo] = Field(default_factory=list)
    pre_restore: list[HookInfo] = Field(default_factory=list)
    post_restore: list[HookInfo] = Field(default_factory=list)

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """No pre hook waits for a failure: before the operation nothing has failed."""
        for phase in (Phase.PRE_BACKUP, Phase.PRE_RESTORE):
            hooks = written.get(phase)
            for index, hook in enumerate(hooks if isinstance(hooks, list) else ()):
                if isinstance(hook, dict) and hook.get("executionPolicy") == "OnFailure":
                    later = str(phase).replace("pre", "post")
                    text = f"'OnFailure' would never run before the operation; remove it, or move the hook to {later}"
                    yield (str(phase), index, "executionPolicy"), text


class _Bare(_Lists):
    """Just the lists, with a namespace."""

    namespace: Name | None = None


class _Document(Strict):
    """A full document."""

    api_version: Literal["podhook.dev/v1alpha1"]
    kind: Literal["HookPlan"]
    metadata: Metadata
    spec: _Lists


@dataclass(frozen=True, slots=True)
class HookPlan:
    """A plan. `name` is what templates read as `.Name`; `namespace` None means that none is written."""

    name: str
    namespace: str | None = None
    invoker: Reference | None = None
    target: Reference | None = None
    hooks: Mapping[Phase, tuple[HookInfo, ...]] = field(default_factory=dict)

    def of(self, phase: Phase) -> tuple[HookInfo, ...]:
        """The hooks of one list, in order."""
        return self.hooks.get(phase, ())

    @property
    def phases(self) -> list[Phase]:
        """The lists that have hooks."""
        return [phase for phase in Phase if self.of(phase)]


def is_plan(text: str | bytes) -> bool:
    """Whether a file is meant as a plan, and not as hooks; says nothing of whether it is right."""
    documents, _ = read_documents(text)
    first = documents[0] if documents else None
    if not isinstance(first, dict):
        return False
    if "kind" in first:
        return bool(first["kind"] == KIND)
    return "action" not in first and "executor" not in first and any(str(phase) in first for phase in Phase)


def kind_of(text: str | bytes) -> str:
    """The `kind` of a file's first document, shortened; "" where it has none."""
    documents, _ = read_documents(text)
    first = documents[0] if documents else None
    return str(first.get("kind") or "")[:80] if isinstance(first, dict) else ""


def load_plan(text: str | bytes, *, name: str = "plan") -> HookPlan:
    """Read a file that holds one plan: a full document, or just its lists. `name` is that of a bare one.

    Raises:
        InvalidHook: with every problem, each with its path, the value and the next step.
    """
    documents, problems = read_documents(text)
    if not documents and not problems:
        problems.append(Problem("", f"the file has no plan in it; write kind: {KIND}, or preBackup: and postBackup:"))
    if len(documents) > 1:
        found = f"the file has {len(documents)} documents; a plan is one: put templates into files of their own"
        problems.append(Problem("", found))
    if documents:
        plan, found_in = _read(documents[0], name)
        problems += found_in
        count = sum(len(hooks) for hooks in plan.hooks.values()) if plan is not None else 0
        if plan is not None and not count:
            problems.append(Problem("", f"the plan has no hook in it; it has lists for them: {', '.join(Phase)}"))
        if count > MAX_PLANNED_HOOKS:
            problems.append(Problem("", f"the plan has {count} hooks; the limit is {MAX_PLANNED_HOOKS}; split it"))
        if plan is not None and not problems:
            return plan
    raise InvalidHook(problems)


def _read(document: Any, name: str) -> tuple[HookPlan | None, list[Problem]]:
    if not isinstance(document, dict):
        text = f"is a {type_name(document)}, not a plan; write {', '.join(Phase)} with a list of hooks each"
        return None, [Problem("", text)]
    full = any(key in document for key in ("apiVersion", "kind", "metadata", "spec"))
    if full and document.get("kind", KIND) != KIND:
        kind = document["kind"]
        return None, [Problem("kind", f"is {shown(kind)}, where a {KIND} is wanted{paste_hint(kind)}")]
    try:
        if full:
            written = _Document.model_validate(document)
            lists: _Lists = written.spec
            name, namespace = written.metadata.name, written.metadata.namespace
        else:
            bare = _Bare.model_validate(document)
            lists, namespace = bare, bare.namespace
    except ValidationError as error:
        return None, explain(_Document if full else _Bare, error)
    hooks = {
        Phase.PRE_BACKUP: tuple(lists.pre_backup),
        Phase.POST_BACKUP: tuple(lists.post_backup),
        Phase.PRE_RESTORE: tuple(lists.pre_restore),
        Phase.POST_RESTORE: tuple(lists.post_restore),
    }
    return HookPlan(name, namespace, lists.invoker, lists.target, hooks), []
