"""What happened, one JSON line each, written as it happens: all that the ledger judges by, and all that people read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: `at` is the wall clock in seconds, as `date +%s.%N` says it in the actions; `what` names the event.
Event = dict[str, Any]


class Diary:
    """An event log that is in memory as well."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def note(self, what: str, **more: Any) -> Event:
        """Write an event down as of now; `at` in `more` is for what is told later."""
        event = {"at": round(time.time(), 4), "what": what, **more}
        self.events.append(event)
        self._file.write(json.dumps(event) + "\n")
        return event

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[Event]:
    """The events of a diary that was kept."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def executions(path: Path) -> Iterable[Event]:
    """What the actions wrote: `start|end TRIGGER_ID POD_UID SECONDS`, one line each, appended in one write."""
    if path.exists():
        for line in path.read_text(encoding="ascii").splitlines():
            word, trigger, uid, at = line.split()
            yield {"at": float(at), "what": word, "trigger": trigger, "uid": uid}
