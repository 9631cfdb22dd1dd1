"""The Job of a Function executor: one pod, one container, run once. Pure (SEMANTICS: Function executor).

Who wins where several say something: the call over the template over the Function. Variables are told apart by their
names and mounts by their places; a volume of one name that the template and the call mean differently is refused, since
no mount could tell which of the two it meant.
"""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent.contract.actions import Action, Strict
from agent.contract.documents import shown
from agent.contract.errors import InvalidHook, Problem
from agent.contract.functions import (
    ContainerRuntimeSettings,
    Function,
    FunctionCall,
    FunctionRuntimeSettings,
    PodRuntimeSettings,
    RuntimeSettings,
)
from agent.contract.messages import MAX_ATTEMPTS, Owner
from agent.contract.pod_parts import VolumeMount
from agent.contract.templates import FunctionExecutor

Json = dict[str, Any]

#: What the container is called in its pod.
CONTAINER = "function"
#: The template's action, as JSON, if it has one.
ACTION_VARIABLE = "PODHOOK_ACTION"
#: How long a finished Job can be looked at; then Kubernetes removes it, whatever became of us.
TTL_SECONDS = 300
#: Linux takes no longer single string for execve (MAX_ARG_STRLEN), with its name, "=" and the NUL at its end.
MAX_VARIABLE_BYTES = 128 * 1024

RUN_LABEL = "podhook.dev/run-id"
ATTEMPT_LABEL = "podhook.dev/attempt"
HOOK_LABEL = "podhook.dev/hook"
FUNCTION_ANNOTATION = "podhook.dev/function"
#: SHA-256 of the Job as it was made: whether one that is there already is this one, or another of its name.
DIGEST_ANNOTATION = "podhook.dev/digest"

_NOT_IN_LABELS = re.compile(r"[^-._A-Za-z0-9]+")
_MAX_LABEL_CHARACTERS = 63


def job_name(run_id: str, attempt: int) -> str:
    """What the Job of an attempt is called: the same each time, so that one whose making is unsure can be found."""
    return f"podhook-{run_id}-{attempt}"


def job_for(
    function: Function,
    executor: FunctionExecutor,
    call_parts: FunctionCall | None,
    *,
    namespace: str,
    run_id: str,
    attempt: int,
    hook: str,
    timeout_seconds: float,
    action: Action | None = None,
    owner: Owner | None = None,
) -> Json:
    """The Job of one attempt, as the API server takes it (batch/v1).

    `action` is the template's with its parameters filled in. `owner` has to be an object of the same namespace (the
    coordinator's pod): Kubernetes removes the Job with it.

    Raises:
        InvalidHook: the parts do not fit together; each problem names its place.
    """
    if not 1 <= attempt <= MAX_ATTEMPTS or timeout_seconds <= 0:
        raise ValueError(f"attempt {attempt}, timeout {timeout_seconds} s")
    parts = _Parts(function, executor, call_parts or FunctionCall(), action)
    labels = {
        "app.kubernetes.io/managed-by": "podhook",
        RUN_LABEL: run_id,
        ATTEMPT_LABEL: str(attempt),
        HOOK_LABEL: label_value(hook),
    }
    annotations = {HOOK_LABEL: hook, FUNCTION_ANNOTATION: function.name}
    settings = parts.pod_settings()
    pod_metadata = {
        "labels": settings.pop("podLabels", {}) | labels,
        "annotations": settings.pop("podAnnotations", {}) | annotations,
    }
    if not settings.get("serviceAccountName"):  # a token that nobody asked for is only there to be stolen
        settings.setdefault("automountServiceAccountToken", False)
    volumes = parts.volumes()
    pod = {"restartPolicy": "Never", **settings, "containers": [parts.container(volumes)]}
    if volumes:
        pod["volumes"] = list(volumes.values())
    parts.raise_problems()
    spec = {
        "backoffLimit": 0,  # retries are ours
        "activeDeadlineSeconds": max(1, math.ceil(timeout_seconds)),
        "ttlSecondsAfterFinished": TTL_SECONDS,
        "template": {"metadata": pod_metadata, "spec": pod},
    }
    metadata: Json = {"name": job_name(run_id, attempt), "namespace": namespace, "labels": labels}
    metadata["annotations"] = annotations | {DIGEST_ANNOTATION: _digest([metadata, spec])}
    if owner is not None:
        metadata["ownerReferences"] = [_owner_reference(owner)]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def label_value(text: str) -> str:
    """A text as a label's value may be: what is not allowed in one becomes '-' (the annotation has it whole)."""
    return _NOT_IN_LABELS.sub("-", text).strip("-._")[:_MAX_LABEL_CHARACTERS].rstrip("-._")


