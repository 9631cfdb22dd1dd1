"""What Velero's annotations on a pod say shall run in it before and after a backup.

The names and their meaning are Velero's ("Backup Hooks"; its item_hook_handler.go and pod_command_executor.go): the
command is a JSON array, or else one program's name that is never split; the container is the pod's first unless it is
named; 30 s unless a timeout is. Where Velero takes a value that it cannot read for the default, or a broken JSON array
for a program's name, it is a problem here: a database that should hold still and does not is found out before.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from pydantic import ValidationError

from agent.contract.actions import Action
from agent.contract.documents import shown
from agent.contract.durations import format_duration, parse_duration
from agent.contract.errors import BadInput, Problem
from agent.contract.explain import type_name
from agent.contract.messages import MAX_TIMEOUT_SECONDS
from agent.contract.strict_json import parse

__all__ = ["DEFAULT_TIMEOUT_SECONDS", "WHEN", "PodCommand", "When", "command_annotation", "read_annotations"]

When: TypeAlias = Literal["pre", "post"]
OnError: TypeAlias = Literal["Fail", "Continue"]
WHEN: tuple[When, ...] = ("pre", "post")

#: Velero's, of pkg/podexec.
DEFAULT_TIMEOUT_SECONDS = 30.0
_PREFIX = "hook.backup.velero.io/"
_EXAMPLE = 'write an array of strings, such as ["/bin/sh", "-c", "sync"]'
_PARTS = ("command", "container", "on-error", "timeout")


@dataclass(frozen=True, slots=True)
class PodCommand:
    """What runs in one pod. `container` empty is the pod's first. Equal for pods that the same hook can run in."""

    command: tuple[str, ...]
    container: str = ""
    on_error: OnError = "Fail"
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS

    @property
    def action(self) -> Action:
        """It as agents are told."""
        return Action.model_validate({"exec": {"command": list(self.command)}, "containerName": self.container})


def command_annotation(when: When) -> str:
    """The name of the annotation that makes a pod have a hook."""
    return f"{when}.{_PREFIX}command"


def read_annotations(
    annotations: Mapping[str, str], when: When, *, containers: Sequence[str] = ()
) -> tuple[PodCommand | None, list[Problem]]:
    """What a pod's annotations say, and every problem with them: its path is the annotation's name.

    None is a pod that has no hook, or one that cannot be used. Without a command of its own, `pre` is also said by the
    older names that have no phase (`hook.backup.velero.io/command`), as Velero reads them.

    Args:
        annotations: all that the pod has.
        when: before the backup or after it.
        containers: the pod's, if they are known: a name that none of them has is then a problem.
    """
    prefix = f"{when}.{_PREFIX}"
    problems = list(_misspelt(annotations, prefix))
    if when == "pre" and not annotations.get(prefix + "command") and annotations.get(_PREFIX + "command"):
        prefix = _PREFIX
        problems += _misspelt(annotations, prefix)
    said = {part: annotations.get(prefix + part, "") for part in _PARTS}
    if not said["command"]:
        return None, problems

    def problem(part: str, message: str) -> None:
        problems.append(Problem(prefix + part, message))

    command: list[str] = []
    try:
        command = _argv(said["command"])
        Action.model_validate({"exec": {"command": command}})
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            problem("command", f"{shown(said['command'])}: {detail['msg'].removeprefix('Value error, ')}")
    except ValueError as error:
        problem("command", f"{shown(said['command'])} {error}")
    container = said["container"]
    if container and containers and container not in containers:
        there = ", ".join(containers)
        problem("container", f"{shown(container)} is not a container of the pod (it has: {there}); name one of them")
    on_error = said["on-error"] or "Fail"
    if on_error not in ("Fail", "Continue"):
        hint = "; did you mean 'Continue'?" if on_error.lower() == "continue" else ""
        problem("on-error", f"{shown(on_error)} is neither 'Fail' nor 'Continue'{hint}")
    timeout_seconds = DEFAULT_TIMEOUT_SECONDS
    try:
        timeout_seconds = parse_duration(said["timeout"] or "0") or DEFAULT_TIMEOUT_SECONDS  # theirs: 0 is the default
        if timeout_seconds > MAX_TIMEOUT_SECONDS:
            text = f"{shown(said['timeout'])} is too long; the limit is {format_duration(MAX_TIMEOUT_SECONDS)} (7 days)"
            problem("timeout", text)
    except BadInput as error:
        problem("timeout", str(error))
    if problems:
        return None, problems
    return PodCommand(tuple(command), container, cast("OnError", on_error), timeout_seconds), []


def _argv(text: str) -> list[str]:
    """The command of an annotation. Raises ValueError, about the text."""
    if not text.startswith("["):
        if text.lstrip().startswith("["):
            raise ValueError("begins with a space, and is no JSON array to Velero either; remove what stands before [")
        return [text]
    try:
        parts = parse(text.encode(errors="surrogatepass"))
    except ValueError as error:
        raise ValueError(
            f'is not JSON ({error}); write an array of strings, such as ["/bin/sh", "-c", "sync"]'
        ) from None
    assert isinstance(parts, list)  # JSON that begins with [
    odd = [type_name(each) for each in parts if not isinstance(each, str)]
    if odd:
        raise ValueError(f"has a {odd[0]} in it, and a command is made of strings; put every part of it in quotes")
    if not parts:
        raise ValueError(f"names no program; {_EXAMPLE}")
    return parts


def _misspelt(annotations: Mapping[str, str], prefix: str) -> Iterator[Problem]:
    """Names that Velero does not know: a hook that is not read does not run, and nobody hears of it."""
    for name in sorted(annotations):
        part = name.removeprefix(prefix)
        if part != name and part not in _PARTS:
            near = difflib.get_close_matches(part[:80], _PARTS, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(prefix + p for p in _PARTS)}"
            yield Problem(name, f"is no annotation of Velero's; {hint}")
