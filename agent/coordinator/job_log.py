"""The end of a Job's log as an outcome's output: without secrets, within its bound, from a line's beginning. Pure."""

from __future__ import annotations

from agent.contract.messages import CapturedStream
from agent.contract.outcomes import captured_stream
from agent.contract.redaction import Redactor
from agent.contract.secret_names import secrets_of
from agent.coordinator.jobs import Json

#: A line that the log's cut has halved is left out, if it is no longer than this.
MAX_HALF_LINE_BYTES = 4096


def secrets_in(job: Json) -> list[bytes]:
    """What must not be seen of the Job's variables, by their names; what they read from Secrets is not known here."""
    container = job["spec"]["template"]["spec"]["containers"][0]
    return [
        secret
        for each in container.get("env", [])
        if each.get("value")
        for secret in secrets_of(each["name"].encode(), each["value"].encode())
    ]


def log_output(data: bytes, total_bytes: int | None, limit_bytes: int, redactor: Redactor) -> CapturedStream:
    """Make an outcome's output of a log's end; `total_bytes` is the whole log's size, None where that is not known."""
    cut = total_bytes is None or total_bytes > len(data)
    kept = redactor.data(data, begun=cut)
    if len(kept) > limit_bytes:
        cut, kept = True, kept[len(kept) - limit_bytes :]
    if not cut:
        return captured_stream(kept).model_copy(update={"total_bytes": total_bytes})
    kept = kept[kept.find(b"\n", 0, MAX_HALF_LINE_BYTES) + 1 :]
    if total_bytes is None:
        return captured_stream(kept).model_copy(update={"truncated": True})
    stream = captured_stream(b"", kept, cut_bytes=max(1, total_bytes - len(kept)))
    return stream.model_copy(update={"total_bytes": total_bytes})
