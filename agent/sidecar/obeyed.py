"""Since when each key is obeyed here, also over restarts.

A trigger of a key that is not trusted is refused without a record: nothing in it can be believed. It must not run later
because the key came, and the same bytes came again; so what was issued before its key was obeyed stays refused
(`key_just_trusted`). The journal keeps since when that is, or a restart would make every key look as old as the agent.
Pure: told what is obeyed, and when it is now.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any

#: Stands for commands that nobody signed, where the agent obeys them (PODHOOK_ALLOW_UNSIGNED).
UNSIGNED = ""


class Obeyed:
    """Key ids (and UNSIGNED), each with the time since when it is obeyed. `text` is what the journal keeps of it."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._began = now()
        self._since: dict[str, datetime] = {}
        self._looked = False

    @property
    def since(self) -> Mapping[str, datetime]:
        """Who is obeyed at this moment, and since when."""
        return self._since

    @property
    def text(self) -> str:
        """JSON: key id to seconds since the epoch."""
        return json.dumps({kid: since.timestamp() for kid, since in sorted(self._since.items())})

    def are(self, kids: Collection[str]) -> None:
        """These are obeyed now, and nobody else. Whoever is new is so since now; of the first, since our start."""
        new = self._now() if self._looked else self._began
        self._looked = True
        self._since = {kid: self._since.get(kid, new) for kid in kids}

    def recall(self, text: str | None) -> None:
        """What the journal kept of our earlier life; None or nonsense if it kept nothing.

        Who was obeyed then is so since then. Who was not is so since our start at the earliest - unless everybody was
        obeyed: then nothing was refused for its key, and what ran is known to every key.
        """
        before = _parsed(text)
        for kid, since in self._since.items():
            if since == self._began:
                self._since[kid] = before.get(kid, before.get(UNSIGNED, since))


def _parsed(text: str | None) -> dict[str, datetime]:
    try:
        document: Any = json.loads(text or "{}")
        return {str(kid): datetime.fromtimestamp(float(seconds), UTC) for kid, seconds in document.items()}
    except (ValueError, TypeError, AttributeError, OverflowError, OSError, RecursionError):
        return {}
