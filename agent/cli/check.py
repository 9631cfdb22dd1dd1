"""`podhook check`: is this file of hooks usable?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from agent.cli.exits import errors_as_exits


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
        Path, typer.Argument(metavar="FILE", help="YAML of one or more HookTemplates; - for standard input.")
    ],
) -> None:
    """Validate a file of hooks and explain every problem at once. Needs no broker.

    Exit codes: 0 the file is valid, 2 usage or invalid file.
    """
    with errors_as_exits():
        from agent.contract.templates import load_hooks

        for hook in load_hooks(read_file(file), name=name_of(file)):
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
            if executor is not None and executor.type != "Pod":
                print(f"  it cannot be run yet: the {executor.type} executor comes with the Kubernetes coordinator")
