"""Keeping output within bounds: the head and tail of a stream, and an outcome that fits the broker."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.contract.messages import CapturedStream, ErrorDetail, OutcomeMessage, Result

if TYPE_CHECKING:
    from agent.contract.errors import ErrorCode
    from agent.contract.redaction import Redactor
    from agent.contract.states import Outcome

#: A quarter of the limit is for the start of a stream, the rest for its end (SEMANTICS: 8 and 24 of 32 KiB).
HEAD_SHARE = 4
#: Who it was and how it ended fit into this much, as sent and signed; a lower limit cannot be kept.
MIN_OUTCOME_LIMIT_BYTES = 8 * 1024

_CUT = re.compile(r"\n\[\.\.\. ([0-9]{1,20}) bytes cut \.\.\.\]\n")


class OutputBuffer:
    """Keeps the first quarter and the last three quarters of `limit_bytes`, and counts everything."""

    def __init__(self, limit_bytes: int) -> None:
        self._head_limit = limit_bytes // HEAD_SHARE
        self._tail_limit = limit_bytes - self._head_limit
        self._head = bytearray()
        self._tail = bytearray()
        self.total_bytes = 0

    def write(self, data: bytes) -> None:
        """Take more of the stream; never grows beyond the limit by more than one write."""
        self.total_bytes += len(data)
        room = self._head_limit - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if len(data) >= self._tail_limit:
            self._tail = bytearray(data[len(data) - self._tail_limit :])
        elif data:
            self._tail += data
            del self._tail[: max(0, len(self._tail) - self._tail_limit)]

    def captured(self) -> CapturedStream:
        """What was kept. Where something is missing in the middle, a line says how much."""
        kept = len(self._head) + len(self._tail)
        return captured_stream(bytes(self._head), bytes(self._tail), cut_bytes=self.total_bytes - kept)


def captured_stream(head: bytes, tail: bytes = b"", *, cut_bytes: int = 0) -> CapturedStream:
    """Make a stream of its head and tail. Bytes that are not UTF-8 travel as base64, flagged.

    A cut may fall inside a character: up to three bytes at each edge of it go, for the text to stay text.
    """
    total = len(head) + len(tail) + cut_bytes
    if not cut_bytes:
        head, tail = head + tail, b""
    text_head, text_tail = (_whole_end(head), _whole_start(tail)) if cut_bytes else (head, tail)
    try:
        decoded_head, decoded_tail = text_head.decode(), text_tail.decode()
    except UnicodeDecodeError:
        data = base64.b64encode(head + tail).decode()
        return CapturedStream(text=data, encoding="base64", total_bytes=total, truncated=cut_bytes > 0)
    mark = f"\n[... {total - len(text_head) - len(text_tail)} bytes cut ...]\n" if cut_bytes else ""
    return CapturedStream(text=decoded_head + mark + decoded_tail, total_bytes=total, truncated=cut_bytes > 0)


def _whole_end(data: bytes) -> bytes:
    """Without an unfinished character at the end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            return data
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data if length == back else data[:-back]
    return data


def _whole_start(data: bytes) -> bytes:
    """Without the rest of a character that began before."""
    skip = 0
    while skip < min(3, len(data)) and 0x80 <= data[skip] < 0xC0:
        skip += 1
    return data[skip:]


def failure(outcome: Outcome, code: ErrorCode, message: str, rule: str = "") -> Result:
    """A result that ended without running to its end: no output, just why, and which rule of the policy says so.

    The message may hold a file's name that is not UTF-8 (`os.fsdecode` makes half surrogate pairs of it).
    """
    sendable = message[:8000].encode(errors="backslashreplace").decode()[:8000]
    return Result(outcome=outcome, error=ErrorDetail(code=code, message=sendable, rule=rule[:256] or None))


def redacted(result: Result, redactor: Redactor) -> Result:
    """A result whose sentences hold no secret; its output was redacted when it was read."""
    if not redactor:
        return result
    why = result.error and result.error.model_copy(update={"message": redactor.text(result.error.message)[:8000]})
    return result.model_copy(update={"error": why, "notes": [redactor.text(note)[:2048] for note in result.notes]})


def fit(message: OutcomeMessage, size_of: Callable[[OutcomeMessage], int], limit_bytes: int) -> OutcomeMessage:
    """Cut an outcome until `size_of` it is at most `limit_bytes` (at least MIN_OUTCOME_LIMIT_BYTES).

    First the kept output gets shorter, then it goes; only if that is not enough, the notes and the end of the
    sentence that says why. Who it was and how it ended are never cut.
    """
    if size_of(message) <= limit_bytes:
        return message
    for keep in (16 * 1024, 8 * 1024, 4 * 1024, 1024, 256):
        cut = message.model_copy(
            update={"stdout": _shorter(message.stdout, keep), "stderr": _shorter(message.stderr, keep)}
        )
        if size_of(cut) <= limit_bytes:
            return cut
    bare = without_output(message)
    for characters in (4096, 1024, 256, 0):
        if size_of(bare) <= limit_bytes:
            break
        why = bare.error and bare.error.model_copy(update={"message": bare.error.message[:characters]})
        bare = bare.model_copy(update={"notes": [], "error": why})
    return bare


def without_output(message: OutcomeMessage) -> OutcomeMessage:
    """The same outcome with its sizes but none of its output."""
    streams = {
        name: CapturedStream(total_bytes=stream.total_bytes, truncated=stream.total_bytes > 0)
        for name, stream in (("stdout", message.stdout), ("stderr", message.stderr))
    }
    return message.model_copy(update=streams)


def _shorter(stream: CapturedStream, keep: int) -> CapturedStream:
    head, tail = _kept(stream)
    if len(head) + len(tail) <= keep:
        return stream
    share = keep // HEAD_SHARE
    new_head = head[:share]
    rest = tail or head
    new_tail = rest[len(rest) - (keep - share) :]
    cut_bytes = stream.total_bytes - len(new_head) - len(new_tail)
    return captured_stream(new_head, new_tail, cut_bytes=cut_bytes)


def _kept(stream: CapturedStream) -> tuple[bytes, bytes]:
    """The bytes before and after the cut, without the line that tells of it; without a cut all are before."""
    if stream.encoding == "base64":
        return base64.b64decode(stream.text), b""
    if stream.truncated:
        for found in _CUT.finditer(stream.text):  # the command may have printed such a line too
            head, tail = stream.text[: found.start()].encode(), stream.text[found.end() :].encode()
            if len(head) + len(tail) + int(found[1]) == stream.total_bytes:
                return head, tail
    return stream.text.encode(), b""