def is_of_run(found: Json, job: Json) -> bool:
    """Whether a Job that the cluster has is the one that was to be made, and no other of its name."""
    theirs, ours = found.get("metadata") or {}, job["metadata"]
    labels, annotations = theirs.get("labels") or {}, theirs.get("annotations") or {}
    return all(labels.get(each) == ours["labels"][each] for each in (RUN_LABEL, ATTEMPT_LABEL)) and (
        annotations.get(DIGEST_ANNOTATION) == ours["annotations"][DIGEST_ANNOTATION]
    )


def selector_of(job: Json) -> str:
    """The label selector that finds the pods of its attempt."""
    labels = job["metadata"]["labels"]
    return ",".join(f"{each}={labels[each]}" for each in (RUN_LABEL, ATTEMPT_LABEL))


def own_pod(environment: Mapping[str, str], namespace: str) -> Owner | None:
    """The pod that this process runs in, as an owner of Jobs in `namespace`; None where that is not known.

    PODHOOK_NAMESPACE, PODHOOK_POD and PODHOOK_POD_UID come by the downward API. An owner in another namespace does not
    count in Kubernetes: the Job would be removed at once, as one whose owner is gone.
    """
    name, uid = environment.get("PODHOOK_POD", ""), environment.get("PODHOOK_POD_UID", "")
    if not name or not uid or environment.get("PODHOOK_NAMESPACE", "") != namespace:
        return None
    return Owner(api_version="v1", kind="Pod", name=name, uid=uid)


