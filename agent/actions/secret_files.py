"""Values of mounted Secrets, by reference: `valueFrom.file` names a file below PODHOOK_SECRETS_DIR, and no other.

What a Secret volume looks like is followed (`password` -> `..data/password`, `..data` -> the directory of its present
version), as long as it stays below that directory: whoever may name a file must not get the agent's own.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TypeVar

from agent.contract.actions import Action, EnvVar, HttpHeader
from agent.contract.errors import ErrorCode, Refusal

V = TypeVar("V", EnvVar, HttpHeader)

MAX_SECRET_BYTES = 64 * 1024
#: Of one action together; they are kept until it ends.
MAX_SECRETS_BYTES = 256 * 1024


def with_secrets(action: Action, secrets_dir: Path | None) -> tuple[Action, list[bytes]]:
    """The action with each value that it has by reference, and those values.

    Raises:
        Refusal: a value cannot be had; names the file and what to do.
    """
    read = _Read(secrets_dir)
    changes: dict[str, object] = {}
    if action.exec_ is not None and any(each.value_from for each in action.exec_.env or []):
        env = [read.filled(each) for each in action.exec_.env or []]
        changes["exec_"] = action.exec_.model_copy(update={"env": env})
    for name in ("http_get", "http_post"):
        request = getattr(action, name)
        if request is not None and any(each.value_from for each in request.http_headers):
            headers = [read.filled(each) for each in request.http_headers]
            changes[name] = request.model_copy(update={"http_headers": headers})
    return (action.model_copy(update=changes) if changes else action), read.values


class _Read:
    """Reads the files of one action. `values` are those that were read."""

    def __init__(self, secrets_dir: Path | None) -> None:
        self._secrets_dir = secrets_dir
        self.values: list[bytes] = []

    def filled(self, variable: V) -> V:
        """The variable, or the header, with the value of its file."""
        if variable.value_from is None:
            return variable
        name = variable.value_from.file
        data = read_secret(self._secrets_dir, name)
        if sum(map(len, self.values)) + len(data) > MAX_SECRETS_BYTES:
            raise _unavailable(name, f"with it the action's secrets are larger than {MAX_SECRETS_BYTES} bytes together")
        self.values.append(data)
        if b"\0" in data:
            raise _unavailable(name, "it has a NUL byte, which neither a variable nor a header can have")
        if isinstance(variable, HttpHeader) and (b"\n" in data or b"\r" in data or not data.isascii()):
            raise _unavailable(name, "a header's value is one line of ASCII; the file has more")
        return variable.model_copy(update={"value": os.fsdecode(data), "value_from": None})


def read_secret(secrets_dir: Path | None, name: str) -> bytes:
    """The bytes of a secret file, without one line end at its end.

    Raises:
        Refusal: there is no such directory or file, it leads out of the directory, it is no file, or it is too large.
    """
    if secrets_dir is None:
        raise _unavailable(
            name, "this agent has no PODHOOK_SECRETS_DIR; mount the Secret, and set it to the mount's path"
        )
    try:
        root = os.path.realpath(secrets_dir, strict=True)
        place = os.path.realpath(f"{root}/{name}", strict=True)
        if not _below(place, root):
            raise _unavailable(name, f"it leads out of {secrets_dir}")
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            # Looked at again now that it is held: a directory on the way may have been exchanged meanwhile.
            if not _below(os.readlink(f"/proc/self/fd/{descriptor}"), root):  # noqa: PTH115 (text as the kernel says it)
                raise _unavailable(name, f"it leads out of {secrets_dir}")
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise _unavailable(name, "it is not a file; name one of the Secret's keys")
            data = os.read(descriptor, MAX_SECRET_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unavailable(name, f"{error.strerror or error}; see what is mounted at {secrets_dir}") from error
    if len(data) > MAX_SECRET_BYTES:
        raise _unavailable(name, f"it has {about.st_size} bytes; the limit is {MAX_SECRET_BYTES}")
    return data.removesuffix(b"\n").removesuffix(b"\r")


def _below(place: str, root: str) -> bool:
    return place.startswith(root.rstrip("/") + "/")


def _unavailable(name: str, why: str) -> Refusal:
    return Refusal(ErrorCode.SECRET_UNAVAILABLE, f"valueFrom.file {name!r}: {why}; nothing was run")
