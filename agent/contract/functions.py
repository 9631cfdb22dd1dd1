"""KubeStash's Function (`addons.kubestash.com/v1alpha1`): the container that a hook's Job runs.

Its fields are those of KubeStash's FunctionSpec; RuntimeSettings are those of kmodules' offshoot-api, as a hook's call
has them (`HookInfo.runtimeSettings`). A Function's own `runtimeSettings` are a container's, as theirs; its `pod` part
is ours. The rules are in SEMANTICS (Function executor).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError

from agent.contract.actions import Finding, Strict
from agent.contract.documents import read_documents, shown
from agent.contract.env_vars import EnvVar
from agent.contract.errors import InvalidHook, Problem
from agent.contract.explain import explain, type_name
from agent.contract.pod_parts import ContainerPort, EnvFrom, Resources, Volume, VolumeDevice, VolumeMount, twice
from agent.contract.templates import Metadata

__all__ = [
    "FUNCTION_API_VERSIONS",
    "MAX_FUNCTIONS",
    "ContainerRuntimeSettings",
    "Function",
    "FunctionCall",
    "FunctionRuntimeSettings",
    "FunctionSpec",
    "PodRuntimeSettings",
    "RuntimeSettings",
    "function_of",
    "load_function",
    "load_functions",
]

_ApiVersion = Literal["addons.kubestash.com/v1alpha1", "podhook.dev/v1alpha1"]
FUNCTION_API_VERSIONS: tuple[str, ...] = get_args(_ApiVersion)
MAX_FUNCTIONS = 200

_OF_JOB_LABELS = "podhook.dev/"


class Nice(Strict):
    """How nice the work is to others of its CPU; reaches the container as NICE_ADJUSTMENT (theirs)."""

    adjustment: int | None = None


class IONice(Strict):
    """How nice the work is to others of its disk; reaches the container as IONICE_CLASS and IONICE_CLASS_DATA."""

    class_: int | None = Field(default=None, alias="class")
    class_data: int | None = None


class ContainerRuntimeSettings(Strict):
    """How the container runs (offshoot-api's ContainerRuntimeSettings)."""

    resources: Resources | None = None
    liveness_probe: dict[str, Any] | None = None
    readiness_probe: dict[str, Any] | None = None
    lifecycle: dict[str, Any] | None = None
    security_context: dict[str, Any] | None = None
    nice: Nice | None = None
    ionice: IONice | None = None
    env_from: list[EnvFrom] | None = None
    env: list[EnvVar] | None = None

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """Every variable once."""
        yield from twice(written, "env", "name")


class PodRuntimeSettings(Strict):
    """How the pod runs (offshoot-api's PodRuntimeSettings)."""

    pod_labels: dict[str, str] | None = None
    pod_annotations: dict[str, str] | None = None
    node_selector: dict[str, str] | None = None
    service_account_name: str | None = None
    service_account_annotations: dict[str, str] | None = None
    automount_service_account_token: bool | None = None
    node_name: str | None = None
    security_context: dict[str, Any] | None = None
    image_pull_secrets: list[dict[str, Any]] | None = None
    affinity: dict[str, Any] | None = None
    scheduler_name: str | None = None
    tolerations: list[dict[str, Any]] | None = None
    priority_class_name: str | None = None
    priority: int | None = None
    readiness_gates: list[dict[str, Any]] | None = None
    runtime_class_name: str | None = None
    enable_service_links: bool | None = None
    topology_spread_constraints: list[dict[str, Any]] | None = None

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """Nothing that podhook would have to leave out, and no label of its own."""
        if written.get("serviceAccountAnnotations"):
            message = (
                "podhook makes no service account to put them on; annotate the service account itself, and name it in "
                "serviceAccountName"
            )
            yield ("serviceAccountAnnotations",), message
        for field in ("podLabels", "podAnnotations"):
            part = written.get(field)
            for name in part if isinstance(part, dict) else ():
                if isinstance(name, str) and name.startswith(_OF_JOB_LABELS):
                    yield (field, name), "is podhook's own, which finds its pods by it; use another prefix"


class RuntimeSettings(Strict):
    """How a call wants the Job to run (offshoot-api's RuntimeSettings)."""

    pod: PodRuntimeSettings | None = None
    container: ContainerRuntimeSettings | None = None


class FunctionRuntimeSettings(ContainerRuntimeSettings):
    """How a Function wants to run: a container's settings, as KubeStash has them here. `pod` is our addition."""

    pod: PodRuntimeSettings | None = None


def _as_a_function_writes_them(settings: object) -> object:
    if isinstance(settings, dict) and "container" in settings:  # as a call has them, which is easily mixed up
        raise ValueError(
            "a Function's own settings are the container's: move what stands below container: up one level"
        )
    return settings


class FunctionSpec(Strict):
    """The container of a Function. KubeStash leaves `image` optional; a Job cannot be made without one."""

    image: Annotated[str, Field(min_length=1)]
    command: list[str] | None = None
    args: list[str] | None = None
    working_dir: str | None = None
    ports: list[ContainerPort] | None = None
    volume_mounts: list[VolumeMount] | None = None
    volume_devices: list[VolumeDevice] | None = None
    runtime_settings: Annotated[FunctionRuntimeSettings | None, BeforeValidator(_as_a_function_writes_them)] = None

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """One mount at a place."""
        yield from twice(written, "volumeMounts", "mountPath")


class Function(Strict):
    """A full document. Cluster-scoped: whoever may use hooks may use every Function."""

    api_version: _ApiVersion
    kind: Literal["Function"]
    metadata: Metadata
    spec: FunctionSpec

    @property
    def name(self) -> str:
        """What templates call it: `executor.function.name`."""
        return self.metadata.name


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """What a call of a hook adds to the Job of its Function (KubeStash's HookInfo)."""

    volumes: Sequence[Volume] = ()
    volume_mounts: Sequence[VolumeMount] = ()
    runtime_settings: RuntimeSettings | None = None


def load_function(text: str | bytes) -> Function:
    """Read a file that holds one Function.

    Raises:
        InvalidHook: with every problem, each with its path, the value and the next step.
    """
    functions = load_functions(text)
    if len(functions) > 1:
        names = ", ".join(function.name for function in functions[:20])
        raise InvalidHook([Problem("", f"the file has {len(functions)} Functions ({names}) where one is wanted")])
    return functions[0]


def load_functions(text: str | bytes) -> list[Function]:
    """Read every Function of a file, in order; each name once.

    Raises:
        InvalidHook: with every problem of every document, each with its path, the value and the next step.
    """
    documents, problems = read_documents(text)
    functions: list[Function] = []
    seen: set[str] = set()
    for number, document in enumerate(documents, start=1):
        prefix = f"document {number}: " if len(documents) > 1 else ""
        try:
            function = function_of(document)
        except InvalidHook as error:
            problems += [Problem(prefix + problem.path, problem.message) for problem in error.problems]
            continue
        if function.name in seen:
            problems.append(Problem(prefix + "metadata.name", f"{shown(function.name)} is there already; keep one"))
        seen.add(function.name)
        functions.append(function)
    if not functions and not problems:
        problems.append(Problem("", "the file has no Function in it; write one with kind: Function"))
    if len(documents) > MAX_FUNCTIONS:
        problems.append(Problem("", f"the file has {len(documents)} documents; the limit is {MAX_FUNCTIONS}; split it"))
    if problems:
        raise InvalidHook(problems)
    return functions


def function_of(document: Any) -> Function:
    """Read one Function, as YAML or the API server gives it.

    Raises:
        InvalidHook: with every problem, each with its path, the value and the next step.
    """
    if not isinstance(document, dict):
        raise InvalidHook([Problem("", f"is a {type_name(document)}, not a Function; write apiVersion, kind and spec")])
    if document.get("kind", "Function") != "Function":
        raise InvalidHook([Problem("kind", f"is {shown(document['kind'])}, where a Function is wanted")])
    try:
        return Function.model_validate(document)
    except ValidationError as error:
        raise InvalidHook(explain(Function, error)) from error