class _Parts:
    """What the Function, the template and the call say, put together; `problems` has what does not fit."""

    def __init__(
        self, function: Function, executor: FunctionExecutor, call: FunctionCall, action: Action | None
    ) -> None:
        self._function = function
        self._executor = executor
        self._call = call
        self._settings = function.spec.runtime_settings or FunctionRuntimeSettings()
        self._call_settings = call.runtime_settings or RuntimeSettings()
        self._action = action
        self._of_function = f"Function {function.name}: spec"
        self._problems: list[Problem] = []

    def raise_problems(self) -> None:
        """Raise InvalidHook if there are any."""
        if self._problems:
            raise InvalidHook(self._problems)

    def pod_settings(self) -> Json:
        """Field by field: the call's over the Function's; labels and annotations one by one."""
        return _over(self._settings.pod, self._call_settings.pod, together=("podLabels", "podAnnotations"))

    def volumes(self) -> dict[str, Json]:
        """Every volume by its name: the template's, then the call's."""
        volumes = {each.name: each.document() for each in self._executor.volumes}
        for index, each in enumerate(self._call.volumes):
            document = each.document()
            if volumes.setdefault(each.name, document) != document:
                message = (
                    f"{shown(each.name)} is another volume in the template (executor.function.volumes); rename one of "
                    "them, and its mounts"
                )
                self._problems.append(Problem(f"volumes[{index}].name", message))
        return volumes

    def container(self, volumes: Mapping[str, Json]) -> Json:
        """The Function's container, with what the template and the call add."""
        spec = self._function.spec
        document = spec.model_dump(
            by_alias=True,
            exclude_none=True,
            exclude_unset=True,
            include={"image", "command", "args", "working_dir", "ports", "volume_devices"},
        )
        settings = self._container_settings()
        env = self._env(settings.pop("nice", {}), settings.pop("ionice", {}))
        document = {"name": CONTAINER, **document, **settings}
        if env:
            document["env"] = env
        if mounts := self._mounts(volumes):
            document["volumeMounts"] = mounts
        for index, device in enumerate(spec.volume_devices or ()):
            self._check_volume(device.name, volumes, f"{self._of_function}.volumeDevices[{index}].name")
        return document

    def _container_settings(self) -> Json:
        """Field by field, as far as a container has the field; variables are put together elsewhere."""
        return _over(self._settings, self._call_settings.container, together=("envFrom",), without={"env", "pod"})

    def _env(self, nice: Json, ionice: Json) -> list[Json]:
        """Every variable once, where it first stood: `$(NAME)` means those before it (Kubernetes: EnvVar)."""
        of_call = self._call_settings.container or ContainerRuntimeSettings()
        layers = (
            (f"{self._of_function}.runtimeSettings.env", self._settings.env or ()),
            ("executor.function.env", self._executor.env),
            ("runtimeSettings.container.env", of_call.env or ()),
        )
        env: dict[str, Json] = {}
        for path, variables in layers:
            for index, each in enumerate(variables):
                if each.name == ACTION_VARIABLE and self._action is not None:
                    message = f"{ACTION_VARIABLE} is how the template's action reaches the Function; rename this one"
                    self._problems.append(Problem(f"{path}[{index}].name", message))
                env[each.name] = each.document()
        for name, value in (
            ("NICE_ADJUSTMENT", nice.get("adjustment")),
            ("IONICE_CLASS", ionice.get("class")),
            ("IONICE_CLASS_DATA", ionice.get("classData")),
        ):
            if value is not None:  # their names (offshoot-api); the Function's program is what heeds them
                env[name] = {"name": name, "value": str(value)}
        if self._action is not None:
            env[ACTION_VARIABLE] = self._action_variable(self._action)
        return list(env.values())

    def _action_variable(self, action: Action) -> Json:
        text = action.model_dump_json(by_alias=True, exclude_none=True)
        size = len(f"{ACTION_VARIABLE}={text}".encode()) + 1
        if size > MAX_VARIABLE_BYTES:
            message = (
                f"has {size} bytes as the variable {ACTION_VARIABLE}; the limit is {MAX_VARIABLE_BYTES} (Linux); put "
                "long text in a ConfigMap and mount it"
            )
            self._problems.append(Problem("action", message))
        # Kubernetes fills in `$(NAME)` and makes `$` of `$$`: every `$` is written so that it comes out as it is.
        return {"name": ACTION_VARIABLE, "value": text.replace("$", "$$")}

    def _mounts(self, volumes: Mapping[str, Json]) -> list[Json]:
        """One mount at a place, and each of a volume that is there."""
        layers: tuple[tuple[str, Sequence[VolumeMount]], ...] = (
            (f"{self._of_function}.volumeMounts", self._function.spec.volume_mounts or ()),
            ("executor.function.volumeMounts", self._executor.volume_mounts),
            ("volumeMounts", self._call.volume_mounts),
        )
        mounts: dict[str, tuple[str, VolumeMount]] = {}
        for path, some in layers:
            mine: set[str] = set()
            for index, mount in enumerate(some):
                place = posixpath.normpath("/" + mount.mount_path.lstrip("/"))
                if place in mine:
                    message = f"{shown(mount.mount_path)} is a place where another volume is mounted; keep one"
                    self._problems.append(Problem(f"{path}[{index}].mountPath", message))
                mine.add(place)
                mounts[place] = f"{path}[{index}].name", mount
        for path, mount in mounts.values():
            self._check_volume(mount.name, volumes, path)
        return [mount.document() for _, mount in mounts.values()]

    def _check_volume(self, name: str, volumes: Mapping[str, Json], path: str) -> None:
        if name not in volumes:
            there = ", ".join(list(volumes)[:20]) or "none"
            message = (
                f"{shown(name)} is no volume of this hook (has: {there}); add it to executor.function.volumes in the "
                "template, or to volumes in the call"
            )
            self._problems.append(Problem(path, message))


def _over(
    function: ContainerRuntimeSettings | PodRuntimeSettings | None,
    call: ContainerRuntimeSettings | PodRuntimeSettings | None,
    *,
    together: Iterable[str],
    without: set[str] | None = None,
) -> Json:
    """Each field as the call has it, or else as the Function does; `together` names those that hold both."""
    lower, upper = _written(function, without), _written(call, without)
    merged = lower | upper
    for field in together:
        if field in lower and field in upper:
            both = lower[field], upper[field]
            merged[field] = both[0] | both[1] if isinstance(both[0], dict) else [*both[0], *both[1]]
    return merged


def _written(part: Strict | None, without: set[str] | None) -> Json:
    if part is None:
        return {}
    return part.model_dump(by_alias=True, exclude_none=True, exclude_unset=True, exclude=without)


def _owner_reference(owner: Owner) -> Json:
    """No controller, and nothing that its deletion would have to wait for."""
    return {"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid}


def _digest(parts: list[Json]) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
