"""The end of a container's log, with a bound on what is kept of it."""

from __future__ import annotations

from collections import deque

from agent.cluster.asking import Asker
from agent.cluster.refusals import Question

#: The kubelet is asked for so many lines: it would send up to 10 MiB (its `containerLogMaxSize`) otherwise.
LINES = 2000


async def log_end(asker: Asker, question: Question, container: str, limit_bytes: int) -> tuple[bytes, int | None]:
    """At most the last `limit_bytes` of the log, and its size; None where the beginning was not sent.

    `limitBytes` of the API would cut the end off, which is the part that is wanted.
    """
    query = [("tailLines", str(LINES))]
    if container:
        query.append(("container", container))
    kept: deque[bytes] = deque()
    size = lines = held = 0
    async with asker.stream(question, query, asker.timeout_seconds) as stream:
        while piece := await stream.read():
            size += len(piece)
            lines += piece.count(b"\n")
            kept.append(piece)
            held += len(piece)
            while held - len(kept[0]) >= limit_bytes:
                held -= len(kept.popleft())
    end = b"".join(kept)
    return end[max(0, len(end) - limit_bytes) :], None if lines >= LINES else size
