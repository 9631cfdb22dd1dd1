"""A flood of refusals must not become a flood of log lines: a few are written in full, the rest are counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import structlog

#: Lines of one kind that are written in full within a minute: enough to see who and what, too few to fill a disk.
LINES_A_MINUTE = 60


class Flood:
    """A bucket of `lines_a_minute` lines that fills again evenly.

    `admit` returns None for a line that is to be left out, else how many were left out since the last one. `clock`
    counts seconds and never goes back.
    """

    def __init__(self, lines_a_minute: int = LINES_A_MINUTE, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = float(lines_a_minute)
        self._clock = clock
        self._left = self._most
        self._at = clock()
        self._suppressed = 0

    def admit(self) -> int | None:
        """May a line be written now? None: no, it is counted. Else the number of those left out before it."""
        if not self._fill():
            self._suppressed += 1
            return None
        self._left -= 1
        return self.settle()

    def settle(self) -> int:
        """How many were left out that nobody was told of; now somebody is, whether there is room or not."""
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed

    def leftover(self) -> int:
        """How many were left out and not told yet, if a line may be written now; for who looks from time to time."""
        if not self._suppressed or not self._fill():
            return 0
        return self.admit() or 0

    def _fill(self) -> bool:
        """Let the time since the last look count; whether there is room for a line."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._most / 60)
        self._at = now
        return self._left >= 1


#: Events that a stranger's message can cause. What an agent does for its own reasons is never left out.
BY_STRANGERS = frozenset(
    {
        "attempt.tombstoned",
        "bus.message_dropped",
        "bus.packet_too_large",
        "bus.queue_full",
        "command.crashed",
        "command.refused",
        "go.ignored",
        "library.said",
        "refusal.dropped",
        "reply.refused",
        "report.dropped",
        "trigger.refused",
        "trigger.seen_before",
    }
)


class Floods:
    """A structlog processor: of each event that a stranger can cause, only so many lines a minute.

    A line that comes after others were left out says how many: `suppressed=`.
    """

    def __init__(self, make: Callable[[], Flood] = Flood) -> None:
        self._floods = {event: make() for event in sorted(BY_STRANGERS)}

    def __call__(self, _logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Pass a line on, or drop it.

        Raises:
            structlog.DropEvent: it is one too many, and counted.
        """
        flood = self._floods.get(str(line.get("event")))
        if flood is None:
            return line
        suppressed = flood.admit()
        if suppressed is None:
            raise structlog.DropEvent
        if suppressed:
            line["suppressed"] = suppressed
        return line

    def leftovers(self) -> Iterator[tuple[str, int]]:
        """(event, how many lines were left out), of floods that ended: no further line told it."""
        for event, flood in self._floods.items():
            if suppressed := flood.leftover():
                yield event, suppressed
