"""What the agent asks the launcher for, checked: the agent faces the network, so its word is not taken on trust.

Standard library only, and nothing that imports late.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

#: -1 means "leave it as it is" to setresuid(2), and so does this number: whoever asked for it would stay root.
NO_ID = 0xFFFFFFFF
MAX_ID_DIGITS = 10
MAX_PID = 1 << 22
#: What a hook gets that asks for `environment: minimal` (SEMANTICS: exec); searched also where there is no PATH.
MINIMAL_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Job(NamedTuple):
    """What a child is to become. Bytes are as the kernel takes them.

    `container` with its main process, `pid` and `started` (clock ticks since boot), is where; None is the agent's own
    container, where nothing is entered. `user` is as in `exec.user`; empty is the main process's. `inherit` takes the
    main process's environment; `fallback` takes PATH and HOME where that was overwritten. `mark` tells the attempt.
    `look` is to become nothing: only to hand over which variables of the container are secrets, and end.
    """

    container: bytes | None
    pid: int
    started: int
    argv: list[bytes]
    environment: list[tuple[bytes, bytes]]
    inherit: bool
    fallback: bool
    user: bytes
    mark: int
    look: bool = False


def parse_job(request: dict[str, Any], mark: int) -> Job:
    """The job of a start request; its mark is the launcher's to give.

    Raises:
        ValueError: a field is not what it must be; names it.
    """
    container = _text(request, "container") if request.get("container") is not None else None
    job = Job(
        container=container,
        pid=_number(request, "pid", 1 if container is not None else 0, MAX_PID),
        started=_number(request, "started", 0, 1 << 63),
        argv=[_bytes(part, "argv") for part in _list(request, "argv")],
        environment=[_variable(pair) for pair in _list(request, "environment")],
        inherit=_flag(request, "inherit"),
        fallback=_flag(request, "fallback"),
        user=_text(request, "user"),
        mark=mark,
        look="look" in request and _flag(request, "look"),
    )
    if job.look and (job.argv or container is None):
        raise ValueError("look: into a container, and with no command")
    if not job.argv and not job.look:
        raise ValueError("argv is empty")
    if container is None and job.user:
        raise ValueError("user: in the agent's own container there is only one")
    return job


def parse_user(user: bytes, default_gid: int) -> tuple[int, int] | None:
    """(uid, gid) of `root`, `uid` or `uid:gid`; None for any other name, which the container's passwd has to know.

    Raises:
        ValueError: a number that is no id, or a group without numbers.
    """
    if user == b"root":
        return 0, 0
    name, colon, group = user.partition(b":")
    if colon and not (name.isdigit() and group.isdigit()):
        raise ValueError("a group goes with a number only: uid:gid")
    if not name.isdigit():
        return None
    if max(len(name), len(group)) > MAX_ID_DIGITS:
        raise ValueError("ids have ten digits at most")
    uid, gid = int(name), int(group) if colon else default_gid
    if not (0 <= uid < NO_ID and 0 <= gid < NO_ID):
        raise ValueError(f"ids go from 0 to {NO_ID - 1}")
    return uid, gid


def parse_request(data: bytes) -> dict[str, Any]:
    """The request in a packet. Raises ValueError."""
    request = json.loads(data)
    if type(request) is not dict or type(request.get("op")) is not str:
        raise ValueError("no request")
    _number(request, "id", 0, 1 << 63)
    return request


def parse_signal(request: dict[str, Any]) -> int:
    """The number of the signal that is asked for. Raises ValueError."""
    return _number(request, "signal", 1, 64)


def dump(message: dict[str, Any]) -> bytes:
    """A packet. Bytes that were no text (PEP 383) come through; ASCII alone would make text three times as long."""
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _list(request: dict[str, Any], key: str) -> list[Any]:
    value = request.get(key)
    if type(value) is not list:
        raise ValueError(f"{key} is no list")
    return value


def _number(request: dict[str, Any], key: str, least: int, most: int) -> int:
    value = request.get(key)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{key} is no number from {least} to {most}")
    return value


def _flag(request: dict[str, Any], key: str) -> bool:
    value = request.get(key)
    if type(value) is not bool:
        raise ValueError(f"{key} is neither true nor false")
    return value


def _text(request: dict[str, Any], key: str) -> bytes:
    return _bytes(request.get(key), key)


def _bytes(value: object, key: str) -> bytes:
    if type(value) is not str or "\0" in value:
        raise ValueError(f"{key} is no text without NUL")
    try:
        return os.fsencode(value)
    except UnicodeEncodeError:
        raise ValueError(f"{key} has half a surrogate pair, which no file system knows") from None


def _variable(pair: object) -> tuple[bytes, bytes]:
    if type(pair) is not list or len(pair) != 2:
        raise ValueError("environment is no list of pairs")
    name, value = _bytes(pair[0], "environment"), _bytes(pair[1], "environment")
    if not name or b"=" in name:
        raise ValueError("environment has a name that is none")
    return name, value
